"""What is done with a release once it is frozen: names, parents, differences, verifying, writing again, retiring."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, update

from curation.errors import CurationError
from curation.release.catalogue import Version, list_releases, retire_release
from curation.release.differences import diff_releases
from curation.release.exporting import export_jsonl, export_release
from curation.release.recipe import Mix, ReleaseRecipe, Split
from curation.release.release import create_release
from curation.release.verifying import verify_release
from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.base import utc_now
from db.tables.examples import Example, Score
from db.tables.ledger import Request, RunRequest
from db.tables.texts import Collection
from db.teachers import put_teacher
from db.texts import put_passages, put_queries


def put(
    store: Store,
    run: str,
    pairs: list[tuple[str, str, list[str]]],
    *,
    licence: str | None = "cc-by-4.0",
    value: float = 0.5,
) -> None:
    """Examples with negatives that a run wrote (`w ...`) or mined, scored, found in every way there is."""
    with store.write() as session:
        insert_missing(session, Collection, [{"name": f"of {run}", "kind": "beir", "licence": licence}])
        collection = session.scalars(select(Collection.id).where(Collection.name == f"of {run}")).one()
        made = start_run(session, "generate", run, {"of": run, "pack": "v2", "pack_digest": "e" * 64}, 3)
        teacher = put_teacher(session, name="minilm", version="weights", kind="bi-encoder", max_length=4)
        digest = f"{run:0<64}"[:64]
        insert_missing(
            session, Request, [{"digest": digest, "model": "scribe-1", "state": "done", "created_at": utc_now()}]
        )
        request = session.scalars(select(Request.id).where(Request.digest == digest)).one()
        link = {"run_id": made.id, "request_id": request, "plan_index": 0, "custom_id": "a", "kind": "graded"}
        insert_missing(session, RunRequest, [link | {"attributes": {}, "source": {}}])
        for query, positive, negatives in pairs:
            (asked,) = put_queries(session, [query])
            answer, *others = put_passages(session, [positive, *negatives])
            (example,) = put_examples(session, [(asked, answer)], origin="corpus", collection_id=collection)
            candidates = [NewCandidate(example, answer, "positive", "corpus", made.id)]
            for rank, (text, passage) in enumerate(zip(negatives, others, strict=True), start=1):
                is_written = text.startswith("w ")
                candidates.append(
                    NewCandidate(
                        example, passage, "negative", "synthetic" if is_written else "mined", made.id,
                        grade="hard" if is_written else None, rank=rank if is_written else None,
                    )
                )  # fmt: skip
            keys = put_candidates(session, candidates)
            for text, passage in zip(negatives, others, strict=True):
                way = {"request_id": request} if text.startswith("w ") else {
                    "teacher_id": teacher, "retrieval_rank": 7, "score": 0.25, "threshold": 0.75
                }  # fmt: skip
                put_sourcings(session, [NewSourcing(keys[example, passage], made.id, **way)])
            rows = [
                {"teacher_id": teacher, "query_id": asked, "passage_id": p, "value": value} for p in (answer, *others)
            ]
            insert_missing(session, Score, [row | {"num_tokens": 3} for row in rows])


FIRST = [(f"q{n}", f"p{n}", [f"w {n} a", f"w {n} b", f"m {n}"][: 1 + n % 3]) for n in range(12)]
LATER = [("q1", "p1", ["w 1 a", "m late"]), ("q new", "p new", ["w new"])]


@pytest.mark.parametrize("name", ["toy", "toy-1.0", "toy-01.0.0", "toy-1.0.0-rc1", "-1.0.0", "to y-1.0.0", "toy-1.0.x"])
def test_a_name_without_a_version_is_told_what_to_write(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(CurationError, match=r"NAME-MAJOR\.MINOR\.PATCH"):
        create_release(store, ReleaseRecipe(), name, folder=tmp_path)


def test_versions_compare_as_numbers() -> None:
    names = ["a-b-1.10.0", "a-b-1.9.3", "a-b-10.0.0", "a-b-1.9.12"]
    assert [str(one) for one in sorted(map(Version.parse, names))] == [names[i] for i in (1, 3, 0, 2)]
    assert Version.parse("a-b-1.9.3").number == "1.9.3"


def test_the_parent_is_the_newest_earlier_version_of_the_name(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    parents = {}
    for name in ("toy-1.9.0", "toy-1.10.0", "toys-1.9.5", "toy-2.0.0", "toy-1.9.1"):
        released = create_release(store, ReleaseRecipe(), name, folder=tmp_path)
        parents[name] = released.manifest["parent"] and released.manifest["parent"]["name"]
    assert parents == {
        "toy-1.9.0": None,
        "toy-1.10.0": "toy-1.9.0",
        "toys-1.9.5": None,
        "toy-2.0.0": "toy-1.10.0",
        "toy-1.9.1": "toy-1.9.0",
    }
    listed = {one.name: one.parent for one in list_releases(store)}
    assert listed == parents
    assert list(listed) == ["toy-1.9.0", "toy-1.9.1", "toy-1.10.0", "toy-2.0.0", "toys-1.9.5"]


def test_differences_name_rows_and_reasons(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    put(store, "later", LATER)
    grown = create_release(store, ReleaseRecipe(), "toy-1.1.0", folder=tmp_path)
    found = diff_releases(store, "toy-1.0.0", "toy-1.1.0")
    assert {one["reason"]: one["num"] for one in found["came"]["reasons"]} == {
        "run later is new": 2,
        "the positive of an example that came": 1,
    }
    (new,) = [one for one in found["came"]["reasons"] if one["reason"] == "run later is new"]
    assert {row["text"] for row in new["rows"]} == {"m late", "w new"}
    assert (found["went"]["num"], found["recipe"], found["num_kept"]) == (0, [], 12 + sum(1 + n % 3 for n in range(12)))
    assert "2 candidates came: run later is new" in (grown.folder / "README.md").read_text()

    recipe = ReleaseRecipe(runs=("first",), mix=Mix(slots=2), split=Split(dev_share=0.6))
    create_release(store, recipe, "toy-2.0.0", folder=tmp_path)
    back = diff_releases(store, "toy-1.1.0", "toy-2.0.0")
    assert {one["key"]: one["now"] for one in back["recipe"]} == {
        "mix.slots": 2, "runs": ["first"], "split.dev_share": 0.6
    }  # fmt: skip
    assert {one["reason"]: one["num"] for one in back["went"]["reasons"]} == {
        "run later is not selected any more": 2,
        "the positive of an example that went": 1,
    }
    assert {one["reason"] for one in back["changed"]["split"]["reasons"]} == {"recipe: split.dev_share"}
    again = diff_releases(store, "toy-2.0.0", "toy-1.1.0")
    assert {one["reason"] for one in again["came"]["reasons"]} >= {"run later was not selected before"}
    was = {(row["configuration"], row["split"]): row["was"] for row in back["rows"]}
    now = {(row["configuration"], row["split"]): row["now"] for row in again["rows"]}
    assert was == now and was["n-tuple", "train"] > 0


def test_provenance_has_every_way_in_which_a_candidate_was_found(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST[1:3])
    put(store, "later", [FIRST[2]])
    folder = create_release(store, ReleaseRecipe(split=Split(dev_share=0)), "toy-1.0.0", folder=tmp_path).folder
    rows = pq.read_table(folder / "provenance").to_pylist()
    assert len(rows) == 2 + 2 + 3
    assert [row["position"] for row in rows if row["role"] == "positive"] == [0, 0]
    mined = [row for row in rows if row["origin"] == "mined"]
    nothing = {"request": None, "model": None, "prompt_pack": None, "prompt_pack_digest": None, "prompt_entry": None}
    ways = [
        nothing | {"run": run, "teacher": "minilm", "teacher_version": "weights", "retrieval_rank": 7, "score": 0.25,
                   "threshold": 0.75} for run in ("first", "later")
    ]  # fmt: skip
    assert [{k: v for k, v in way.items() if k != "run_recipe"} for way in mined[0]["found"]] == ways
    written = next(row for row in rows if row["origin"] == "synthetic")
    way = written["found"][0]
    assert (way["request"], way["model"], way["prompt_entry"]) == (f"{'first':0<64}", "scribe-1", "graded")
    assert (way["prompt_pack"], way["prompt_pack_digest"], way["teacher"]) == ("v2", "e" * 64, None)
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["generator_models"] == ["scribe-1"] and [run["name"] for run in manifest["runs"]] == [
        "first",
        "later",
    ]


def test_verify_finds_every_change(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    folder = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path).folder
    assert verify_release(store, "toy-1.0.0").problems == []
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    graded = next((copy / "graded").glob("train-*"))
    graded.write_bytes(graded.read_bytes()[:-1] + b"x")
    (copy / "croissant.json").unlink()
    (copy / "more.txt").write_text("x")
    manifest = orjson.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_bytes(orjson.dumps(manifest | {"num_items": 1}))
    problems = {one["where"]: one["problem"] for one in verify_release(store, "toy-1.0.0", folder=copy).problems}
    assert set(problems) == {str(graded.relative_to(copy)), "croissant.json", "more.txt", "manifest.json"}
    assert problems["croissant.json"] == "missing" and "changed" in problems[str(graded.relative_to(copy))]
    (copy / "manifest.json").write_bytes(orjson.dumps(manifest))
    told = {one["where"]: one["problem"] for one in verify_release(store, "toy-1.0.0", folder=copy).problems}
    assert told["manifest.json"] == "has the same values, but other bytes"
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").mkdir()
    told = {one["where"]: one["problem"] for one in verify_release(store, "toy-1.0.0", folder=copy).problems}
    assert told["manifest.json"] == "cannot be read: Is a directory"
    assert verify_release(store, "toy-1.0.0", folder=tmp_path / "gone").problems
    with pytest.raises(CurationError, match=r"it has: toy-1\.0\.0"):
        verify_release(store, "other-1.0.0")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_lost_folder_is_written_again_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    folder = create_release(store, ReleaseRecipe(runs=("first",)), "toy-1.0.0", folder=tmp_path).folder
    was = files_of(folder)
    with pytest.raises(CurationError, match="is there already"):
        export_release(store, "toy-1.0.0")
    shutil.rmtree(folder)
    # What the store learns later is not in the release: other candidates, and the scores of another teacher.
    put(store, "later", LATER)
    with store.write() as session:
        teacher = put_teacher(session, name="another", version="v", kind="bi-encoder")
        pairs = session.execute(select(Example.query_id, Example.positive_id)).all()
        of_teacher = {"teacher_id": teacher, "value": 0.1, "num_tokens": 1}
        rows = [of_teacher | {"query_id": query, "passage_id": passage} for query, passage in pairs]
        insert_missing(session, Score, rows)
    exported = export_release(store, "toy-1.0.0", allow_missing=True)
    # The figure is drawn anew; where it is another, the export says so.
    assert exported.left_out.keys() <= {"ladder.png"}
    again = files_of(folder)
    assert {name: data for name, data in was.items() if name in again} == again
    assert set(was) - set(again) == set(exported.left_out)
    assert len(verify_release(store, "toy-1.0.0").problems) == len(exported.left_out)


def test_what_cannot_be_written_again_is_told(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    folder = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path).folder
    shutil.rmtree(folder)
    with store.write() as session:
        session.execute(update(Score).values(value=0.7))
    with pytest.raises(CurationError, match=r"graded/.*: scores, judgements or sources of its rows changed since"):
        export_release(store, "toy-1.0.0")
    assert not folder.exists()
    exported = export_release(store, "toy-1.0.0", folder=tmp_path / "else", allow_missing=True)
    assert {name.split("/")[0] for name in exported.left_out} <= {"graded", "ladder.png"}
    assert (tmp_path / "else" / "toy-1.0.0" / "n-tuple").is_dir()


def test_a_configuration_is_exported_as_json_lines_with_and_without_the_folder(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    released = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    exported = export_jsonl(store, "toy-1.0.0", "triplet", folder=tmp_path / "lines")
    texts = {one.target.name: one.target.read_bytes() for one in exported}
    rows = {split: num for split, num in released.manifest["rows"]["triplet"].items()}
    assert {name: data.count(b"\n") for name, data in texts.items()} == {
        f"toy-1.0.0-triplet-{split}.jsonl": num for split, num in rows.items()
    }
    assert orjson.loads(texts["toy-1.0.0-triplet-train.jsonl"].splitlines()[0]).keys() == {
        "anchor", "positive", "negative"
    }  # fmt: skip
    shutil.rmtree(released.folder)
    again = export_jsonl(store, "toy-1.0.0", "triplet", folder=tmp_path / "again")
    assert {one.target.name: one.target.read_bytes() for one in again} == texts
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(texts)
    with pytest.raises(CurationError, match="it has: corpus, graded"):
        export_jsonl(store, "toy-1.0.0", "pairs", folder=tmp_path)


def test_a_retired_release_is_not_created_again_and_is_nobodys_parent(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    create_release(store, ReleaseRecipe(seed=1), "toy-1.1.0", folder=tmp_path)
    with pytest.raises(CurationError, match="--reason is empty"):
        retire_release(store, "toy-1.1.0", " ")
    assert retire_release(store, "toy-1.1.0", "leaks a test set").retired == "leaks a test set"
    with pytest.raises(CurationError, match=r"was retired on .*: leaks a test set"):
        retire_release(store, "toy-1.1.0", "again")
    with pytest.raises(CurationError, match="was retired"):
        create_release(store, ReleaseRecipe(seed=1), "toy-1.1.0", folder=tmp_path)
    assert {one.name: one.retired for one in list_releases(store)} == {
        "toy-1.0.0": None, "toy-1.1.0": "leaks a test set"
    }  # fmt: skip
    assert verify_release(store, "toy-1.1.0").retired == "leaks a test set"
    released = create_release(store, ReleaseRecipe(seed=2), "toy-1.2.0", folder=tmp_path)
    assert released.manifest["parent"]["name"] == "toy-1.0.0"


def test_a_folder_that_was_changed_is_not_called_unchanged(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    folder = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path).folder
    card = (folder / "README.md").read_bytes()
    (folder / "README.md").write_bytes(card + b" ")
    with pytest.raises(CurationError, match=r"is not what was frozen: README\.md: changed.*; move it away"):
        create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    (folder / "README.md").write_bytes(card)
    assert not create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path).is_new


def test_two_calls_do_not_write_one_release(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    told: list[str] = []

    def same_folder(done: int, total: int | None) -> None:
        if not told:
            with pytest.raises(CurationError) as refused:
                create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
            told.append(str(refused.value))

    assert create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path, progress=same_folder).is_new
    assert told == ["release 'toy-1.0.0' is being written by another call: wait for it"]

    def other_folder(done: int, total: int | None) -> None:
        if len(told) == 1:
            told.append(create_release(store, ReleaseRecipe(), "toy-1.0.1", folder=tmp_path / "other").name)

    with pytest.raises(CurationError, match="was just frozen by another call"):
        create_release(store, ReleaseRecipe(), "toy-1.0.1", folder=tmp_path, progress=other_folder)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["other", "toy-1.0.0"]
    left = tmp_path / ".toy-1.0.2.partial" / "graded"
    left.mkdir(parents=True)
    (left / "train-00000.part").write_bytes(b"of a call that was killed")
    folder = create_release(store, ReleaseRecipe(), "toy-1.0.2", folder=tmp_path).folder
    assert not (folder / "graded" / "train-00000.part").exists() and not left.parent.exists()


def test_what_the_disk_refuses_is_one_line(store: Store, tmp_path: Path) -> None:
    put(store, "first", FIRST)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CurationError, match=r"'toy-1\.0\.0' cannot be written to .*file: .*name another --folder"):
        create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path / "file")
    create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    with pytest.raises(CurationError, match="cannot be written to"):
        export_release(store, "toy-1.0.0", folder=tmp_path / "file")
    with pytest.raises(CurationError, match="cannot be written to"):
        export_jsonl(store, "toy-1.0.0", "triplet", folder=tmp_path / "file")


def test_croissant_is_valid_and_reads_the_files(tmp_path: Path) -> None:
    pytest.importorskip("mlcroissant")
    with contextlib.closing(Store.open(f"sqlite:///{tmp_path}/store.db")) as store:
        put(store, "first", FIRST)
        folder = create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path).folder
    code = (
        "import sys, mlcroissant as mlc\n"
        "dataset = mlc.Dataset(sys.argv[1])\n"
        "assert not dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.report()\n"
        "print(len(dataset.metadata.record_sets))\n"
        "print(len(list(dataset.records('triplet'))))\n"
        "print(sorted(next(iter(dataset.records('qrels')))))\n"
        "rows = [row for row in dataset.records('graded')]\n"
        "parts = 'graded/negatives'\n"
        "print(sum(len(row[parts][parts + '/text']) for row in rows), sum(1 for _ in dataset.records('provenance')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "croissant.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [num for num in orjson.loads((folder / "manifest.json").read_bytes())["rows"]["triplet"].values()]
    negatives = sum(len(texts) for _, _, texts in FIRST)
    assert done.stdout.splitlines() == [
        "7",
        str(sum(rows)),
        "['qrels/corpus-id', 'qrels/query-id', 'qrels/score']",
        f"{negatives} {negatives + len(FIRST)}",
    ]
