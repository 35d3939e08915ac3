"""Trainings as the store tells, or the models' own files: curves per rank, gradient variance, margins before and after.

A training that is in the store is read there, whichever machine it ran on; one that is still going on, or was never
imported, from its folder. Only files beside the model are read, and only folders directly below the models' one: a name
cannot lead out of it. What a trainer of another version did not write is missing, never an error.

Shape suffix: S, the steps that trained on a rank.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from sqlalchemy.orm import Session

from app.errors import AppError
from db.digest import digest_of
from db.tables.training import Training
from db.trainings import training_names, training_steps

MEASURES = ("loss", "positive", "written", "mined", "gradient_norm")
_MOST_POINTS = 240
_MOST_BYTES = 256 << 20
_EARLY = 0.25


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model's curves: `steps` and `margins` are rows for charts, thinned; `summary` is what training.json says."""

    name: str
    summary: dict[str, Any]
    steps: list[dict[str, Any]]
    blocks: list[dict[str, Any]]
    margins: list[dict[str, Any]]
    before_after: list[dict[str, Any]]
    missing: list[str] = field(default_factory=list)


def listed_models(session: Session, folder: Path) -> dict[str, int | str]:
    """Where each training is read from, by its label: its key in the store, or the name of its folder.

    Folders that are not in the store come first, then the store's newest; what shares a name has its digest with it.
    """
    stored = training_names(session)
    known = {one.digest for one in stored}
    found: list[tuple[str, str, int | str]] = [
        (name, "not in the store", name) for name in trained_models(folder) if _digest(folder / name) not in known
    ]
    found += [(one.name, one.digest[:8], one.id) for one in stored]
    num = Counter(name for name, _, _ in found)
    return {name if num[name] == 1 else f"{name} ({mark})": source for name, mark, source in found}


def _digest(model: Path) -> str | None:
    """What names the training in a store; None while it is going on, or where training.json is broken."""
    try:
        summary = _json(model / "training.json")
    except AppError:
        return None
    return digest_of(summary) if summary else None


def stored_model(session: Session, training_id: int, label: str) -> TrainedModel:
    """The curves of a training in the store.

    Raises:
        AppError: It is not there.
    """
    training = session.get(Training, training_id)
    if training is None:
        raise AppError(f"there is no training {training_id} in the store")
    return _model(label, {**training.summary, "recipe": training.recipe}, training_steps(session, training_id), [])


def trained_models(folder: Path) -> list[str]:
    """Names of the folders that hold a training, the newest first; links that lead elsewhere are left out."""
    if not folder.is_dir():
        return []
    root = folder.resolve()
    found = [
        (one.stat().st_mtime, one.name)
        for one in folder.iterdir()
        if one.is_dir() and one.resolve().parent == root and any((one / name).is_file() for name in _FILES)
    ]
    return [name for _, name in sorted(found, reverse=True)]


_FILES = ("metrics.jsonl", "training.json")


def model_marks(folder: Path, name: str) -> tuple[int, ...]:
    """What changes when a model's files do."""
    model = _inside(folder, name)
    files = [model / one for one in _FILES]
    return tuple(stat for file in files if file.is_file() for stat in (file.stat().st_mtime_ns, file.stat().st_size))


def trained_model(folder: Path, name: str) -> TrainedModel:
    """The curves of the model in a folder.

    Raises:
        AppError: There is no model of this name directly in the folder, or a file of it cannot be read.
    """
    model = _inside(folder, name)
    missing = [one for one in _FILES if not (model / one).is_file()]
    return _model(name, _json(model / "training.json"), _lines(model / "metrics.jsonl"), missing)


def _model(label: str, summary: dict[str, Any], steps: list[dict[str, Any]], missing: list[str]) -> TrainedModel:
    margins, before_after = _margins(steps)
    if steps and not margins:
        missing = [*missing, "figures per rank"]
    return TrainedModel(label, summary, _thinned(steps), _blocks(summary, steps), margins, before_after, missing)


def _inside(folder: Path, name: str) -> Path:
    if name not in trained_models(folder):
        raise AppError(f"there is no trained model {name!r} in the models' folder")
    return folder / name


def _readable(file: Path) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    if file.stat().st_size > _MOST_BYTES:
        raise AppError(
            f"{file.name} of {file.parent.name!r} has more than {_MOST_BYTES >> 20} MiB: too much for a page"
        )
    return True


def _json(file: Path) -> dict[str, Any]:
    if not _readable(file):
        return {}
    try:
        found = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise AppError(f"{file.name} of {file.parent.name!r} is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _lines(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; a last line that is still being written is left out."""
    if not _readable(file):
        return []
    lines = file.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if number == len(lines):
                break
            raise AppError(f"{file.name} of {file.parent.name!r}, line {number}, is not JSON: {error}") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    """A finite number, or None: a loss that broke down has no point on a curve."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and np.isfinite(value) else None


def _finite(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [value for row in rows if (value := _number(row.get(name))) is not None]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def rank_name(rank: Any) -> str:
    """N1, N2, ... ; `random` where one is drawn for each row, `all` where a step trains on no one rank."""
    if rank == 0 and not isinstance(rank, bool):
        return "random"
    return f"N{rank}" if isinstance(rank, int) and not isinstance(rank, bool) else "all"


def _thinned(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Long rows (step, rank, measure, value), each the mean of neighbouring steps of one rank."""
    width = max(1, -(-len(steps) // _MOST_POINTS))
    points = []
    for start in range(0, len(steps), width):
        part = steps[start : start + width]
        for rank in dict.fromkeys(rank_name(row.get("rank")) for row in part):
            mine = [row for row in part if rank_name(row.get("rank")) == rank]
            at = _number(mine[0].get("step"))
            for measure in MEASURES:
                values = _finite(mine, measure)
                if values:
                    step = start if at is None else int(at)
                    points.append(
                        {"step": step, "rank": rank, "measure": measure, "value": round(float(np.mean(values)), 6)}
                    )
    return points


def _blocks(summary: dict[str, Any], steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of each block of the curriculum, from training.json, or from the steps where it has none."""
    told = [one for one in summary.get("blocks") or () if isinstance(one, dict)]
    return [_block(one) for one in told] if told else _blocks_of(steps)


def _block(told: dict[str, Any]) -> dict[str, Any]:
    names = ("loss", "positive", "written", "mined", "gradient_variance")
    return {"block": told.get("block"), "rank": rank_name(told.get("rank")), **{n: _number(told.get(n)) for n in names}}


def _blocks_of(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    blocks = []
    for block in dict.fromkeys(str(row.get("block")) for row in steps):
        mine = [row for row in steps if str(row.get("block")) == block]
        norms = _finite(mine, "gradient_norm")
        means = {name: _mean(_finite(mine, name)) for name in ("loss", "positive", "written", "mined")}
        variance = float(np.var(norms)) if norms else None
        blocks.append({"block": block, "rank": rank_name(mine[0].get("rank")), **means, "gradient_variance": variance})
    return blocks


def _margins(steps: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Margin (positive less negative) per rank over the steps, and what became of it.

    Returns two lists of rows: (step, rank, margin), thinned; and (rank, num, mean margin and share above the positive
    in the first and in the last quarter of the rank's steps). Steps count by their numbers of negatives.
    """
    found: dict[str, list[tuple[int, int, float, float]]] = {}
    for row in steps:
        at, ranks = _number(row.get("step")), row.get("ranks")
        for label, told in ranks.items() if at is not None and isinstance(ranks, dict) else ():
            names = ("negatives", "margin", "above_positive")
            num, margin, above = (_number(told.get(n)) if isinstance(told, dict) else None for n in names)
            if num is not None and num >= 1 and margin is not None:
                found.setdefault(str(label), []).append((int(at or 0), int(num), margin, above or 0.0))
    if not found:
        return [], []
    first, last = (end(step for rows in found.values() for step, *_ in rows) for end in (min, max))
    width = max(1, -(-(last - first + 1) // _MOST_POINTS))
    curve, change = [], []
    for label in sorted(found):  # digits before `mined`
        name = label if label == "mined" else f"N{label}"
        steps_S, nums_S, margins_S, above_S = (np.array(column) for column in zip(*found[label], strict=True))
        curve += _curve(name, (steps_S - first) // width, nums_S, margins_S, first, width)
        change.append(_change(name, steps_S, nums_S, margins_S, above_S))
    return curve, change


def _curve(name: str, bins_S: Any, nums_S: Any, margins_S: Any, first: int, width: int) -> list[dict[str, Any]]:
    sums, nums = np.bincount(bins_S, margins_S * nums_S), np.bincount(bins_S, nums_S)
    return [
        {"step": first + place * width, "rank": name, "margin": round(float(total / num), 6)}
        for place, (total, num) in enumerate(zip(sums, nums, strict=True))
        if num
    ]


def _change(name: str, steps_S: Any, nums_S: Any, margins_S: Any, above_S: Any) -> dict[str, Any]:
    """Of the rank's own steps: a curriculum may train on it for a part of the training only; one step has no end."""
    share_S = (steps_S - steps_S.min()) / max(1, int(steps_S.max() - steps_S.min()))
    row: dict[str, Any] = {"rank": name, "num": int(nums_S.sum())}
    for when, mine in (("before", share_S <= _EARLY), ("after", share_S >= 1 - _EARLY)):
        for what, values_S in ((when, margins_S), (f"above_{when}", above_S)):
            row[what] = float(np.average(values_S[mine], weights=nums_S[mine])) if mine.any() else None
    return row


def evaluation_rows(file: Path) -> tuple[str, list[dict[str, Any]]]:
    """(what it was measured on, a row a model) of a report of `gradus evaluate --json`; empty where there is none.

    Only the last part of a model's path is told.
    """
    found = _json(file)
    rows = []
    for model in found.get("models") or ():
        metrics = model.get("metrics") or {}
        row: dict[str, Any] = {"model": str(model.get("model", "")).rstrip("/").rpartition("/")[2]}
        row |= {str(name): _number(value) for name, value in metrics.items()}
        differences = model.get("difference") or {}
        difference = differences.get("ndcg@10") or next(iter(differences.values()), None)
        rows.append({**row, "difference": difference})
    data = str(found.get("data", "")).rstrip("/").rpartition("/")[2]
    pool = f", a pool of {found['pool']} a query" if found.get("pool") else ""
    told = f"{data}, {found.get('split', '')}, {found.get('num_queries', 0):,} queries{pool}" if rows else ""
    return told, rows
