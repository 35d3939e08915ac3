"""The command line: it starts fast, loads nothing heavy, and tells a person what is wrong in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from db.store import Store

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "curation", "db", "generator", "trainer")
HEAVY = ("torch", "vllm", "sentence_transformers", "transformers", "streamlit", "datasets", "matplotlib")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "gradus"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def imported_by(code: str) -> set[str]:
    listing = f"{code}; import sys; print(*sys.modules)"
    command = [sys.executable, "-W", "error", "-c", listing]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_command_modules_load_nothing_heavy() -> None:
    modules = [f"app.commands.{path.stem}" for path in (ROOT / "app" / "commands").glob("[a-z]*.py")]
    assert len(modules) > 5
    loaded = imported_by("import app.cli, " + ", ".join(modules))
    assert loaded.isdisjoint({*HEAVY, "sqlalchemy", "pydantic", "numpy", "pyarrow"})


ARROWS = {
    "db": set(),
    "generator": {"db"},
    "curation": {"db"},
    "trainer": set(),
    "app": {"db", "generator", "curation", "trainer"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrows(package: str) -> None:
    import ast

    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            ours = {name.split(".")[0] for name in names} & set(PACKAGES)
            assert ours <= ARROWS[package] | {package}, f"{path.relative_to(ROOT)} imports {ours}"


def test_every_command_has_help_that_says_something() -> None:
    listed = run("--help")
    assert listed.returncode == 0
    for command in (
        "import",
        "prompts",
        "generate",
        "mine",
        "score",
        "audit",
        "judge",
        "release",
        "train",
        "evaluate",
        "anchors",
        "status",
        "app",
    ):
        assert command in listed.stdout
        shown = run(command, "--help")
        assert shown.returncode == 0 and len(shown.stdout) > 200


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--nonsense"], 2, "No such option"),
        (["generate"], 2, "Missing argument"),
        (["generate", "none.toml"], 1, "none.toml"),
        (["import", "beir", "nowhere"], 1, "nowhere"),
        (["import", "documents", "nowhere"], 1, "nowhere"),
        (["prompts", "show", "v9/x"], 1, "v9"),
        (["prompts", "--pack", "nowhere"], 1, "nowhere"),
        (["status", "--store", "nonsense"], 1, "--store"),
        (["judge"], 2, "RECIPE"),
        (["judge", "none.toml"], 1, "none.toml"),
        (["store", "merge", "nowhere.db"], 1, "no such file"),
        (["train", "none.toml"], 1, "none.toml"),
        (["evaluate", "none", "--data", "nowhere", "--split", "dev"], 1, "nowhere"),
    ],
)
def test_bad_input_ends_with_one_clear_line(tmp_path: Path, arguments: list[str], code: int, told: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert told in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("option", [["--json", "-"], ["--json=-"]])
def test_json_on_standard_output_stands_alone(tmp_path: Path, option: list[str]) -> None:
    Store.open(f"sqlite:///{tmp_path}/s.db").close()
    done = run("status", "--store", f"sqlite:///{tmp_path}/s.db", *option)
    assert json.loads(done.stdout)["counts"]["examples"] == 0
    assert "In the store" in done.stderr


def test_looking_at_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    done = run("status", "--store", f"sqlite:///{tmp_path}/sub/slip.db")
    assert done.returncode == 1 and "there is no store at" in done.stderr and "gradus import" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_whatever_a_file_name_holds(tmp_path: Path) -> None:
    done = run("generate", "no\x1b[31m\nsuch\tfile.toml", cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr and "such file.toml" in done.stderr


def test_readme_names_commands_and_options_that_exist() -> None:
    readme = "\n".join(file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    named = {tuple(words.split()[:2]) for words in re.findall(r"`gradus ([a-z][^`]*)`", readme)}
    assert len(named) > 10
    groups = {"import", "store", "release", "prompts", "review"}
    helps = ""
    for path in sorted({words[: 2 if words[0] in groups else 1] for words in named}):
        found = run(*path, "--help")
        assert found.returncode == 0, f"README names gradus {' '.join(path)}"
        helps += found.stdout
    for option in set(re.findall(r"`(--[a-z-]+)", readme)) - {"--help"}:
        assert option in helps, f"README names {option}"
