"""`gradus release`, as a person types it: tables, JSON, exit codes."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from curation.release.catalogue import find_release
from db.publications import record_publication
from db.store import Store


def gradus(store: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what the person sees, and the JSON report."""
    report = store.parent / "report.json"
    report.unlink(missing_ok=True)
    code = "import sys; from app.cli import main; sys.argv[0] = 'gradus'; main()"
    command = [sys.executable, "-c", code, *arguments, "--store", f"sqlite:///{store}", "--json", str(report)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    found = orjson.loads(report.read_bytes()) if report.is_file() else {}
    return done.returncode, done.stdout + done.stderr, found


def test_the_verbs_of_a_release(tmp_path: Path) -> None:
    store, folder = tmp_path / "store.db", str(tmp_path / "releases")
    rows = [{"query": f"q{n}", "positive": f"p{n}", "negative": f"[n{n}]"} for n in range(4)]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(orjson.dumps(row | {"scores": [0.9, 0.5]}) for row in rows))
    (tmp_path / "recipe.toml").write_text('licence = "mit"\nteacher = "published by set"\n')
    published = tmp_path / "set"
    published.mkdir()
    (tmp_path / "train.jsonl").rename(published / "train.jsonl")
    exit_code, told, report = gradus(store, "import", "hub", str(published))
    assert (exit_code, report["counts"]) == (0, {"rows": 4, "positives": 4, "negatives": 4, "scores": 8}), told

    create = ("release", "create", "--folder", folder, "--recipe", str(tmp_path / "recipe.toml"))
    exit_code, told, _ = gradus(store, *create, "toy")
    assert exit_code == 1 and "NAME-MAJOR.MINOR.PATCH" in told and "Traceback" not in told
    exit_code, told, report = gradus(store, *create, "toy-1.0.0")
    assert (exit_code, report["version"], report["parent"]) == (0, "1.0.0", None), told
    (tmp_path / "recipe.toml").write_text('licence = "mit"\nteacher = "published by set"\nseed = 3\n')
    exit_code, told, report = gradus(store, *create, "toy-1.1.0")
    assert exit_code == 0 and report["parent"]["name"] == "toy-1.0.0"

    exit_code, told, report = gradus(store, "release", "diff", "toy-1.0.0", "toy-1.1.0")
    assert exit_code == 0 and report["recipe"] == [{"key": "seed", "was": 0, "now": 3}] and "seed" in told
    exit_code, told, report = gradus(store, "release", "show")
    assert [one["name"] for one in report["releases"]] == ["toy-1.0.0", "toy-1.1.0"]
    exit_code, told, report = gradus(store, "release", "verify", "toy-1.0.0")
    assert (exit_code, report["problems"]) == (0, []) and "sound" in told
    (tmp_path / "releases" / "toy-1.0.0" / "README.md").write_text("x")
    exit_code, told, report = gradus(store, "release", "verify", "toy-1.0.0")
    assert exit_code == 1 and [one["where"] for one in report["problems"]] == ["README.md"]
    exit_code, told, report = gradus(store, "release", "export", "toy-1.0.0", "--folder", str(tmp_path / "again"))
    assert exit_code == 0 and report["written"][0]["left_out"] == {}, told
    exit_code, told, report = gradus(
        store, "release", "export", "toy-1.1.0", "--format", "jsonl", "--config", "triplet", "--folder", str(tmp_path)
    )
    assert exit_code == 0 and len(report["written"]) == len(list(tmp_path.glob("toy-1.1.0-triplet-*.jsonl"))), told
    assert gradus(store, "release", "export", "toy-1.1.0", "--config", "triplet")[0] == 2
    assert gradus(store, "release", "export", "toy-1.1.0", "--format", "jsonl", "--allow-missing")[0] == 2
    with contextlib.closing(Store.open(f"sqlite:///{store}")) as opened:
        with opened.read() as session:
            key = find_release(session, "toy-1.1.0").id
        record_publication(opened, key, endpoint="http://h", repo="org/toy", tag="v1.1.0", commit="c" * 40)
    exit_code, told, report = gradus(store, "release", "show", "toy-1.1.0")
    assert "published: http://h/datasets/org/toy at v1.1.0, cccccccccccc" in told and len(report["publications"]) == 1
    exit_code, told, report = gradus(store, "release", "retire", "toy-1.0.0", "--reason", "an [old] one")
    assert (exit_code, report["retired"]) == (0, "an [old] one")
    exit_code, told, report = gradus(store, "release", "show", "toy-1.0.0")
    assert exit_code == 0 and "retired: an [old] one" in told and report["release"]["retired"] == "an [old] one"
    assert gradus(store, "release", "retire", "toy-1.0.0")[0] == 2
