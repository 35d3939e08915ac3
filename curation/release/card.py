"""The dataset card: facts from the manifest and the audit, for a stranger who has to judge the release."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_HUB_LICENCES = {"cc-by-4.0", "apache-2.0", "mit", "cc0-1.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "odc-by"}


def write_card(path: Path, manifest: dict[str, Any], audit: dict[str, Any]) -> None:
    """Write README.md with the Hub's metadata block."""
    rows = manifest["rows"]
    recipe = manifest["recipe"]
    num_rows = sum(rows["graded"].values())
    licences = [licence.lower() for licence in manifest["licences"]]
    data = DatasetCardData(
        language=list(recipe["language"]),
        license=licences[0] if len(licences) == 1 and licences[0] in _HUB_LICENCES else "other",
        pretty_name=recipe["title"],
        annotations_creators=["machine-generated"],
        task_categories=["feature-extraction", "sentence-similarity"],
        size_categories=[next((name for most, name in _SIZES if num_rows < most), "n>1M")],
        tags=["sentence-transformers", "hard-negatives", "graded-negatives", "synthetic"],
        configs=[_config(config, splits) for config, splits in rows.items()],
    )
    path.write_text(str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{_body(manifest, audit)}")), encoding="utf-8")


def _config(config: str, splits: dict[str, int]) -> dict[str, Any]:
    files = [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in sorted(splits, reverse=True)]
    entry: dict[str, Any] = {"config_name": config, "data_files": files}
    return entry | ({"default": True} if config == "graded" else {})


def _body(manifest: dict[str, Any], audit: dict[str, Any]) -> str:
    mix, recipe = manifest["mix"], manifest["recipe"]
    ratio = "none mined" if mix["realised_ratio"] is None else f"{mix['realised_ratio']:.3f}"
    sections = [
        f"# {recipe['title']}: {manifest['name']}",
        "Queries with a positive and graded hard negatives: rank 1 (`hard`) is the most similar to the query, ranks 2 "
        "and 3 are `medium`, rank 4 is `easy`. Made with Gradus; every row is named in `manifest.json` by digest "
        f"(`{manifest['digest'][:16]}`).",
        "## Load",
        f'```python\nfrom datasets import load_dataset\n\ngraded = load_dataset("{manifest["name"]}", "graded")\n'
        f'training = load_dataset("{manifest["name"]}", "n-tuple")  # columns as sentence-transformers trains on\n```',
        "## Configurations",
        _table(
            ["configuration", "split", "rows"],
            [
                [config, split, f"{num:,}"]
                for config, splits in manifest["rows"].items()
                for split, num in splits.items()
            ],
        ),
        "## How it was made",
        "\n".join(f"- {line}" for line in _making(manifest)),
        f"Mix of the training configurations: `{recipe['mix']['kind']}`, {recipe['mix']['slots']} negatives a row, "
        f"ratio of machine-written to mined {recipe['mix']['ratio']} asked for, {ratio} realised over the examples "
        f"that have both; "
        f"{mix['short_rows']} examples have too few negatives for a row of `n-tuple`.",
        "## Audit",
        f"Similarity to the query by {audit['teacher']['name']} at {audit['teacher']['max_length']} tokens.",
        _audit_table(audit),
        "![Similarity per rank](ladder.png)",
        "## Gates",
        _gates(manifest["gates"]),
        "## Known faults",
        "\n".join(f"- {fault}" for fault in _faults(manifest, audit)),
        "## Licences",
        f"Sources: {', '.join(manifest['licences'])}. Machine-written texts quote or imitate them. "
        f"Generators: {', '.join(manifest['generator_models']) or 'none'}.",
    ]
    return "\n\n".join(sections) + "\n"


def _making(manifest: dict[str, Any]) -> list[str]:
    lines = []
    for run in manifest["runs"]:
        pack = f", prompt pack `{run['prompt_pack']}` ({run['prompt_pack_digest'][:12]})" if run["prompt_pack"] else ""
        lines.append(f"{run['kind']} `{run['name']}`: recipe {run['recipe_digest'][:12]}, seed {run['seed']}{pack}")
    return lines


def _audit_table(audit: dict[str, Any]) -> str:
    rows = []
    for group in audit["groups"]:
        rows.append([group["run"], "positive", str(group["num_examples"]), f"{group['positive']['mean']:.3f}", "", ""])
        for label, rank in group["ranks"].items():
            share, length = f"{rank['above_positive']:.1%}", f"{rank['length_ratio']:.2f}"
            rows.append([group["run"], label, str(rank["num"]), f"{rank['mean']:.3f}", share, length])
    return _table(["run", "rank", "n", "mean cosine", "above the positive", "length ratio (median)"], rows)


def _gates(gates: list[dict[str, Any]]) -> str:
    """Limits, figures, and who let a failing one through."""
    if not gates:
        return "No limits were set: nothing stopped this release but its reader."
    rows = []
    for gate in gates:
        figure = "not measured" if gate["figure"] is None else f"{gate['figure']:.3f}"
        verdict = "met" if gate["is_met"] else f"**failed; let through by {gate['overridden_by']}: {gate['reason']}**"
        rows.append([gate["gate"], f"{gate['sense']} {gate['limit']:g}", figure, gate["note"], verdict])
    return _table(["gate", "limit", "figure", "of", "verdict"], rows)


def _judging(manifest: dict[str, Any], audit: dict[str, Any]) -> str:
    judged, asked = audit["judged"], manifest["recipe"]["false_negatives"]
    if not judged["num_judged"]:
        return "No judge has looked for false negatives."
    low, high = judged["interval_95"]
    done = {"drop": "left out", "relabel": "made positives", "keep": "kept", None: "kept"}
    return (
        f"A judge looked at {judged['num_judged']:,} negatives and called {judged['num_false']:,} of them relevant "
        f"({judged['rate']:.1%}, 95 % interval {low:.1%} to {high:.1%}); of this selection "
        f"{manifest['mix']['judged_relevant']:,} were {done[asked and asked['policy']]}."
    )


def _faults(manifest: dict[str, Any], audit: dict[str, Any]) -> list[str]:
    faults = ["No person has reviewed these rows.", _judging(manifest, audit)]
    for group in audit["groups"]:
        if order := group["order"]:
            low, high = order["interval_95"]
            faults.append(
                f"`{group['run']}`: the claimed order holds in {order['accuracy']:.1%} of the cross-grade pairs "
                f"(95 % interval {low:.1%} to {high:.1%}, n = {order['num_pairs']:,})."
            )
    return faults


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
