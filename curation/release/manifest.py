"""What a release says of itself: audit, ladder, manifest and card, beside the data files."""

from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select

from curation.audit.figures import audit_figures
from curation.audit.ladder import draw_ladder
from curation.judging.verdicts import judged_rate
from curation.release.card import write_card
from curation.release.gates import GateError, check_gates
from curation.release.recipe import ReleaseRecipe
from db.digest import digest_of
from db.files import digest_file
from db.runs import code_version
from db.store import Store
from db.tables.examples import Teacher
from db.tables.ledger import Request, Run, RunRequest

FORMAT = 1


def describe(
    store: Store,
    recipe: ReleaseRecipe,
    name: str,
    folder: Path,
    *,
    rows: dict[str, dict[str, int]],
    num_items: int,
    mix: dict[str, int | float | None],
    licences: set[str],
) -> dict[str, Any]:
    """Write audit, ladder, manifest and card; give the manifest. Its digest depends on content alone.

    Raises:
        GateError: A gate of the recipe is shut.
    """
    data = {str(p.relative_to(folder)): {"sha256": digest_file(p)} for p in sorted(folder.rglob("*.parquet"))}
    resolved = recipe.model_dump(mode="json")
    report = audit_figures(store, teacher=recipe.teacher, runs=recipe.runs)
    audited = report.to_dict() | {"judged": judged_rate(store, recipe.runs)}
    gates = check_gates(recipe.gates, audited)
    if not all(gate.is_open for gate in gates):
        raise GateError(gates)
    draw_ladder(report.order, folder / "ladder.png")
    (folder / "audit.json").write_bytes(
        orjson.dumps(audited, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    )
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "digest": digest_of({"files": data, "recipe": resolved}),
        "recipe": resolved,
        "rows": rows,
        "num_items": num_items,
        "mix": mix,
        "licences": sorted(licences),
        "gates": [gate.to_dict() for gate in gates],
        "code_version": code_version(),
        **_provenance(store),
    }
    write_card(folder / "README.md", manifest, audited)
    others = ("README.md", "audit.json", "ladder.png")
    manifest["files"] = data | {file: {"sha256": digest_file(folder / file)} for file in others}
    (folder / "manifest.json").write_bytes(
        orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    )
    return manifest


def _provenance(store: Store) -> dict[str, Any]:
    """Runs, generator models and teachers behind the store's candidates."""
    with store.read() as session:
        runs = [
            {
                "kind": run.kind,
                "name": run.name,
                "recipe_digest": run.recipe_digest,
                "seed": run.seed,
                "prompt_pack": run.recipe.get("pack"),
                "prompt_pack_digest": run.recipe.get("pack_digest"),
            }
            for run in session.scalars(select(Run).where(Run.kind.in_(("import", "generate", "mine"))))
        ]
        models = session.scalars(select(Request.model).join(RunRequest).distinct())
        teachers = session.execute(select(Teacher.name, Teacher.version, Teacher.max_length))
        return {
            "runs": sorted(runs, key=lambda run: (run["kind"], run["name"], run["recipe_digest"])),
            "generator_models": sorted(models),
            "teachers": sorted(
                ({"name": n, "version": v, "max_length": m} for n, v, m in teachers), key=lambda t: t["version"]
            ),
        }
