"""Splits that do not leak: no query and no positive stands on two sides.

Examples that share a query or a positive are one component, and a component goes to one side as a whole. Text shared
only through the corpus (a mined negative that is a positive elsewhere) is reported by the release, not refused.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from db.digest import counter_uniform

Keys = Sequence[int] | NDArray[np.int64]


def components(queries: Keys, positives: Keys) -> NDArray[np.int64]:
    """Component of each example, [examples]: the lowest index of an example that is linked to it."""
    if not len(queries):
        return np.zeros(0, dtype=np.int64)
    query_nodes = np.unique(np.asarray(queries), return_inverse=True)[1]
    positive_nodes = np.unique(np.asarray(positives), return_inverse=True)[1] + query_nodes.max() + 1
    num_nodes = int(positive_nodes.max()) + 1
    links = coo_array(
        (np.ones(len(query_nodes), dtype=np.int8), (query_nodes, positive_nodes)), shape=(num_nodes, num_nodes)
    )
    of_example = connected_components(links, directed=False)[1][query_nodes]
    _, first, place = np.unique(of_example, return_index=True, return_inverse=True)
    return first.astype(np.int64)[place]


def assign_splits(
    digests: Sequence[str] | NDArray[np.bytes_], queries: Keys, positives: Keys, *, dev_share: float, seed: int
) -> list[str]:
    """`train` or `dev` per example; a component is drawn by the smallest digest in it, so order does not matter."""
    of_example, names = components(queries, positives), np.asarray(digests, dtype="S64")
    in_order = np.argsort(names, kind="stable")
    found, first = np.unique(of_example[in_order], return_index=True)
    smallest = names[in_order[first]].tolist()
    is_dev = np.array([counter_uniform(seed, "split", digest.decode()) < dev_share for digest in smallest], dtype=bool)
    return ["dev" if dev else "train" for dev in is_dev[np.searchsorted(found, of_example)].tolist()]
