"""A mining run's consensus equals the pure functions over all its queries at once, whatever the blocks."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import aliased

from curation.errors import CurationError
from curation.mining import ensembles, sampling
from curation.mining.consensus import Survey, consensus, consensus_ceilings, keep_below_consensus
from curation.mining.mining import mine
from curation.mining.recipe import MineRecipe
from curation.mining.sweep import sweep
from db.digest import digest_text
from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing, Teacher
from db.tables.texts import Passage, Query
from tests.curation.test_mining_methods import BM25, ONE, TWO, World, _recipe

BOTH: dict[str, object] = {"teachers": [ONE, TWO], "judge": ONE, "method": "consensus"}
ENSEMBLE: dict[str, object] = {"teachers": [ONE, TWO], "combine": "intra_sample", "method": "consensus"}


def _world(store: Store, folder: Path, seed: int) -> World:
    """Queries stand near their positives, for the first teacher more than for the second: they weigh differently."""
    world = World(store, folder, seed)
    draws = np.random.default_rng(seed)
    for name, noise in (("one", 0.4), ("two", 1.2)):
        of = world.vectors[name]
        for query in world.judged:
            near = np.mean([of[text] for text in world.positives(query)], axis=0)
            of[query] = (near + noise * draws.standard_normal(4)).astype(np.float32)
    return world


class ByHand:
    """The union of all lists as one table of scores, [T, Q, K]; the judge says something of every passage in it."""

    def __init__(self, world: World, recipe: MineRecipe, judge: str | None) -> None:
        self.world, self.queries = world, list(world.judged)
        depths = [recipe.depth + len(world.judged[query]) for query in self.queries]
        names = ("one", "two")
        listed = {
            name: [
                sorted(world.texts, key=lambda text: -world.cosine(name, query, text))[:depth]
                for query, depth in zip(self.queries, depths, strict=True)
            ]
            for name in names
        }
        unions = [sorted({*a, *b}, key=world.texts.index) for a, b in zip(*listed.values(), strict=True)]
        width = max(map(len, unions))
        self.indices = np.full((len(unions), width), -1)
        self.scores = np.full((2, len(unions), width), np.nan)
        for row, union in enumerate(unions):
            self.indices[row, : len(union)] = [world.texts.index(text) for text in union]
            for teacher, name in enumerate(names):
                self.scores[teacher, row, : len(union)] = [
                    world.cosine(name, self.queries[row], text)
                    if name == judge or text in listed[name][row]
                    else np.nan
                    for text in union
                ]
        self.positives = np.array(
            [[min(world.cosine(name, q, text) for text in world.positives(q)) for q in self.queries] for name in names]
        )
        known = [{text.casefold().strip() for text in world.positives(query)} for query in self.queries]
        self.excluded = [[p for p, text in enumerate(world.texts) if text.casefold().strip() in one] for one in known]

    def kept(self, order_by: int, k: int, **ceiling: float) -> tuple[np.ndarray, np.ndarray]:
        return keep_below_consensus(
            self.indices, self.scores, self.positives, k, order_by=order_by, excluded=self.excluded, **ceiling
        )

    def texts(self, kept: np.ndarray) -> dict[str, list[str]]:
        found = {
            query: list(dict.fromkeys(self.world.texts[place] for place in row if place >= 0))
            for query, row in zip(self.queries, kept.tolist(), strict=True)
        }
        return {query: texts for query, texts in found.items() if texts}


@pytest.mark.parametrize(
    "ceiling", [{}, {"weight": 1.0, "offset": 0.0}, {"weight": 0.0, "offset": 0.3}, {"weight": 0.7, "offset": -0.2}]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_union_equals_the_pure_functions(
    store: Store, tmp_path: Path, ceiling: dict[str, float], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = _world(store, tmp_path, seed)
    recipe = _recipe(**BOTH, **ceiling)
    by_hand = ByHand(world, recipe, "one")
    report, found = world.mine(**BOTH, **ceiling)
    assert found == by_hand.texts(by_hand.kept(0, 4, **ceiling)[0])
    survivors = by_hand.kept(0, 99, **ceiling)[0] >= 0
    assert report.all_teachers.num_survivors == survivors.sum() > 0
    assert report.all_teachers.num_over_ceiling > 0
    for block in (1, 4):
        monkeypatch.setattr("curation.mining.mining._BLOCK", block)
        again = mine(store, recipe, world.build())
        assert again.num_new == 0 and again.to_dict() | {"num_new": 0} == report.to_dict() | {"num_new": 0}


@pytest.mark.parametrize("combine", ["cross_sample", "intra_sample", "intra_sample_unique"])
@pytest.mark.parametrize("judge", [None, "one"])
def test_one_consensus_masks_every_list_of_an_ensemble(
    store: Store, tmp_path: Path, combine: str, judge: str | None
) -> None:
    world = _world(store, tmp_path, 2)
    changes = ENSEMBLE | {"combine": combine, "seed": 7, "judge": ONE if judge else None}
    by_hand = ByHand(world, _recipe(**changes), judge)
    report, found = world.mine(**changes)
    kept = np.stack([by_hand.kept(teacher, 99)[0] for teacher in (0, 1)])
    if judge:  # the second teacher's own list in the judge's order
        by_judge = by_hand.kept(0, 99)[0]
        own = ByHand(world, _recipe(**changes), None)
        is_listed = {
            (row, place)
            for row, places in enumerate(own.indices.tolist())
            for place, score in zip(places, own.scores[1, row], strict=True)
            if np.isfinite(score)
        }
        for teacher, lists in ((1, is_listed), (0, _listed_by_first(own))):
            kept[teacher] = -1
            for row, places in enumerate(by_judge.tolist()):
                some = [place for place in places if place >= 0 and (row, place) in lists]
                kept[teacher, row, : len(some)] = some
    assert [of.num_survivors for of in report.of_teachers] == (kept >= 0).sum(axis=(1, 2)).tolist()
    kept = kept[:, :, :4]
    if combine == "cross_sample":
        keys = [digest_text(query) for query in world.judged]
        chosen = ensembles.cross_sample(kept, 4, seed=7, query_keys=keys).indices
    else:
        chosen = ensembles.intra_sample(kept, 4, deduplicate=combine.endswith("unique")).indices
    assert found == by_hand.texts(chosen)


def _listed_by_first(own: ByHand) -> set[tuple[int, int]]:
    rows, columns = np.nonzero(np.isfinite(own.scores[0]))
    return set(zip(rows.tolist(), own.indices[rows, columns].tolist(), strict=True))


def test_consensus_and_its_ceiling_stand_beside_each_negative(store: Store, tmp_path: Path) -> None:
    world = _world(store, tmp_path, 0)
    world.mine(**BOTH, num_negatives=20)
    by_hand = ByHand(world, _recipe(**BOTH), "one")
    values, of_positives = consensus(by_hand.scores, by_hand.positives)
    limits = consensus_ceilings(of_positives)
    passage = aliased(Passage)
    with store.read() as session:
        rows = session.execute(
            select(Query.text, passage.text, Sourcing.score, Sourcing.threshold, Sourcing.retrieval_rank)
            .select_from(Sourcing)
            .join(Teacher, (Teacher.id == Sourcing.teacher_id) & (Teacher.kind == "consensus"))
            .join(Candidate, Candidate.id == Sourcing.candidate_id)
            .join(Example, Example.id == Candidate.example_id)
            .join(Query, Query.id == Example.query_id)
            .join(passage, passage.id == Candidate.passage_id)
        ).all()
        others = select(Sourcing.threshold).join(Teacher).where(Teacher.kind != "consensus")
        assert set(session.scalars(others)) == {None}  # a cosine is not compared with a ceiling of another scale
    assert rows
    for query, text, score, threshold, rank in rows:
        row = by_hand.queries.index(query)
        place = by_hand.indices[row].tolist().index(world.texts.index(text))
        assert score == pytest.approx(values[row, place], abs=2e-6) and rank is None
        assert threshold == pytest.approx(limits[row], abs=2e-6) and score < threshold


def test_sampling_draws_from_what_the_consensus_left(store: Store, tmp_path: Path) -> None:
    world = _world(store, tmp_path, 1)
    changes = BOTH | {"sampling": "softmax", "sample_from": 6, "num_negatives": 3, "temperature": 0.2, "seed": 5}
    _, found = world.mine(**changes)
    by_hand = ByHand(world, _recipe(**changes), "one")
    places, scores = by_hand.kept(0, 6)
    keys = [[digest_text(text) for text in texts] for texts in (world.judged, world.texts)]
    chosen, _ = sampling.softmax(places, scores, 3, temperature=0.2, seed=5, query_keys=keys[0], document_keys=keys[1])
    assert found == by_hand.texts(chosen)


def test_a_teacher_that_scores_no_pairs_proposes_and_does_not_vote(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 0)

    class OnlySearches:
        name, kind, prompt, version, max_length = "s", "bm25", "", "v", None

        def top(self, queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
            places = np.tile(np.arange(20, 20 + k) % len(world.texts), (len(queries), 1))
            return places, np.linspace(9, 1, k, dtype=np.float32)[None].repeat(len(queries), 0)

    def build(spec, passages, progress):  # type: ignore[no-untyped-def]
        return OnlySearches() if spec.kind == "bm25" else world.build()(spec, passages, progress)

    with pytest.raises(CurationError, match="of 2 there is 1: add a teacher"):
        mine(store, _recipe(method="consensus", teachers=[ONE, BM25], combine="intra_sample"), build)
    recipe = _recipe(method="consensus", teachers=[ONE, TWO, BM25], combine="intra_sample", weight=0, offset=0)
    report = mine(store, recipe, build)
    # What only it proposes, the others have at their lowest: that may be a negative.
    assert report.of_teachers[2].num_survivors > 0


@pytest.mark.parametrize("seed", range(4))
def test_survey_of_single_queries_equals_the_whole(seed: int) -> None:
    draws = np.random.default_rng(seed)
    scores = draws.standard_normal((3, 7, 9)) * np.array([1, 40, 0.01])[:, None, None] - 5
    scores[draws.random(scores.shape) < 0.3] = np.nan
    scores[1, 2] = np.nan  # listed nothing for a query
    scores[:, 4] = np.nan  # nobody did
    positives = draws.standard_normal((3, 7)) + 2
    positives[2, 3] = np.nan
    if seed == 3:
        scores[2] = np.where(np.isnan(scores[2]), np.nan, 0.5)  # says one thing of all
    survey = Survey(3)
    for row in range(7):
        survey.add_scores(scores[:, row])
    for row in range(7):
        survey.add_agreement(scores[:, row], positives[:, row])
    weights = survey.weights_T()
    expected, of_positives = consensus(scores, positives)
    for row in range(7):
        values, positive = survey.consensus_of(scores[:, row], positives[:, row], weights)
        assert values == pytest.approx(expected[row], abs=1e-5)
        assert positive == pytest.approx(of_positives[row], abs=1e-5)
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "consensus"}, "needs two teachers or more"),
        ({"method": "consensus", "judge": ONE}, "needs two teachers or more"),
        (BOTH | {"value": 0.9}, "means nothing to method 'consensus'"),
        (BOTH | {"too_few": "deeper"}, "'consensus' has none"),
        ({"weight": 0.5}, "weight = 0.5 means nothing to method 'percentage'"),
        (BOTH | {"weight": 1.5}, "less than or equal to 1"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _recipe(**changes)


def test_sweep_says_that_it_has_no_consensus(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 0)
    with pytest.raises(CurationError, match="has no sweep"):
        sweep(store, _recipe(**BOTH), world.build())


def test_other_methods_runs_keep_their_identity() -> None:
    assert "weight" not in _recipe().identity() and _recipe(**BOTH).identity()["weight"] is None
