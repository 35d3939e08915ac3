"""`gradus status`: what the store holds and what ran last."""

from typing import TYPE_CHECKING

from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, shortened, show_table, write_json

if TYPE_CHECKING:
    from generator.progress import RunProgress


def status(store: StoreUrl = None, json: JsonFile = None) -> None:
    """Show what the store holds, the last runs, and why rows were refused."""
    from app.opening import opened_store
    from app.viewing.overview import last_runs, rejection_counts, store_counts
    from db.store import shown_url
    from generator.progress import progress_of_last_runs

    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        counts, runs, refused = store_counts(session), last_runs(session), rejection_counts(session)
        generating = progress_of_last_runs(session)
        shown = shown_url(opened.engine.url)
    console.print(f"Store {escape(shown)}")
    show_table("In the store", ["what", "rows"], counts)
    rows = [(run.kind, run.name, run.state, f"{run.started_at:%Y-%m-%d %H:%M:%S}", run.seconds) for run in runs]
    show_table("Last runs", ["kind", "name", "state", "started (UTC)", "seconds"], rows)
    for one in generating:
        show_table(f"Generation {escape(one.run)}: {one.state}", ["what", "now"], _facts(one))
    if refused:
        show_table("Refused", ["run", "reason", "rows"], refused)
    if json is not None:
        write_json(
            json,
            {
                "store": shown,
                "counts": dict(counts),
                "runs": [{"kind": r.kind, "name": r.name, "state": r.state, "totals": r.totals} for r in runs],
                "generation": [one.to_dict() for one in generating],
                "rejections": [{"run": name, "reason": reason, "rows": num} for name, reason, num in refused],
            },
        )


def _facts(one: "RunProgress") -> list[tuple[str, str]]:
    """What a person wants to know of a run that is going on in another terminal."""
    rate = f"{one.per_minute:,} in the last minute"
    if one.eta_s is not None and one.num_waiting:
        rate += f", about {one.eta_s:,.0f} s left"
    by_rank = " ".join(f"N{rank} {num:,}" for rank, num in one.accepted_by_rank.items())
    hits = f"{one.cached_tokens / one.input_tokens:.0%} read from a cache" if one.input_tokens else "none"
    return [
        ("read", f"{one.num_read:,} of {one.num_planned:,}"),
        ("in flight, waiting, failed", f"{one.num_leased:,}, {one.num_waiting - one.num_leased:,}, {one.num_failed:,}"),
        *((f"failed: {shortened(reason)}", f"{num:,}") for reason, num in list(one.failures.items())[:1]),
        ("answers", rate),
        ("outcomes", ", ".join(f"{num:,} {outcome}" for outcome, num in sorted(one.outcomes.items())) or "none yet"),
        ("accepted by rank", by_rank or "none yet"),
        ("input tokens", f"{one.input_tokens:,}, {hits}"),
        ("output tokens", f"{one.output_tokens:,}"),
        ("spent", f"{_dollars(one.spent_usd)}, {one.spent_tokens:,} tokens; reserved {_dollars(one.reserved_usd)}"),
    ]


def _dollars(value: float | None) -> str:
    return "no known price" if value is None else f"${value:,.4f}"
