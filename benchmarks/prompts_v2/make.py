"""Writes plan.jsonl.gz and requests.jsonl.gz: 300 requests for pack v2 over the pairs of the recorded v1 answers.

Usage: python benchmarks/prompts_v2/make.py        (a few seconds; the same bytes every time)
"""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.recipes import load_recipe
from curation.importing.rows import import_beir
from curation.mining.neighbours import CollectionIndex
from db.store import Store
from db.tables.texts import CollectionQuery, Document, Query
from generator.generation import generate
from generator.prompt_pack import PromptPack, attribute_set
from generator.recipe import GenerateRecipe

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "app" / "demo"
Cell = dict[str, Any]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"sqlite:///{folder}/store.db")
        import_beir(store, DEMO / "scifact", name="scifact")
        plan = gzip.decompress((DEMO / "recorded" / "graded" / "plan.jsonl.gz").read_bytes())
        recorded = [orjson.loads(line) for line in plan.splitlines()]
        with store.read() as session:
            cells = list(_cells(session, recorded))
        lines = b"".join(orjson.dumps(cell) + b"\n" for cell in cells)
        (HERE / "plan.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
        report = generate(store, load_recipe(HERE / "recipe.toml", GenerateRecipe))
        requests = gzip.decompress((HERE / "requests.jsonl.gz").read_bytes())
        (HERE / "requests.jsonl.gz").write_bytes(gzip.compress(requests, mtime=0))
        print(f"{report.num_waiting} requests, {len(requests):,} bytes")
        store.close()


def _cells(session: Session, recorded: list[Cell]) -> Iterator[Cell]:
    pairs = [cell for cell in recorded if cell["kind"] == "graded_negatives"]
    examples = [cell for cell in recorded if cell["kind"] == "graded_example"]
    index = CollectionIndex(session, "scifact")
    ranks = PromptPack.load("v2").entry("minimal_edits").facts.neighbours
    for pair in pairs[:150]:
        yield _edit(session, index, ranks, pair)
    for pair in pairs[:60]:
        yield _pair("graded_negatives", pair, {"length": pair["attributes"]["length"], "language": "English"})
    for pair in pairs[60:90]:
        yield _pair("rewritten_pair", pair, pair["attributes"])
    for example in [cell for cell in examples if cell["task_type"] == "sts"][:12] + examples[:18]:
        yield {**example, "custom_id": f"v2-{example['custom_id']}-{example['task_type']}"}
    documents = sorted({pair["positive_id"] for pair in pairs})
    for number, document in enumerate(documents[:15]):
        values = {name: options[number % len(options)] for name, options in sorted(attribute_set("queries").items())}
        yield {"custom_id": f"v2-dq-{document}", "kind": "document_queries", "document_id": document,
               "attributes": values}  # fmt: skip
    for number, document in enumerate(documents[15:30]):
        values = {name: options[number % len(options)] for name, options in sorted(attribute_set("logic").items())}
        yield {"custom_id": f"v2-ln-{document}", "kind": "logical_negatives", "document_id": document,
               "attributes": values}  # fmt: skip


def _edit(session: Session, index: CollectionIndex, ranks: tuple[int, ...], pair: Cell) -> Cell:
    key, text = session.execute(
        select(Query.id, Query.text)
        .join(CollectionQuery, CollectionQuery.query_id == Query.id)
        .where(CollectionQuery.external_id == pair["query_id"])
    ).one()
    near = index.near(text, key, max(ranks))
    names = {
        passage: name for passage, name in session.execute(
            select(Document.passage_id, Document.external_id).where(Document.passage_id.in_(near)))
    }  # fmt: skip
    chosen = [names[near[min(rank, len(near)) - 1]] for rank in ranks]
    return {**_pair("minimal_edits", pair, {}), "neighbour_ids": chosen}


def _pair(kind: str, pair: Cell, attributes: dict[str, str]) -> Cell:
    choices = {"domains": list(attribute_set("scifact")["domain"])} if kind != "minimal_edits" else {}
    return {
        "custom_id": f"v2-{kind}-{pair['query_id']}-{pair['positive_id']}",
        "kind": kind,
        "query_id": pair["query_id"],
        "positive_id": pair["positive_id"],
        "attributes": {**attributes, **choices},
    }


if __name__ == "__main__":
    main()
