"""Cells: what each request asks, before it is rendered. They come from a file, or are drawn.

A cell of attributes is one combination of their values. Things to ask about (pairs, tasks, documents) come in a drawn
order, and each round over the cells is shuffled anew: thing number i goes to place i of its round. So the n-th request
of a cell is a pure function of recipe and seed, however the work was resumed, sharded or refilled.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from db.digest import counter_uniform
from generator.errors import GeneratorError


class FileCell(BaseModel):
    """One line of a plan file; which ids it needs depends on its kind's subject."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    # A "~" would mark a repair.
    custom_id: str = Field(min_length=1, max_length=180, pattern=r"^[^~\x00-\x1f\x7f]+$")
    kind: str = Field(min_length=1, max_length=50)
    attributes: dict[str, Any] = {}
    query_id: str | None = None
    positive_id: str | None = None
    neighbour_id: str | None = None
    neighbour_ids: tuple[str, ...] = ()
    document_id: str | None = None
    task: str | None = None
    task_type: str | None = None

    @property
    def neighbours(self) -> tuple[str, ...]:
        return self.neighbour_ids or ((self.neighbour_id,) if self.neighbour_id else ())


def check_plan_files(paths: Sequence[Path]) -> None:
    """Read the plan files of a recipe to their ends, before anything of them is asked.

    Raises:
        GeneratorError: A file is missing, corrupt or empty, a line is malformed, or a custom_id stands twice in them.
    """
    seen: dict[str, str] = {}
    for path in paths:
        number = 0
        for number, cell in enumerate(read_cells(path), start=1):
            if cell.custom_id in seen:
                raise GeneratorError(
                    f"{path.name}:{number}: custom_id {cell.custom_id!r} stands twice in the plan, the first time in "
                    f"{seen[cell.custom_id]}: give each request a name of its own"
                )
            seen[cell.custom_id] = path.name
        if number == 0:
            raise GeneratorError(f"plan.cells = {path}: the file has no lines, so there is nothing to ask")


def read_cells(path: Path) -> Iterator[FileCell]:
    """The cells of a plan file.

    Raises:
        GeneratorError: The file is missing or corrupt, or a line is malformed.
    """
    if not path.is_file():
        raise GeneratorError(f"plan.cells = {path}: no such file")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                yield _read_cell(line, f"{path.name}:{number}")
        except (OSError, EOFError, zlib.error) as error:
            raise GeneratorError(f"{path}: cannot be read after line {number}: {error}") from error


def _read_cell(line: bytes, where: str) -> FileCell:
    try:
        return FileCell.model_validate(orjson.loads(line))
    except orjson.JSONDecodeError as error:
        raise GeneratorError(f"{where}: not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise GeneratorError(f"{where}: field {field!r}: {first['msg'].removeprefix('Value error, ')}") from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: its number in the plan, its cell, and its turn within the cell."""

    number: int
    cell: int
    turn: int


class Cells:
    """The combinations of attributes, and which of them is asked at which place of the plan."""

    def __init__(self, attributes: Mapping[str, Sequence[str]], seed: int, name: str) -> None:
        self.names = sorted(attributes)
        self.combinations = list(product(*(attributes[name] for name in self.names)))
        self._seed, self._name = seed, name
        self._shuffled = lru_cache(maxsize=64)(self._shuffle)

    def __len__(self) -> int:
        return len(self.combinations)

    def values(self, cell: int) -> dict[str, str]:
        return dict(zip(self.names, self.combinations[cell], strict=True))

    def place(self, number: int) -> Place:
        """The place of this number: its round is its turn, since every round visits every cell once."""
        turn, index = divmod(number, len(self))
        return Place(number, self._shuffled(turn)[0][index], turn)

    def number(self, cell: int, turn: int) -> int:
        """The plan's number of a cell's n-th request (`turn` from 0)."""
        return turn * len(self) + self._shuffled(turn)[1][cell]

    def _shuffle(self, turn: int) -> tuple[list[int], list[int]]:
        """(cell at each index of the round, index of each cell)."""
        order = sorted(range(len(self)), key=lambda cell: counter_uniform(self._seed, self._name, turn, cell))
        index_of = [0] * len(order)
        for index, cell in enumerate(order):
            index_of[cell] = index
        return order, index_of
