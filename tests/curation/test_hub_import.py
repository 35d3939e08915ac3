"""Published sets come back into a store: releases of ours whole, others by their columns, bad rows never in the way."""

import contextlib
import gzip
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from curation.errors import CurationError
from curation.importing.hub import import_hub
from curation.release.recipe import ReleaseRecipe
from curation.release.release import create_release
from db.check import check_store
from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Sourcing, Teacher
from db.tables.ledger import Rejection
from db.tables.texts import Collection, Passage, Qrel, Query
from db.teachers import put_teacher
from db.texts import put_passages, put_queries


def roles(store: Store) -> dict[str, dict[str, str]]:
    """By query: each passage's role."""
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Candidate.role)
            .join(Example, Candidate.example_id == Example.id)
            .join(Query, Example.query_id == Query.id)
            .join(Passage, Candidate.passage_id == Passage.id)
        )
        found: dict[str, dict[str, str]] = {}
        for query, passage, role in rows:
            found.setdefault(query, {})[passage] = role[:3]
        return found


def scores(store: Store) -> dict[tuple[str, str], float]:
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Score.value)
            .join(Query, Score.query_id == Query.id)
            .join(Passage, Score.passage_id == Passage.id)
        )
        return {(query, passage): value for query, passage, value in rows}


def write(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "data/train-00000-of-00001.parquet") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return folder


# What `mine_hard_negatives` of sentence-transformers 6.2 gives for two queries, the second with two positives.
MINED = {
    "triplet": [
        {"query": "q1", "answer": "a1", "negative": "n1"},
        {"query": "q1", "answer": "a1", "negative": "n2"},
        {"query": "q2", "answer": "a2", "negative": "n3"},
        {"query": "q2", "answer": "b2", "negative": "n3"},
    ],
    "triplet-scores": [
        {"query": "q1", "answer": "a1", "negative": "n1", "scores": [0.9, 0.5]},
        {"query": "q1", "answer": "a1", "negative": "n2", "scores": [0.9, -0.25]},
        {"query": "q2", "answer": "a2", "negative": "n3", "scores": [0.8, 0.5]},
        {"query": "q2", "answer": "b2", "negative": "n3", "scores": [0.7, 0.5]},
    ],
    "n-tuple": [
        {"query": "q1", "answer": "a1", "negative_1": "n1", "negative_2": "n2"},
        {"query": "q2", "answer": "a2", "negative_1": "n3", "negative_2": "n3"},
        {"query": "q2", "answer": "b2", "negative_1": "n3", "negative_2": "n3"},
    ],
    "n-tuple-scores": [
        {"query": "q1", "answer": "a1", "negative_1": "n1", "negative_2": "n2", "scores": [0.9, 0.5, -0.25]},
        {"query": "q2", "answer": "a2", "negative_1": "n3", "negative_2": "n3", "scores": [0.8, 0.5, 0.5]},
        {"query": "q2", "answer": "b2", "negative_1": "n3", "negative_2": "n3", "scores": [0.7, 0.5, 0.5]},
    ],
    "labeled-pair": [
        {"query": "q1", "answer": "a1", "label": 1},
        {"query": "q1", "answer": "n1", "label": 0},
        {"query": "q1", "answer": "n2", "label": 0},
        {"query": "q2", "answer": "a2", "label": 1},
        {"query": "q2", "answer": "b2", "label": 1},
        {"query": "q2", "answer": "n3", "label": 0},
    ],
    "labeled-list": [
        {"query": "q1", "answer": ["a1", "n1", "n2"], "labels": [1, 0, 0]},
        {"query": "q2", "answer": ["a2", "n3"], "labels": [1, 0]},
        {"query": "q2", "answer": ["b2", "n3"], "labels": [1, 0]},
    ],
    "labeled-list-scores": [
        {"query": "q1", "answer": ["a1", "n1", "n2"], "scores": [0.9, 0.5, -0.25]},
        {"query": "q2", "answer": ["a2", "n3"], "scores": [0.8, 0.5]},
        {"query": "q2", "answer": ["b2", "n3"], "scores": [0.7, 0.5]},
    ],
}
WANTED = {"q1": {"a1": "pos", "n1": "neg", "n2": "neg"}, "q2": {"a2": "pos", "b2": "pos", "n3": "neg"}}
SCORED = {("q1", "a1"): 0.9, ("q1", "n1"): 0.5, ("q1", "n2"): -0.25, ("q2", "a2"): 0.8, ("q2", "b2"): 0.7,
          ("q2", "n3"): 0.5}  # fmt: skip


@pytest.mark.parametrize("layout", MINED)
def test_every_format_of_mine_hard_negatives_comes_in(store: Store, tmp_path: Path, layout: str) -> None:
    report = import_hub(store, str(write(tmp_path / "mined", MINED[layout])))
    assert (report.num_faults, report.collection) == (0, "mined")
    assert roles(store) == WANTED
    assert scores(store) == (SCORED if layout.endswith("scores") else {})
    again = import_hub(store, str(tmp_path / "mined"))
    assert (again.num_new, again.num_faults) == (0, 0)


def test_labelled_pairs_with_scores_take_the_first_as_positive_or_a_threshold(store: Store, tmp_path: Path) -> None:
    rows = [{"query": q, "answer": t, "score": s} for (q, t), s in SCORED.items()]
    folder = str(write(tmp_path / "mined", rows))
    import_hub(store, folder, positive_from=0.6)
    assert roles(store) == WANTED and scores(store) == SCORED
    report = import_hub(store, folder, name="first")
    assert [fault.reason for fault in report.faults] == ["other_role"]  # b2 is the positive of another row


CARD = """---
license: {licence}
configs:
- config_name: triplet-all
  data_files:
  - split: train
    path: triplet-all/train-*
- config_name: triplet-5
  data_files:
  - split: train
    path: triplet-5/train-*
  - split: test
    path: ["triplet-5/test-*"]
---
# A card with its [markup] and `code`
"""


def test_a_card_with_several_configurations_asks_which(store: Store, tmp_path: Path) -> None:
    for config, split in (("triplet-all", "train"), ("triplet-5", "train"), ("triplet-5", "test")):
        write(
            tmp_path,
            [{"query": f"{config} {split}", "positive": "p", "negative": f"n {config}"}],
            f"{config}/{split}-00000-of-00001.parquet",
        )
    (tmp_path / "README.md").write_text(CARD.format(licence="ms-marco"))
    with pytest.raises(CurationError, match="--config: triplet-all, triplet-5"):
        import_hub(store, str(tmp_path))
    with pytest.raises(CurationError, match="has no configuration 'pair'"):
        import_hub(store, str(tmp_path), config="pair")
    with pytest.raises(CurationError, match="it has: test, train"):
        import_hub(store, str(tmp_path), config="triplet-5", split="dev")
    import_hub(store, str(tmp_path), config="triplet-5", name="marco")
    assert roles(store).keys() == {"triplet-5 train", "triplet-5 test"}
    with store.read() as session:
        assert session.scalars(select(Collection.licence)).all() == ["ms-marco"]
        assert set(session.scalars(select(Qrel.split))) == {"train", "test"}


def test_a_card_without_configurations_takes_the_files_by_name(store: Store, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", **{f"negative_{place}": f"n{place}" for place in range(1, 6)}}]
    write(tmp_path, rows, "data/train-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: apache-and-more\n---\nx")
    import_hub(store, str(tmp_path))
    assert roles(store) == {"q": {"a": "pos", **{f"n{place}": "neg" for place in range(1, 6)}}}
    with store.read() as session:
        assert session.scalars(select(Collection.licence)).all() == ["apache-and-more"]


def test_lists_of_positives_and_negatives_in_json_lines_come_in(store: Store, tmp_path: Path) -> None:
    rows = [
        {"query": "q1", "pos": ["p1", "p2"], "neg": ["n1", "n2"]},
        {"query": "q2", "pos": ["p3"], "neg": []},
    ]
    lines = [orjson.dumps(row) for row in rows]
    lines[1:1] = [b"not json", orjson.dumps({"query": "q3", "pos": [], "neg": ["n"]}), b'{"query": 3, "pos": ["p"]}']
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as file:
        file.write(b"\n".join(lines))
    report = import_hub(store, str(tmp_path))
    assert roles(store) == {"q1": {"p1": "pos", "p2": "pos", "n1": "neg", "n2": "neg"}, "q2": {"p3": "pos"}}
    assert [fault.reason for fault in report.faults] == ["malformed_line", "missing_field", "missing_field"]
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Rejection)) == 3


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"a": "x"}], "say --query and --positive"),
        ([{"query": "q", "positive": "p", "comment": "c"}], "what is column 'comment'"),
        ([], "no good row"),
    ],
)
def test_columns_that_cannot_be_told_are_asked_for(store: Store, tmp_path: Path, rows: list[Any], told: str) -> None:
    write(tmp_path, rows)
    with pytest.raises(CurationError, match=told):
        import_hub(store, str(tmp_path))


def test_bad_rows_of_every_layout_are_named(store: Store, tmp_path: Path) -> None:
    rows = [
        {"query": "q1", "answer": ["a1", "n1"], "labels": [1, 0]},
        {"query": "q2", "answer": ["a2", "n1"], "labels": [1]},
        {"query": "q3", "answer": ["n1"], "labels": [0]},
        {"query": None, "answer": ["a4"], "labels": [1]},
        {"query": "q5", "answer": ["a5", "a5"], "labels": [1, 0]},
        {"query": "q6", "answer": None, "labels": [1]},
    ]
    report = import_hub(store, str(write(tmp_path, rows)))
    assert roles(store) == {"q1": {"a1": "pos", "n1": "neg"}}
    assert [(fault.where[-1], fault.reason) for fault in report.faults] == [
        ("2", "wrong_type"), ("3", "missing_field"), ("4", "missing_field"), ("5", "negative_is_positive"),
        ("6", "wrong_type"),
    ]  # fmt: skip


def fill(store: Store) -> None:
    """Two sources and a brainstormed example; written, mined and edited negatives, two teachers, a way by each."""
    with store.write() as session:
        run = start_run(session, "mine", "run", {"run": 1}, 0).id
        minilm = put_teacher(session, name="minilm", version="w1", kind="bi-encoder", max_length=256)
        bm25 = put_teacher(session, name="bm25", version="k", kind="lexical", prompt="p")
        for name, licence in (("one", "cc-by-4.0"), ("two", "mit")):
            insert_missing(session, Collection, [{"name": name, "kind": "beir", "licence": licence}])
        ids = {name: key for name, key in session.execute(select(Collection.name, Collection.id))}
        for number, source in enumerate(["one", "two", None, "one"]):
            (query,) = put_queries(session, [f"query {number}"])
            texts = [f"{kind} {number}" for kind in ("answer", "w1", "w2", "edited", "mined", "parent")]
            answer, w1, w2, edited, mined, parent = put_passages(session, texts)
            origin = "synthetic" if source is None else "corpus"
            (example,) = put_examples(
                session, [(query, answer)], origin=origin, collection_id=ids.get(str(source)), language="de"
            )
            keys = put_candidates(
                session,
                [
                    NewCandidate(example, answer, "positive", origin, run),
                    NewCandidate(example, w1, "negative", "synthetic", run, "hard", 1, "the year"),
                    NewCandidate(example, w2, "negative", "synthetic", run, "medium", 2),
                    NewCandidate(example, edited, "negative", "edited", run, "easy", 4, None, parent),
                    NewCandidate(example, mined, "negative", "mined", run),
                ],
            )
            way = NewSourcing(keys[example, mined], run, None, bm25, 3 + number, 12.5, None)
            put_sourcings(session, [NewSourcing(keys[example, w1], run), way])
            scored = [(minilm, answer, 0.9), (minilm, w1, 0.7 - number / 8), (bm25, mined, 12.5)]
            insert_missing(
                session,
                Score,
                [
                    {"teacher_id": t, "query_id": query, "passage_id": p, "value": v, "num_tokens": 5}
                    for t, p, v in scored
                ],
            )


def test_a_release_comes_back_with_all_that_it_publishes(store: Store, tmp_path: Path) -> None:
    origin = Store.open(f"sqlite:///{tmp_path}/origin.db")
    fill(origin)
    recipe = ReleaseRecipe(licence="machine-written")
    folder = create_release(origin, recipe, "toy-1.0.0", folder=tmp_path).folder
    report = import_hub(store, str(folder))
    assert (report.num_faults, report.counts) == (
        0, {"rows": 4, "positives": 4, "negatives": 16, "scores": 12}
    )  # fmt: skip
    assert roles(store) == roles(origin)
    assert scores(store) == {pair: pytest.approx(value) for pair, value in scores(origin).items()}

    def graded(one: Store) -> set[tuple[Any, ...]]:
        with one.read() as session:
            columns = (Passage.text, Candidate.grade, Candidate.rank, Candidate.violated_requirement, Example.language)
            parent = aliased(Passage)
            rows = session.execute(
                select(*columns, Candidate.origin, parent.text)
                .join(Passage, Candidate.passage_id == Passage.id)
                .join(Example, Candidate.example_id == Example.id)
                .outerjoin(parent, Candidate.parent_passage_id == parent.id)
            )
            return {tuple(row) for row in rows}

    assert graded(store) == graded(origin)
    edited = {row for row in graded(store) if row[5] == "edited"}
    assert {(row[0], row[6]) for row in edited} == {(f"edited {n}", f"parent {n}") for n in range(4)}
    with store.read() as session:
        licences = {name: licence for name, licence in session.execute(select(Collection.name, Collection.licence))}
        assert licences == {"toy-1.0.0": None, "toy-1.0.0/one": "cc-by-4.0", "toy-1.0.0/two": "mit"}
        teachers = set(session.execute(select(Teacher.name, Teacher.version, Teacher.kind, Teacher.max_length)).all())
        assert teachers == {("minilm", "w1", "bi-encoder", 256), ("bm25", "k", "lexical", None)}
        ways = session.execute(
            select(Passage.text, Teacher.name, Sourcing.retrieval_rank, Sourcing.score)
            .join(Candidate, Sourcing.candidate_id == Candidate.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .join(Teacher, Sourcing.teacher_id == Teacher.id)
        )
        assert set(ways.all()) == {(f"mined {n}", "bm25", 3 + n, 12.5) for n in range(4)}
    with pytest.raises(CurationError, match="whose columns are known: leave --query"):
        import_hub(store, str(folder), query="anchor")
    again = import_hub(store, str(folder))
    assert (again.num_new, again.num_faults) == (0, 0)
    assert check_store(store, progress=lambda done, total: None) == []
    origin.close()
    released = create_release(store, ReleaseRecipe(licence="machine-written"), "back-1.0.0", folder=tmp_path / "back")
    assert released.manifest["rows"]["n-tuple"] == {"train": 4} or released.manifest["rows"]["n-tuple"].get("dev")


def test_a_release_that_was_changed_is_refused(store: Store, tmp_path: Path) -> None:
    origin = Store.open(f"sqlite:///{tmp_path}/origin.db")
    fill(origin)
    folder = create_release(origin, ReleaseRecipe(licence="mit"), "toy-1.0.0", folder=tmp_path).folder
    origin.close()
    path = next((folder / "graded").glob("train-*"))
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(CurationError, match="is not what its manifest names"):
        import_hub(store, str(folder))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("files", [1, 2], "files: Input should be a valid dictionary"),
        ("files", {"graded/train-00000-of-00001.parquet": "x"}, r"files\.graded.*: Input should be"),
        ("teachers", [{"x": 1}], r"teachers\.0\.name: Field required"),
        ("teachers", "abc", "teachers: Input should be"),
        ("teachers", [{"name": "n" * 500, "version": "v"}], r"teachers\.0\.name: .*at most 200"),
        ("digest", {"a": 1}, "digest: Input should be a valid string"),
    ],
)
def test_a_strangers_manifest_is_read_with_care(tmp_path: Path, key: str, value: Any, told: str) -> None:
    good = {"format": 2, "digest": "d" * 64, "recipe": {}, "files": {}, "name": "toy-1.0.0"}
    write(tmp_path / "set", [{"query": "q", "positive": "p", "negatives": []}], "graded/train-0.parquet")
    (tmp_path / "set" / "manifest.json").write_bytes(orjson.dumps(good | {key: value}))
    refused = pytest.raises(CurationError, match=f"set/manifest\\.json: {told}")
    with contextlib.closing(Store.open(f"sqlite:///{tmp_path}/store.db")) as store, refused:
        import_hub(store, str(tmp_path / "set"))


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "../x"])
def test_what_is_no_folder_and_no_repository_is_told(store: Store, source: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CurationError, match=r"no folder|fetched|no such"):
        import_hub(store, source, endpoint="http://127.0.0.1:9")


HUB = Path(__file__).parents[1] / "hub"
CLIENT = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from sqlalchemy import func, select
from curation.errors import CurationError
from curation.importing.hub import import_hub
from db.store import Store
from db.tables.examples import Candidate

endpoint, folder, work = sys.argv[1:]
api = HfApi(endpoint=endpoint, token="secret")
api.create_repo("us/set", repo_type="dataset")
api.upload_folder(repo_id="us/set", repo_type="dataset", folder_path=folder)
api.create_tag("us/set", tag="v1.0.0", repo_type="dataset")
api.upload_file(path_or_fileobj=b"x", path_in_repo="manifest.json", repo_id="us/set", repo_type="dataset")
store = Store.open(f"sqlite:///{work}/back.db")
first = import_hub(store, "us/set@v1.0.0", endpoint=endpoint)
again = import_hub(store, "us/set@v1.0.0", endpoint=endpoint)
print(first.collection, first.counts, first.num_faults, again.num_new)
for source in ("us/set@v9", "us/other"):
    try:
        import_hub(store, source, endpoint=endpoint)
    except CurationError as error:
        print(error)
"""


@pytest.mark.skipif(not HUB.is_dir(), reason="the loopback Hub is not in this checkout")
def test_a_tag_is_imported_from_a_hub(tmp_path: Path) -> None:
    with contextlib.closing(Store.open(f"sqlite:///{tmp_path}/origin.db")) as origin:
        fill(origin)
        folder = create_release(origin, ReleaseRecipe(licence="mit"), "toy-1.0.0", folder=tmp_path).folder
    server = subprocess.Popen(
        [sys.executable, str(HUB), str(tmp_path / "hub"), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
               "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(HUB.parents[1])}  # fmt: skip
        command = [sys.executable, "-c", CLIENT, endpoint, str(folder), str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    finally:
        server.terminate()
        server.communicate()
    assert done.returncode == 0, done.stderr[-3000:]
    first, revision, missing = done.stdout.splitlines()[-3:]
    assert first == "us/set {'rows': 4, 'positives': 4, 'negatives': 16, 'scores': 12} 0 0"
    assert "no such revision" in revision and "no such data set" in missing
