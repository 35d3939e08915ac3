"""A threshold sweep: how many candidates survive, and how many judged false negatives among them, per teacher.

Every judged positive of a query is its positive once; what else is relevant to the query is then a false negative that
the ceiling should refuse. Relevant is what the last word of `gradus judge` grades 2 or 3; of a pair that it never
judged, the query's other positives. A query with nothing else relevant shows what the ceiling costs, not what it
catches. Nothing is written but what a teacher that asks a model pays for.

Legend: X examples (query, positive) of a block, K candidates, B blocks joined.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from curation.judging.verdicts import last_words
from curation.mining.mining import BuildTeacher, Progress, built_teachers, prepare
from curation.mining.positive_aware import Method, ceilings
from curation.mining.recipe import MineRecipe
from curation.mining.teachers import Judge, Proposer
from curation.mining.work import Work
from db.store import Store

_BLOCK = 1_024
_RELEVANT = 2
_STEPS = tuple(round(0.05 * step, 2) for step in range(21))
# The paper's grids: 0 to 1 in steps of 0.05, and 0.98 and 1.05 for the share of the positive.
GRIDS: dict[Method, tuple[float, ...]] = {
    "naive": (0.0,),
    "shifted": (0, 1, 2, 3, 5, 10, 15, 20, 30, 50),
    "absolute": _STEPS,
    "margin": _STEPS,
    "percentage": tuple(sorted((*_STEPS, 0.98, 1.05))),
}


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One teacher at one threshold. Survivors are all below the ceiling, taken the first `num_negatives` of them."""

    teacher: str
    value: float
    num_survivors: int
    num_false_survivors: int
    num_taken: int
    num_false_taken: int
    num_short: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points of all teachers, over `num_examples`.

    A teacher's lists hold `num_false` judged false negatives; on `num_judged` of its candidates a judge had its word.
    """

    run: str
    method: Method
    depth: int
    num_negatives: int
    num_examples: int
    num_false: dict[str, int]
    num_judged: dict[str, int]
    points: list[SweepPoint]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sweep(
    store: Store, recipe: MineRecipe, build: BuildTeacher, *, progress: Progress = lambda done, total: None
) -> Sweep:
    """Sweep the recipe's method over its grid, for each of its teachers, by the judge's scores where there is one.

    Raises:
        CurationError: As `mine`; or a teacher that has to judge its own proposals cannot score pairs.
    """
    if (method := recipe.method) == "consensus":
        raise CurationError("method = 'consensus' has no sweep: sweep another method, or mine with several offsets")
    with store.read() as session:
        work = Work.load(session, recipe)
    proposers, judge = built_teachers(recipe, work, build, progress)
    points: list[SweepPoint] = []
    num_false: dict[str, int] = {}
    num_judged: dict[str, int] = {}
    num_examples = 0
    for teacher in proposers:
        own = judge or teacher
        if not isinstance(own, Judge):
            raise CurationError(f"teacher {own.name!r} cannot score pairs: name another one as [judge]")
        prepare([teacher], work)
        lists = _candidates(store, recipe, work, teacher, own, progress)
        num_examples = len(lists.positive_scores_X)
        num_false[teacher.name] = int((lists.is_false_XK & lists.is_candidate_XK).sum())
        num_judged[teacher.name] = int((lists.is_judged_XK & lists.is_candidate_XK).sum())
        values: Sequence[float] = sorted({*GRIDS[method], recipe.threshold})
        points += [_point(recipe, method, teacher.name, value, lists) for value in values]
    return Sweep(recipe.name, method, recipe.depth, recipe.num_negatives, num_examples, num_false, num_judged, points)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """What a teacher proposes for each example, by the judge's scores, highest first."""

    scores_XK: NDArray[Any]
    is_candidate_XK: NDArray[np.bool_]
    is_false_XK: NDArray[np.bool_]
    is_judged_XK: NDArray[np.bool_]
    positive_scores_X: NDArray[Any]


def _candidates(
    store: Store, recipe: MineRecipe, work: Work, teacher: Proposer, judge: Judge, progress: Progress
) -> _Candidates:
    num_positives = max(map(len, work.positives.values()))
    width = recipe.depth + num_positives
    passages = list(work.passages.values())
    queries = list(work.queries)
    parts: list[tuple[Any, ...]] = []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        found, _ = teacher.top([work.queries[query] for query in block], width)
        rows = [(row, query, passage) for row, query in enumerate(block) for passage in sorted(work.positives[query])]
        pairs = [
            (work.queries[query], passages[place])
            for row, query in enumerate(block)
            for place in found[row].tolist()
            if place >= 0
        ]
        values = np.full(found.shape, -np.inf)
        values[found >= 0] = np.round(judge.score(pairs), 6)
        order = np.lexsort((found, -values), axis=-1)
        found, values = np.take_along_axis(found, order, 1), np.take_along_axis(values, order, 1)
        of_rows = [row for row, _, _ in rows]
        positives = [(work.queries[query], work.positive_text(passage)) for _, query, passage in rows]
        is_own = np.array([np.isin(found[row], list(work.copies[passage])) for row, _, passage in rows])
        is_known = np.array([np.isin(found[row], list(work.known_places(query))) for row, query, _ in rows])
        grades = _grades(store, work, block, found)[of_rows]
        is_false = np.where(grades >= 0, grades >= _RELEVANT, is_known) & ~is_own
        is_candidate = (found[of_rows] >= 0) & ~is_own
        is_candidate &= np.cumsum(is_candidate, axis=1) <= recipe.depth
        of_positives = np.round(judge.score(positives), 6)
        parts.append((values[of_rows], is_candidate, is_false, grades >= 0, of_positives))
        progress(start + len(block), len(queries))
    return _Candidates(*(np.concatenate(of_part) for of_part in zip(*parts, strict=True)))


def _grades(store: Store, work: Work, queries: Sequence[int], found_QK: NDArray[Any]) -> NDArray[np.int64]:
    """The last word of a judge on each passage found, [Q, K]; -1 where there is none."""
    keys = list(work.passages)
    passages_QK = [[keys[place] if place >= 0 else -1 for place in row] for row in found_QK.tolist()]
    pairs = [(query, key) for query, row in zip(queries, passages_QK, strict=True) for key in row if key >= 0]
    with store.read() as session:
        words = {pair: word.relevance for pair, word in last_words(session, pairs).items()}
    grades = [[words.get((query, key), -1) for key in row] for query, row in zip(queries, passages_QK, strict=True)]
    return np.array(grades, np.int64).reshape(found_QK.shape)


def _point(recipe: MineRecipe, method: Method, teacher: str, value: float, lists: _Candidates) -> SweepPoint:
    limits_X = np.round(ceilings(method, lists.positive_scores_X, value=value), 6)
    shift = int(value) if method == "shifted" else 0
    ranks_XK = np.cumsum(lists.is_candidate_XK, axis=1)
    survives_XK = lists.is_candidate_XK & (ranks_XK > shift) & (lists.scores_XK < limits_X[:, None])
    taken_XK = survives_XK & (np.cumsum(survives_XK, axis=1) <= recipe.num_negatives)
    return SweepPoint(
        teacher,
        value,
        int(survives_XK.sum()),
        int((survives_XK & lists.is_false_XK).sum()),
        int(taken_XK.sum()),
        int((taken_XK & lists.is_false_XK).sum()),
        int((taken_XK.sum(axis=1) < recipe.num_negatives).sum()),
    )


def draw_sweep(found: Sweep, path: Path) -> None:
    """Survivors per example against the share of judged false negatives among them, a line per teacher (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for teacher, num_false in found.num_false.items():
        points = [point for point in found.points if point.teacher == teacher]
        survivors = [point.num_survivors / max(found.num_examples, 1) for point in points]
        kept = [point.num_false_survivors / max(num_false, 1) for point in points]
        label = f"{teacher} ({num_false:,} judged false negatives)"
        (line,) = axes.plot(survivors, kept, marker="o", markersize=4, label=label)
        labelled = -np.inf
        for point, x, y in zip(points, survivors, kept, strict=True):
            if abs(x - labelled) < 0.02 * found.depth:
                continue  # it would stand on its neighbour's label
            labelled = x
            axes.annotate(
                f"{point.value:g}", (x, y), xytext=(3, -9), textcoords="offset points", fontsize=7,
                color=line.get_color(),
            )  # fmt: skip
    axes.set_xlabel(f"survivors per example, of {found.depth} proposed")
    axes.set_ylabel("judged false negatives kept, share")
    axes.set_title(f"{found.run}: {found.method}, {found.num_examples:,} examples")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144, metadata={"Software": None})
