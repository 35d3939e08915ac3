"""Negatives mined from given runs, and how many of them assessors call relevant: what `false_negatives.py` measures.

Legend: T systems, Q topics, U passages any system returned, K places of a list, N pairs, k kept, V values of a
parameter, F fields, B resamples.
"""

import copy
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.mining.consensus import consensus, consensus_ceilings
from curation.mining.ensembles import cross_sample, intra_sample
from curation.mining.positive_aware import Method, ceilings, keep_below
from db.digest import counter_uniform

SYSTEMS = ("bm25", "bm25_rm3", "d_bert_kd_tasb", "open_ai_ada2", "rep_llama", "splade_p_p_ensemble_distil")
FIELDS = ("places", "kept", "judged", "false", "related", "list_ranks", "mean_ranks")
DEEPEST, MOST, RESAMPLES = 100, 10, 2_000
PERCENTAGES = np.unique(np.r_[np.linspace(0.2, 0.9, 29), np.linspace(0.9, 1.05, 61), 1.1, 1.5, 5.0].round(4))
OFFSETS = np.linspace(-2.5, 3.0, 89).round(4)
SHARES = np.r_[np.linspace(0.02, 0.9, 30), np.linspace(0.91, 1.0, 15)]
ENSEMBLES = ("cross-sample", "intra-sample, duplicates", "intra-sample, deduplicated")
WEIGHT = 0.5


@dataclass(frozen=True)
class Topics:
    keys: list[str]
    scores: np.ndarray  # [T, Q, U], NaN where the system did not return the passage
    ranks: np.ndarray  # [T, Q, U], from 1
    grades: np.ndarray  # [Q, U], -1: not judged
    texts: np.ndarray  # [Q, U], equal numbers: equal text but for case and space


@dataclass(frozen=True)
class Pairs:
    topic: np.ndarray  # [N]
    positive: np.ndarray  # [N], a place among the topic's passages
    excluded: list[list[int]]
    keys: list[str]


def load(folder: Path) -> Topics:
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for split in ("train", "dev"):
        for row in csv.DictReader((folder / f"qrels/{split}.tsv").read_text().splitlines(), delimiter="\t"):
            grades[row["query-id"]][row["corpus-id"]] = int(row["score"])
    keys = sorted(grades)
    found: dict[str, dict[str, dict[int, tuple[int, float]]]] = {key: defaultdict(dict) for key in keys}
    for t, system in enumerate(SYSTEMS):
        for line in (folder / f"runs/dl20.{system}.tsv").read_text().splitlines():
            query, passage, rank, score = line.split("\t")
            found[query][passage][t] = int(rank), float(score)
    rows = map(json.loads, (folder / "corpus.jsonl").read_text().split("\n")[:-1])
    texts = {row["_id"]: " ".join(row["text"].casefold().split()) for row in rows}
    numbers = {text: number for number, text in enumerate(sorted(set(texts.values())))}
    shape = len(keys), max(map(len, found.values()))
    scores, ranks = (np.full((len(SYSTEMS), *shape), np.nan) for _ in range(2))
    graded, of_text = np.full(shape, -1), np.full(shape, -1)
    for q, key in enumerate(keys):
        for u, passage in enumerate(sorted(found[key])):
            graded[q, u], of_text[q, u] = grades[key].get(passage, -1), numbers[texts[passage]]
            for t, (rank, score) in found[key][passage].items():
                ranks[t, q, u], scores[t, q, u] = rank, score
    return Topics(keys, scores, ranks, graded, of_text)


def draw_pairs(topics: Topics, draws: int, seed: int) -> Pairs:
    """Each topic's positive, drawn several times from its highest grade."""
    topic, positive = [], []
    for q, key in enumerate(topics.keys):
        best = np.flatnonzero(topics.grades[q] == topics.grades[q].max()).tolist()
        for draw in range(draws):
            topic.append(q)
            positive.append(min(best, key=lambda u: counter_uniform(seed, "positive", key, draw, u)))
    same = topics.texts[topic] == topics.texts[topic, positive][:, None]
    excluded = [np.flatnonzero(row).tolist() for row in same]
    keys = [f"{topics.keys[q]} {n % draws}" for n, q in enumerate(topic)]
    return Pairs(np.array(topic), np.array(positive), excluded, keys)


class Miner:
    """Keeps up to ten negatives of every pair by any method; what was kept is summed per topic at once."""

    def __init__(self, topics: Topics, pairs: Pairs, k: int, is_used_N: np.ndarray) -> None:
        self.topics, self.pairs, self.k, self.is_used_N = topics, pairs, k, is_used_N
        order_TQK = np.argsort(np.where(np.isnan(topics.ranks), np.inf, topics.ranks), axis=2)[:, :, :DEEPEST]
        self.lists_TNK = order_TQK[:, pairs.topic]
        self.scores_TNK = np.take_along_axis(topics.scores, order_TQK, 2)[:, pairs.topic]
        self.positives_TN = topics.scores[:, pairs.topic, pairs.positive]
        self.mean_ranks_QU = np.where(np.isnan(topics.ranks), DEEPEST + 1, topics.ranks).mean(axis=0)
        # Fewer places than systems: the order of systems is drawn per pair, so that none is always left out.
        draws = [[counter_uniform(0, "turn", key, t) for t in range(len(SYSTEMS))] for key in pairs.keys]
        self.turns_TN = np.argsort(draws, axis=1).T
        self._kept: dict[tuple[int, str, float], np.ndarray] = {}

    def value(self, t: int, method: Method, value: float) -> float:
        """A cap as a quantile and a margin in standard deviations of the system's scores: raw ones fit no other."""
        if method == "absolute":
            return float(np.nanquantile(self.topics.scores[t], value))
        return value * float(np.nanstd(self.topics.scores[t])) if method == "margin" else value

    def asking(self, k: int) -> "Miner":
        other = copy.copy(self)
        other.k = k
        return other

    def single(self, t: int, method: Method, value: float) -> np.ndarray:
        """One system's negatives, [N, k]."""
        if (t, method, value) not in self._kept:
            limits_N = ceilings(method, self.positives_TN[t], value=self.value(t, method, value))
            shift = int(value) if method == "shifted" else 0
            self._kept[t, method, value], _ = keep_below(
                self.lists_TNK[t], self.scores_TNK[t], limits_N, MOST, shift=shift, excluded=self.pairs.excluded
            )
        return self._kept[t, method, value][:, : self.k]

    def of_single(self, t: int, method: Method, value: float) -> np.ndarray:
        kept_Nk = self.single(t, method, value)
        return self.sums(kept_Nk, np.where(kept_Nk >= 0, t, -1))

    def of_ensemble(self, kind: str, method: Method, value: float) -> np.ndarray:
        return self._joined(kind, np.stack([self.single(t, method, value) for t in range(len(SYSTEMS))]))

    def _joined(self, kind: str, kept_TNK: np.ndarray) -> np.ndarray:
        if kind == "cross-sample":
            ensemble = cross_sample(kept_TNK, self.k, seed=0, query_keys=self.pairs.keys)
            return self.sums(ensemble.indices, ensemble.teachers)
        in_turn_TNK = np.take_along_axis(kept_TNK, self.turns_TN[:, :, None], 0)
        ensemble = intra_sample(in_turn_TNK, self.k, deduplicate=kind == "intra-sample, deduplicated")
        systems = np.take_along_axis(self.turns_TN.T, ensemble.teachers, 1)
        return self.sums(ensemble.indices, np.where(ensemble.teachers >= 0, systems, -1))

    def below(self, t: int, by_NU: np.ndarray, weight: float, offset: float) -> np.ndarray:
        """A system's negatives below the consensus ceiling over any figure of passages, in its own order, [N, k]."""
        rows_N, listed_NK = np.arange(len(self.pairs.topic)), self.lists_TNK[t]
        limits_N = consensus_ceilings(by_NU[rows_N, self.pairs.positive], weight=weight, offset=offset)
        is_below_NK = np.take_along_axis(by_NU, listed_NK, 1) < limits_N[:, None]
        open_NK, no_limit_N = np.where(is_below_NK, listed_NK, -1), np.full(len(rows_N), np.inf)
        return keep_below(open_NK, self.scores_TNK[t], no_limit_N, self.k, excluded=self.pairs.excluded)[0]

    def consensus_curve(self, t: int, by_NU: np.ndarray, weight: float, offsets: Sequence[float]) -> np.ndarray:
        """One system's negatives below the ceiling, for every offset, [V, Q, F]."""
        kept = [self.below(t, by_NU, weight, float(offset)) for offset in offsets]
        return np.stack([self.sums(one, np.where(one >= 0, t, -1)) for one in kept])

    def consensus_curves(self, by_NU: np.ndarray, weight: float) -> dict[str, np.ndarray]:
        """Every system's and every ensemble's, by name, [V, Q, F]."""
        curves: dict[str, list[np.ndarray]] = defaultdict(list)
        for offset in OFFSETS:
            kept_TNk = np.stack([self.below(t, by_NU, weight, float(offset)) for t in range(len(SYSTEMS))])
            for t, system in enumerate(SYSTEMS):
                curves[system].append(self.sums(kept_TNk[t], np.where(kept_TNk[t] >= 0, t, -1)))
            for kind in ENSEMBLES:
                curves[kind].append(self._joined(kind, kept_TNk))
        return {name: np.stack(curve) for name, curve in curves.items()}

    def percentage_curves(self) -> dict[str, np.ndarray]:
        """PercPos of every system and ensemble, by name, [V, Q, F]."""
        values = list(map(float, PERCENTAGES))
        single = {
            system: np.stack([self.of_single(t, "percentage", value) for value in values])
            for t, system in enumerate(SYSTEMS)
        }
        return single | {
            kind: np.stack([self.of_ensemble(kind, "percentage", value) for value in values]) for kind in ENSEMBLES
        }

    def calibrated_curves(self, single: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """PercPos of every ensemble, each system at the percentage that leaves it the same survivors, [V, Q, F].

        One percentage for all is not one strictness: 95% of a cosine is not 95% of a sum of term weights.
        """
        survivors = [figures(single[system].sum(axis=1))["survivors"] for system in SYSTEMS]
        curves: dict[str, list[np.ndarray]] = defaultdict(list)
        for share in SHARES:
            values = [float(PERCENTAGES[np.abs(of_system - share).argmin()]) for of_system in survivors]
            kept_TNK = np.stack([self.single(t, "percentage", value) for t, value in enumerate(values)])
            for kind in ENSEMBLES:
                curves[kind].append(self._joined(kind, kept_TNK))
        return {name: np.stack(curve) for name, curve in curves.items()}

    def agreed(self, systems: Sequence[int] = range(len(SYSTEMS))) -> np.ndarray:
        """What systems say together of each pair's passages, [N, U], from one draw of positives at a time."""
        chosen, draws = list(systems), len(self.pairs.topic) // len(self.topics.keys)
        found = [
            consensus(self.topics.scores[chosen], self.positives_TN[chosen, draw::draws])[0] for draw in range(draws)
        ]
        return np.stack(found, axis=1).reshape(len(self.pairs.topic), -1)

    def sums(self, kept_Nk: np.ndarray, systems_Nk: np.ndarray) -> np.ndarray:
        """Per topic, over its used pairs: the FIELDS, [Q, F]."""
        topic_N1 = self.pairs.topic[:, None]
        is_kept = (kept_Nk >= 0) & self.is_used_N[:, None]
        grade = np.where(is_kept, self.topics.grades[topic_N1, kept_Nk], -1)
        list_rank = np.where(is_kept, self.topics.ranks[systems_Nk, topic_N1, kept_Nk], 0)
        mean_rank = np.where(is_kept, self.mean_ranks_QU[topic_N1, kept_Nk], 0)
        used = np.broadcast_to(self.is_used_N[:, None], kept_Nk.shape)
        fields = (used, is_kept, grade >= 0, grade >= 2, grade == 1, list_rank, mean_rank)
        num_topics = len(self.topics.keys)
        totals = [np.bincount(self.pairs.topic, one.sum(axis=1), num_topics) for one in fields]
        return np.stack(totals, axis=1)


def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Shares and means from summed FIELDS, [..., F]."""
    places, kept, judged, false, related, list_ranks, mean_ranks = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "survivors": kept / places,
            "false": false / judged,
            "unjudged": 1 - judged / kept,
            "false of kept": false / kept,
            "related": related / (judged - false),
            "list rank": list_ranks / kept,
            "mean rank": mean_ranks / kept,
        }


def read_off(curve_VF: np.ndarray, by: str, target: float) -> dict[str, float]:
    """A curve's figures where one of them has the target value, interpolated; NaN beyond its ends."""
    found = figures(curve_VF)
    is_usable = (found["survivors"] > 0.2) & np.isfinite(found["false"])
    return {name: _at(target, found[by][is_usable], figure[is_usable]) for name, figure in found.items()}


def _at(target: float, x: np.ndarray, y: np.ndarray) -> float:
    if not len(x) or not x.min() <= target <= x.max():
        return np.nan
    order = np.argsort(x, kind="stable")
    return float(np.interp(target, x[order], y[order]))


def read_off_each(curves_BVF: np.ndarray, by: str, target: float) -> np.ndarray:
    """The false share of every resample's curve, as `read_off`, [B]."""
    found = figures(curves_BVF)
    is_usable = (found["survivors"] > 0.2) & np.isfinite(found["false"])
    rows = zip(found[by], found["false"], is_usable, strict=True)
    return np.array([_at(target, x[usable], y[usable]) for x, y, usable in rows])


def resamples(of: np.ndarray) -> np.ndarray:
    """How often each topic is drawn in each resample of the chosen ones, [B, Q]."""
    draws = np.random.default_rng(0).multinomial(of.sum(), of / of.sum(), RESAMPLES)
    return draws.astype(np.float64)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of the resamples that have a value; NaN where none has."""
    there = np.asarray(values)[np.isfinite(values)]
    low, high = np.percentile(there, [2.5, 97.5]) if len(there) else (np.nan, np.nan)
    return float(low), float(high)


def compared(ours: np.ndarray, theirs: np.ndarray, by: str, target: float, of: np.ndarray) -> dict[str, object]:
    """Two curves [V, Q, F] read off at one target over the chosen topics, and the paired interval of the gap."""
    one, other = (read_off(np.einsum("q,vqf->vf", of, curve), by, target) for curve in (ours, theirs))
    drawn = [np.einsum("bq,vqf->bvf", resamples(of), curve) for curve in (ours, theirs)]
    gaps = read_off_each(drawn[0], by, target) - read_off_each(drawn[1], by, target)
    return {"ours": one, "theirs": other, "gap": one["false"] - other["false"], "interval": interval(gaps)}


def left_out(curve_VQF: np.ndarray, target: float) -> np.ndarray:
    """Each topic's sums at the parameter whose survivors on all *other* topics are nearest to the target, [Q, F]."""
    others = figures(curve_VQF.sum(axis=1, keepdims=True) - curve_VQF)["survivors"]
    return curve_VQF[np.abs(others - target).argmin(axis=0), np.arange(curve_VQF.shape[1])]


def halves(topics: Topics) -> tuple[np.ndarray, np.ndarray]:
    """The half of the topics to choose by, and the half to report on, as 0 and 1 over topics."""
    order = sorted(range(len(topics.keys)), key=lambda q: counter_uniform(0, "half", topics.keys[q]))
    first = np.zeros(len(order), np.int64)
    first[order[: len(order) // 2]] = 1
    return first, 1 - first


def prepared(topics: Topics, draws: int, seed: int, which: str) -> Miner:
    """A miner over `shared` pairs, whose positive every system found, or over `all`."""
    miner = Miner(topics, draw_pairs(topics, draws, seed), MOST, np.ones(0, np.bool_))
    has = np.isfinite(miner.positives_TN).all(axis=0)
    miner.is_used_N = has if which == "shared" else np.ones_like(has)
    return miner
