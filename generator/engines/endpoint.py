"""One base URL as the live engine sees it: how many requests may be in flight there, and whether it can be asked."""

from dataclasses import dataclass


class Window:
    """How many requests may be in flight: halved on overload, one more after a window's worth of successes."""

    def __init__(self, largest: int) -> None:
        self.largest, self.size, self._successes = largest, float(largest), 0
        self._shrunk_at = float("-inf")

    def shrink(self, *, sent_at: float, now: float) -> bool:
        """Halve it, once for all requests that were in flight together: they tell of the same overload.

        Returns whether this one was the first to tell.
        """
        if sent_at < self._shrunk_at:
            return False
        self.size, self._successes, self._shrunk_at = max(1.0, self.size / 2), 0, now
        return True

    def grow(self) -> None:
        self._successes += 1
        if self._successes >= self.size:
            self.size, self._successes = min(self.largest, self.size + 1), 0


@dataclass(slots=True)
class Endpoint:
    """One base URL: its window, and whether it can still be asked."""

    url: str
    window: Window
    in_flight: int = 0
    paused_until: float = 0.0
    unreachable_in_a_row: int = 0
    lost: str | None = None

    def has_room(self, now: float) -> bool:
        """For one more."""
        return self.lost is None and self.in_flight < int(self.window.size) and self.paused_until <= now

    def keeps_room(self, now: float) -> bool:
        """For another in the place of one that has just landed."""
        return self.lost is None and self.in_flight <= int(self.window.size) and self.paused_until <= now
