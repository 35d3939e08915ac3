"""Which of the surviving negatives to take: the best, a softmax-weighted sample, or the best and a sample.

A draw depends on the seed and on what the query and the document are, never on where they stand, so that it is the
same in any order, block or process (NV-Retriever, arXiv 2407.15831, section 3, found no difference between the three).

Legend: Q queries, K surviving negatives of a query, hardest first, -1 padded on the right; k negatives taken.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from curation.mining.positive_aware import first_kept
from curation.mining.search import Floats, Indices
from db.digest import counter_uniform

Key = str | int


def top(indices_QK: Indices, scores_QK: Floats, k: int) -> tuple[Indices, Floats]:
    """The first k of each query: indices [Q, k], -1 padded, and scores [Q, k]."""
    _check(k)
    return first_kept(indices_QK, scores_QK, indices_QK >= 0, k)


def softmax(
    indices_QK: Indices,
    scores_QK: Floats,
    k: int,
    *,
    temperature: float,
    seed: int,
    query_keys: Sequence[Key],
    document_keys: Sequence[Key],
) -> tuple[Indices, Floats]:
    """k of each query without replacement, each draw with probability softmax(score / temperature) over what is left.

    Args:
        temperature: In the unit of the scores: 1 over cosines is nearly even, 0.01 nearly the top k.
        query_keys: What identifies a query wherever it stands, such as its text's digest, [Q].
        document_keys: The same for documents, by index.

    Returns:
        Indices [Q, k] in the order given, hardest first, not in that of drawing, -1 padded; scores [Q, k].

    Raises:
        CurationError: k is below 1, or the temperature is not above 0.

    Source: Gumbel top-k draws from Plackett-Luce (Kool et al., arXiv 1903.06059, section 2.2).
    """
    _check(k, temperature)
    keys_QK = _gumbel_keys(indices_QK, scores_QK, temperature, seed, query_keys, document_keys)
    return first_kept(indices_QK, scores_QK, _is_among_highest(keys_QK, k) & (indices_QK >= 0), k)


def top1_softmax(
    indices_QK: Indices,
    scores_QK: Floats,
    k: int,
    *,
    temperature: float,
    seed: int,
    query_keys: Sequence[Key],
    document_keys: Sequence[Key],
) -> tuple[Indices, Floats]:
    """The first of each query, and k - 1 of the others as `softmax` draws them; arguments and errors are its own."""
    _check(k, temperature)
    keys_QK = _gumbel_keys(indices_QK, scores_QK, temperature, seed, query_keys, document_keys)
    keys_QK[:, :1] = np.inf
    return first_kept(indices_QK, scores_QK, _is_among_highest(keys_QK, k) & (indices_QK >= 0), k)


def _gumbel_keys(
    indices_QK: Indices,
    scores_QK: Floats,
    temperature: float,
    seed: int,
    query_keys: Sequence[Key],
    document_keys: Sequence[Key],
) -> NDArray[np.float64]:
    """Score / temperature plus Gumbel noise: the k highest are a sample without replacement; -inf in empty places."""
    keys_QK = np.full(indices_QK.shape, -np.inf)
    rows, columns = np.nonzero(indices_QK >= 0)
    pairs = zip(rows.tolist(), indices_QK[rows, columns].tolist(), strict=True)
    uniforms = np.array([counter_uniform(seed, "negative", query_keys[row], document_keys[d]) for row, d in pairs])
    # A uniform of exactly 0 would be minus infinity, an empty place.
    noise = -np.log(-np.log(np.maximum(uniforms, 2.0**-54)))
    keys_QK[rows, columns] = scores_QK[rows, columns].astype(np.float64) / temperature + noise
    return keys_QK


def _is_among_highest(keys_QK: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    is_among_QK = np.zeros(keys_QK.shape, np.bool_)
    np.put_along_axis(is_among_QK, np.argsort(-keys_QK, axis=1, kind="stable")[:, :k], True, 1)
    return is_among_QK


def _check(k: int, temperature: float = 1.0) -> None:
    if k < 1:
        raise CurationError(f"k = {k}: at least 1 negative must be asked for")
    if not temperature > 0:
        raise CurationError(f"temperature = {temperature}: a number above 0, in the unit of the scores, is needed")
