"""What a live server's reply means when it is not an answer: for this request, for now, or for all that come after."""

import email.utils
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from generator.engines.chat import error_message
from generator.ledger import Answer

# The world is wrong, not the request: a wrong key, address or model would fail the next thousand in the same way.
_FATAL = {
    401: "the key was refused",
    402: "the account is out of credit",
    403: "access was refused",
    404: "no such address or model",
}
_OUT_OF_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_BUSY = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Retry:
    """The server could not answer now; `after_s` is its own wish, or None.

    `may_be_paid`: the request arrived, as far as we know, and its answer was lost. `is_fatal`: the next one would fail
    in the same way.
    """

    reason: str
    status: int | None
    after_s: float | None = None
    is_unreachable: bool = False
    may_be_paid: bool = False
    is_fatal: bool = False


def refused(request_id: int, engine: str, status: int, body: Any, raw: bytes, headers: Any) -> Answer | Retry:
    """What a status that is not 200 means: for this request, for now, or for all that come after."""
    why = _FATAL[402] if _is_out_of_credit(body) else _FATAL.get(status)
    if why is not None:
        told = error_message(body) or raw.decode(errors="replace")
        return Retry(f"answers {status}: {why}: {told[:200]}", status, is_fatal=True)
    if status in _BUSY or status >= 500:
        return Retry(f"status {status}", status, retry_after(headers))
    told = error_message(body) or raw.decode(errors="replace")[:500]
    return Answer(request_id, engine, None, error=f"status {status}: {told}", status=status)


def _is_out_of_credit(body: Any) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and not _OUT_OF_CREDIT.isdisjoint((str(error.get("code")), str(error.get("type"))))


def retry_after(headers: Any) -> float | None:
    """Retry-After in seconds, from milliseconds, a number or a date; None when it says nothing usable."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    value = headers.get("retry-after")
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
