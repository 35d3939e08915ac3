"""Copies of a release that hold the same examples with other slots: what an ablation of negatives trains on."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from app.errors import AppError
from db.digest import counter_uniform, digest_of

_WRITTEN = ("synthetic", "edited")


@dataclass(frozen=True, slots=True)
class Slotting:
    """How the negatives of a row are filled.

    Attributes:
        mix: As releases have them; `random` takes positives of other queries.
        slots: Negatives of a row.
        ratio: Written to mined ones.
        origins: Written negatives of these origins only: `synthetic` are free-written, `edited` minimal edits.
    """

    mix: Literal["hybrid", "direct", "synthetic", "mined", "random"]
    slots: int
    ratio: float = 0.7
    origins: tuple[str, ...] = _WRITTEN


def usual_slots(release: Path, split: str) -> int:
    """Negatives of a row, as most examples of the release have them."""
    from trainer.release import read_release

    counts = [e.num_written_slots + e.num_mined_slots for e in read_release(release, split).examples]
    return max(set(counts), key=counts.count)


def slotted_release(release: Path, slotting: Slotting | None, folder: Path, seed: int) -> Path:
    """The release with these slots in a folder of its own; itself where nothing changes.

    Examples that have too few of a kind keep the row shorter (`synthetic`, `mined`) or fill it from the other side.

    Raises:
        AppError: No example has a negative of the kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if slotting is None:
        return release
    manifest = orjson.loads((release / "manifest.json").read_bytes())
    draws = seed if slotting.mix in ("hybrid", "direct", "random") else None
    digest = digest_of({"of": manifest["digest"], "slotting": asdict(slotting), "draws": draws})
    target = folder / f"{slotting.mix}-{digest[:12]}"
    if (target / "manifest.json").is_file():
        return target
    shutil.rmtree(target, ignore_errors=True)
    files = {}
    for name in sorted(name for name in manifest["files"] if name.startswith("graded/")):
        table = pq.read_table(release / name)
        rows = _slotted(table.to_pylist(), slotting, seed)
        if not any(row["negatives"] for row in rows):
            raise AppError(f"release {release}: no example of {name} has a negative for the mix {slotting.mix!r}")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target / name)
        files[name] = {"sha256": hashlib.sha256((target / name).read_bytes()).hexdigest()}
    made = {"name": f"{manifest['name']}, {slotting.mix} slots", "digest": digest, "files": files}
    (target / "manifest.json").write_bytes(orjson.dumps(made))
    return target


def _slotted(rows: Sequence[Mapping[str, Any]], slotting: Slotting, seed: int) -> list[dict[str, Any]]:
    from curation.release.mixing import wanted_synthetic

    changed = []
    for number, row in enumerate(rows):
        written = [n for n in row["negatives"] if n["origin"] in slotting.origins]
        mined = [n for n in row["negatives"] if n["origin"] not in _WRITTEN]
        if slotting.mix == "random":
            written, mined = [], _random_negatives(rows, number, slotting.slots, seed)
            num_written = 0
        else:
            wanted = wanted_synthetic(
                slotting.mix, ratio=slotting.ratio, slots=slotting.slots, seed=seed, example=row["example_id"]
            )
            num_written = min(wanted, len(written))
        num_mined = 0 if slotting.mix == "synthetic" else min(slotting.slots - num_written, len(mined))
        if slotting.mix in ("hybrid", "direct"):
            num_written = min(slotting.slots - num_mined, len(written))
        negatives = [*written, *mined]
        slots = {"num_synthetic_slots": num_written, "num_mined_slots": num_mined}
        changed.append({**row, "negatives": negatives, **slots})
    return changed


def _random_negatives(rows: Sequence[Mapping[str, Any]], own: int, num: int, seed: int) -> list[dict[str, Any]]:
    """Positives of other queries, drawn by the seed and the example's digest; none that is a positive of this query."""
    row = rows[own]
    query = row["query_id"]
    known = {other["positive_id"] for other in rows if other["query_id"] == query}
    known |= {positive["id"] for positive in row.get("more_positives") or []}
    others = {other["positive_id"]: other["positive"] for other in rows if other["positive_id"] not in known}
    drawn = sorted(others, key=lambda key: counter_uniform(seed, "random", row["example_id"] + key))[:num]
    blank: dict[str, Any] = {"grade": None, "rank": None, "origin": "mined", "scores": []}
    return [{**blank, "id": key, "text": others[key]} for key in drawn]
