"""Choosing negatives, a block of queries at a time: propose, score, keep below the ceiling, sample, combine.

A consensus ceiling knows the whole run: all queries are looked over first, and then chosen for in any blocks.

Scores are compared as they are stored, rounded to six decimals, so that a reader of the store can compare them again.
A passage is its place among the collection's passages.

Legend: Q queries, W passages proposed for a query, k negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from curation.mining import sampling
from curation.mining.agreeing import Consensus, Shelf, Votes, as_matrix
from curation.mining.consensus import Doubles, Survey
from curation.mining.ensembles import cross_sample, intra_sample
from curation.mining.positive_aware import ceilings, keep_below
from curation.mining.recipe import MineRecipe
from curation.mining.reporting import MineReport
from curation.mining.search import Floats, Indices
from curation.mining.teachers import CeilingSearcher, Judge, Proposer, Teacher
from curation.mining.work import Work
from db.digest import digest_text

Stored = NDArray[Any]  # double precision, rounded to six decimals


@dataclass(frozen=True, slots=True)
class Source:
    """How a teacher saw a chosen passage; no rank when it only judged, no threshold when it did not judge."""

    teacher: int
    rank: int | None
    score: float
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A negative of a query, hardest first in its list: its place, its score by who judged it, and its sources."""

    place: int
    score: float
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Rank, from 1, and score that a teacher gave a passage."""

    rank: int
    score: float


@dataclass(slots=True)
class _List:
    """Passages of each query with scores by one judge; of one teacher, or of all (None)."""

    teacher: int | None
    judge: int
    scores: list[dict[int, float]]


@dataclass(slots=True)
class _Offered:
    """What each query of a block was offered: by teacher, as lists to choose from, and the ceilings by judge.

    `agreed` has the consensus on each place of a query and its ceiling; it is None where the method is another.
    """

    seen: list[list[dict[int, _Seen]]]
    lists: list[_List]
    limits: dict[int, Stored]
    agreed: list[tuple[dict[int, float], float]] | None = None


class Chooser:
    """Chooses by a recipe. Teachers are numbered as in the recipe; a judge that is none of them comes last."""

    def __init__(
        self, recipe: MineRecipe, work: Work, proposers: Sequence[Proposer], judge: Judge | None, report: MineReport
    ) -> None:
        self._recipe, self._work, self._report = recipe, work, report
        self._proposers = proposers
        self.teachers: list[Teacher] = [*proposers]
        if judge is not None and not any(judge is proposer for proposer in proposers):
            self.teachers.append(judge)
        self._judge = None if judge is None else next(n for n, one in enumerate(self.teachers) if one is judge)
        self._passages = list(work.passages.values())
        self._passage_keys = [digest_text(text) for text in self._passages] if recipe.sampling != "top" else []
        self._voters = [number for number, teacher in enumerate(self.teachers) if isinstance(teacher, Judge)]
        self._shelf: Shelf | None = None
        self._consensus: Consensus | None = None
        if recipe.method == "consensus" and len(self._voters) < 2:
            raise CurationError(
                f"method = 'consensus' needs two teachers or more that score pairs; "
                f"of {len(self.teachers)} there is {len(self._voters)}: add a teacher or a [judge]"
            )

    def look_over(self, queries: Sequence[int], num_at_once: int, file: IO[bytes]) -> None:
        """For a consensus: have every query's lists made, once, and learn from all of them. Call before `choose`.

        Args:
            file: An open, empty binary file, in which the lists stand as long as this is used.
        """
        if self._recipe.method != "consensus":
            return
        self._shelf, survey = Shelf(file), Survey(len(self._voters))
        remaining = iter(queries)
        while block := list(islice(remaining, num_at_once)):
            seen, lists = self._proposed(block)
            positives_QV = np.array([self._lowest(voter, block) for voter in self._voters]).T
            for row, query in enumerate(block):
                of_lists = [_List(one.teacher, one.judge, [one.scores[row]]) for one in lists]
                seen_by = [of_teacher[row] for of_teacher in seen]
                survey.add_scores(as_matrix(*self._votes(seen_by, of_lists)))
                self._shelf.put(query, (seen_by, of_lists, positives_QV[row]))
        for query in queries:
            seen_by, of_lists, positives_V = self._shelf.get(query)
            survey.add_agreement(as_matrix(*self._votes(seen_by, of_lists)), positives_V)
        recipe, versions = self._recipe, [self.teachers[number].version for number in self._voters]
        self._consensus = Consensus(survey, versions, weight=recipe.consensus_weight, offset=recipe.consensus_offset)
        self.teachers.append(self._consensus)

    def choose(self, queries: Sequence[int]) -> dict[int, list[Chosen]]:
        """The negatives of each query, by query id."""
        texts = [self._work.queries[query] for query in queries]
        offered = self._offered(queries)
        known = [self._work.known_places(query) for query in queries]
        survivors = [self._survivors(one, offered, known, texts) for one in offered.lists]
        self._count(offered.seen, offered.lists, survivors, known)
        kept = np.stack([self._sampled(*one, texts) for one in survivors])
        chosen_by = self._combined(kept, texts)
        found = {}
        for row, query in enumerate(queries):
            entries = [(place, number) for place, number in chosen_by[row] if place >= 0]
            chosen = [] if self._is_dropped(len(entries), query) else self._with_sources(entries, row, offered)
            found[query] = chosen
            self._report.num_candidates += len(self._work.examples[query]) * len(chosen)
        return found

    def _offered(self, queries: Sequence[int]) -> _Offered:
        if self._shelf is None or self._consensus is None:
            seen, lists = self._proposed(queries)
            return _Offered(seen, lists, {one: self._ceilings(one, queries) for one in {of.judge for of in lists}})
        records: list[tuple[list[dict[int, _Seen]], list[_List], Doubles]] = [self._shelf.get(one) for one in queries]
        seen = [list(rows) for rows in zip(*(seen_by for seen_by, _, _ in records), strict=True)]
        lists = [
            _List(same[0].teacher, same[0].judge, [one.scores[0] for one in same])
            for same in zip(*(of_lists for _, of_lists, _ in records), strict=True)
        ]
        agreed = [self._consensus.of(*self._votes(seen_by, of_lists), of) for seen_by, of_lists, of in records]
        # No teacher's own scores are held against anything: the consensus decides.
        limits = {one.judge: np.full(len(queries), np.inf) for one in lists}
        return _Offered(seen, lists, limits, agreed)

    def _votes(self, seen_by: Sequence[dict[int, _Seen]], lists: Sequence[_List]) -> tuple[list[int], Votes]:
        """One query's places, and what each voter says: the judge of all, another of those that it listed."""
        votes: list[dict[int, float]] = []
        for voter in self._voters:
            if voter == self._judge:
                votes.append({place: score for one in lists for place, score in one.scores[0].items()})
            else:
                votes.append({place: one.score for place, one in seen_by[voter].items()})
        return sorted(set().union(*seen_by)), votes

    def _proposed(self, queries: Sequence[int]) -> tuple[list[list[dict[int, _Seen]]], list[_List]]:
        texts = [self._work.queries[query] for query in queries]
        seen = [self._propose(teacher, queries, texts) for teacher in self._proposers]
        return seen, self._lists(seen, texts)

    def _propose(self, teacher: Proposer, queries: Sequence[int], texts: list[str]) -> list[dict[int, _Seen]]:
        # Known positives stand near the top and are taken out later: look that much deeper.
        depths = [self._recipe.depth + len(self._work.positives[query]) for query in queries]
        places, scores = teacher.top(texts, max(depths))
        return [
            {
                place: _Seen(rank, round(score, 6))
                for rank, (place, score) in enumerate(zip(row[:depth], of_row[:depth], strict=True), start=1)
                if place >= 0
            }
            for row, of_row, depth in zip(places.tolist(), scores.tolist(), depths, strict=True)
        ]

    def _lists(self, seen: list[list[dict[int, _Seen]]], texts: list[str]) -> list[_List]:
        if self._recipe.combine == "union":
            together = [
                list(dict.fromkeys(place for of_teacher in of_query for place in of_teacher))
                for of_query in zip(*seen, strict=True)
            ]
            if self._judge is None:
                return [_List(0, 0, [{place: one.score for place, one in row.items()} for row in seen[0]])]
            return [_List(None, self._judge, self._judged(self._judge, together, texts))]
        lists = []
        for number, rows in enumerate(seen):
            if self._judge is None or self._judge == number:
                lists.append(_List(number, number, [{place: s.score for place, s in row.items()} for row in rows]))
            else:
                lists.append(_List(number, self._judge, self._judged(self._judge, [list(row) for row in rows], texts)))
        return lists

    def _judged(self, judge: int, places: list[list[int]], texts: list[str]) -> list[dict[int, float]]:
        pairs = [(text, self._passages[place]) for text, row in zip(texts, places, strict=True) for place in row]
        values = iter(self._scores(judge, pairs).tolist())
        return [{place: next(values) for place in row} for row in places]

    def _scores(self, judge: int, pairs: list[tuple[str, str]]) -> Stored:
        teacher = self.teachers[judge]
        if not isinstance(teacher, Judge):
            raise CurationError(f"teacher {teacher.name!r} cannot score pairs: name another one as [judge]")
        return np.array([round(value, 6) for value in teacher.score(pairs).tolist()])

    def _ceilings(self, judge: int, queries: Sequence[int]) -> Stored:
        recipe = self._recipe
        assert recipe.method != "consensus"
        needs_positives = recipe.method in ("margin", "percentage")
        lowest = self._lowest(judge, queries) if needs_positives else np.full(len(queries), np.nan)
        exact = ceilings(recipe.method, lowest, value=recipe.threshold)
        return np.array([round(value, 6) for value in exact.tolist()])

    def _lowest(self, judge: int, queries: Sequence[int]) -> Stored:
        """Each query's lowest score of a known positive; NaN where the judge can score none."""
        pairs = [(self._work.queries[query], text) for query in queries for text in self._work.positive_texts(query)]
        values = iter(self._scores(judge, pairs).tolist())
        lowest = np.full(len(queries), np.nan)
        for row, query in enumerate(queries):
            of_query = [value for _ in self._work.positives[query] if (value := next(values)) == value]
            lowest[row] = min(of_query, default=np.nan)
        return lowest

    def _survivors(
        self, of: _List, offered: _Offered, known: list[set[int]], texts: list[str]
    ) -> tuple[Indices, Floats]:
        """Passages below the ceiling, highest first, [Q, W]."""
        limits_Q = offered.limits[of.judge]
        if offered.agreed is not None:
            over = [
                {place for place in scores if by_place[place] >= ceiling}
                for scores, (by_place, ceiling) in zip(of.scores, offered.agreed, strict=True)
            ]
            known = [one | others for one, others in zip(known, over, strict=True)]
        found = self._kept(of, limits_Q, known)
        searcher = self.teachers[of.judge]
        is_own = of.teacher is None or of.teacher == of.judge
        if self._recipe.too_few != "deeper" or not is_own or not isinstance(searcher, CeilingSearcher):
            return found
        rows = np.flatnonzero((found[0] >= 0).sum(axis=1) < self._recipe.num_taken_from)
        if len(rows) == 0:
            return found
        places, scores = searcher.top_below(
            [texts[row] for row in rows], self._recipe.num_taken_from, limits_Q[rows], [known[row] for row in rows]
        )
        for row, of_row, values in zip(rows.tolist(), places.tolist(), scores.tolist(), strict=True):
            for place, value in zip(of_row, values, strict=True):
                if place >= 0:
                    of.scores[row].setdefault(place, round(value, 6))
        self._report.num_searched_deeper += len(rows)
        return self._kept(of, limits_Q, known)

    def _kept(self, of: _List, limits_Q: Stored, known: list[set[int]]) -> tuple[Indices, Floats]:
        width = max(1, *map(len, of.scores))
        places = np.full((len(of.scores), width), -1, np.int64)
        scores: Stored = np.full((len(of.scores), width), np.nan)
        for row, by_place in enumerate(of.scores):
            places[row, : len(by_place)], scores[row, : len(by_place)] = list(by_place), list(by_place.values())
        return keep_below(places, scores, limits_Q, width, shift=self._recipe.shift, excluded=known)

    def _sampled(self, places_QW: Indices, scores_QW: Floats, texts: list[str]) -> Indices:
        recipe = self._recipe
        if recipe.sampling == "top":
            return sampling.top(places_QW, scores_QW, recipe.num_negatives)[0]
        draw = sampling.softmax if recipe.sampling == "softmax" else sampling.top1_softmax
        chosen, _ = draw(
            places_QW[:, : recipe.num_taken_from],
            scores_QW[:, : recipe.num_taken_from],
            recipe.num_negatives,
            temperature=recipe.temperature,
            seed=recipe.seed,
            query_keys=[digest_text(text) for text in texts],
            document_keys=self._passage_keys,
        )
        return chosen

    def _combined(self, kept_TQk: Indices, texts: list[str]) -> list[list[tuple[int, int]]]:
        """(place, number of the list that it comes from) of each query's negatives."""
        recipe = self._recipe
        if recipe.combine == "union":
            return [[(place, 0) for place in row] for row in kept_TQk[0].tolist()]
        if recipe.combine == "cross_sample":
            keys = [digest_text(text) for text in texts]
            ensemble = cross_sample(kept_TQk, recipe.num_negatives, seed=recipe.seed, query_keys=keys)
        else:
            is_unique = recipe.combine == "intra_sample_unique"
            ensemble = intra_sample(kept_TQk, recipe.num_negatives, deduplicate=is_unique)
        return [
            list(zip(places, numbers, strict=True))
            for places, numbers in zip(ensemble.indices.tolist(), ensemble.teachers.tolist(), strict=True)
        ]

    def _is_dropped(self, num_entries: int, query: int) -> bool:
        is_short = num_entries < self._recipe.num_negatives
        num_examples = len(self._work.examples[query])
        self._report.num_short_of_negatives += num_examples * is_short
        self._report.num_dropped += num_examples * (is_short and self._recipe.too_few == "drop")
        return is_short and self._recipe.too_few == "drop"

    def _with_sources(
        self,
        entries: list[tuple[int, int]],
        row: int,
        offered: _Offered,
    ) -> list[Chosen]:
        seen, lists, limits = offered.seen, offered.lists, offered.limits
        by_place: dict[int, list[int]] = {}
        for place, number in entries:
            by_place.setdefault(place, []).append(number)
        chosen = []
        for place, numbers in by_place.items():
            # In an ensemble those that chose a passage are its sources; in a union, all that proposed it.
            choosers = range(len(seen)) if self._recipe.combine == "union" else numbers
            sources = {}
            for teacher in choosers:
                if (at := seen[teacher][row].get(place)) is not None:
                    sources[teacher] = Source(teacher, at.rank, at.score, None)
            for number in numbers:
                judge, score = lists[number].judge, lists[number].scores[row][place]
                ceiling = float(limits[judge][row])
                rank = sources[judge].rank if judge in sources else None
                sources[judge] = Source(judge, rank, score, ceiling if np.isfinite(ceiling) else None)
            if offered.agreed is not None:
                by_consensus, ceiling = offered.agreed[row]
                together = len(self.teachers) - 1
                sources[together] = Source(together, None, by_consensus[place], ceiling)
            score = lists[numbers[0]].scores[row][place]
            chosen.append(Chosen(place, score, tuple(sources[teacher] for teacher in sorted(sources))))
        return chosen

    def _count(
        self,
        seen: list[list[dict[int, _Seen]]],
        lists: list[_List],
        survivors: list[tuple[Indices, Floats]],
        known: list[set[int]],
    ) -> None:
        """Into the report: passages that a query was offered, and what became of them, in all and per teacher."""
        kept = [[{place for place in row if place >= 0} for row in places.tolist()] for places, _ in survivors]
        report = self._report
        for row, positives in enumerate(known):
            offered = set().union(*(one.scores[row] for one in lists))
            report.all_teachers.add(offered, positives, set().union(*(of_list[row] for of_list in kept)))
            for teacher, rows in enumerate(seen):
                of_list = kept[0] if len(lists) == 1 else kept[teacher]
                report.of_teachers[teacher].add(set(rows[row]), positives, of_list[row])
