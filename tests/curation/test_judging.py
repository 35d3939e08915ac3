"""Judgements: what an answer must hold, the last word, policies, Wilson's interval, kappa by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.judging.agreement import (
    Agreement,
    Decision,
    agreement,
    file_decisions,
    kappa,
    kappa_over_queries,
    qrels_decisions,
)
from curation.judging.answers import Graded, Unusable, read_judgement
from curation.judging.judgements import NewJudgement, put_judge, put_judgements
from curation.judging.scope import NegativesScope, QrelsScope, pages_of
from curation.judging.verdicts import false_negatives, last_words, wilson
from db.digest import digest_text
from db.examples import NewCandidate, put_candidates, put_examples
from db.quotes import stands_in
from db.runs import start_run
from db.store import Store
from db.tables.ledger import Request
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries

PASSAGE = "The otter raises\n\n its young in a den. </p> It eats fish."
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LIKELY = st.fixed_dictionaries(
    {
        "evidence": JSON | st.sampled_from(["", "its young", "raises its young", "a den.  </p>", "made up", "\x00"]),
        "reason": JSON | st.just("because\x00"),
        "relevance": JSON | st.sampled_from([0, 1, 2, 3, 4, -1, True, 2.0, "2"]),
    }
)


@settings(max_examples=300, deadline=None)
@given(JSON | LIKELY)
@example({"evidence": "its young", "reason": "\x00", "relevance": 3})
def test_any_answer_is_a_judgement_or_a_reason(value: Any) -> None:
    read = read_judgement(value, PASSAGE)
    if isinstance(read, Unusable):
        assert read.reason in {"wrong_shape", "no_evidence", "quote_not_in_text"} and read.detail
        read.detail.encode()
        return
    assert isinstance(read, Graded) and read.relevance in (0, 1, 2, 3) and type(read.relevance) is int
    assert stands_in(read.evidence, PASSAGE) if read.evidence else read.relevance < 2
    assert "\x00" not in read.reason and "\x00" not in read.evidence


@pytest.mark.parametrize(
    ("relevance", "evidence", "reason"),
    [
        (3, "raises its young", None),
        (3, " raises \t its\nyoung ", None),
        (2, "a den. <\\/p> It", None),
        (0, "", None),
        (1, " ", None),
        (2, "", "no_evidence"),
        (3, "Raises its young", "quote_not_in_text"),
        (0, "made up", "quote_not_in_text"),
        (1, '"its young"', "quote_not_in_text"),
        (2, "raises ... den", "quote_not_in_text"),
        (4, "", "wrong_shape"),
        (True, "its young", "wrong_shape"),
        (2.0, "its young", "wrong_shape"),
        ("2", "its young", "wrong_shape"),
    ],
)
def test_the_quote_must_stand_in_the_passage(relevance: Any, evidence: str, reason: str | None) -> None:
    read = read_judgement({"relevance": relevance, "evidence": evidence, "reason": "r"}, PASSAGE)
    assert (read.reason if isinstance(read, Unusable) else None) == reason


def by_hand(counts: list[list[int]], *, quadratic: bool) -> float:
    """1 - sum(w * observed) / sum(w * expected), the definition (Cohen 1960, 1968)."""
    table = np.array(counts, float) / np.sum(counts)
    rows, columns = np.indices(table.shape)
    weights = (rows - columns) ** 2 if quadratic else (rows != columns)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0))
    return float(1 - (weights * table).sum() / (weights * expected).sum())


def test_binary_kappa_of_a_worked_example() -> None:
    # 20 + 15 of 50 agree: 0.7; chance: 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / 0.5 = 0.4
    assert kappa(np.array([[15, 10], [5, 20]]), weights=None) == pytest.approx(0.4)


def test_weighted_kappa_of_a_worked_example() -> None:
    # Two pairs agree (0 and 3), one 3 is called a 2 (weight 1), one 0 a 3 (weight 9): observed 10 / 4. Chance: people
    # (1/2, 0, 0, 1/2), judge (1/4, 0, 1/4, 1/2): 1/2 * (1/4 * 4 + 1/2 * 9) + 1/2 * (1/4 * 9 + 1/4 * 1) = 4.
    counts = np.zeros((4, 4), int)
    counts[0, 0] = counts[3, 3] = counts[3, 2] = counts[0, 3] = 1
    assert kappa(counts, weights="quadratic") == pytest.approx(1 - 2.5 / 4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=4, max_size=4), st.booleans())
def test_kappa_is_its_definition_or_not_defined(counts: list[list[int]], is_quadratic: bool) -> None:
    table = np.array(counts)
    found = kappa(table, weights="quadratic" if is_quadratic else None)
    used = {grade for grade in range(4) if table[grade].any() or table[:, grade].any()}
    if len(used) < 2:
        assert found is None
    else:
        assert found == pytest.approx(by_hand(counts, quadratic=is_quadratic))


def test_the_interval_is_over_queries() -> None:
    agreeing, disagreeing = [[5, 0], [0, 5]], [[0, 5], [5, 0]]
    mixed = kappa_over_queries(np.array([agreeing] * 6 + [disagreeing] * 2), weights=None)
    assert mixed.value == pytest.approx(0.5) and mixed.interval_95 is not None
    low, high = mixed.interval_95
    # Six of eight queries agree: the interval is that of the share of agreeing queries, not of 80 pairs.
    assert -0.3 <= low <= 0.05 and 0.95 <= high <= 1
    same = kappa_over_queries(np.array([agreeing] * 8), weights=None)
    assert same.value == 1 and same.interval_95 == (1, 1)
    assert kappa_over_queries(np.array([agreeing]), weights=None).interval_95 is None
    assert kappa_over_queries(np.array([[[5, 0], [0, 0]]] * 3), weights=None).value is None


def test_wilson_of_a_worked_example() -> None:
    # (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with p = 0.2, n = 10, z = 1.96
    assert wilson(2, 10) == pytest.approx((0.0567, 0.5098), abs=1e-4)
    assert wilson(0, 0) is None
    assert wilson(0, 5) == pytest.approx((0, 0.4345), abs=1e-4)


def put(store: Store, *judged: tuple[str, str, str, str, int]) -> dict[tuple[str, str], tuple[int, int]]:
    """Judgements as (query, passage, judge, stage, relevance); ids by texts."""
    keys = {}
    with store.write() as session:
        for number, (query, passage, model, stage, relevance) in enumerate(judged):
            (query_id,), (passage_id,) = put_queries(session, [query]), put_passages(session, [passage])
            judge = put_judge(session, model=model, entry="e", prompt_digest="p")
            request = Request(digest=f"{number} {query} {passage} {model}", model=model, state="done")
            session.add(request)
            session.flush()
            graded = Graded(relevance, passage if relevance >= 2 else "", "r")
            put_judgements(session, judge, stage, [NewJudgement(query_id, passage_id, request.id, graded)])
            keys[query, passage] = (query_id, passage_id)
    return keys


def test_the_last_word_is_the_confirming_judges_then_the_newest(store: Store) -> None:
    keys = put(
        store,
        ("q", "a", "strong", "confirm", 0),
        ("q", "a", "cheap", "screen", 3),
        ("q", "b", "cheap", "screen", 3),
        ("q", "b", "cheap", "screen", 1),
        ("r", "a", "cheap", "screen", 2),
    )
    pairs = list(keys.values())
    with store.read() as session:
        words = {pair: word.relevance for pair, word in last_words(session, [*pairs, (99, 99)]).items()}
        assert words == {keys["q", "a"]: 0, keys["q", "b"]: 1, keys["r", "a"]: 2}
        assert last_words(session, pairs, "cheap")[keys["q", "a"]].relevance == 3
        assert last_words(session, pairs, "nobody") == {} and last_words(session, []) == {}


def test_false_negatives_come_by_example_and_leave_positives_out(store: Store) -> None:
    keys = put(store, ("q", "pos", "m", "screen", 3), ("q", "n1", "m", "screen", 2), ("q", "n2", "m", "screen", 1))
    query = keys["q", "pos"][0]
    with store.write() as session:
        run = start_run(session, "import", "r", {}, 0)
        examples = put_examples(session, [(query, keys["q", "pos"][1]), (query, keys["q", "n2"][1])], origin="corpus")
        rows = [
            NewCandidate(examples[0], keys["q", "pos"][1], "positive", "corpus", run.id),
            NewCandidate(examples[0], keys["q", "n1"][1], "negative", "mined", run.id),
            NewCandidate(examples[1], keys["q", "n2"][1], "positive", "corpus", run.id),
            NewCandidate(examples[1], keys["q", "n1"][1], "negative", "synthetic", run.id),
        ]
        put_candidates(session, rows)
    with store.read() as session:
        assert false_negatives(session, examples) == {keys["q", "n1"]}
        assert false_negatives(session, examples * 300, threshold=1) == {keys["q", "n1"]}
        assert false_negatives(session, []) == set() and false_negatives(session, examples, judge="x") == set()
        # One pair of two examples comes once for each; only the written one is in the default scope.
        (page,) = pages_of(session, NegativesScope())
        assert [(pair.query, pair.passage) for pair in page] == [("q", "n1")]
        (page,) = pages_of(session, NegativesScope(origins=("mined", "synthetic")))
        assert len(page) == 2


def collection(store: Store, grades: dict[tuple[str, str], int], name: str = "people") -> None:
    with store.write() as session:
        found = Collection(name=name, kind="beir")
        session.add(found)
        session.flush()
        queries, documents = {}, {}
        for query, passage in grades:
            if query not in queries:
                (key,) = put_queries(session, [query])
                queries[query] = CollectionQuery(collection_id=found.id, external_id=query, query_id=key)
            if passage not in documents:
                (key,) = put_passages(session, [passage])
                documents[passage] = Document(collection_id=found.id, external_id=passage, passage_id=key)
        session.add_all([*queries.values(), *documents.values()])
        session.flush()
        for (query, passage), relevance in grades.items():
            session.add(
                Qrel(collection_query_id=queries[query].id, document_id=documents[passage].id, split="test",
                     relevance=relevance)
            )  # fmt: skip


def compared(store: Store, **fields: Any) -> Agreement:
    with store.read() as session:
        return agreement(session, qrels_decisions(session, "people", "test"), **fields)


def test_agreement_with_graded_qrels(store: Store) -> None:
    people = {("q1", "a"): 0, ("q1", "b"): 3, ("q2", "a"): 3, ("q2", "b"): 0, ("q3", "a"): 1}
    collection(store, people)
    put(
        store,
        ("q1", "a", "m", "screen", 0), ("q1", "b", "m", "screen", 3),
        ("q2", "a", "m", "screen", 2), ("q2", "b", "m", "screen", 3), ("q2", "b", "other", "screen", 3),
    )  # fmt: skip
    found = compared(store)
    assert (found.num_decisions, found.num_compared, found.num_queries) == (5, 4, 2)
    assert found.weighted is not None and found.weighted.value == pytest.approx(1 - 2.5 / 4)
    assert found.confusion is not None and found.confusion[0] == [1, 0, 0, 1] and found.confusion[3] == [0, 0, 1, 1]
    assert found.confusion_binary == [[1, 1], [0, 2]] and found.binary.value == pytest.approx(0.5)
    assert found.share_same == 0.5 and found.people_threshold == 2
    assert compared(store, judge="other").num_compared == 1
    with pytest.raises(CurationError, match="judge them first"):
        compared(store, judge="nobody")
    with store.read() as session:
        (page,) = pages_of(session, QrelsScope(source="qrels", collection="people", split="test"))
        assert [(pair.query, pair.passage) for pair in page] == list(people)
        with pytest.raises(CurationError, match="'nowhere'"):
            list(pages_of(session, QrelsScope(source="qrels", collection="nowhere", split="test")))
        with pytest.raises(CurationError, match="nowhere:x"):
            list(qrels_decisions(session, "nowhere", "x"))


def test_people_who_only_said_yes_or_no_are_compared_on_that(store: Store) -> None:
    collection(store, {("q1", "a"): 1, ("q1", "b"): 0, ("q2", "c"): 1})
    put(store, ("q1", "a", "m", "screen", 2), ("q1", "b", "m", "screen", 1), ("q2", "c", "m", "screen", 1))
    found = compared(store)
    assert found.weighted is None and found.confusion is None and found.people_threshold == 1
    assert found.confusion_binary == [[1, 0], [1, 1]]


def test_agreement_from_files(store: Store, tmp_path: Path) -> None:
    put(store, ("q, 1", 'a "b"\nc', "m", "screen", 3), ("q2", "d", "m", "screen", 0))
    jsonl, table = tmp_path / "people.jsonl", tmp_path / "people.csv"
    rows = [
        {"query": "q, 1", "passage": 'a "b"\nc', "relevance": 3},
        {"query": digest_text("q2"), "passage": digest_text("d"), "relevance": "0"},
        {"query": "q2", "passage": "not in the store", "relevance": 1},
    ]
    jsonl.write_bytes(b"\n".join(map(orjson.dumps, rows)) + b"\n\n")
    table.write_text('query,passage,relevance\n"q, 1","a ""b""\nc",3\nq2,d,0\nq2,not in the store,1\n')
    with store.read() as session:
        for path in (jsonl, table):
            decisions, num_unknown = file_decisions(session, path)
            assert [one.relevance for one in decisions] == [3, 0] and num_unknown == 1
            found = agreement(session, iter(decisions), num_unknown=num_unknown)
            assert (found.num_decisions, found.num_unknown, found.num_compared) == (3, 1, 2)
            assert found.binary.value == 1


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"query": "q"}', "a.jsonl:1: field 'passage'"),
        ("a.jsonl", '{"query": "q", "passage": "p", "relevance": -1}', "relevance = -1"),
        ("a.jsonl", '{"query": "q", "passage": "p"}', "relevance = None"),
        ("a.jsonl", "[1]", "a.jsonl:1: not an object"),
        ("a.jsonl", "nonsense", "not JSON"),
        ("a.csv", "query,relevance\nq,1\n", "a.csv:2: field 'passage'"),
        ("a.csv", "query,passage,relevance\nq,p,1.5\n", "relevance = '1.5'"),
        ("none.jsonl", None, "none.jsonl: cannot be read"),
    ],
)
def test_a_bad_row_of_people_is_named(store: Store, tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with store.read() as session, pytest.raises(CurationError, match=told.replace("[", r"\[")):
        file_decisions(session, tmp_path / name)


def test_decisions_are_read_in_pages(store: Store) -> None:
    keys = put(store, ("q", "a", "m", "screen", 3), ("r", "b", "m", "screen", 0))
    decisions = [Decision(*keys["q", "a"], 3), Decision(*keys["r", "b"], 0)] * 1_500
    with store.read() as session:
        found = agreement(session, iter(decisions))
    assert found.num_compared == 3_000 and found.num_queries == 2 and found.binary.value == 1
