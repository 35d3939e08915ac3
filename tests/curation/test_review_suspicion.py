"""Suspicion by value against a plain reading of its definition, on uneven examples, on both databases."""

from dataclasses import dataclass
from itertools import pairwise
from math import exp
from statistics import fmean, pstdev

import numpy as np
import pytest

from curation.reviewing.suspicion import suspicion_of, suspicions, teacher_norms
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.judgements import Judge, Judgement
from db.tables.ledger import Request
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

HARDNESS = {1: 3, 2: 2, 3: 2, 4: 1, 5: 1}
WORDS = tuple("abcdefghijklmnopqrst")


@dataclass
class Filled:
    """What the store was given: per candidate its example, text, rank and run; scores and judgements by texts."""

    candidates: dict[int, tuple[int, str, int | None, str, str | None]]
    positives: dict[int, str]
    scores: dict[str, dict[tuple[int, str], float]]
    judged: dict[tuple[int, str], int]


def fill(store: Store, seed: int = 0, num: int = 9) -> Filled:
    """Examples with one to six negatives of two runs, gaps in the scores, repeats, an edit, judgements."""
    draws = np.random.default_rng(seed)
    filled = Filled({}, {}, {"minilm": {}, "bm25": {}, "flat": {}}, {})
    with store.write() as session:
        runs = {name: start_run(session, "generate", name, {"name": name}, 0).id for name in ("one", "two")}
        old = put_teacher(session, name="minilm", version="old", kind="bi-encoder", max_length=8)
        teachers = {name: put_teacher(session, name=name, version="new", kind="bi-encoder") for name in filled.scores}
        judge = Judge(digest="j" * 64, model="judge", entry="e", prompt_digest="p" * 64)
        session.add(judge)
        session.flush()
        queries = put_queries(session, [f"query {n}" for n in range(num)])
        for n in range(num):
            positive = " ".join(draws.permutation(WORDS)) + f" {n}"
            texts = [" ".join(draws.permutation(WORDS)) + f" {n} {k}" for k in range(n % 6 + 1)]
            parents: list[str | None] = [None] * len(texts)
            if n % 3 == 1:
                texts[-1] = positive + " indeed"  # repeats the positive
            if len(texts) > 3:
                texts[2], texts[3] = texts[1] + " today", texts[1] + " now"
                parents[3] = texts[1]  # a recorded edit, while texts[2] merely repeats
            passages = dict(zip([positive, *texts], put_passages(session, [positive, *texts]), strict=True))
            (example,) = put_examples(session, [(queries[n], passages[positive])], origin="corpus")
            filled.positives[example] = positive
            rows = [NewCandidate(example, passages[positive], "positive", "corpus", runs["one"])]
            standing = []
            for k, (text, parent) in enumerate(zip(texts, parents, strict=True)):
                rank = None if k == 4 else k % 5 + 1
                run = "two" if n % 4 == 3 and k % 2 else "one"
                rows.append(
                    NewCandidate(example, passages[text], "negative", "edited" if parent else "synthetic", runs[run],
                                 rank=rank, parent_passage_id=passages[parent] if parent else None)
                )  # fmt: skip
                standing.append((text, rank, run, parent))
            keys = put_candidates(session, rows)
            for text, rank, run, parent in standing:
                filled.candidates[keys[example, passages[text]]] = (example, text, rank, run, parent)
            for name, teacher in teachers.items():
                scored = [text for text in (positive, *texts) if draws.random() < 0.8 or name == "flat"]
                values = draws.normal(0.5, 0.3, len(scored)) * (20 if name == "bm25" else 1)
                for text, value in zip(scored, values if name != "flat" else [0.25] * len(scored), strict=True):
                    filled.scores[name][example, text] = float(value)
                    insert_missing(session, Score, [
                        {"teacher_id": t, "query_id": queries[n], "passage_id": passages[text], "value": v,
                         "num_tokens": 3}
                        for t, v in ([(teacher, float(value)), (old, 99.0)] if name == "minilm" else
                                     [(teacher, float(value))])
                    ])  # fmt: skip
            for text in texts[: n % 3]:
                filled.judged[example, text] = int(draws.integers(0, 4))
                request = Request(digest=f"{example:03}{len(filled.judged):061}", model="judge", state="done")
                session.add(request)
                session.flush()
                session.add(
                    Judgement(query_id=queries[n], passage_id=passages[text], judge_id=judge.id, request_id=request.id,
                              stage="screen", relevance=filled.judged[example, text], evidence="e", reason="r")
                )  # fmt: skip
    return filled


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def expected(filled: Filled, key: int) -> tuple[float, float, float]:
    """(value, disagreement, uncertainty) of a candidate, sign by sign."""
    example, text, rank, run, parent = filled.candidates[key]
    others = [other for k, other in filled.candidates.items() if other[0] == example and k != key]
    positive = filled.positives[example]
    spread = {name: pstdev(values.values()) for name, values in filled.scores.items()}
    mean = {name: fmean(values.values()) for name, values in filled.scores.items()}

    def z(name: str, of: str) -> float | None:
        value = filled.scores[name].get((example, of))
        return None if value is None else (value - mean[name]) / spread[name] if spread[name] > 1e-12 else 0.0

    signs = [{2: 0.7, 3: 0.9}.get(filled.judged.get((example, text), 0), 0.0)]
    mine = {name: value for name in filled.scores if (value := z(name, text)) is not None}
    both = {name: theirs for name in mine if (theirs := z(name, positive)) is not None}
    if both:
        signs.append(0.6 * sum(mine[name] > both[name] for name in both) / len(both))
    margins = [0.0]
    for _, other, other_rank, other_run, _ in others:
        if rank and other_rank and run == other_run and HARDNESS[rank] != HARDNESS[other_rank]:
            sign = 1 if HARDNESS[rank] > HARDNESS[other_rank] else -1
            theirs = {name: value for name in mine if (value := z(name, other)) is not None}
            margins += [sign * (theirs[name] - mine[name]) for name in theirs]
    signs.append(0.5 * (1 - exp(-max(margins))))
    if jaccard(text, positive) >= 0.8:
        signs.append(0.9 * jaccard(text, positive))
    near = [jaccard(text, other) for _, other, *_, other_parent in others if other != parent and other_parent != text]
    if near and max(near) >= 0.8:
        signs.append(0.4 * max(near))
    disagreement = pstdev(mine.values()) if len(mine) > 1 else 0.0
    signs.append(0.5 * disagreement / (1 + disagreement))
    margin = abs(fmean(both.values()) - fmean(mine[name] for name in both)) if both else None
    return 1 - float(np.prod([1 - sign for sign in signs])), disagreement, 0.0 if margin is None else exp(-margin)


def test_suspicion_by_brute_force(store: Store) -> None:
    filled = fill(store)
    with store.read() as session:
        found = suspicion_of(session, list(filled.candidates))
    assert set(found) == set(filled.candidates) and len(found) > 25
    for key, one in found.items():
        value, disagreement, uncertainty = expected(filled, key)
        assert one.value == pytest.approx(value, abs=1e-9), one.reasons
        assert (one.disagreement, one.uncertainty) == pytest.approx((disagreement, uncertainty), abs=1e-9)
        assert 0 <= one.value <= 1
    reasons = " | ".join(reason for one in found.values() for reason in one.reasons)
    for sign in ("judged 3 of 3", "above the positive: ", "less similar than N", "repeats the positive: Jaccard",
                 "repeats another negative", "teachers disagree: spread"):  # fmt: skip
        assert sign in reasons


def test_it_does_not_matter_who_is_asked_about_together(store: Store) -> None:
    filled = fill(store, seed=1)
    keys = list(filled.candidates)
    with store.read() as session:
        together = suspicion_of(session, keys)
        alone = {key: suspicion_of(session, [key])[key] for key in keys[::4]}
        paged: dict[int, object] = {}
        for page in suspicions(session, iter(keys), norms=teacher_norms(session)):
            paged |= page
    assert paged == together and all(together[key] == one for key, one in alone.items())


def test_no_scores_no_judgements_no_suspicion_and_what_is_no_negative_is_left_out(store: Store) -> None:
    with store.write() as session:
        run = start_run(session, "import", "r", {}, 0).id
        (query,), passages = put_queries(session, ["q"]), put_passages(session, ["p", "n one", "n two"])
        (example,) = put_examples(session, [(query, passages[0])], origin="corpus")
        put_candidates(session, [
            NewCandidate(example, passages[0], "positive", "corpus", run),
            *(NewCandidate(example, passage, "negative", "mined", run) for passage in passages[1:]),
        ])  # fmt: skip
    with store.read() as session:
        found = suspicion_of(session, [1, 2, 3, 999])
        assert suspicion_of(session, []) == {} and list(suspicions(session, [])) == []
    assert len(found) == 2
    assert {(one.value, one.reasons, one.disagreement, one.uncertainty) for one in found.values()} == {
        (0.0, (), 0.0, 0.0)
    }


def test_the_strongest_sign_comes_first(store: Store) -> None:
    filled = fill(store)
    with store.read() as session:
        for one in suspicion_of(session, list(filled.candidates)).values():
            judged = [place for place, reason in enumerate(one.reasons) if reason == "judged 3 of 3"]
            assert all(place <= 1 for place in judged)
            assert all(first != second for first, second in pairwise(one.reasons))
