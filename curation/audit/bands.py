"""Who is likely near whom, among any number of texts: band keys on disk, sorted one band at a time.

In memory stands one band's keys and their order: 16 bytes a text.
"""

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

import numpy as np

from curation.audit.shingles import Hashes, Ints

_MAX_BUCKET = 40


class BandFile:
    """Keys of texts that come page by page, [texts, columns]; a text is named by its place. Gone when closed."""

    def __init__(self, num_columns: int) -> None:
        self.num_texts = 0
        self._files: list[BinaryIO] = [tempfile.TemporaryFile() for _ in range(num_columns)]  # noqa: SIM115

    def __enter__(self) -> "BandFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def append(self, keys_TB: Hashes) -> None:
        for file, column in zip(self._files, np.ascontiguousarray(keys_TB.T), strict=True):
            file.write(column.tobytes())
        self.num_texts += len(keys_TB)

    def pairs(self, column: int, *, num_pairs: int = 50_000) -> Iterator[Ints]:
        """Pairs of places that share this column's key, [pairs, 2], at most about `num_pairs` at once.

        All pairs of a bucket, up to 40 texts; in a larger one each text with the one before it and with the first,
        which is enough to join those that are near.
        """
        for low, high in _buckets(self._read(column), num_pairs):
            yield np.stack([low, high], axis=1)

    def _read(self, column: int) -> Hashes:
        file = self._files[column]
        file.seek(0)
        return np.frombuffer(file.read(), np.uint64)


def _buckets(keys_T: Hashes, num_pairs: int) -> Iterator[tuple[Ints, Ints]]:
    order_T = np.argsort(keys_T, kind="stable")
    in_order = keys_T[order_T]
    begins = (
        np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]])) if len(keys_T) else np.empty(0, int)
    )
    sizes = np.diff(np.append(begins, len(keys_T)))
    del in_order
    low: list[Ints] = []
    high: list[Ints] = []
    for begin, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        members = order_T[begin : begin + size]
        if size <= _MAX_BUCKET:
            one, other = np.triu_indices(size, 1)
            low.append(members[one])
            high.append(members[other])
        else:
            low += [members[:-1], np.full(size - 2, members[0])]
            high += [members[1:], members[2:]]
        if sum(map(len, low)) >= num_pairs:
            yield np.concatenate(low), np.concatenate(high)
            low, high = [], []
    if low:
        yield np.concatenate(low), np.concatenate(high)


class Clusters:
    """Joined texts, by place (union-find): 4 bytes a text."""

    def __init__(self, num_texts: int) -> None:
        self._parent = np.arange(num_texts, dtype=np.int32)
        self.num_joins = 0

    def root(self, place: int) -> int:
        parent = self._parent
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = int(parent[place])
        return place

    def join(self, one: int, other: int) -> bool:
        """Put both in one cluster; whether they were apart."""
        first, second = self.root(one), self.root(other)
        if first == second:
            return False
        self._parent[max(first, second)] = min(first, second)
        self.num_joins += 1
        return True

    def roots(self) -> Ints:
        """The first text of each text's cluster, [texts]."""
        roots = self._parent.astype(np.int64)
        while (following := roots[roots]).tolist() != roots.tolist():
            roots = following
        return roots
