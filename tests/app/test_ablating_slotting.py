"""Copies of a release with other slots: as many negatives of each kind, by whom found, as the arm says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.ablating.arms import ablation_of
from app.ablating.slotting import Finder, Slotting, _random_negatives, _slotted, finders, slotted_release, usual_slots
from app.errors import AppError
from db.digest import digest_of
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, read_release

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def release(toy_releases: Path) -> Path:
    return toy_releases / "gradus" / "releases" / "toy-1.0.0"


def _examples(folder: Path) -> Sequence[GradedExample]:
    return read_release(folder, "train").examples


def test_slots_are_what_the_mix_says(release: Path, tmp_path: Path) -> None:
    def slots(mix: str, ratio: float = 1.0) -> list[tuple[int, int]]:
        folder = slotted_release(release, Slotting(mix, 2, ratio), tmp_path, 0)
        return [(e.num_written_slots, e.num_mined_slots) for e in _examples(folder)]

    assert set(slots("synthetic")) == {(2, 0)}
    # The toy release has no mined negatives: written ones fill in.
    assert set(slots("hybrid")) == set(slots("direct")) == {(2, 0)}
    with pytest.raises(AppError, match="has a negative for the mix 'synthetic'"):
        slotted_release(release, Slotting("synthetic", 2, origins=("edited",)), tmp_path, 0)


def test_slots_of_uneven_supplies_by_hand() -> None:
    supplies = ["sse", "mm", "smmm", "", "emm"]  # synthetic, edited, mined
    origins = {"s": "synthetic", "e": "edited", "m": "mined"}
    rows = [
        {"example_id": f"{n}", "negatives": [{"origin": origins[kind]} for kind in kinds]}
        for n, kinds in enumerate(supplies)
    ]

    def slots(*arguments: Any) -> list[tuple[int, int]]:
        made = _slotted(rows, Slotting(*arguments), 0, {})
        return [(row["num_synthetic_slots"], row["num_mined_slots"]) for row in made]

    assert slots("synthetic", 2) == [(2, 0), (0, 0), (1, 0), (0, 0), (1, 0)]
    assert slots("mined", 2) == [(0, 0), (0, 2), (0, 2), (0, 0), (0, 2)]
    assert slots("hybrid", 2, 1.0) == [(2, 0), (0, 2), (1, 1), (0, 0), (1, 1)]
    assert slots("hybrid", 2, 1.0, ("edited",)) == [(1, 0), (0, 2), (0, 2), (0, 0), (1, 1)]
    assert all(pair in {(2, 0), (1, 1), (0, 2), (1, 0), (0, 0)} for pair in slots("direct", 2))


def _slotted_row(query: str, positive: str) -> dict[str, Any]:
    return {"example_id": query + positive, "query_id": query, "positive_id": positive, "positive": positive.upper()}


def test_random_negatives_are_other_queries_positives(release: Path, tmp_path: Path) -> None:
    folders = [slotted_release(release, Slotting("random", 3), tmp_path, seed) for seed in (0, 0, 1)]
    assert folders[0] == folders[1] != folders[2]
    examples = _examples(folders[0])
    positives = {example.positive for example in examples}
    for example in examples:
        drawn = [negative.text for negative in example.mined]
        assert len(set(drawn)) == 3 and set(drawn) <= positives - {example.positive} and not example.written
    assert [e.query for e in examples] == [e.query for e in _examples(release)]
    blank = [row for row in (_slotted_row("q", "p"), _slotted_row("q", "r"), _slotted_row("s", "t"))]
    assert [[n["id"] for n in drawn] for drawn in _random_negatives(blank, 3, 0)[:2]] == [["t"], ["t"]]
    assert sorted(n["id"] for n in _random_negatives(blank, 3, 0)[2]) == ["p", "r"]
    assert {e.mined[0].id for e in examples} != {e.mined[0].id for e in _examples(folders[2])} or len(examples) < 4


@pytest.fixture
def mined_release(tmp_path: Path) -> Path:
    """Queries with five mined negatives: BM25 found the first three, a dense teacher 1 to 4 from the other end."""
    from curation.release.recipe import Mix, ReleaseRecipe, Split
    from curation.release.release import create_release
    from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
    from db.insert import insert_missing
    from db.runs import start_run
    from db.store import Store
    from db.tables.examples import Score
    from db.teachers import put_teacher
    from db.texts import put_passages, put_queries

    store = Store.open(f"sqlite:///{tmp_path / 'mined.db'}")
    with store.write() as session:
        run = start_run(session, "mine", "both", {}, 0)
        bm25, dense = (put_teacher(session, name=name, version="1", kind="k") for name in ("bm25", "dense"))
        for number in range(4):
            (query,) = put_queries(session, [f"query {number}"])
            positive, *negatives = put_passages(session, [f"answer {number}", *(f"n{i} {number}" for i in range(5))])
            (example,) = put_examples(session, [(query, positive)], origin="corpus")
            rows = [NewCandidate(example, passage, "negative", "mined", run.id) for passage in negatives]
            known = put_candidates(session, [NewCandidate(example, positive, "positive", "corpus", run.id), *rows])
            ids = [known[example, passage] for passage in negatives]
            found = [NewSourcing(ids[i], run.id, None, bm25, i + 1, 9.0 - i) for i in range(3)]
            found += [NewSourcing(ids[4 - i], run.id, None, dense, i + 1, 0.9 - i / 10) for i in range(1 + number)]
            put_sourcings(session, found)
            scored = {"teacher_id": dense, "query_id": query, "num_tokens": 3}
            pairs = ((positive, 0.9), (negatives[0], 0.5))
            insert_missing(session, Score, [{**scored, "passage_id": key, "value": value} for key, value in pairs])
    recipe = ReleaseRecipe(teacher="dense", mix=Mix(kind="mined", slots=2), split=Split(dev_share=0))
    create_release(store, recipe, "mined-1.0.0", folder=tmp_path / "releases")
    store.close()
    return tmp_path / "releases" / "mined-1.0.0"


def test_mined_negatives_by_who_found_them(mined_release: Path, tmp_path: Path) -> None:
    both = finders(mined_release, "train")
    assert both == [Finder("bm25", "both"), Finder("dense", "both")]
    recipe = TrainRecipe(name="base", release="toy-1.0.0")
    names = [arm.name for arm in ablation_of("negatives", recipe, 2, both).arms]
    assert {"mined", "mined, found by bm25", "mined, found by dense"} <= set(names)
    assert not any("found by" in arm.name for arm in ablation_of("negatives", recipe, 2, both[:1]).arms)
    found = {}
    for finder in both:
        slotting = Slotting("mined", 3, finder=finder)
        folder = slotted_release(mined_release, slotting, tmp_path, 0)
        assert folder == slotted_release(mined_release, slotting, tmp_path, 1)
        for one in _examples(folder):
            texts = [negative.text.split()[0] for negative in one.mined]
            found[finder.teacher, int(one.query.split()[1])] = (texts, one.num_mined_slots)
    for number in range(4):
        assert found["bm25", number] == (["n0", "n1", "n2"], 3)
        assert found["dense", number] == (["n4", "n3", "n2", "n1"][: number + 1], min(number + 1, 3))
    with pytest.raises(AppError, match="what splade found in run 'x'"):
        slotted_release(mined_release, Slotting("mined", 3, finder=Finder("splade", "x")), tmp_path, 0)


def test_provenance_that_is_not_the_manifests_is_refused(mined_release: Path) -> None:
    (path,) = (mined_release / "provenance").iterdir()
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(AppError, match="not there as its manifest says"):
        finders(mined_release, "train")


def test_a_field_that_came_later_leaves_the_digests_of_old_copies(release: Path, tmp_path: Path) -> None:
    made = slotted_release(release, Slotting("synthetic", 2), tmp_path, 0)
    of = json.loads((release / "manifest.json").read_bytes())["digest"]
    slotting = {"mix": "synthetic", "slots": 2, "ratio": 0.7, "origins": ["synthetic", "edited"]}
    assert made.name == f"synthetic-{digest_of({'of': of, 'slotting': slotting, 'draws': None})[:12]}"


def test_usual_slots_is_the_most_frequent_sum(release: Path) -> None:
    sums = [e.num_written_slots + e.num_mined_slots for e in _examples(release)]
    assert usual_slots(release, "train") == max(set(sums), key=sums.count) == 2
