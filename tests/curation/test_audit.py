"""The whole audit on small stores where every figure is known: planted leaks, duplicates and contamination."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import orjson
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from app.cli import cli
from curation.audit.diversity import distinct_share, mean_similarity, self_overlap
from curation.audit.draws import draw_run
from curation.audit.figures import AuditReport, audit_figures
from curation.audit.html_report import html_report
from curation.audit.verdicts import verdicts
from curation.embeddings import EmbeddingCache, cached_vectors
from curation.errors import CurationError
from db.digest import digest_text
from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score
from db.tables.ledger import Request, Run, RunRequest
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

WORDS = [
    f"{a}{b}" for a in ("ot", "ba", "ri", "de", "fi", "wa", "ni", "tu") for b in ("ter", "dger", "ver", "na", "sh")
]

KINDS = ("queries", "pairs", "positives")


def prose(seed: str, num_words: int = 40, ending: str = "") -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + ending for _ in range(num_words)) + "."


@dataclass
class Negative:
    text: str
    run: str
    rank: int | None = None
    origin: str = "mined"
    parent: str | None = None


@dataclass
class Row:
    query: str
    positive: str
    negatives: list[Negative] = field(default_factory=list)
    origin: str = "corpus"


def similarity(text: str) -> float:
    """The teacher: a number in [-1, 1] from the text alone."""
    return round(random.Random(text).uniform(-1, 1), 6)


def fill(
    store: Store, rows: Sequence[Row], *, corpus: Sequence[str] = (), teachers: Sequence[str] = ("minilm",)
) -> None:
    """A store with one collection, these examples, and scores of everything by the teachers."""
    with store.write() as session:
        collection = session.scalar(select(Collection.id)) or _collection(session)
        passages = put_passages(session, list(corpus))
        insert_missing(
            session,
            Document,
            [
                {"collection_id": collection, "external_id": digest_text(text), "passage_id": key, "title": ""}
                for text, key in zip(corpus, passages, strict=True)
            ],
        )
        for row in rows:
            (query,), (positive,) = put_queries(session, [row.query]), put_passages(session, [row.positive])
            of = collection if row.origin == "corpus" else None
            (example,) = put_examples(session, [(query, positive)], origin=row.origin, collection_id=of)
            found = {positive: similarity(row.positive)}
            for one in row.negatives:
                run = start_run(session, "generate", one.run, {"name": one.run}, 0)
                passage, *parent = put_passages(session, [one.text, *([one.parent] if one.parent else [])])
                candidate = NewCandidate(
                    example, passage, "negative", one.origin, run.id, rank=one.rank,
                    parent_passage_id=parent[0] if parent else None,
                )  # fmt: skip
                put_candidates(session, [candidate])
                found[passage] = similarity(one.text)
            for name in teachers:
                teacher = put_teacher(session, name=name, version=f"{name} 1", kind="bi-encoder", max_length=8)
                scores = [
                    {"teacher_id": teacher, "query_id": query, "passage_id": key, "value": value, "num_tokens": 5}
                    for key, value in found.items()
                ]
                insert_missing(session, Score, scores)


def _collection(session) -> int:  # type: ignore[no-untyped-def]
    collection = Collection(name="zoo", kind="beir")
    session.add(collection)
    session.flush()
    return collection.id


def judge(store: Store, pairs: Sequence[tuple[str, str]], split: str) -> None:
    """Judged relevant pairs of the collection in a split; texts that are new are added."""
    number = count()
    with store.write() as session:
        collection = session.scalar(select(Collection.id)) or _collection(session)
        for query, positive in pairs:
            (query_id,), (passage,) = put_queries(session, [query]), put_passages(session, [positive])
            name = f"{split} {digest_text(query)[:8]} {next(number)}"
            asked = CollectionQuery(collection_id=collection, external_id=name, query_id=query_id)
            document = Document(collection_id=collection, external_id=name, passage_id=passage, title="")
            session.add_all([asked, document])
            session.flush()
            session.add(Qrel(collection_query_id=asked.id, document_id=document.id, split=split, relevance=1))


def figures(store: Store, **options) -> AuditReport:  # type: ignore[no-untyped-def]
    return audit_figures(store, teacher="minilm", **options)


def leaky_rows(num: int = 60) -> list[Row]:
    """Free-written negatives in another style, edits of one word, and mined ones in the positives' own style."""
    rows = []
    for n in range(num):
        positive = prose(f"p{n}")
        word = positive.split()[7]
        edit = positive.replace(word, random.Random(n).choice([one for one in WORDS if one not in word]), 1)
        rows.append(
            Row(
                f"query {n}",
                positive,
                [
                    Negative(prose(f"w{n}", 24, "ish"), "written", 1, "synthetic"),
                    Negative(prose(f"v{n}", 24, "ish"), "written", 4, "synthetic"),
                    Negative(edit, "edits", 1, "edited", positive),
                    Negative(prose(f"m{n}"), "mined"),
                ],
            )
        )
    return rows


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> dict:
    store = Store.open(f"sqlite:///{tmp_path_factory.mktemp('leaky')}/store.db")
    fill(store, leaky_rows(), corpus=[prose(f"c{n}") for n in range(200)])
    report = figures(store).to_dict()
    store.close()
    return report


def test_planted_leaks_are_found_with_their_causes_and_edits_leak_no_more_than_the_control(leaky: dict) -> None:
    groups = {group["run"]: group for group in leaky["groups"]}
    for kind in ("negative_from_positive", "synthetic_from_real"):
        written, edits = groups["written"]["leaks"][kind], groups["edits"]["leaks"][kind]
        assert written["auc"] > 0.99 and written["stands_out"] is True
        assert {label: one["auc"] > 0.99 for label, one in written["by_rank"].items()} == {"N1": True, "N4": True}
        causes = {one["name"]: one["auc"] for one in written["causes"]["properties"]}
        assert min(causes["length in words"], causes["mean word length"], causes["vocabulary"]) > 0.95
        assert any("ish" in marker["text"] for marker in written["causes"]["first_ngrams"])
        assert edits["stands_out"] is False and abs(edits["auc"] - 0.5) < 0.2
        for one in (written, edits):
            assert 0.2 < one["control_auc"] < 0.8 and one["interval_95"][0] <= one["auc"] <= one["interval_95"][1]
            assert one["controls"][0]["properties"].keys() == causes.keys()
    assert groups["written"]["leaks"]["negative_from_positive"]["controls"][0]["what"].startswith("mined")
    # A mined run's control is other real text, never itself; machine-written text there is none.
    mined = groups["mined"]["leaks"]
    assert "random passages" in mined["negative_from_positive"]["controls"][0]["what"]
    assert (
        mined["synthetic_from_real"]["auc"] is None and "no machine-written" in mined["synthetic_from_real"]["reason"]
    )
    lines = [(one.level, one.subject) for one in verdicts(leaky) if one.about == "leak"]
    assert lines[:2] == [("wrong", "written"), ("wrong", "written")]
    assert ("holds", "edits") in lines and ("unknown", "mined") in lines


def test_too_few_examples_are_said_and_not_measured(store: Store) -> None:
    fill(store, leaky_rows(6))
    for group in figures(store).to_dict()["groups"]:
        leak = group["leaks"]["negative_from_positive"]
        assert leak["auc"] is None and "at least 10 queries" in leak["reason"] and leak["by_rank"] == {}


def test_machine_written_positives_are_measured_apart(store: Store) -> None:
    rows = [
        Row(f"q{n}", prose(f"p{n}"), [Negative(prose(f"n{n}"), "r", 1, "synthetic")], origin="synthetic")
        for n in range(30)
    ]
    fill(store, rows)
    leaks = figures(store).to_dict()["groups"][0]["leaks"]
    assert leaks["negative_from_positive"]["reason"] == "the run has no negatives of positives"
    apart = leaks["negative_from_machine_positive"]
    assert apart["num_texts"] == 60 and "no control" in apart["reason"] and apart["stands_out"] is None


def test_a_draw_is_the_first_examples_by_digest_and_links_edits_to_their_source(store: Store) -> None:
    rows = leaky_rows(9)
    # The source of one example's edit is the positive of another: both are one group.
    rows[3].negatives[2].parent = rows[5].positive
    fill(store, rows)
    with store.read() as session:
        run = session.scalars(select(Run).where(Run.name == "edits")).one()
        drawn = draw_run(session, run.id, positive_origin="corpus", max_texts=4)
        digests = {key: digest for key, digest in session.execute(select(Example.id, Example.digest))}
        assert [digests[row.example_id] for row in drawn.rows] == sorted(digests.values())[:4]
        whole = draw_run(session, run.id, positive_origin="corpus", max_texts=100)
        groups = {}
        for row in whole.rows:
            query = rows[[r.query for r in rows].index(_query_of(session, row.query_id))]
            groups[query.query] = whole.group_of_example[row.example_id]
    assert groups["query 3"] == groups["query 5"]
    assert len(set(groups.values())) == 8


def _query_of(session, key: int) -> str:  # type: ignore[no-untyped-def]
    from db.tables.texts import Query

    return session.scalars(select(Query.text).where(Query.id == key)).one()


def test_duplicates_within_and_across_examples_by_value(store: Store) -> None:
    shared, source = prose("shared"), prose("source")
    rows = [
        Row("q0", "One answer, in few words!", [Negative("one ANSWER in few words", "r", 1, "synthetic")]),
        Row("q1", prose("a"), [Negative(prose("b"), "r", 1), Negative(prose("b") + " End", "r", 4)]),
        Row("q2", prose("c"), [Negative(shared, "r", 1), Negative(source + " x", "r", 4, "edited", source)]),
        Row("q3", source, [Negative(shared.upper(), "r", 1), Negative(source + " y", "r", 4, "edited", source)]),
        Row("q4", prose("d"), [Negative(prose("e"), "r", 1), Negative(prose("f"), "r")]),
    ]
    fill(store, rows)
    found = figures(store).to_dict()["duplicates"]
    within, across = found["within_examples"], found["across_examples"]
    assert (within["num"], within["num_exact"], within["total"], within["num_declared_edits"]) == (2, 1, 5, 1)
    assert within["share"] == pytest.approx(2 / 5)
    assert [row["kind"] for row in within["rows"]] == ["exact", "near"]
    assert {text["standing"] for text in within["rows"][0]["texts"]} == {"positive", "N1"}
    assert within["rows"][0]["query"] == "q0"
    assert within["rows"][1]["jaccard"] == pytest.approx(38 / 39, abs=1e-4)
    # `shared` twice; the edit of q2 and that of q3 are alike; their source's own pairs were recorded as edits.
    assert (across["num"], across["num_exact"]) == (2, 1)
    assert across["num_declared_edits"] == 1
    for row in (*within["rows"], *across["rows"]):
        assert all(len(text["digest"]) == 64 for text in row["texts"])


def test_one_text_in_two_examples_is_not_a_duplicate_of_itself(store: Store) -> None:
    shared = prose("shared")
    fill(store, [Row(f"q{n}", prose(f"p{n}"), [Negative(shared, "r", 1)]) for n in range(3)])
    found = figures(store).to_dict()["duplicates"]["across_examples"]
    assert (found["num"], found["total"], found["rows"]) == (0, 4, [])


def test_contamination_exact_and_near_with_rows(store: Store) -> None:
    long = "which animal builds a dam across the small river in the cold north of the country"
    rows = [
        Row("Who digs a den?", "A badger digs a den in the wood.", [Negative(prose("n0"), "r", 1)]),
        Row(long, prose("dam"), [Negative(prose("held out"), "r", 1)]),
        Row("unrelated question", prose("far"), [Negative(prose("n2"), "r", 1)]),
    ]
    fill(store, rows)
    judge(
        store,
        [
            ("who digs a den", "A badger digs a den in the wood."),
            (long.replace("cold", "warm"), prose("dam") + " Indeed"),
            ("something else", prose("held out")),
            ("not there at all", "nor is this"),
            # The query of one example with the positive of another: both stand there, the pair does not.
            ("Unrelated question!", prose("dam")),
        ],
        "test",
    )
    judge(store, [("unrelated question", prose("far"))], "train")
    found = figures(store).to_dict()["contamination"]
    assert found["evaluation"] == ["zoo:test"] and found["reason"] is None
    counts = {kind: tuple(found[kind][key] for key in ("num", "num_exact", "total")) for kind in KINDS}
    assert counts == {"queries": (3, 2, 5), "pairs": (2, 1, 5), "positives": (3, 2, 5)}
    assert found["positives"]["num_as_negative_only"] == 1
    assert [row["kind"] for row in found["queries"]["rows"]] == ["exact", "exact", "near"]
    assert found["queries"]["rows"][2]["audited_text"] == long
    assert {row["query"] for row in found["positives"]["rows"]} == {"Who digs a den?", long}
    assert {row["stands_as"] for row in found["positives"]["rows"]} == {"positive", "negative"}
    named = figures(store, evaluation=["zoo:train"]).to_dict()["contamination"]
    assert named["evaluation"] == ["zoo:train"] and named["pairs"]["num"] == named["pairs"]["num_exact"] == 1
    with pytest.raises(CurationError, match=r"--evaluation 'zoo:dev'.*zoo:test, zoo:train"):
        figures(store, evaluation=["zoo:dev"])


def test_without_a_held_out_split_contamination_is_unknown_and_not_zero(store: Store) -> None:
    fill(store, leaky_rows(3))
    report = figures(store).to_dict()
    found = report["contamination"]
    assert found["queries"] == {"num": None, "total": 0, "rows": []} and "no judged dev or test" in found["reason"]
    assert ("unknown", found["reason"]) in [(one.level, one.text) for one in verdicts(report)]


def test_runs_are_chosen_by_name_and_a_wrong_name_lists_them(store: Store) -> None:
    fill(store, leaky_rows(4))
    report = figures(store, runs=["edits"]).to_dict()
    assert [group["run"] for group in report["groups"]] == ["edits"]
    # Each example has its positive and one edit of it.
    assert report["duplicates"]["across_examples"]["total"] == 8
    with pytest.raises(CurationError, match=r"run 'edit' has no negatives.*edits, mined, written"):
        figures(store, runs=["edit"])


class WordEncoder:
    """A text's direction is that of its first letters' codes."""

    name, version, dimension, max_length = "minilm", "minilm 1", 3, 8

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        vectors = np.array([[ord(text[place]) - 105 for place in range(3)] for text in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.full(len(texts), 5)


def test_similarity_to_the_positive_comes_from_cached_embeddings_where_they_are(store: Store, tmp_path: Path) -> None:
    rows = leaky_rows(5)
    fill(store, rows, teachers=["minilm", "other"])
    encoder = WordEncoder()
    positives = [row.positive for row in rows]
    ones = [row.negatives[0].text for row in rows]
    assert cached_vectors(tmp_path, "minilm 1") is None
    # The N4 of the run, and the first N1, were never embedded.
    EmbeddingCache(tmp_path, encoder).embed([*positives, *ones[1:]])
    report = figures(
        store,
        more_teachers=["other"],
        vectors_of=lambda name, version: cached_vectors(tmp_path, version) if name == "minilm" else None,
    ).to_dict()
    (ranks,) = [group["ranks"] for group in report["groups"] if group["run"] == "written"]
    cosines = np.einsum("ne,ne->n", encoder.encode(positives[1:])[0], encoder.encode(ones[1:])[0])
    assert ranks["N1"]["to_positive"]["num"] == 4
    assert ranks["N1"]["to_positive"]["mean"] == pytest.approx(cosines.mean(), abs=2e-3)
    assert ranks["N4"]["to_positive"] is None
    above = np.mean([similarity(text) > similarity(positive) for text, positive in zip(ones, positives, strict=True)])
    assert ranks["N1"]["above_positive"] == pytest.approx(above)
    (other,) = report["scorers"]
    assert (
        other["teacher"]["name"] == "other"
        and other["groups"][0]["ranks"].keys() == report["groups"][0]["ranks"].keys()
    )


def test_a_run_that_nobody_scored_is_named(store: Store) -> None:
    fill(store, leaky_rows(3))
    fill(store, [Row("q", "p", [Negative("n", "late", 1)])], teachers=())
    assert figures(store).to_dict()["unscored_runs"] == ["late"]


def test_openings_and_diversity_by_value(store: Store) -> None:
    texts = [
        "Badgers dig a den.",
        "badgers DIG: a tunnel",
        "Otters swim in rivers all day",
        "Badgers dig a den, always",
    ]
    fill(store, [Row(f"q {n}", f"positive {n}", [Negative(text, "r", 1, "synthetic")]) for n, text in enumerate(texts)])
    with store.write() as session:
        run = session.scalars(select(Run).where(Run.name == "r")).one()
        for n, candidate in enumerate(session.scalars(select(Candidate).order_by(Candidate.id)).all()):
            request = Request(digest=digest_text(f"r{n}"), model="m", state="done")
            session.add(request)
            session.flush()
            link = {"run_id": run.id, "request_id": request.id, "plan_index": n, "custom_id": f"c{n}", "kind": "k"}
            session.add(RunRequest(**link, attributes={"level": "high" if n < 3 else "low", "draws": [n]}, source={}))
            session.flush()
            put_sourcings(session, [NewSourcing(candidate.id, run.id, request_id=request.id)])
    report = figures(store).to_dict()
    assert report["groups"][0]["openings"] == {
        "num_words": 4, "total": 4, "num": 2, "share": 0.5, "top": [{"text": "badgers dig a den", "num": 2}]
    }  # fmt: skip
    high, low = report["diversity"]
    assert (high["attribute"], high["value"], high["num_texts"]) == ("level", "high", 3)
    assert high["distinct_1"] == pytest.approx(11 / 14) and high["distinct_2"] == pytest.approx(9 / 11)
    assert (low["num_texts"], low["self_overlap"], low["query_similarity"]) == (1, None, None)
    assert high["query_similarity"] == pytest.approx(mean_similarity(["q 0", "q 1", "q 2"]))


def test_diversity_measures_by_value() -> None:
    assert distinct_share([["a", "b", "a"], ["b", "a"]], 2) == pytest.approx(2 / 3)
    assert distinct_share([["a"]], 2) == 0.0
    # The first two share "b c d e" of two and one four-word runs; the third shares nothing.
    assert self_overlap(["a b c d e", "b c d e", "x y z w"]) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert mean_similarity(["same text", "same text"]) == pytest.approx(1.0)
    assert mean_similarity(["abab", "xyxy", "abab"]) == pytest.approx(1 / 3)


def test_the_html_page_stands_alone_and_escapes_what_texts_hold(store: Store) -> None:
    evil = '<script>alert("x")</script> & <img src=http://evil.example/a.png>'
    rows = leaky_rows(12)
    rows[0] = Row(
        evil, prose("p"), [Negative(f"{evil} {n}", f"run {evil}", rank, "synthetic") for n, rank in ((0, 1), (0.5, 4))]
    )
    rows[1] = Row(f"{evil}?", prose("p1"), [Negative(f"{evil} 0 !", f"run {evil}", 1, "synthetic")])
    fill(store, rows)
    judge(store, [(f"{evil}!", evil)], "test")
    page = html_report(figures(store))
    assert "<script" not in page and "<img src=http" not in page
    assert page.count("&lt;script&gt;") >= 3
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    for words in ("Verdicts", "Leaks", "Duplicates", "Contamination", "The widest inversions", "Rows"):
        assert words in page, words


def test_the_command_shows_verdicts_and_writes_json_and_html(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, leaky_rows(3), teachers=["other", "minilm"])
    judge(store, [("query 1", prose("p1"))], "dev")
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path))
    files = ["--json", str(tmp_path / "audit.json"), "--html", str(tmp_path / "pages" / "audit.html")]
    shown = CliRunner().invoke(cli, ["audit", "--store", store_url, *files, "--run", "written", "--run", "mined"])
    assert shown.exit_code == 0, shown.output
    assert "Verdicts" in shown.output and shown.output.index("Verdicts") < shown.output.index("Similarity")
    report = orjson.loads((tmp_path / "audit.json").read_bytes())
    assert report["teacher"]["name"] == "minilm" and [one["teacher"]["name"] for one in report["scorers"]] == ["other"]
    assert [group["run"] for group in report["groups"]] == ["mined", "written"]
    assert report["contamination"]["pairs"]["num"] == 1
    assert (tmp_path / "pages" / "audit.html").read_text().startswith("<!doctype html>")
