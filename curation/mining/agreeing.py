"""The consensus of a mining run: all that its teachers listed is looked over before anything is chosen.

What a query was offered stands in a file meanwhile, so that no teacher searches twice and memory does not grow with
the lists. Those vote who score pairs: each by its own list, and the judge by all that it was asked about.

Legend: V teachers that vote, K places that any teacher listed for a query.
"""

import pickle
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from curation.mining.consensus import Doubles, Survey, consensus_ceilings
from db.digest import digest_of

Votes = Sequence[Mapping[int, float]]  # of each teacher that votes: its scores by place


class Shelf:
    """What each query was offered, in an open binary file of this process alone."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._starts = file, dict[int, int]()

    def put(self, query: int, record: Any) -> None:
        self._starts[query] = self._file.seek(0, 2)
        pickle.dump(record, self._file)

    def get(self, query: int) -> Any:
        """The record of a query; KeyError if there is none."""
        self._file.seek(self._starts[query])
        return pickle.load(self._file)


class Consensus:
    """What the teachers say together, as a teacher of its own: its scores and its ceilings can be compared again.

    Args:
        survey: With both its rounds done.
        voters: Versions of the teachers that vote; with the survey's numbers they are the version.
    """

    name = kind = "consensus"
    prompt = ""
    max_length = None

    def __init__(self, survey: Survey, voters: Sequence[str], *, weight: float, offset: float) -> None:
        self._survey, self._weight, self._offset = survey, weight, offset
        self._weights_V = survey.weights_T()
        numbers = (survey.scales.mean_T, survey.scales.spread_T, self._weights_V)
        self.version = digest_of(
            {"voters": list(voters), "numbers": [[f"{x:.6g}" for x in of.tolist()] for of in numbers]}
        )

    def of(self, places: Sequence[int], votes: Votes, positive_scores_V: Doubles) -> tuple[dict[int, float], float]:
        """The consensus on each place of a query, and what a negative of the query has to stay below."""
        found_K, positive = self._survey.consensus_of(as_matrix(places, votes), positive_scores_V, self._weights_V)
        ceiling = consensus_ceilings(np.array([positive]), weight=self._weight, offset=self._offset)
        return {place: round(z, 6) for place, z in zip(places, found_K.tolist(), strict=True)}, round(
            float(ceiling[0]), 6
        )


def as_matrix(places: Sequence[int], votes: Votes) -> Doubles:
    """The scores of these places [V, K], NaN where a teacher does not list one."""
    nothing = float("nan")
    return np.array([[of.get(place, nothing) for place in places] for of in votes], np.float64)
