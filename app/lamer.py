"""LameR's answers by any engine, through the ledger: what was written for a query once is never paid for again."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from app.asking import ModelTable, ShowProgress, answers_at, ask, enqueue_new, place_of
from app.errors import AppError
from curation.mining.lamer import Answers, Question
from db.digest import digest_of
from db.runs import finish_run, start_run
from db.store import Store
from db.tables.ledger import Run
from generator.plan import Planned
from generator.prompt_pack import Entry, PromptPack, pack_from
from generator.recipe import BatchFileEngine
from generator.wire import wire_body

_PAGE = 200


class LamerTable(ModelTable):
    """Who writes LameR's answers; `num_samples` is its N."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    max_output_tokens: int | None = Field(default=200, ge=1)
    num_samples: int = Field(default=5, ge=1, le=50)
    pack: str = "curation_v1"
    entry: str = "lamer_passage"

    def with_names_from(self, folder: Path) -> Self:
        """The table with a pack that is not a bundled one taken from this folder."""
        return self.model_copy(update={"pack": pack_from(folder, self.pack)})

    def identity(self) -> dict[str, Any]:
        """As its base has it; of a pack's folder the name alone."""
        return super().identity() | {"pack": Path(self.pack).name}

    @property
    def answerer(self) -> str:
        """The LLM, its prompt's bytes and how it is sampled, for the teacher's version."""
        return digest_of({**self.identity(), "prompt_digest": _entry(self).digest})


def lamer_answers(
    store: Store, table: LamerTable, *, name: str, on_progress: ShowProgress = lambda progress: None
) -> Answers:
    """What `Lamer` calls: asks `num_samples` answers to each question, as far as the ledger has none.

    Args:
        name: Of the run that asks; the same name and table is the same run, resumed.

    The callable raises AppError when answers are still missing: a batch is out, the budget is spent, or it was stopped.
    A question that the model refuses has fewer answers, and its failures stand in the ledger with their reasons.
    """
    entry = _entry(table)
    identity = {**table.identity(), "name": name, "prompt_digest": entry.digest}
    settled: set[str] = set()

    def answers(questions: Sequence[Question]) -> list[list[str]]:
        asked_for = {_key(question) for question in questions}
        run_id = started()
        # An engine that reads files would read them all again for each block of queries.
        if asked_for - settled:
            settle(run_id, questions)
            settled.update(asked_for)
        return [found for page in _pages(questions) for found in _found(store, run_id, table, page)]

    def started() -> int:
        with store.write() as session:
            return start_run(session, "lamer", name, identity, table.seed).id

    def settle(run_id: int, questions: Sequence[Question]) -> None:
        samples = ((place_of(_key(question), number), (question, number))
                   for question in questions for number in range(table.num_samples))  # fmt: skip
        enqueue_new(store, run_id, samples, lambda sample: _planned(table, entry, *sample), table.model)
        asked = ask(store, run_id, table, None, table="lamer", on_progress=on_progress)
        with store.write() as session:
            state = "running" if asked.num_waiting or asked.num_failed else "finished"
            finish_run(session, session.get_one(Run, run_id), {"num_failed": asked.num_failed}, state=state)
        if asked.num_waiting:
            remedy = "its budget is spent: raise it" if asked.is_out_of_budget else _remedy(table)
            raise AppError(f"lamer: {asked.num_waiting:,} answers of {table.model!r} are missing; {remedy}")

    return answers


def _remedy(table: LamerTable) -> str:
    engine = table.engine
    if not isinstance(engine, BatchFileEngine):
        return "run again when they are there"
    asked = f" with the answers to {engine.requests}" if engine.requests else ""
    return f"run again after completing {engine.completions}{asked}"


def _planned(table: LamerTable, entry: Entry, question: Question, number: int) -> Planned:
    variables = {
        "query": question.query,
        "candidates": question.candidates,
        "wording": question.wording.several,
        "wording_of_one": question.wording.one,
    }
    key = _key(question)
    body = wire_body(table, entry, entry.render(variables), key=key)
    return Planned(place_of(key, number), f"{key[:40]}-{number}", entry.name, {}, {}, body, number)


def _key(question: Question) -> str:
    return digest_of([question.query, list(question.candidates), question.wording.several, question.wording.one])


def _found(store: Store, run_id: int, table: LamerTable, questions: Sequence[Question]) -> list[list[str]]:
    places = [[place_of(_key(question), sample) for sample in range(table.num_samples)] for question in questions]
    with store.read() as session:
        texts = answers_at(session, run_id, [place for of_one in places for place in of_one])
    return [[texts[place] for place in of_one if place in texts] for of_one in places]


def _pages(questions: Sequence[Question]) -> Iterator[list[Question]]:
    iterator = iter(questions)
    while page := list(islice(iterator, _PAGE)):
        yield page


def _entry(table: LamerTable) -> Entry:
    return PromptPack.load(table.pack).entry(table.entry)
