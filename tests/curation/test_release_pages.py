"""A release's columns hold what a reading of one row after the other finds, and files keep the order of their rows."""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from curation.release.building import Builder
from curation.release.files import ReleaseWriters
from curation.release.page import ScoreColumns, places_within, taken
from curation.release.recipe import Mix, ReleaseRecipe
from curation.release.texts import Texts
from db.digest import digest_text
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.texts import Passage, Query
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None)
@given(
    pairs=st.lists(PAIRS, max_size=9),
    scores=st.dictionaries(st.sampled_from("cab"), st.dictionaries(PAIRS, st.floats(-1, 1, width=32), max_size=9)),
)
def test_scores_are_listed_by_teacher_and_left_out_where_unknown(
    pairs: list[tuple[int, int]], scores: dict[str, dict[tuple[int, int], float]]
) -> None:
    found = ScoreColumns.of_pairs(pairs, scores)
    assert found.lists().to_pylist() == [
        [{"teacher": name, "value": scores[name][pair]} for name in sorted(scores) if pair in scores[name]]
        for pair in pairs
    ]
    for name in "abc":
        assert found.of(name).tolist() == [scores.get(name, {}).get(pair, -1.0) for pair in pairs]
    backwards = np.arange(len(pairs))[::-1]
    assert found.take(backwards).lists().to_pylist() == found.lists().to_pylist()[::-1]


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 4), max_size=8))
def test_places_within_begin_anew_with_every_list(counts: list[int]) -> None:
    found = places_within(np.array(counts, dtype=np.int64)).tolist()
    assert found == [place for count in counts for place in range(count)]


@settings(deadline=None)
@given(values=st.lists(st.none() | st.text(max_size=5), min_size=1, max_size=40), data=st.data())
def test_taken_values_weigh_what_new_ones_do(values: list[str | None], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=40))
    column = taken(pa.array(values, pa.string()), np.array(places, dtype=np.int64))
    anew = pa.array([values[place] for place in places], pa.string())
    assert column.equals(anew) and column.nbytes == anew.nbytes


def test_texts_come_once_in_the_order_of_digests() -> None:
    texts, digests = Texts(), {key: digest_text(str(key)) for key in range(5_000)}
    for start in (0, 1, 2, 1):
        keys = np.arange(start, 5_000, 3)
        texts.add(keys, [digests[key] for key in keys.tolist()])
    pages = list(texts.pages())
    assert [key for page in pages for key in page] == sorted(digests, key=digests.__getitem__) and len(pages) > 1
    assert list(Texts().pages()) == []


def fill(store: Store, seed: int) -> None:
    """Uneven examples: origins of every kind, ranks that are missing or tied, teachers in two versions, gaps."""
    draw = random.Random(seed)
    with store.write() as session:
        runs = [start_run(session, "generate", f"run {n}", {"n": n}, 0).id for n in (1, 2)]
        queries = put_queries(session, [f"q {draw.random()}" for _ in range(40)])
        passages = put_passages(session, [f"p {draw.random()}" for _ in range(300)])
        pairs = list(dict.fromkeys((draw.choice(queries), draw.choice(passages[:60])) for _ in range(90)))
        candidates = []
        for (_, positive), example in zip(pairs, put_examples(session, pairs, origin="corpus"), strict=True):
            candidates.append(NewCandidate(example, positive, "positive", "corpus", runs[0]))
            for passage in draw.sample(passages[60:], draw.randrange(1, 9)):
                origin = draw.choice(["synthetic", "edited", "mined", "corpus"])
                rank = draw.choice([None, 1, 1, 2, 3]) if origin != "mined" else None
                parent = positive if origin == "edited" else None
                run = draw.choice(runs)
                candidates.append(
                    NewCandidate(example, passage, "negative", origin, run, rank=rank, parent_passage_id=parent)
                )
        put_candidates(session, candidates)
        asked = session.execute(select(Example.query_id, Candidate.passage_id).join(Candidate)).all()
        for name, version in (("minilm", "1"), ("other", "1"), ("minilm", "2")):
            teacher = put_teacher(session, name=name, version=version, kind="bi-encoder", max_length=4)
            known = sorted({(query, passage) for query, passage in asked if draw.random() < 0.6})
            rows = [{"teacher_id": teacher, "query_id": q, "passage_id": p, "num_tokens": 1} for q, p in known]
            insert_missing(session, Score, [row | {"value": draw.randrange(-3, 4) / 4} for row in rows])


def one_by_one(store: Store, teacher: str) -> dict[str, list[tuple[str, int | None, dict[str, float]]]]:
    """The negatives of every example as (digest, mined rank, scores), in order: design.md's words, row by row."""
    expected = {}
    with store.read() as session:
        scores: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
        asked = select(Score, Teacher.name).join(Teacher).order_by(Teacher.id)
        for score, name in session.execute(asked):
            scores[score.query_id, score.passage_id][name] = score.value
        for example in session.scalars(select(Example)):
            of_example = select(Candidate, Passage.digest).join(Passage, Candidate.passage_id == Passage.id)
            of_example = of_example.where(Candidate.example_id == example.id, Candidate.role == "negative")
            written, mined = [], []
            for one, digest in session.execute(of_example):
                known = scores[example.query_id, one.passage_id]
                if one.origin in ("synthetic", "edited"):
                    written.append((one.rank or 99, digest, known))
                else:
                    mined.append((-known.get(teacher, -1.0), digest, known))
            rows = [(digest, None, known) for _, digest, known in sorted(written, key=lambda row: row[:2])]
            mined.sort(key=lambda row: row[:2])
            expected[example.digest] = [
                *rows,
                *((digest, place, known) for place, (_, digest, known) in enumerate(mined, start=1)),
            ]
    return expected


@pytest.mark.parametrize("teacher", ["minilm", "other", "nobody"])
def test_graded_rows_are_what_a_reading_row_by_row_finds(store: Store, tmp_path: Path, teacher: str) -> None:
    fill(store, 7)
    expected = one_by_one(store, teacher)
    Builder(store, ReleaseRecipe(teacher=teacher, mix=Mix(slots=4)), tmp_path).write(lambda done, total: None)
    rows = pq.read_table(tmp_path / "graded").to_pylist()
    found = {
        row["example_id"]: [
            (one["id"], one["mined_rank"], {score["teacher"]: score["value"] for score in one["scores"]})
            for one in row["negatives"]
        ]
        for row in rows
    }
    assert found == {example: several for example, several in expected.items() if several}
    provenance = pq.read_table(tmp_path / "provenance").to_pylist()
    of_example = defaultdict(list)
    for row in provenance:
        of_example[row["example_id"]].append((row["position"], row["role"], row["id"], row["parent_id"] is None))
        assert (row["origin"] == "edited") == (row["parent_id"] is not None)
    assert {
        example: [digest for _, role, digest, _ in several if role == "negative"]
        for example, several in of_example.items()
    } == {example: [digest for digest, *_ in several] for example, several in found.items()}
    assert all([place for place, *_ in several] == list(range(len(several))) for several in of_example.values())
    with store.read() as session:
        known = {digest for (digest,) in session.execute(select(Query.digest))}
    assert {row["query_id"] for row in rows} <= known
    with_all = [row for row in rows if row["num_synthetic_slots"] + row["num_mined_slots"] == 4]
    assert pq.read_table(tmp_path / "n-tuple").num_rows == len(with_all)
    slots = sum(row["num_synthetic_slots"] + row["num_mined_slots"] for row in rows)
    assert pq.read_table(tmp_path / "triplet").num_rows == slots


def test_files_keep_the_order_of_their_rows_whoever_writes_them(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64()), ("text", pa.string())])
    numbers = {"one": [], "two": []}
    with ReleaseWriters(tmp_path, dict.fromkeys(numbers, schema)) as writers:
        for start in range(0, 24_000, 1_000):
            config = "one" if start % 3_000 else "two"
            several = list(range(start, start + 1_000))
            numbers[config] += several
            texts = [f"{number:0>700}" for number in several]
            writers.write(config, "train", pa.table([several, texts], schema=schema))
        assert writers.close() == {"one": {"train": 16_000}, "two": {"train": 8_000}}
    for config, expected in numbers.items():
        (file,) = (tmp_path / config).iterdir()
        assert pq.ParquetFile(file).num_row_groups > 1
        assert pq.read_table(file)["number"].to_pylist() == expected


def test_what_goes_wrong_while_writing_is_told(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    (tmp_path / "one").write_text("a file where a folder should be")
    with ReleaseWriters(tmp_path, {"one": schema}) as writers:
        writers.write("one", "train", pa.table([[1, 2]], schema=schema))
        with pytest.raises(FileExistsError):
            writers.close()
