"""The audit as one HTML page that stands alone: no script, no network, plots inside, every text escaped."""

from base64 import b64encode
from importlib.resources import files
from typing import Any

from curation.audit.figures import AuditReport
from curation.audit.ladder import ladder_png
from curation.audit.openings import NUM_WORDS
from curation.audit.verdicts import LEAKS, causes_in_words, mean_in_words, verdicts

# Axes of the AUC tracks and of the cause bars: below 0.4 nothing of interest happens.
_LOWEST_AUC = 0.4
_NUM_CELLS = 60


def html_report(report: AuditReport) -> str:
    """The page, the verdicts first."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=_percent, number=_number, place=_place, interval=_interval, marked=_marked, mean=mean_in_words
    )
    template = environment.from_string((files("curation.audit") / "report.html.j2").read_text(encoding="utf-8"))
    audited = report.to_dict()
    ladders = [
        (order.teacher, order.max_length, b64encode(ladder_png(order)).decode())
        for order in (report.order, *report.more_orders)
    ]
    return template.render(
        report=audited,
        verdicts=verdicts(audited),
        ladders=ladders,
        scored=[audited, *audited["scorers"]],
        kinds=LEAKS,
        causes_in_words=causes_in_words,
        opening_words=NUM_WORDS,
        num_cells=_NUM_CELLS,
    )


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3f}"
    return f"{value:,}"


def _interval(bounds: Any) -> str:
    return "-" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _place(auc: float) -> str:
    """Where an AUC stands on its track, as a CSS percentage."""
    return f"{100 * min(1.0, max(0.0, (auc - _LOWEST_AUC) / (1 - _LOWEST_AUC))):.2f}%"


def _marked(ngram: str) -> str:
    """An n-gram with its spaces visible."""
    return ngram.replace(" ", "␣")
