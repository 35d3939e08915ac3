"""Licences that do not go together in one release.

A licence belongs to a kind, and two kinds either go together or conflict. The table is small and cautious; it is no
legal advice. A mix that conflicts is refused unless the recipe acknowledges the pair by name, which the card then says.

| with | permissive | share-alike | non-commercial | no-derivatives | unknown |
|---|---|---|---|---|---|
| permissive (CC0, CC BY, MIT, Apache, BSD, ODC-BY) | yes | yes | yes | no | no |
| share-alike (CC BY-SA, ODbL, GPL) | | versions of one licence only | no | no | no |
| non-commercial (CC BY-NC, CC BY-NC-SA) | | | yes | no | no |
| no-derivatives (CC BY-ND, CC BY-NC-ND) | | | | no | no |
| unknown (none stated, or one that is not listed) | | | | | yes |

A licence always goes with itself. Rows without a source (brainstormed ones) carry the recipe's licence, which counts
where it is known.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import combinations

from curation.errors import CurationError
from curation.release.recipe import Acknowledgement

_URLS = {
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "mit": "https://opensource.org/license/mit",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "odc-by": "https://opendatacommons.org/licenses/by/1-0/",
    "odbl": "https://opendatacommons.org/licenses/odbl/1-0/",
}
_PERMISSIVE = ("cc0-", "pddl", "unlicense", "mit", "apache-", "bsd", "odc-by", "isc")
_VERSION = re.compile(r"-[0-9.]+$")
_SHARE_ALIKE = ("cc-by-sa", "odbl", "gpl", "lgpl", "agpl", "gfdl")


def licence_id(licence: str) -> str:
    """A licence as its identifier writes it: `CC BY-SA 4.0` is cc-by-sa-4.0."""
    return "-".join(licence.lower().replace("_", " ").replace("-", " ").split())


def kind_of(licence: str) -> str:
    """`permissive`, `share-alike`, `non-commercial`, `no-derivatives` or `unknown`; what is not listed is unknown."""
    name = licence_id(licence)
    if name.startswith("cc-by"):
        parts = name.split("-")[2:]
        if "nd" in parts:
            return "no-derivatives"
        if "nc" in parts:
            return "non-commercial"
        return "share-alike" if "sa" in parts else "permissive"
    if name.startswith(_SHARE_ALIKE):
        return "share-alike"
    return "permissive" if name.startswith(_PERMISSIVE) else "unknown"


def conflict(one: str, other: str) -> str | None:
    """Why two licences do not go together, or None."""
    names = sorted({licence_id(one), licence_id(other)})
    if len(names) == 1:
        return None
    kinds = {kind_of(name) for name in names}
    if kinds == {"unknown"}:
        return None
    if "unknown" in kinds:
        return "what the unknown one allows is not stated"
    if "no-derivatives" in kinds:
        return "no-derivatives forbids a mix"
    if kinds == {"share-alike"}:
        if len({_VERSION.sub("", name) for name in names}) == 1:
            return None
        return "each asks for the whole under its own terms"
    if kinds == {"share-alike", "non-commercial"}:
        return "share-alike asks for terms without a limit on use, non-commercial sets one"
    return None


def check_licences(sources: Iterable[tuple[str | None, str]], acknowledged: Sequence[Acknowledgement]) -> None:
    """Refuse licences that conflict and are not acknowledged.

    Args:
        sources: (source, licence); rows without a source have None.
        acknowledged: Pairs that the recipe mixes all the same.

    Raises:
        CurationError: Names the first pair that conflicts, why, and what to write.
    """
    licences = {licence for source, licence in sources if source is not None or kind_of(licence) != "unknown"}
    named = {frozenset(map(licence_id, one.licences)) for one in acknowledged}
    for one, other in combinations(sorted(licences), 2):
        why = conflict(one, other)
        if why and frozenset((licence_id(one), licence_id(other))) not in named:
            raise CurationError(
                f"licences {one!r} and {other!r} are mixed, and {why}: release runs of one of them, import the source "
                "again with its --licence, or acknowledge the pair in the recipe: [[acknowledged]] licences = "
                f"[{one!r}, {other!r}], by = ..., reason = ..."
            )


def licence_url(licence: str) -> str | None:
    """Where the licence's text stands, or None for one that is not known."""
    name = licence_id(licence)
    if name in _URLS:
        return _URLS[name]
    if name.startswith("cc-by") and name.rpartition("-")[2][:1].isdigit():
        terms, _, version = name.removeprefix("cc-").rpartition("-")
        return f"https://creativecommons.org/licenses/{terms}/{version}/"
    return None
