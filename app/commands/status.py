"""`gradus status`: what the store holds and what ran last."""

from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, show_table, write_json


def status(store: StoreUrl = None, json: JsonFile = None) -> None:
    """Show what the store holds, the last runs, and why rows were refused."""
    from app.opening import opened_store
    from app.overview import last_runs, rejection_counts, store_counts

    with opened_store(store) as opened, opened.read() as session:
        counts, runs, refused = store_counts(session), last_runs(session), rejection_counts(session)
        shown = opened.engine.url.render_as_string(hide_password=True)
    console.print(f"Store {escape(shown)}")
    show_table("In the store", ["what", "rows"], counts)
    rows = [(run.kind, run.name, run.state, f"{run.started_at:%Y-%m-%d %H:%M:%S}", run.seconds) for run in runs]
    show_table("Last runs", ["kind", "name", "state", "started (UTC)", "seconds"], rows)
    if refused:
        show_table("Refused", ["run", "reason", "rows"], refused)
    if json is not None:
        write_json(
            json,
            {
                "store": shown,
                "counts": dict(counts),
                "runs": [{"kind": r.kind, "name": r.name, "state": r.state, "totals": r.totals} for r in runs],
                "rejections": [{"run": name, "reason": reason, "rows": num} for name, reason, num in refused],
            },
        )
