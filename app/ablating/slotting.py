"""Copies of a release that hold the same examples with other slots: what an ablation of negatives trains on.

Who found a mined negative is in the release's configuration `provenance`: its run, its teacher, and the place there.
"""

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import orjson

from app.errors import AppError
from db.digest import counter_below, digest_of

_WRITTEN = ("synthetic", "edited")
_UNPLACED = 2**31  # where a negative stands whose place in its teacher's ranking is not known


@dataclass(frozen=True, slots=True, order=True)
class Finder:
    """A teacher in a mining run, which found some of a release's mined negatives."""

    teacher: str
    run: str


@dataclass(frozen=True, slots=True)
class Slotting:
    """How the negatives of a row are filled.

    Attributes:
        mix: As releases have them; `random` takes positives of other queries.
        slots: Negatives of a row.
        ratio: Written to mined ones.
        origins: Written negatives of these origins only: `synthetic` are free-written, `edited` minimal edits.
        finder: Mined negatives that this one found only, in its order; all in the release's order otherwise.
    """

    mix: Literal["hybrid", "direct", "synthetic", "mined", "random"]
    slots: int
    ratio: float = 0.7
    origins: tuple[str, ...] = _WRITTEN
    finder: Finder | None = None


def finders(release: Path, split: str) -> list[Finder]:
    """Who found the split's mined negatives; empty where the release has no provenance.

    Raises:
        AppError: A file of it is missing, or is not what the manifest says.
    """
    return sorted({finder for ways in _found(release, split).values() for finder in ways})


def usual_slots(release: Path, split: str) -> int:
    """Negatives of a row, as most examples of the release have them."""
    from trainer.release import read_release

    counts = [e.num_written_slots + e.num_mined_slots for e in read_release(release, split).examples]
    return max(set(counts), key=counts.count)


def slotted_release(release: Path, slotting: Slotting | None, folder: Path, seed: int, *, split: str = "train") -> Path:
    """The release with these slots in a folder of its own; itself where nothing changes.

    Examples that have too few of a kind keep the row shorter (`synthetic`, `mined`) or fill it from the other side.

    Raises:
        AppError: No example of the split has a negative of the kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if slotting is None:
        return release
    manifest = orjson.loads((release / "manifest.json").read_bytes())
    draws = seed if slotting.mix in ("hybrid", "direct", "random") else None
    # A field that came later is left out where it is not set, so that what was trained before is found again.
    asked = {name: value for name, value in asdict(slotting).items() if name != "finder" or value is not None}
    digest = digest_of({"of": manifest["digest"], "slotting": asked, "draws": draws})
    target = folder / f"{slotting.mix}-{digest[:12]}"
    if (target / "manifest.json").is_file():
        return target
    shutil.rmtree(target, ignore_errors=True)
    files, num_slots = {}, 0
    for name in sorted(name for name in manifest["files"] if name.startswith("graded/")):
        table, of = pq.read_table(release / name), name.removeprefix("graded/").split("-")[0]
        rows = _slotted(table.to_pylist(), slotting, seed, _found(release, of) if slotting.finder else {})
        num_slots += sum(row["num_synthetic_slots"] + row["num_mined_slots"] for row in rows if of == split)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target / name)
        files[name] = {"sha256": hashlib.sha256((target / name).read_bytes()).hexdigest()}
    if not num_slots:
        raise AppError(f"release {release}: no example of split {split!r} has a negative for {_told(slotting)}")
    made = {"name": f"{manifest['name']}, {slotting.mix} slots", "digest": digest, "files": files}
    (target / "manifest.json").write_bytes(orjson.dumps(made))
    return target


def _told(slotting: Slotting) -> str:
    if slotting.finder is not None:
        return f"the mix {slotting.mix!r} of what {slotting.finder.teacher} found in run {slotting.finder.run!r}"
    origins = "" if slotting.origins == _WRITTEN else f" with written ones of origin {', '.join(slotting.origins)}"
    return f"the mix {slotting.mix!r}{origins}"


def _slotted(
    rows: Sequence[Mapping[str, Any]],
    slotting: Slotting,
    seed: int,
    found: Mapping[tuple[str, str], Mapping[Finder, int]],
) -> list[dict[str, Any]]:
    from curation.release.mixing import wanted_synthetic

    random = _random_negatives(rows, slotting.slots, seed) if slotting.mix == "random" else ()
    changed = []
    for number, row in enumerate(rows):
        written = [n for n in row["negatives"] if n["origin"] in slotting.origins]
        mined = [n for n in row["negatives"] if n["origin"] not in _WRITTEN]
        if slotting.finder is not None:
            mined = _found_by(slotting.finder, row["example_id"], mined, found)
        if slotting.mix == "random":
            written, mined, num_written = [], random[number], 0
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


def _found(release: Path, split: str) -> dict[tuple[str, str], dict[Finder, int]]:
    """Mined negatives by example and text: the place in the ranking of each that found it."""
    import pyarrow.parquet as pq

    manifest = orjson.loads((release / "manifest.json").read_bytes())
    found: dict[tuple[str, str], dict[Finder, int]] = {}
    for name in sorted(name for name in manifest["files"] if name.startswith(f"provenance/{split}-")):
        path = release / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != manifest["files"][name]["sha256"]:
            raise AppError(f"release file {path} is not there as its manifest says: copy the whole release folder")
        for row in pq.read_table(path, columns=["example_id", "id", "origin", "found"]).to_pylist():
            if row["origin"] in _WRITTEN:
                continue
            ways = [way for way in row["found"] if way["teacher"] is not None]
            found[row["example_id"], row["id"]] = {
                Finder(way["teacher"], way["run"]): way["retrieval_rank"] or _UNPLACED for way in ways
            }
    return found


def _found_by(
    finder: Finder,
    example: str,
    mined: Sequence[dict[str, Any]],
    found: Mapping[tuple[str, str], Mapping[Finder, int]],
) -> list[dict[str, Any]]:
    """Those of an example's mined negatives that this one found, in its order."""
    place = {one["id"]: found.get((example, one["id"]), {}).get(finder) for one in mined}
    return sorted((one for one in mined if place[one["id"]] is not None), key=lambda one: place[one["id"]] or 0)


def _random_negatives(rows: Sequence[Mapping[str, Any]], num: int, seed: int) -> list[list[dict[str, Any]]]:
    """Positives of other queries for each row, by the seed and its example's digest; none that is one of its query."""
    own: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        own[row["query_id"]] |= {row["positive_id"], *(one["id"] for one in row.get("more_positives") or [])}
    texts = {row["positive_id"]: row["positive"] for row in rows}
    keys = sorted(texts)
    blank: dict[str, Any] = {"grade": None, "rank": None, "origin": "mined", "scores": []}
    of_rows = []
    for row in rows:
        known = own[row["query_id"]]
        wanted = min(num, len(keys) - len(known.intersection(texts)))
        drawn: dict[str, None] = {}
        for draw in count():
            if len(drawn) == wanted:
                break
            key = keys[counter_below(len(keys), seed, "random", row["example_id"], draw)]
            if key not in known:
                drawn[key] = None
        of_rows.append([{**blank, "id": key, "text": texts[key]} for key in drawn])
    return of_rows
