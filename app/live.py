"""The live view of a generation run: rate, accepted texts by rank, spending, cache hits, time left.

On a terminal it is drawn in place; elsewhere a plain line is logged now and then.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from app.terminal import console, escape, shortened
from generator.desk import Progress

_LOG_EVERY_S = 15.0
_DRAW_EVERY_S = 0.25
_RATE_OVER_S = 30.0
_LAGGARDS = 3


@contextmanager
def live_view(title: str, *, cells: Sequence[str] = ()) -> Iterator[Callable[[Progress], None]]:
    """Gives the callable that shows a run's progress.

    Args:
        cells: Names of the attribute cells, by their numbers in the progress.
    """
    view = _View(title, cells)
    if not console.is_terminal:
        yield view.log
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def draw(progress: Progress) -> None:
            if view.is_due(_DRAW_EVERY_S):
                live.update(view.table(progress), refresh=True)

        yield draw


class _View:
    def __init__(self, title: str, cells: Sequence[str]) -> None:
        self._title, self._cells = title, cells
        self._last = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def is_due(self, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._last < every_s:
            return False
        self._last = now
        return True

    def log(self, progress: Progress) -> None:
        if self._last == 0.0:
            self._last = time.monotonic()
        if self.is_due(_LOG_EVERY_S):
            parts = [f"{name} {value}" for name, value in self._facts(progress)]
            console.print(escape(f"{self._title}: " + ", ".join(parts)), soft_wrap=True)

    def table(self, progress: Progress) -> Table:
        table = Table(title=escape(self._title), title_justify="left", title_style="bold", show_header=False)
        for name, value in self._facts(progress):
            table.add_row(name, escape(value))
        return table

    def _facts(self, progress: Progress) -> Iterator[tuple[str, str]]:
        rate = self._rate(progress)
        read = sum(progress.outcomes.values())
        yield "answered", f"{progress.num_answered:,} now; {read:,} of {progress.num_planned:,} read"
        left = max(0, progress.num_planned - read)
        eta = f"{left / rate:,.0f} s left" if rate and left else ""
        yield "rate", " ".join(filter(None, [f"{rate:,.1f} a second", eta]))
        yield "in flight", f"{progress.num_in_flight:,}"
        ranks: Counter[int] = Counter()
        for (_, rank), num in progress.cells.items():
            ranks[rank] += num
        by_rank = " ".join(f"N{rank} {num:,}" for rank, num in sorted(ranks.items()))
        yield "accepted", f"{progress.num_accepted:,} {f'({by_rank})' if by_rank else ''}".strip()
        if len(self._cells) > 1:
            yield "attribute cells", self._laggards(progress)
        if progress.reasons:
            yield "refused", " ".join(f"{reason} {num:,}" for reason, num in progress.reasons.most_common(4))
        money = f"${progress.spent_usd:,.4f}" if progress.has_price else "no known price"
        yield "spent", f"{money}, {progress.spent_tokens:,} tokens"
        if progress.input_tokens:
            yield "cache hits", f"{progress.cached_tokens / progress.input_tokens:.0%} of the input tokens"
        if progress.waiting_for:
            yield "waiting for", progress.waiting_for

    def _laggards(self, progress: Progress) -> str:
        """How many texts the cells have, and by name those that have the fewest."""
        texts = [0] * len(self._cells)
        for (cell, _), num in progress.cells.items():
            if 0 <= cell < len(texts):
                texts[cell] += num
        fewest = sorted(range(len(texts)), key=lambda cell: (texts[cell], cell))[:_LAGGARDS]
        named = "; ".join(f"{shortened(self._cells[cell], 40)} {texts[cell]:,}" for cell in fewest)
        return f"{len(texts):,}, {min(texts):,} to {max(texts):,} texts each; fewest: {named}"

    def _rate(self, progress: Progress) -> float:
        now = time.monotonic()
        self._seen.append((now, progress.num_new))
        while now - self._seen[0][0] > _RATE_OVER_S:
            self._seen.popleft()
        first_at, first = self._seen[0]
        return (progress.num_new - first) / (now - first_at) if now > first_at else 0.0
