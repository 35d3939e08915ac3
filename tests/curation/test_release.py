"""Releases: the same bytes anywhere, one meaning per name, loadable as they are, memory bounded."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from curation.audit.order_audit import audit, audit_sample, scoring_teachers
from curation.errors import CurationError
from curation.release.recipe import ReleaseRecipe
from curation.release.release import create_release
from db.check import check_store
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.releases import Release, ReleaseItem
from db.tables.texts import Collection
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

ROOT = Path(__file__).parents[2]


def fill(store: Store, num: int, *, order: int = 1, seed: int = 0) -> None:
    """Examples with uneven candidates; `order` -1 puts them in the other way round, which must not matter."""
    with store.write() as session:
        collection = Collection(name="toy", kind="beir", licence="cc-by-4.0")
        session.add(collection)
        session.flush()
        run = start_run(session, "generate", "toy-run", {"pack": "v1", "pack_digest": "f" * 64}, seed)
        teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=4)
        for start in range(0, num, 500):
            numbers = list(range(start, min(num, start + 500)))[::order]
            queries = put_queries(session, [f"query {n // 2}" for n in numbers])
            positives = put_passages(session, [f"positive {n}" for n in numbers])
            pairs = list(zip(queries, positives, strict=True))
            examples = put_examples(session, pairs, origin="corpus", collection_id=collection.id)
            candidates, scores = [], []
            for n, query, positive, example in zip(numbers, queries, positives, examples, strict=True):
                candidates.append(NewCandidate(example, positive, "positive", "corpus", run.id))
                scores.append((query, positive, 0.9))
                texts = [f"written {n} {rank}" for rank in range(1, 5 - n % 3)] + [
                    f"mined {n} {i}" for i in range(n % 4)
                ]
                for place, (text, passage) in enumerate(zip(texts, put_passages(session, texts), strict=True), start=1):
                    is_written = text.startswith("written")
                    candidates.append(
                        NewCandidate(
                            example, passage, "negative", "synthetic" if is_written else "mined", run.id,
                            grade={1: "hard", 2: "medium", 3: "medium", 4: "easy"}[place] if is_written else None,
                            rank=place if is_written else None,
                        )
                    )  # fmt: skip
                    scores.append((query, passage, 0.8 - 0.1 * place))
            put_candidates(session, candidates)
            insert_missing(
                session,
                Score,
                [
                    {
                        "teacher_id": teacher,
                        "query_id": q,
                        "passage_id": p,
                        "value": value,
                        "num_tokens": round(10 * value) % 7,
                    }
                    for q, p, value in dict.fromkeys(scores)
                ],
            )


def test_every_configuration_holds_what_the_store_holds(store: Store, tmp_path: Path) -> None:
    fill(store, 30)
    released = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    graded = [row for split in ("train", "dev") for row in read(released.folder, "graded", split)]
    assert len(graded) == 30
    by_positive = {row["positive"]: row for row in graded}
    for n in range(30):
        row = by_positive[f"positive {n}"]
        assert row["query"] == f"query {n // 2}" and row["licence"] == "cc-by-4.0" and row["source"] == "toy"
        assert [x["rank"] for x in row["negatives"]] == [*range(1, 5 - n % 3), *[None] * (n % 4)]
        assert [x["mined_rank"] for x in row["negatives"] if x["origin"] == "mined"] == list(range(1, n % 4 + 1))
        assert row["num_synthetic_slots"] + row["num_mined_slots"] == min(3, len(row["negatives"]))
        assert row["positive_scores"] == [{"teacher": "minilm", "value": pytest.approx(0.9)}]
    sides = {row["query"]: set() for row in graded}
    for split in ("train", "dev"):
        for row in read(released.folder, "graded", split):
            sides[row["query"]].add(split)
    assert all(len(found) == 1 for found in sides.values())
    tuples = read(released.folder, "n-tuple", "train")
    assert list(tuples[0]) == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert all(value for row in tuples for value in row.values())
    manifest = orjson.loads((released.folder / "manifest.json").read_bytes())
    assert manifest == released.manifest
    with store.read() as session:
        items = session.scalar(select(func.count()).select_from(ReleaseItem))
    assert items == manifest["num_items"] == 30 + sum(len(row["negatives"]) for row in graded)
    assert check_store(store, progress=lambda done, total: None) == []


def read(folder: Path, config: str, split: str) -> list[dict[str, object]]:
    return [row for file in sorted((folder / config).glob(f"{split}-*")) for row in pq.read_table(file).to_pylist()]


def test_the_same_again_changes_nothing_and_a_name_keeps_its_meaning(store: Store, tmp_path: Path) -> None:
    fill(store, 12)
    first = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    second = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    assert (first.is_new, second.is_new, first.digest) == (True, False, second.digest)
    with pytest.raises(CurationError, match="a promise"):
        create_release(store, ReleaseRecipe(seed=1), "toy-1.0.0", folder=tmp_path)
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Release)) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".toy")] == []


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b"])
def test_unusable_names_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(CurationError, match="release name"):
        create_release(store, ReleaseRecipe(), name, folder=tmp_path)


def test_a_folder_that_is_no_release_is_never_removed(store: Store, tmp_path: Path) -> None:
    fill(store, 6)
    (tmp_path / "toy-1.0.0").mkdir()
    (tmp_path / "toy-1.0.0" / "thesis.txt").write_text("years of work")
    with pytest.raises(CurationError, match="is no release"):
        create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    assert (tmp_path / "toy-1.0.0" / "thesis.txt").read_text() == "years of work"


def test_nothing_to_release_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no negatives of runs x"):
        create_release(store, ReleaseRecipe(runs=("x",)), "toy-1.0.0", folder=tmp_path)


CODE = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "tests" / "curation")]
from test_release import fill
from curation.release.recipe import ReleaseRecipe
from curation.release.release import create_release
from db.store import Store
store = Store.open(f"sqlite:///{sys.argv[2]}/store.db")
fill(store, 40, order=int(sys.argv[3]))
print(create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=Path(sys.argv[2])).digest)
"""
# A second version too, whose card and manifest tell what changed since the first.
AGAIN = """
print(create_release(store, ReleaseRecipe(seed=5), "toy-1.1.0", folder=Path(sys.argv[2])).digest)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    digests, files = [], []
    for name, order, hash_seed, zone in (("a", "1", "1", "Asia/Seoul"), ("b", "-1", "77", "America/New_York")):
        folder = tmp_path / name
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": zone}
        command = [sys.executable, "-c", CODE + AGAIN, str(ROOT), str(folder), order]
        digests.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
        found = [path for path in sorted(folder.glob("toy-*/**/*")) if path.is_file()]
        files.append({str(path.relative_to(folder)): path.read_bytes() for path in found})
    assert digests[0] == digests[1]
    names = {name.split("/", 1)[1] for name in files[0]}
    assert names >= {"README.md", "manifest.json", "croissant.json", "audit.json", "ladder.png"}
    assert len(names) == 5 + 7 + 5 and len(files[0]) == 12 + 17  # the first has no dev side
    assert {name for name in files[0] if files[0][name] != files[1].get(name)} == set()


def test_datasets_loads_the_folder_as_it_is(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    fill(store, 24)
    folder = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path).folder
    store.close()
    code = (
        "import sys; from datasets import load_dataset\n"
        "for config in ('graded', 'n-tuple', 'triplet', 'corpus', 'queries', 'qrels', 'provenance'):\n"
        "    print(config, {k: v.num_rows for k, v in load_dataset(sys.argv[1], config).items()})\n"
        "print(next(iter(load_dataset(sys.argv[1], 'graded', split='train', streaming=True)))['query'][:5])\n"
        # A reader thread of a stream that is left half-read can abort the interpreter at its end.
        "sys.stdout.flush(); import os; os._exit(0)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.splitlines()[-1] == "query" and "graded {'train'" in done.stdout


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    peaks = []
    for num in (2_000, 10_000):  # both fill the writers' buffers, which are bounded
        folder = tmp_path / str(num)
        folder.mkdir()
        code = CODE.replace("fill(store, 40, order=int(sys.argv[3]))", f"fill(store, {num})") + (
            "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(ROOT), str(folder), "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    per_candidate = (peaks[1] - peaks[0]) * 1024 / (8_000 * 5)
    assert per_candidate < 2_000, f"{per_candidate:.0f} bytes a candidate"


def test_audit_equals_hand_values(store: Store) -> None:
    fill(store, 9)
    report = audit(store, teacher="minilm").to_dict()
    (group,) = report["groups"]
    assert group["num_examples"] == 9
    # Example n has ranks 1 to 4 - n % 3, all in order at 0.7, 0.6, 0.5, 0.4, then n % 4 mined ones below.
    assert {label: rank["num"] for label, rank in group["ranks"].items()} == {
        "N1": 9, "N2": 9, "N3": 6, "N4": 3, "mined": 12
    }  # fmt: skip
    assert group["ranks"]["N2"]["mean"] == pytest.approx(0.6)
    assert group["ranks"]["N1"]["above_positive"] == 0
    assert group["positive"]["mean"] == pytest.approx(0.9)
    order = group["order"]
    # Ranks 2 and 3 are tied in the known order and not in similarity, which tau-b counts: 2/sqrt(2*3), 5/sqrt(5*6).
    tau = (1 + 2 / 6**0.5 + 5 / 30**0.5) / 3
    assert (order["accuracy"], order["tau_b"], order["num_inversions"]) == (1.0, pytest.approx(tau), 0)
    assert order["num_pairs"] == 3 * 1 + 3 * 2 + 3 * 5
    with pytest.raises(CurationError, match="gradus score"):
        audit(store, teacher="nobody")


def test_audit_of_a_sample_is_the_audit_of_each_runs_first_examples(store: Store) -> None:
    fill(store, 30)
    (whole,) = audit(store, teacher="minilm").groups
    (all_of_it,) = audit_sample(store, teacher="minilm", num_runs=3, num_examples=30).groups
    assert all_of_it.to_dict() == whole.to_dict()
    (sample,) = audit_sample(store, teacher="minilm", num_runs=3, num_examples=7).groups
    assert sample.positive == whole.positive[:7]
    assert list(sample.right) == list(whole.right)[:7]
    with pytest.raises(CurationError, match="no negatives"):
        audit_sample(store, teacher="minilm", num_runs=3, num_examples=0)


def test_audit_of_a_sample_looks_at_the_newest_runs(store: Store) -> None:
    fill(store, 6)
    with store.write() as session:
        run = start_run(session, "import", "newest", {}, 0)
        (query,), (positive, negative) = put_queries(session, ["q"]), put_passages(session, ["p", "n"])
        (example,) = put_examples(session, [(query, positive)], origin="corpus")
        put_candidates(session, [NewCandidate(example, negative, "negative", "corpus", run.id)])
        teacher = put_teacher(session, name="other", version="w", kind="bi-encoder")
        rows = [{"teacher_id": teacher, "query_id": query, "num_tokens": 1}]
        insert_missing(session, Score, [rows[0] | {"passage_id": p, "value": 0.5} for p in (positive, negative)])
        assert scoring_teachers(session) == ["other", "minilm"]
    for teacher_name, found in (("other", ["newest"]), ("minilm", ["toy-run"])):
        report = audit_sample(store, teacher=teacher_name, num_runs=1, num_examples=9)
        assert [group.run for group in report.groups] == found
