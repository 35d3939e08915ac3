"""Content digests and counter-based draws.

A digest is the identity of a text, a wire body or a recipe, the same on every machine. A counter-based draw is a
pure function of (seed, key): resuming, sharding or reordering the work never changes what is drawn.
"""

import hashlib
from typing import Any

import orjson

_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def digest_text(text: str) -> str:
    """SHA-256 of the UTF-8 text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no white space: equal values give equal bytes."""
    return orjson.dumps(value, option=_CANONICAL)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _counter_bits(seed: int, key: tuple[str | int, ...]) -> int:
    message = canonical_json([seed, *key])
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "big")


def counter_uniform(seed: int, *key: str | int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the key."""
    return (_counter_bits(seed, key) >> 11) / (1 << 53)


def counter_below(bound: int, seed: int, *key: str | int) -> int:
    """An integer in [0, bound) that depends on nothing but the bound, the seed and the key."""
    return int(counter_uniform(seed, *key) * bound)
