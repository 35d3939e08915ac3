"""What a release says of itself: audit, ladder, Croissant, card and manifest, beside the data files.

The manifest is the one source of the card and of Croissant, so that they can be written again from the store's frozen
row. Nothing in it depends on when or where the release was made.
"""

from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from curation.audit.figures import audit_figures
from curation.audit.ladder import draw_ladder
from curation.judging.verdicts import judged_rate
from curation.release.building import Builder, schemas
from curation.release.card import write_card
from curation.release.catalogue import Version, parent_of
from curation.release.croissant import write_croissant
from curation.release.differences import changes_since
from curation.release.gates import GateError, check_gates
from curation.release.recipe import FalseNegatives, ReleaseRecipe
from curation.reviewing.human_audit import human_audit
from db.digest import digest_of
from db.files import digest_file
from db.runs import code_version
from db.store import Store
from db.tables.examples import Score, Teacher
from db.tables.ledger import Run
from db.teachers import scores_likeness

FORMAT = 2
_SORTED = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
# Libraries whose version decides the bytes of a file.
_WRITERS = ("pyarrow", "matplotlib", "huggingface-hub")


def describe(
    store: Store, recipe: ReleaseRecipe, name: str, folder: Path, builder: Builder, rows: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """Write audit, ladder, Croissant, card and manifest; give the manifest. Its digest depends on content alone.

    Raises:
        GateError: A gate of the recipe is shut.
    """
    data = _files(folder, sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet")))
    resolved = recipe.model_dump(mode="json")
    report = audit_figures(store, teacher=recipe.teacher, runs=recipe.runs)
    # By the judge and the threshold that decide what becomes of false negatives, where the recipe names them.
    asked = recipe.false_negatives or FalseNegatives()
    audited = report.to_dict() | {
        "judged": judged_rate(store, recipe.runs, judge=asked.judge, threshold=asked.threshold)
    }
    gates = check_gates(recipe.gates, audited)
    if not all(gate.is_open for gate in gates):
        raise GateError(gates)
    draw_ladder(report.order, folder / "ladder.png")
    version = Version.parse(name)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "version": version.number,
        "digest": content_digest(data, resolved),
        "recipe": resolved,
        "recipe_digest": digest_of(resolved),
        "schemas": {
            config: [{"name": column.name, "type": str(column.type)} for column in schema]
            for config, schema in schemas(recipe.mix.slots).items()
            if config in rows
        },
        "rows": rows,
        "num_items": len(builder.items),
        "mix": builder.realised_mix(),
        "licences": sorted({licence for _, licence in builder.licences}),
        "sources": [
            {"name": source, "licence": licence, "num_examples": num}
            for (source, licence), num in sorted(builder.licences.items())
        ],
        "gates": [gate.to_dict() for gate in gates],
        "decisions": _decisions(store, recipe, builder),
        "audit": audited,
        "code_version": code_version(),
        "written_by": {package: metadata.version(package) for package in _WRITERS},
        **_origins(store, builder),
        **_parent(store, version, recipe, builder, rows),
    }  # fmt: skip
    manifest = as_read(manifest)
    write_texts(folder, manifest, data)
    manifest["files"] = data | _files(folder, ("README.md", "audit.json", "croissant.json", "ladder.png"))
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return as_read(manifest)


def as_read(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest as a reader of its file has it: keys are sorted, which a database does not keep, and are strings."""
    read: dict[str, Any] = orjson.loads(manifest_bytes(manifest))
    return read


def content_digest(files: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> str:
    """A release's digest: of the bytes of its data files, and of its recipe."""
    data = {name: {"sha256": one["sha256"]} for name, one in files.items() if name.endswith(".parquet")}
    return digest_of({"files": data, "recipe": recipe})


def write_texts(folder: Path, manifest: dict[str, Any], data: dict[str, dict[str, Any]]) -> None:
    """Write what is told by the manifest alone: audit, Croissant and card."""
    (folder / "audit.json").write_bytes(manifest_bytes(manifest["audit"]))
    write_croissant(folder / "croissant.json", manifest, data)
    write_card(folder / "README.md", manifest)


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """A manifest as it stands in its file."""
    return orjson.dumps(manifest, option=_SORTED) + b"\n"


def _files(folder: Path, names: tuple[str, ...] | list[str]) -> dict[str, dict[str, Any]]:
    return {name: {"sha256": digest_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names}


def _decisions(store: Store, recipe: ReleaseRecipe, builder: Builder) -> dict[str, Any]:
    """What people decided of this selection, up to the last decision that it knew, and their audit."""
    decided = builder.decided
    if decided is None or decided.until is None:
        return {"until": None, "negatives": None, "reviews": []}
    with store.read() as session:
        reviews = human_audit(
            session, sessions=recipe.decisions.sessions, examples=builder.examples, until=decided.until
        )
    return {"until": decided.until.isoformat(), "negatives": decided.tally.to_dict(), "reviews": reviews}


def _origins(store: Store, builder: Builder) -> dict[str, Any]:
    """Runs, generator models and teachers behind the rows that went in, and every teacher that scored."""
    sources = builder.sources
    with store.read() as session:
        runs = [
            {
                "kind": run.kind,
                "name": run.name,
                "recipe_digest": run.recipe_digest,
                "seed": run.seed,
                "prompt_pack": run.recipe.get("pack"),
                "prompt_pack_digest": run.recipe.get("pack_digest"),
                "code_version": run.code_version,
            }
            for run in session.scalars(select(Run).where(Run.id.in_(sources.runs)))
        ]
        return {
            "runs": sorted(runs, key=lambda run: (run["kind"], run["name"], run["recipe_digest"])),
            "generator_models": sorted(sources.models),
            "teachers": _teachers(session, sources.teachers),
        }


def _teachers(session: Session, finders: Collection[int]) -> list[dict[str, Any]]:
    """Every teacher that scored likeness, and those that found candidates of the release."""
    has_scores = exists().where(Score.teacher_id == Teacher.id) & scores_likeness()
    columns = (Teacher.name, Teacher.version, Teacher.kind, Teacher.max_length, Teacher.prompt, has_scores)
    rows = [
        {"name": name, "version": version, "kind": kind, "max_length": length, "prompt": prompt, "has_scores": scored}
        for name, version, kind, length, prompt, scored in session.execute(
            select(*columns).where(has_scores | Teacher.id.in_(finders))
        )
    ]
    return sorted(rows, key=lambda one: (one["name"], one["version"], one["prompt"], one["max_length"] or 0))


def _parent(
    store: Store, version: Version, recipe: ReleaseRecipe, builder: Builder, rows: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """The parent release by name and digest, and what changed since; None where there is none."""
    with store.read() as session:
        parent = parent_of(session, version)
        if parent is None:
            return {"parent": None, "changes": None}
        changes = changes_since(session, parent, recipe, builder, rows)
        return {"parent": {"name": parent.name, "digest": parent.digest}, "changes": changes}
