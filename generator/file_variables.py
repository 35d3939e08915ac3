"""Lines of a plan file as requests: which texts and facts the cell of a line brings, by the entry that it asks."""

from typing import Any

from generator.cells import FileCell
from generator.collection_texts import CollectionTexts
from generator.errors import GeneratorError
from generator.prompt_pack import Entry
from generator.recipe import CellPlan


def described(entry: Entry, task_type: str) -> str:
    if task_type not in entry.task_types:
        raise GeneratorError(f"prompt pack entry {entry.name!r} lacks task type {task_type!r} in its task_types.toml")
    return entry.task_types[task_type]


def file_variables(
    cell: FileCell, entry: Entry, plan: CellPlan, texts: CollectionTexts
) -> tuple[dict[str, object], dict[str, Any]]:
    """What the template gets beside the attributes, and what the completion will be about (store keys)."""
    subject = entry.facts.subject
    if subject == "task_type":
        task_type = _required(cell, "task_type")
        return {"task_type_description": described(entry, task_type), "topic": ""}, {"task_type": task_type}
    if subject == "task":
        known = {"task": _required(cell, "task"), "task_type": _required(cell, "task_type")}
        return {**known}, {**known}
    if subject == "document":
        document = texts.passage(_required(cell, "document_id"))
        return {"document": document.text}, {"document": document.key}
    if subject != "pair":
        raise GeneratorError(f"cell {cell.custom_id}: entry {entry.name!r} is for {subject}s, which a plan cannot ask")
    query, positive = texts.query(_required(cell, "query_id")), texts.passage(_required(cell, "positive_id"))
    source = {"query": query.key, "positive": positive.key}
    variables: dict[str, object] = {
        "task_instruction": plan.task_instruction,
        "query": query.text,
        "positive": positive.text,
    }
    if len(cell.neighbours) != len(entry.facts.neighbours):
        raise GeneratorError(
            f"cell {cell.custom_id}: {len(cell.neighbours)} neighbours where entry {entry.name!r} "
            f"needs {len(entry.facts.neighbours)}"
        )
    for rank, external_id in enumerate(cell.neighbours, start=1):
        name = "neighbour" if len(entry.facts.neighbours) == 1 else f"neighbour_{rank}"
        found = texts.passage(external_id)
        variables[name], source[name] = found.text, found.key
    return variables, source


def _required(cell: FileCell, name: str) -> str:
    value = getattr(cell, name)
    if value is None:
        raise GeneratorError(f"cell {cell.custom_id}: field {name!r} is missing, which kind {cell.kind!r} needs")
    return str(value)
