"""Splits that do not leak: no query and no positive stands on two sides.

Examples that share a query or a positive are one component, and a component goes to one side as a whole. Text shared
only through the corpus (a mined negative that is a positive elsewhere) is reported by the release, not refused.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from db.digest import counter_uniform


def components(queries: Sequence[int], positives: Sequence[int]) -> NDArray[np.int64]:
    """Component of each example, [examples]: the lowest index of an example that is linked to it."""
    parents = list(range(len(queries)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_with: dict[tuple[str, int], int] = {}
    for index, (query, positive) in enumerate(zip(queries, positives, strict=True)):
        for key in (("query", query), ("positive", positive)):
            one, other = root(index), root(first_with.setdefault(key, index))
            parents[max(one, other)] = min(one, other)
    return np.array([root(index) for index in range(len(queries))], dtype=np.int64)


def assign_splits(
    digests: Sequence[str], queries: Sequence[int], positives: Sequence[int], *, dev_share: float, seed: int
) -> list[str]:
    """`train` or `dev` per example; a component is drawn by the smallest digest in it, so order does not matter."""
    of_example = components(queries, positives)
    smallest: dict[int, str] = {}
    for component, digest in zip(of_example.tolist(), digests, strict=True):
        smallest[component] = min(digest, smallest.get(component, digest))
    is_dev = {key: counter_uniform(seed, "split", digest) < dev_share for key, digest in smallest.items()}
    return ["dev" if is_dev[component] else "train" for component in of_example.tolist()]
