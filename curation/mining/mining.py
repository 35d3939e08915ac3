"""A mining run: teachers propose from a collection, negatives are chosen, and the store keeps them with their sources.

Search is exact, and queries go through it block by block, so memory grows with the corpus, never with corpus x
queries. Every block is written on its own: a run that was cut off and begun again finds the same and adds the rest.
"""

from collections.abc import Callable, Sequence
from tempfile import TemporaryFile
from typing import Any

from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.mining.choosing import Chooser, Chosen
from curation.mining.recipe import GradeSpec, JudgeSpec, MineRecipe, ProposerSpec
from curation.mining.reporting import MineReport, Survival
from curation.mining.teachers import Judge, Preparer, Proposer, Teacher
from curation.mining.work import Work
from db.examples import NewCandidate, NewSourcing, put_candidates, put_sourcings
from db.runs import finish_run, start_run
from db.store import Store
from db.tables.ledger import Run
from db.teachers import put_teacher

_BLOCK = 1_024
Progress = Callable[[int, int | None], None]
BuildTeacher = Callable[[ProposerSpec | JudgeSpec, Sequence[str], Progress], Teacher]


def mine(
    store: Store, recipe: MineRecipe, build: BuildTeacher, *, progress: Progress = lambda done, total: None
) -> MineReport:
    """Mine negatives for the recipe's examples. What was mined before is found again, not added twice.

    Args:
        build: Makes a teacher from its table in the recipe, the collection's passages and a progress callable.

    Raises:
        CurationError: The collection is not in the store, or has no examples that fit the recipe, or a teacher cannot
            do what the recipe asks of it.
    """
    report = MineReport(recipe.name)
    with store.read() as session:
        work = Work.load(session, recipe)
    report.num_queries, report.num_examples = len(work.queries), sum(map(len, work.examples.values()))
    proposers, judge = built_teachers(recipe, work, build, progress)
    report.of_teachers = [Survival(teacher.name) for teacher in proposers]
    chooser = Chooser(recipe, work, proposers, judge, report)
    prepare(proposers, work)
    queries = list(work.queries)
    with TemporaryFile() as file:
        chooser.look_over(queries, _BLOCK, file)
        with store.write() as session:
            run_id = start_run(session, "mine", recipe.name, recipe.identity(), recipe.seed).id
            teachers = [_put(session, teacher) for teacher in chooser.teachers]
        places = list(work.passages)
        for start in range(0, len(queries), _BLOCK):
            chosen = chooser.choose(queries[start : start + _BLOCK])
            with store.write() as session:
                report.num_new += _write(session, run_id, work.examples, chosen, places, teachers, recipe.grades)
            progress(min(start + _BLOCK, len(queries)), len(queries))
    with store.write() as session:
        totals = {key: value for key, value in report.to_dict().items() if key != "num_new"}
        finish_run(session, session.get_one(Run, run_id), totals)
    return report


def built_teachers(
    recipe: MineRecipe, work: Work, build: BuildTeacher, progress: Progress
) -> tuple[list[Proposer], Judge | None]:
    """The recipe's proposers, and its judge, which is the proposer itself where both have the same table.

    Raises:
        CurationError: A teacher cannot search, or cannot judge.
    """
    passages = list(work.passages.values())
    built = {spec: build(spec, passages, progress) for spec in dict.fromkeys([*recipe.teachers, recipe.judge]) if spec}
    proposers: list[Proposer] = []
    for spec in recipe.teachers:
        teacher = built[spec]
        if not isinstance(teacher, Proposer):
            raise CurationError(f"teacher {teacher.name!r} ({teacher.kind}) cannot search: name it as [judge]")
        proposers.append(teacher)
    if recipe.judge is not None:
        return proposers, _able_to_judge(built[recipe.judge])
    if recipe.method in ("margin", "percentage"):
        for proposer in proposers:
            _able_to_judge(proposer)
    return proposers, None


def prepare(proposers: Sequence[Proposer], work: Work) -> None:
    """Show all queries to the proposers that ask for it; when all else is known to be in order, as this may cost."""
    for proposer in proposers:
        if isinstance(proposer, Preparer):
            proposer.prepare(list(work.queries.values()))


def _able_to_judge(teacher: Teacher) -> Judge:
    if not isinstance(teacher, Judge):
        raise CurationError(f"teacher {teacher.name!r} ({teacher.kind}) cannot score pairs: name another as [judge]")
    return teacher


def _put(session: Session, teacher: Teacher) -> int:
    return put_teacher(
        session,
        name=teacher.name,
        version=teacher.version,
        kind=teacher.kind,
        max_length=teacher.max_length,
        prompt=teacher.prompt,
    )


def _graded(chosen: list[Chosen], grades: GradeSpec | None) -> list[tuple[str | None, int | None]]:
    """(grade, rank) of each negative of a query; ranks follow the list, or the scores where they decide the grade."""
    if grades is None:
        return [(None, None)] * len(chosen)
    if grades.by == "rank":
        ranks = list(range(1, len(chosen) + 1))
        values, is_within = [float(rank) for rank in ranks], float.__le__
    else:
        order = sorted(range(len(chosen)), key=lambda number: (-chosen[number].score, number))
        ranks = [order.index(number) + 1 for number in range(len(chosen))]
        values, is_within = [one.score for one in chosen], float.__ge__
    names = [
        "hard" if is_within(value, grades.hard) else "medium" if is_within(value, grades.medium) else "easy"
        for value in values
    ]
    return list(zip(names, ranks, strict=True))


def _write(
    session: Session,
    run_id: int,
    examples: dict[int, list[int]],
    chosen: dict[int, list[Chosen]],
    places: list[int],
    teachers: list[int],
    grades: GradeSpec | None,
) -> int:
    """Candidates and how they were found; returns how many findings are new."""
    found: list[tuple[int, Chosen, Any]] = [
        (example, one, graded)
        for query, kept in chosen.items()
        for example in examples[query]
        for one, graded in zip(kept, _graded(kept, grades), strict=True)
    ]
    keys = put_candidates(
        session,
        [
            NewCandidate(example, places[one.place], "negative", "mined", run_id, grade, rank)
            for example, one, (grade, rank) in found
        ],
    )
    sourcings = [
        NewSourcing(
            keys[example, places[one.place]],
            run_id,
            teacher_id=teachers[source.teacher],
            retrieval_rank=source.rank,
            score=source.score,
            threshold=source.threshold,
        )
        for example, one, _ in found
        for source in one.sources
    ]
    return put_sourcings(session, sourcings)
