"""Which negatives teach retrieval most: none, mined, machine-written, or both; mean pooling or ATA?

Usage: GRADUS_DATA=... python benchmarks/quality.py [--steps 52] [--seeds 3] [--arms base in-batch ...] [--threads 1]
           [--scifact FOLDER] [--guard ../shared/data/nfcorpus] [--output FOLDER] [--table FILE]

Runs on the store that `gradus demo` fills. Every arm has the same 200 SciFact pairs whose negatives were recorded, the
same seeds, the same number of steps and two negatives a row (in-batch: none); only the source of the negatives differs:

    base           MiniLM as it is
    in-batch       other rows' passages alone
    mined          BM25 and MiniLM, below 95 % of the positive (PercPos): the arm to beat
    free           two free-written negatives
    edits          the two minimal edits
    hybrid free    one free-written beside a mined one
    hybrid edits   one minimal edit beside a mined one
    curriculum     hybrid free, from easy to hard (the others draw ranks anew each time)
    ata            the best of these on dev, with ATA pooling instead of mean

Measured are nDCG@10 on all of SciFact's corpus, dev claims, and on NFCorpus dev as the guard that is never trained on.
A difference is the mean over queries of values averaged over seeds, with a paired bootstrap over queries: seeds are
averaged, not drawn, and nothing corrects for the number of arms. The best arm is chosen on dev, so its own advantage
there is optimistic; ATA is compared with it, its twin but for the pooling. Dev claims whose evidence is also the
evidence of a training claim are counted. Resumable: what is measured stays in --output; a run that
was cut off goes on from its checkpoint.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RUNS = ("scifact-graded", "scifact-minimal-edits", "scifact-mined")
RELEASE = "scifact-quality-1.0.0"
SLOTS = 2


def arms() -> dict[str, Any]:
    """Arms by name, but for `ata`, which depends on what the others came to."""
    from app.ablating.ablation import BASE
    from app.ablating.planning import Arm
    from app.ablating.slotting import Slotting

    mixed = {"schedule": "mixture"}
    free, edits = ("synthetic",), ("edited",)
    return {
        "base": Arm(BASE, is_trained=False),
        "mined": Arm("mined", mixed, Slotting("mined", SLOTS)),
        "in-batch": Arm("in-batch", mixed | {"negatives": {"written": 0, "mined": 0}}),
        "free": Arm("free", mixed, Slotting("synthetic", SLOTS, origins=free)),
        "edits": Arm("edits", mixed, Slotting("synthetic", SLOTS, origins=edits)),
        "hybrid free": Arm("hybrid free", mixed, Slotting("hybrid", SLOTS, 1.0, free)),
        "hybrid edits": Arm("hybrid edits", mixed, Slotting("hybrid", SLOTS, 1.0, edits)),
        "curriculum": Arm("curriculum", {"schedule": "easy_to_hard"}, Slotting("hybrid", SLOTS, 1.0, free)),
    }


def recorded_pairs(folder: Path) -> Path:
    """A release of the demo's three runs without a dev split, cut to the pairs that have every kind of negative."""
    import hashlib

    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    from app.errors import AppError
    from app.opening import opened_store
    from curation.release.recipe import Mix, ReleaseRecipe, Split
    from curation.release.release import create_release
    from db.digest import digest_of

    target = folder / "pairs"
    if (target / "manifest.json").is_file():
        return target
    whole = folder / "releases-of-store" / RELEASE
    if not whole.is_dir():
        with opened_store(None, must_exist=True) as store:
            recipe = ReleaseRecipe(title="Quality", runs=RUNS, mix=Mix(slots=SLOTS), split=Split(dev_share=0))
            create_release(store, recipe, RELEASE, folder=whole.parent)
    manifest = orjson.loads((whole / "manifest.json").read_bytes())
    (name,) = [name for name in manifest["files"] if name.startswith("graded/train-")]
    table = pq.read_table(whole / name)
    rows = [row for row in table.to_pylist() if has_every_kind(row["negatives"])]
    if len(rows) != 200:
        raise AppError(f"{len(rows)} pairs have every kind of negative, not 200: run 'gradus demo' in this data folder")
    (target / "graded").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target / name)
    sha256 = hashlib.sha256((target / name).read_bytes()).hexdigest()
    digest = digest_of({"of": manifest["digest"], "sha256": sha256})
    made = {"name": RELEASE, "digest": digest, "files": {name: {"sha256": sha256}}}
    (target / "manifest.json").write_bytes(orjson.dumps(made))
    return target


def has_every_kind(negatives: list[dict[str, Any]]) -> bool:
    """Two free-written ones, two minimal edits and two mined ones."""
    from collections import Counter

    kinds = Counter(negative["origin"] for negative in negatives)
    return all(kinds[origin] >= SLOTS for origin in ("synthetic", "edited", "mined"))


def base_recipe(options: argparse.Namespace) -> Any:
    from trainer.recipe import TrainRecipe

    return TrainRecipe(
        name="quality", release=RELEASE, pooling="mean", schedule="mixture", max_steps=options.steps, batch_size=16,
        max_length=192, max_query_length=64, temperature=0.05, learning_rate=2e-5, mask_margin=0.1,
    )  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure what is missing; the report of all arms that were asked for."""
    from app.ablating.ablation import Ablation, run_ablation
    from app.ablating.planning import Arm
    from app.evaluating.retrieval import beir_set

    options.output.mkdir(parents=True, exist_ok=True)
    release, recipe = recorded_pairs(options.output), base_recipe(options)
    sets = [beir_set(options.scifact, "dev")]
    if options.guard.is_dir():
        sets.append(beir_set(options.guard, "dev"))
    else:
        print(f"no guard: {options.guard} is not there", file=sys.stderr)
    known = arms()
    chosen = {name: arm for name, arm in known.items() if name in {*options.arms, "base"}}
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - started:8.1f} s] {line}", file=sys.stderr, flush=True)

    def report(of: dict[str, Arm]) -> dict[str, Any]:
        ablation = Ablation("quality", tuple(of.values()), "mined")
        return run_ablation(ablation, recipe, release, sets, options.output, seeds=range(options.seeds), tell=tell)

    found = report(chosen)
    if "ata" in options.arms:
        trained = [row for row in found["sets"][0]["arms"] if row["arm"] in known and row["arm"] != "base"]
        best = known[max(trained, key=lambda row: row["mean"])["arm"]] if trained else None
        if best is not None:
            name = f"{best.name}, ATA"
            chosen[name] = Arm(name, {**best.changes, "pooling": "log1p"}, best.slotting, twin=best.name)
            found = report(chosen)
            for row in (row for one in found["sets"] for row in one["arms"] if row["arm"] == name):
                row["against its mean twin"] = row[f"against {best.name}"]
    found["shared_positives"] = shared_positives(release, options.scifact)
    tell("done")
    return found


def shared_positives(release: Path, scifact: Path) -> dict[str, int]:
    """Dev positives, those of them that are positives in training too, and the dev queries that have one of these."""
    from app.evaluating.retrieval import read_beir
    from trainer.release import read_release

    examples = read_release(release, "train").examples
    trained = {text for one in examples for text in (one.positive, *one.more_positives)}
    collection = read_beir(scifact, "dev")
    relevant = [[key for key, grade in judged.items() if grade > 0] for judged in collection.relevance.values()]
    shared = {key for keys in relevant for key in keys if collection.documents[key] in trained}
    return {
        "dev_positives": len({key for keys in relevant for key in keys}),
        "shared": len(shared),
        "dev_queries": len(relevant),
        "queries_with_one": sum(not shared.isdisjoint(keys) for keys in relevant),
    }


def as_markdown(report: dict[str, Any], options: argparse.Namespace) -> str:
    """The tables with where they come from."""
    import sentence_transformers
    import torch

    def change(value: dict[str, Any] | None) -> str:
        if value is None:
            return ""
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(value["difference"], *value["interval_95"])

    versions = f"torch {torch.__version__}, sentence-transformers {sentence_transformers.__version__}"
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} thread(s); {versions}; "
        f"{options.steps} steps, batch 16, 192 tokens, seeds 0 to {options.seeds - 1}."
    ]
    for one in report["sets"]:
        lines += [
            "", f"{Path(one['data']).name}, dev, {one['num_units']} queries, whole corpus, {one['metric']}:", "",
            "| arm | mean | least to most over seeds | against before training, 95 % | against mined, 95 % "
            "| against its mean twin, 95 % |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for row in one["arms"]:
            spread = f"{min(row['by_seed']):.3f} to {max(row['by_seed']):.3f}"
            keys = ("before training", "mined", "its mean twin")
            differences = " | ".join(change(row.get(f"against {key}")) for key in keys)
            lines.append(f"| {row['arm']} | {row['mean']:.3f} | {spread} | {differences} |")
    num = report["shared_positives"]
    lines += [
        "",
        f"Intervals are over queries, of values averaged over seeds: other seeds are not in them. Nothing corrects for "
        f"the number of arms. {num['shared']} of {num['dev_positives']} dev positives are positives in training too "
        f"({num['queries_with_one']} of {num['dev_queries']} dev queries have one).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    every = [*arms(), "ata"]
    shared = ROOT.parent / "shared" / "data"
    own = ROOT / "app" / "demo" / "scifact"
    parser.add_argument("--arms", nargs="+", choices=every, default=every)
    parser.add_argument("--steps", type=int, default=52, help="Of every arm; 13 visit the 200 pairs once.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scifact", type=Path, default=own)
    parser.add_argument("--guard", type=Path, default=shared / "nfcorpus")
    parser.add_argument("--output", type=Path, default=ROOT / "gradus-data" / "quality")
    parser.add_argument("--table", type=Path, default=None, help="Also write the tables to a file.")
    options = parser.parse_args()
    if set(options.arms) <= {"ata", "base"} and "ata" in options.arms:
        parser.error("--arms ata: it is the best of the other arms with ATA pooling: name one of these beside it")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from app.errors import AppError

    torch.set_num_threads(options.threads)
    try:
        table = as_markdown(run(options), options)
    except AppError as error:
        sys.exit(f"quality: {error}")
    print(table)
    if options.table is not None:
        options.table.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
