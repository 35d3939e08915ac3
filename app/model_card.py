"""The card of a trained model: what it was trained on, by which recipe, and what was measured of these very weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from app.errors import AppError
from db.digest import digest_of
from trainer.prompting import INSTRUCTION

if TYPE_CHECKING:
    from db.store import Store

_BASES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
_TASKS = {"retrieval": "information-retrieval", "similarity": "semantic-similarity"}


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The release, and where it was published, if it was."""

    release: str
    digest: str
    repo: str | None = None
    tag: str | None = None
    commit: str | None = None
    endpoint: str | None = None


def trained_on(summary: Mapping[str, Any], store: "Store | None", endpoint: str) -> TrainedOn:
    """The release of a training, and where the store that has it under the same digest saw it published.

    The last publication on the model's own Hub counts, else the last one anywhere.
    """
    from sqlalchemy import select

    from db.publications import publications
    from db.tables.releases import Release

    name, digest = summary["release"], summary["release_digest"]
    if store is None:
        return TrainedOn(name, digest)
    with store.read() as session:
        key = session.scalar(select(Release.id).where(Release.name == name, Release.digest == digest))
    known = publications(store, key) if key is not None else []
    if not known:
        return TrainedOn(name, digest)
    last = ([one for one in known if one["endpoint"] == endpoint] or known)[-1]
    return TrainedOn(name, digest, last["repo"], last["tag"], last["commit"], last["endpoint"])


def results_of(model: Path, reports: Sequence[Path]) -> list[dict[str, Any]]:
    """What reports of `gradus evaluate --json` say of these weights, one entry a set.

    Raises:
        AppError: A report cannot be read, or is of other weights: figures of another model must not get on a card.
    """
    from app.encoders import trusted_code
    from curation.embeddings import BiEncoder

    version = BiEncoder(str(model), trusted_code=trusted_code()).version
    found = []
    for path in reports:
        try:
            report = orjson.loads(path.read_bytes())
            sets = report.get("sets", [report])
            mine = [(one, result) for one in sets for result in one["models"] if result["version"] == version]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise AppError(f"--results {path}: is no report of 'gradus evaluate --json'") from error
        if not mine:
            raise AppError(
                f"--results {path}: has no figures of these weights: run gradus evaluate {model} --json {path} again"
            )
        for one, result in mine:
            facts = {name: one.get(name) for name in ("kind", "data", "split", "pool", "num_queries")}
            names = one.get("metrics", list(result["metrics"]))
            found.append({**facts, "names": names, "first": sets[0]["models"][0]["name"], **result})
    return found


def model_card(
    summary: Mapping[str, Any],
    source: TrainedOn,
    results: Sequence[Mapping[str, Any]],
    *,
    repo: str,
    tag: str | None = None,
    has_code: bool = True,
) -> str:
    """The card with its metadata, model-index included, as Markdown.

    Args:
        repo: Where it will be found, with `tag`.
        has_code: Whether the folder carries `modeling_ata.py`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    recipe = summary["recipe"]
    index = [
        EvalResult(
            task_type=_TASKS.get(str(result["kind"]), "other"),
            dataset_type=Path(result["data"]).name,
            dataset_name=_set(result),
            dataset_split=result["split"],
            metric_type=metric,
            metric_value=round(result["metrics"][metric], 4),
        )
        for result in results
        for metric in result["names"]
    ]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "graded-negatives"],
        base_model=_BASES.get(recipe["model"]),
        datasets=[source.repo] if source.repo else None,
        model_name=recipe["name"] if index else None,
        eval_results=index or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(
        [*_body(summary, source, results), *_use(summary, repo, tag, has_code)]
    )


def _body(summary: Mapping[str, Any], source: TrainedOn, results: Sequence[Mapping[str, Any]]) -> list[str]:
    recipe = summary["recipe"]
    where = (
        f"[{source.repo}]({source.endpoint}/datasets/{source.repo}) at revision `{source.tag}` (commit "
        f"`{source.commit}`)" if source.repo else "not published from the store that was asked"
    )  # fmt: skip
    lines = [
        f"# {recipe['name']}", "",
        f"`{Path(recipe['model']).name}`, trained on graded hard negatives: {summary['num_examples']:,} examples, "
        f"{summary['num_steps']:,} steps.", "",
        "| what | value |", "|---|---|",
        f"| data set | release `{source.release}`, {where} |",
        f"| digest of the release | `{source.digest}` |",
        f"| digest of the recipe | `{digest_of(dict(recipe))}` |",
        f"| schedule, pooling, seed | `{recipe['schedule']}`, `{recipe['pooling']}`, {recipe['seed']} |",
        f"| machine | {summary.get('machine', 'not recorded')} |", "",
    ]  # fmt: skip
    if results:
        lines += ["## Results", "", "| set | metric | value | against | difference (95 %, paired bootstrap) |",
                  "|---|---|---|---|---|"]  # fmt: skip
        lines += [_line(result, metric) for result in results for metric in result["names"]]
    else:
        lines += ["## Results", "", "None were given when this card was written."]
    return lines


def _use(summary: Mapping[str, Any], repo: str, tag: str | None, has_code: bool) -> list[str]:
    asked = [f'"{repo}"']
    if tag is not None:
        asked.append(f'revision="{tag}"')
    if has_code:
        asked.append("trust_remote_code=True")
    # Of an instruction that all examples share, the saved model knows; of several it cannot.
    query, instruction = summary["recipe"].get("query_prompt", ""), summary.get("instruction")
    is_asked_for = INSTRUCTION in query and instruction is None
    prompt = f", prompt={orjson.dumps(query).decode()}" if is_asked_for else ""
    lines = [
        "", "## Use", "", "```python", "from sentence_transformers import SentenceTransformer", "",
        f"model = SentenceTransformer({', '.join(asked)})",
        f"queries = model.encode_query([...]{prompt})",
        "documents = model.encode_document([...])", "```", "",
    ]  # fmt: skip
    if is_asked_for:
        lines += [
            f"`{INSTRUCTION}` in the prompt stands for the instruction of the task: put it there. Those that it was "
            "trained with are in the column `instruction` of the release.", "",
        ]  # fmt: skip
    if has_code:
        lines += ["ATA pooling is in `modeling_ata.py`, which is why the code has to be trusted; read it first.", ""]
    return [
        *lines,
        "`training.json` holds the whole recipe, `metrics.jsonl` every step by rank, `margins.parquet` the margin of "
        "every negative when it was trained on.",
        "",
    ]


def _set(result: Mapping[str, Any]) -> str:
    """What was measured: a figure within a pool is none of the whole corpus, wherever it is read."""
    pool = f", within BM25's top {result['pool']} and judged documents" if result.get("pool") else ""
    num = f", n = {result['num_queries']:,}" if result.get("num_queries") else ""
    return f"{Path(result['data']).name}, {result['split']}{pool}{num}"


def _line(result: Mapping[str, Any], metric: str) -> str:
    change = result.get("difference", {}).get(metric)
    told = "" if change is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(change["difference"], *change["interval_95"])
    against = "" if change is None else str(result["first"]).replace("|", "\\|")
    name, metric_name = _set(result).replace("|", "\\|"), metric.replace("|", "\\|")
    return f"| {name} | {metric_name} | {result['metrics'][metric]:.3f} | {against} | {told} |"
