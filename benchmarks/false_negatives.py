"""How many mined negatives do assessors call relevant? Every method, six systems, their ensembles, at equal survivors.

Usage: python benchmarks/false_negatives.py [--data ../shared/data/trec-dl-19-20] [--draws 10] [--seed 0]
           [--pairs shared|all] [--out FOLDER]          (tables to stdout; FOLDER gets the whole grid and the plot)

Data: the 2020 topics of TREC Deep Learning, the top 100 of six systems, and NIST's grades 0 to 3. It is read in place.
Protocol: a topic's positive is drawn by seed from its passages of the highest grade present (3, else 2), several times;
a (topic, draw) is a pair. The miner sees that positive and the systems' scores, nothing else; passages with its text
are excluded. A kept negative is false when it is judged 2 or 3. A system has no score for a positive outside its top
100: such pairs are left out (`shared`: all six must have it), or the positive-aware methods keep nothing (`all`).
Hardness: the mean rank of kept negatives, in the list they come from and over the six systems (101 where absent).
Intervals: 95%, 2,000 resamples of topics.

Legend: T systems, Q topics, U passages any system returned, K places of a list, N pairs, k kept, V values of a
parameter, F fields, B resamples.
"""

import argparse
import csv
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from trec_negatives import (
    DEEPEST,
    ENSEMBLES,
    MOST,
    OFFSETS,
    PERCENTAGES,
    SYSTEMS,
    WEIGHT,
    Miner,
    Topics,
    compared,
    figures,
    halves,
    interval,
    left_out,
    load,
    prepared,
    read_off,
    resamples,
)

from curation.mining.consensus import standardised
from curation.mining.positive_aware import Method

Curves = dict[str, np.ndarray]  # [V, Q, F] by name
Rivals = Sequence[tuple[str, np.ndarray, np.ndarray]]  # a name, PercPos' curve and ours
GRID: dict[Method, tuple[float, ...]] = {
    "naive": (0,),
    "shifted": (5, 10, 20, 30, 40, 60),
    "absolute": (0.3, 0.5, 0.7, 0.8, 0.9),
    "margin": (0.1, 0.25, 0.5, 1.0, 1.5),
    "percentage": (0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0, 1.02, 1.05),
}
CONSENSUS_GRID = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
AT_PAPER: dict[Method, float] = {"naive": 0, "shifted": 10, "absolute": 0.7, "margin": 0.5, "percentage": 0.95}
TARGETS = (0.95, 0.9, 0.8)
HARDNESS = {"list rank": (15, 20, 25), "mean rank": (40, 45, 50)}


def share(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def rank(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"


def gap(found: dict[str, object]) -> str:
    low, high = found["interval"]  # type: ignore[misc]
    if np.isnan(found["gap"]):  # type: ignore[call-overload]
        return "-"
    return f"{100 * found['gap']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"  # type: ignore[operator]


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def row_of(miner: Miner, sums_QF: np.ndarray) -> list[str]:
    found = {name: float(value) for name, value in figures(sums_QF.sum(axis=0)).items()}
    drawn = figures(np.einsum("bq,qf->bf", resamples(np.ones(len(sums_QF), np.int64)), sums_QF))["false"]
    low, high = interval(drawn)
    return [
        f"{share(found['false'])} [{share(low)}, {share(high)}]",
        share(found["unjudged"]),
        f"{found['survivors'] * miner.k:.2f}",
        f"{found['mean rank']:.0f}",
    ]


def print_methods(miner: Miner, out: Path | None) -> None:
    """Every method and value, whole in a file, at the paper's values in a table."""
    by_NU, both = miner.agreed(), (miner.asking(4), miner)
    whole, shown = [], []
    for lister in (*SYSTEMS, *ENSEMBLES):
        t = SYSTEMS.index(lister) if lister in SYSTEMS else -1
        for method, value in [(method, value) for method, values in GRID.items() for value in values]:
            sums = [m.of_single(t, method, value) if t >= 0 else m.of_ensemble(lister, method, value) for m in both]
            cells = [cell for m, one in zip(both, sums, strict=True) for cell in row_of(m, one)]
            whole.append([lister, method, f"{value:g}", *cells])
            if value == AT_PAPER[method]:
                shown.append(whole[-1])
        for offset in CONSENSUS_GRID if t >= 0 else ():
            sums = [m.consensus_curve(t, by_NU, WEIGHT, [offset])[0] for m in both]
            cells = [cell for m, one in zip(both, sums, strict=True) for cell in row_of(m, one)]
            whole.append([lister, "consensus", f"{offset:g}", *cells])
            if offset == -0.5:
                shown.append(whole[-1])
    header = [f"{name}, k = {k}" for k in (4, 10) for name in ("false, %", "unjudged, %", "survivors", "mean rank")]
    header = ["negatives from", "method", "value", *header]
    table("Every method: share of judged kept negatives that are relevant", header, shown)
    if out:
        with (out / "false_negatives.tsv").open("w") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *whole])


def print_equal_survivors(rivals: Rivals, of: np.ndarray, targets: Sequence[float], name: str) -> None:
    rows = []
    for target in targets:
        for (label, *_), found in [(one, compared(one[2], one[1], "survivors", target, of)) for one in rivals]:
            sides = [found["theirs"], found["ours"]]
            cells = [
                " / ".join(share(side[field]) for side in sides) for field in ("false", "false of kept", "related")
            ]
            ranks = [" / ".join(rank(side[field]) for side in sides) for field in ("list rank", "mean rank")]
            rows.append([f"{target:.0%}", label, cells[0], gap(found), *ranks, *cells[1:]])
    header = ["survivors", "negatives from", "false, %: PercPos / consensus", "gap [95%]", "list rank", "mean rank"]
    header += ["false of all kept, %", "grade 1 of judged negatives, %"]
    table(f"Equal survivors, {name}", header, rows)


def print_equal_hardness(rivals: Rivals, of: np.ndarray, name: str) -> None:
    rows = []
    for by, target in [(by, target) for by, targets in HARDNESS.items() for target in targets]:
        for label, theirs, ours in rivals:
            found = compared(ours, theirs, by, target, of)
            sides = [found["theirs"], found["ours"]]
            cells = [" / ".join(share(side[field]) for side in sides) for field in ("false", "survivors")]
            rows.append([f"{by} {target}", label, cells[0], gap(found), cells[1]])
    header = ["at", "negatives from", "false, %: PercPos / consensus", "gap [95%]", "survivors, %"]
    table(f"Equal hardness, {name}", header, rows)


def print_left_out(rivals: Rivals, k: int) -> None:
    rows = []
    for target in TARGETS:
        for label, theirs, ours in rivals:
            chosen = [left_out(curve, target) for curve in (theirs, ours)]
            sides, weights = [figures(one.sum(axis=0)) for one in chosen], resamples(np.ones(theirs.shape[1], np.int64))
            drawn = [figures(weights @ one)["false"] for one in chosen]
            found = {"gap": sides[1]["false"] - sides[0]["false"], "interval": interval(drawn[1] - drawn[0])}
            cells = [" / ".join(share(float(side[field])) for side in sides) for field in ("survivors", "false")]
            ranks = " / ".join(f"{float(side['list rank']):.0f}" for side in sides)
            rows.append([f"{target:.0%}", label, *cells, gap(found), ranks])
    header = ["aimed at", "negatives from", "survivors, %: PercPos / consensus", "false, %", "gap [95%]", "list rank"]
    table(f"Leave one topic out: every threshold set on the other topics, k = {k}", header, rows)


def print_parts_of_it(miner: Miner, best: str, theirs: np.ndarray, of: np.ndarray) -> None:
    """What each part of the method is worth, and what was tried in its stead."""
    t, scores, topic = SYSTEMS.index(best), miner.topics.scores, miner.pairs.topic
    nothing_known = np.full(scores.shape[:2], np.nan)
    fused = np.where(np.isnan(scores).all(axis=0), np.nan, np.nansum(1 / (60 + miner.topics.ranks), axis=0))
    # The scale of each list alone: as if all lists of a system but one did not exist.
    lists = [standardised(scores[:, [q]], nothing_known[:, [q]])[0].mean(axis=0) for q in range(scores.shape[1])]
    six = miner.agreed()
    tried = {
        "one teacher, weight 1 (a margin)": (miner.agreed([t]), 1.0),
        "one teacher, weight 0.5": (miner.agreed([t]), 0.5),
        "six teachers, weight 1": (six, 1.0),
        "**six teachers, weight 0.5**": (six, 0.5),
        "six teachers, weight 0 (a cap)": (six, 0.0),
        "... all teachers count the same": (standardised(scores, nothing_known)[0].mean(axis=0)[topic], 0.5),
        "... and each list is its own scale (our first version)": (np.concatenate(lists)[topic], 0.5),
        "four neural teachers, weight 0.5": (miner.agreed([2, 3, 4, 5]), 0.5),
        "reciprocal rank fusion, weight 0.5": (standardised(fused[None], nothing_known[:1])[0][0][topic], 0.5),
    }
    curves = {name: miner.consensus_curve(t, by_NU, weight, OFFSETS) for name, (by_NU, weight) in tried.items()}
    rows = []
    for name, curve in ({"PercPos": theirs} | curves).items():
        whole = np.einsum("q,vqf->vf", of, curve)
        at = [read_off(whole, "survivors", 0.9), read_off(whole, "list rank", 20)]
        ranks = [f"{at[0][field]:.0f}" for field in ("list rank", "mean rank")]
        rows.append([name, share(at[0]["false"]), *ranks, share(at[1]["false"]), share(at[1]["survivors"])])
    header = [
        "ceiling",
        "at 90% survivors: false, %",
        "list rank",
        "mean rank",
        "at list rank 20: false, %",
        "survivors, %",
    ]
    table(f"Parts of the method, {best}'s order, all topics, k = {miner.k}", header, rows)


def plot(path: Path, theirs: Curves, ours: Curves, best: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, by in zip(axes, ("survivors", "list rank"), strict=True):
        for colour, name in enumerate((best, "rep_llama", "cross-sample", "intra-sample, deduplicated")):
            for label, style, curves in (("PercPos", "--", theirs), ("consensus", "-", ours)):
                found = figures(curves[name].sum(axis=1))
                is_shown = (found["survivors"] > 0.4) & np.isfinite(found["false"])
                x, y = found[by][is_shown], 100 * found["false"][is_shown]
                x = 100 * x if by == "survivors" else x
                axis.plot(x, y, style, color=f"C{colour}", label=f"{label}, {name}", linewidth=1.4)
        axis.set_xlabel("survivors, % of 10 asked" if by == "survivors" else "mean rank of kept in their list")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("judged relevant, % of judged kept")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def print_seeds(topics: Topics, given: argparse.Namespace, best: str) -> None:
    """How much the draw of positives moves the result."""
    t, gaps = SYSTEMS.index(best), []
    for seed in range(given.seed + 1, given.seed + 6):
        miner = prepared(topics, 5, seed, given.pairs)
        theirs = np.stack([miner.of_single(t, "percentage", float(value)) for value in PERCENTAGES])
        ours = miner.consensus_curve(t, miner.agreed(), WEIGHT, OFFSETS)
        at = [read_off(one.sum(axis=1), "survivors", 0.9)["false"] for one in (ours, theirs)]
        gaps.append(100 * (at[0] - at[1]))
    low, middle, high = min(gaps), float(np.median(gaps)), max(gaps)
    print(f"\nGap at 90% survivors, five other seeds of 5 draws: {low:+.1f} / {middle:+.1f} / {high:+.1f} points")


def print_facts(miner: Miner, given: argparse.Namespace) -> None:
    has, used = np.isfinite(miner.positives_TN), miner.is_used_N
    missing = ", ".join(f"{system} {int((~one).sum())}" for system, one in zip(SYSTEMS, has, strict=True))
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, seed {given.seed}")
    print(f"{len(miner.topics.keys)} topics x {given.draws} draws of a positive = {len(used)} pairs")
    print(f"Used: {int(used.sum())} pairs of {len(set(miner.pairs.topic[used].tolist()))} topics ({given.pairs})")
    print(f"Pairs whose positive is not in the system's top {DEEPEST}: {missing}")


def print_comparison(miner: Miner, topics: Topics, given: argparse.Namespace) -> None:
    """PercPos against the consensus for one k, from the same lists; then each in the list that is best for it."""
    first, second = halves(topics)
    everyone, k = np.ones_like(first), miner.k
    theirs, ours = miner.percentage_curves(), miner.consensus_curves(miner.agreed(), WEIGHT)
    best, our_best = (best_on(curves, first) for curves in (theirs, ours))
    same = [(name, theirs[name], ours[name]) for name in (*SYSTEMS, *ENSEMBLES)]
    calibrated = miner.calibrated_curves(theirs)
    same += [(f"{kind}, calibrated", calibrated[kind], ours[kind]) for kind in ENSEMBLES]
    across = [(f"best of each: {best} / {our_best}", theirs[best], ours[our_best])]
    print(f"\nBest single system at 90% survivors on the first half, k = {k}: PercPos {best}, consensus {our_best}")
    print_equal_survivors(same + across, second, (0.9,), f"held-out half, k = {k}")
    print_equal_survivors(same + across, everyone, TARGETS if k == MOST else (0.9,), f"all topics, k = {k}")
    few = [one for one in same if one[0] == best or one[0] not in SYSTEMS]
    for name, of in (("held-out half", second), ("all topics", everyone)):
        print_equal_hardness(few, of, f"{name}, k = {k}")
    print_left_out(few + across, k)
    if k == MOST:
        print_parts_of_it(miner, best, theirs[best], everyone)
        print_seeds(topics, given, best)
        if given.out:
            plot(given.out / "false_negatives.png", theirs, ours, best)


def best_on(curves: Curves, of: np.ndarray) -> str:
    """The single system with the fewest false negatives at 90% survivors over the chosen topics."""
    shares = {s: read_off(np.einsum("q,vqf->vf", of, curves[s]), "survivors", 0.9)["false"] for s in SYSTEMS}
    return min(SYSTEMS, key=lambda system: (np.isnan(shares[system]), shares[system]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/trec-dl-19-20")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", choices=["shared", "all"], default="shared")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not (given.data / "qrels").is_dir():
        parser.error(f"--data {given.data}: no such data set: name the folder that holds qrels, runs and corpus.jsonl")
    topics = load(given.data)
    miner = prepared(topics, given.draws, given.seed, given.pairs)
    print_facts(miner, given)
    print_methods(miner, given.out)
    for k in (10, 4):
        print_comparison(miner.asking(k), topics, given)


if __name__ == "__main__":
    main()
