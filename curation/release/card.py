"""The dataset card: facts from the manifest alone, for a stranger who has to judge the release."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from curation.release.licences import conflict, licence_id, licence_url

Manifest = Mapping[str, Any]
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
_HUB_LICENCES = {
    "apache-2.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "odbl", "odc-by",
}  # fmt: skip
_GRADES = (
    ("1", "hard", "most similar to the query; breaks one requirement of it"),
    ("2 and 3", "medium", "similar; a tie, neither is harder than the other"),
    ("4", "easy", "of the same field, plainly not an answer"),
    ("none", "none", "mined or imported: ordered by the teacher's similarity (`mined_rank`), never graded"),
)


def write_card(path: Path, manifest: Manifest) -> None:
    """Write README.md with the Hub's metadata block."""
    recipe = manifest["recipe"]
    num_rows = sum(manifest["rows"]["graded"].values())
    licences = sorted({licence_id(licence) for licence in manifest["licences"]})
    is_one = len(licences) == 1 and licences[0] in _HUB_LICENCES
    data = DatasetCardData(
        language=list(recipe["language"]) or None,
        license=licences[0] if is_one else "other",
        license_name=None if is_one else "licences-of-sources",
        license_link=None if is_one else "#licences",
        pretty_name=recipe["title"],
        annotations_creators=["machine-generated", *(["expert-generated"] if _is_reviewed(manifest) else [])],
        language_creators=["machine-generated", "found"] if _has_sources(manifest) else ["machine-generated"],
        multilinguality=_multilinguality(recipe["language"]),
        source_datasets=["original"],
        task_categories=["feature-extraction", "sentence-similarity"],
        size_categories=[next((name for most, name in _SIZES if num_rows < most), "100M<n<1B")],
        tags=["sentence-transformers", "hard-negatives", "graded-negatives", "synthetic"],
        configs=[_config(config, splits) for config, splits in manifest["rows"].items()],
    )
    path.write_text(str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{_body(manifest)}")), encoding="utf-8")


def _is_reviewed(manifest: Manifest) -> bool:
    return bool((manifest.get("decisions") or {}).get("reviews"))


def _multilinguality(languages: Sequence[str]) -> list[str] | None:
    """None where no language is stated."""
    return ["multilingual" if len(languages) > 1 else "monolingual"] if languages else None


def _has_sources(manifest: Manifest) -> bool:
    return any(source["name"] != "brainstormed" for source in manifest["sources"])


def _config(config: str, splits: Mapping[str, int]) -> dict[str, Any]:
    files = [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in sorted(splits, reverse=True)]
    entry: dict[str, Any] = {"config_name": config, "data_files": files}
    return entry | ({"default": True} if config == "graded" else {})


def _body(manifest: Manifest) -> str:
    recipe, audit = manifest["recipe"], manifest["audit"]
    grades = [list(grade) for grade in _GRADES]
    sections = [
        f"# {recipe['title']}: {manifest['name']}",
        "Queries with a positive and graded hard negatives, made with Gradus. `manifest.json` names every file, run, "
        f"recipe and model by digest; this release's is `{manifest['digest'][:16]}`.",
        "## Load",
        _loading(manifest),
        "## Configurations",
        _configurations(manifest),
        "## Grades and rubric",
        _table(["rank", "grade", "meaning"], grades),
        "`more_positives` of `graded` are negatives that answer their query: a judge called them relevant and the "
        "recipe made them positives, or people did.",
        "## How it was made",
        "\n".join(f"- {line}" for line in _making(manifest)),
        _mix(manifest),
        "## Audit",
        f"Similarity to the query by {_code(audit['teacher']['name'])} at {audit['teacher']['max_length']} tokens.",
        _audit_table(audit),
        "![Similarity per rank](ladder.png)",
        "## Gates",
        _gates(manifest["gates"]),
        "## Human audit",
        _people(manifest.get("decisions")),
        "## Contamination",
        _contamination(audit),
        "## Known faults",
        "\n".join(f"- {fault}" for fault in _faults(manifest)),
        "## Licences",
        _licences(manifest),
        "## Change log",
        _changes(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _loading(manifest: Manifest) -> str:
    version = manifest["version"]
    return (
        "```python\nfrom datasets import load_dataset\n\n"
        f'graded = load_dataset("ORG/NAME", "graded", revision="v{version}")\n'
        f'training = load_dataset("ORG/NAME", "n-tuple", revision="v{version}")  # as sentence-transformers trains\n'
        "```\n\nThe tag names this release for ever. A folder's path does in place of `ORG/NAME`, without a revision."
    )


def _configurations(manifest: Manifest) -> str:
    rows = [
        [_code(config), split, f"{num:,}", ", ".join(_code(column["name"]) for column in manifest["schemas"][config])]
        for config, splits in manifest["rows"].items()
        for split, num in splits.items()
    ]
    return _table(["configuration", "split", "rows", "columns"], rows)


def _making(manifest: Manifest) -> list[str]:
    lines = []
    for run in manifest["runs"]:
        line = f"{run['kind']} {_code(run['name'])}: recipe {run['recipe_digest'][:12]}, seed {run['seed']}"
        if run["prompt_pack"]:
            line += f", prompt pack {_code(run['prompt_pack'])} ({(run['prompt_pack_digest'] or 'no digest')[:12]})"
        lines.append(f"{line}, code {run['code_version']}")
    models = ", ".join(_code(model) for model in manifest["generator_models"])
    lines.append(f"Generator models: {models or 'none'}")
    teachers = [
        f"{_code(one['name'])} ({one['version'][:12]})" for one in manifest["teachers"] if one.get("has_scores", True)
    ]
    lines.append(f"Teachers with scores: {', '.join(teachers) or 'none'}")
    lines.append(
        f"Release recipe {manifest['recipe_digest'][:12]}, seed {manifest['recipe']['seed']}, "
        f"code {manifest['code_version']}"
    )
    return lines


def _mix(manifest: Manifest) -> str:
    mix, asked = manifest["mix"], manifest["recipe"]["mix"]
    ratio = "none mined" if mix["realised_ratio"] is None else f"{mix['realised_ratio']:.3f}"
    return (
        f"Mix of the training configurations: `{asked['kind']}`, {asked['slots']} negatives a row, ratio of "
        f"machine-written to mined {asked['ratio']} asked for, {ratio} realised over the examples that have both; "
        f"{mix['short_rows']:,} examples have too few negatives for a row of `n-tuple`. Splits keep every query and "
        f"positive on one side; {manifest['recipe']['split']['dev_share']:.0%} go to dev."
    )


def _audit_table(audit: Mapping[str, Any]) -> str:
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


def _contamination(audit: Mapping[str, Any]) -> str:
    found = audit["contamination"]
    if found["reason"]:
        return f"Not measured: {found['reason']}."
    kinds = {kind: found[kind] for kind in ("queries", "pairs", "positives")}
    parts = ", ".join(f"{one['num']:,} of {one['total']:,} {kind}" for kind, one in kinds.items())
    return f"Of the evaluation sets ({', '.join(found['evaluation'])}) these stand here, exactly or nearly: {parts}."


def _judging(manifest: Manifest) -> str:
    judged, asked = manifest["audit"]["judged"], manifest["recipe"]["false_negatives"]
    if not judged["num_judged"]:
        return "No judge has looked for false negatives."
    low, high = judged["interval_95"]
    done = {"drop": "left out", "relabel": "made positives", "keep": "kept"}
    became = f"{manifest['mix']['judged_relevant']:,} were {done[asked['policy']]}" if asked else "none was left out"
    return (
        f"A judge looked at {judged['num_judged']:,} negatives and called {judged['num_false']:,} of them relevant "
        f"({judged['rate']:.1%}, 95 % interval {low:.1%} to {high:.1%}); of this selection {became}."
    )


def _faults(manifest: Manifest) -> list[str]:
    faults = ["No person has reviewed these rows.", _judging(manifest)]
    for group in manifest["audit"]["groups"]:
        if order := group["order"]:
            low, high = order["interval_95"]
            faults.append(
                f"{_code(group['run'])}: the claimed order holds in {order['accuracy']:.1%} of the cross-grade pairs "
                f"(95 % interval {low:.1%} to {high:.1%}, n = {order['num_pairs']:,})."
            )
    return faults


def _licences(manifest: Manifest) -> str:
    rows = [
        [source["name"], _linked(source["licence"]), f"{source['num_examples']:,}"] for source in manifest["sources"]
    ]
    lines = [
        _table(["source", "licence", "examples"], rows),
        "Every row of `graded` names its source and licence. Machine-written texts quote or imitate their sources.",
        f"Terms of the generators' outputs: {_cell(manifest['recipe']['output_licence'] or 'not stated')}.",
    ]
    for one in manifest["recipe"]["acknowledged"]:
        first, second = one["licences"]
        why = conflict(first, second) or "they were taken to conflict"
        lines.append(
            f"**{_cell(first)} and {_cell(second)} are mixed although {why}; {_cell(one['by'])} takes "
            f"it on: {_cell(one['reason'])}**"
        )
    return "\n\n".join(lines)


def _people(decisions: Mapping[str, Any] | None) -> str:
    """What people decided, session by session; they are told by pseudonym."""
    if decisions is None or not decisions["reviews"]:
        return "No person has reviewed these rows (n = 0), so there is no agreement to report."
    done = ", ".join(f"{num:,} {fate.replace('_', ' ')}" for fate, num in decisions["negatives"].items())
    parts = [
        f"Of this selection, by people's decisions up to {decisions['until']}: {done}. Every decision behind a row "
        "stands in `provenance`."
    ]
    for review in decisions["reviews"]:
        parts += [f"### Review {_code(review['session'])}", *_review(review)]
    return "\n\n".join(parts)


def _review(review: Mapping[str, Any]) -> list[str]:
    people = ", ".join(f"{_code(one['reviewer'])} ({one['num']:,})" for one in review["reviewers"])
    how = "blind" if review["is_blind"] else "open"
    low, high = review["changed_interval_95"]
    agreement = review["agreement"]
    lines = [
        f"n = {review['num']:,} negatives of {review['num_examples']:,} examples, {how}, up to {review['overlap']} "
        f"people each, under rubric {_code(review['rubric'])} (`{review['rubric_digest'][:12]}`). Decided by {people}.",
        _table(["fate", "negatives"], [[fate.replace("_", " "), f"{num:,}"] for fate, num in review["fates"].items()]),
        f"Not left as they were: {review['num_changed'] / review['num']:.1%} (95 % interval {low:.1%} to {high:.1%}); "
        f"{review['num_settled']:,} were settled by an adjudicator.",
        *_passed_over(review),
        f"Agreement on the {agreement['num_shared']:,} negatives that several people decided: "
        + (
            f"{agreement['share_same']:.1%} have one outcome; Krippendorff's alpha "
            f"{_alpha(agreement['outcome_alpha'])}, ordinal for the grade {_alpha(agreement['grade_alpha'])} "
            f"(n = {agreement['num_graded_by_several']:,})."
            if agreement["num_shared"]
            else "none to report."
        ),
    ]
    if review["audit"] is not None:
        lines += _sample_audit(review["audit"])
    checked = [f"{told['num_right']:,} of {told['num']:,} {kind} answers" for kind, told in review["checks"].items()
               if told["num"]]  # fmt: skip
    if checked:
        lines.append(f"Hidden checks that came out right: {', '.join(checked)}.")
    if (fast := review["warnings"]["num_faster_than_reading"]) > 0:
        num = review["warnings"]["num_presses"]
        lines.append(f"{fast:,} of {num:,} decisions were faster than the text can be read.")
    return lines


def _passed_over(review: Mapping[str, Any]) -> list[str]:
    """Examples that were skipped or flagged; a manifest of an older Gradus does not tell them."""
    said = ((review.get("num_skipped", 0), "skipped"), (review.get("num_flagged", 0), "flagged with a note"))
    told = [f"{num:,} {'example was' if num == 1 else 'examples were'} {what}" for num, what in said if num]
    if not told:
        return []
    return [f"By at least one person, {' and '.join(told)}; negatives on which nobody decided are in none of these "
            "figures."]  # fmt: skip


def _sample_audit(audit: Mapping[str, Any]) -> list[str]:
    def told(rate: Mapping[str, Any]) -> list[str]:
        estimate = "-" if rate["estimate"] is None else f"{rate['estimate']:.1%}"
        low, high = rate["interval"]
        return [rate["name"], f"{rate['size']:,}", f"{rate['looked_at']:,}", f"{rate['wrong']:,}", estimate,
                f"{low:.1%} to {high:.1%}"]  # fmt: skip

    return [
        f"A random sample, stratified by grade and origin; its stop rule says: {audit['advice']}. The "
        f"{audit['confidence']:.0%} intervals hold at every moment at which one could have stopped.",
        _table(
            ["stratum", "negatives", "looked at", "wrong", "error rate", "interval"],
            [told(rate) for rate in (*audit["strata"], audit["overall"])],
        ),
    ]


def _alpha(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "not defined"
    if found["interval_95"] is None:
        return f"{found['value']:.2f}"
    low, high = found["interval_95"]
    return f"{found['value']:.2f} ({low:.2f} to {high:.2f})"


def _linked(licence: str) -> str:
    url = licence_url(licence)
    return f"[{licence}]({url})" if url else licence


def _changes(manifest: Manifest) -> str:
    parent, changes = manifest["parent"], manifest["changes"]
    if parent is None:
        return f"{manifest['version']}: the first release of this name."
    lines = [f"{manifest['version']}, since {_code(parent['name'])} (`{parent['digest'][:16]}`):"]
    for change in changes["recipe"]:
        lines.append(
            f"- recipe, {_code(change['key'])}: {_cell(str(change['was']))} became {_cell(str(change['now']))}"
        )
    parts = [("came", changes["came"]), ("went", changes["went"]), ("changed sides", changes["changed"]["split"])]
    for what, part in parts:
        for one in part["reasons"]:
            lines.append(f"- {one['num']:,} candidates {what}: {_cell(one['reason'])}")
    lines.append(f"- {changes['num_kept']:,} candidates stayed.")
    return "\n".join([lines[0], "", *lines[1:]])


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text on one line that ends no cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
