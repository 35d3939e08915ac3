"""Mining recipes as the command reads them: curation's, and teachers that ask a model."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from app.encoders import build_teacher
from app.lamer import LamerTable, lamer_answers
from curation.mining.bm25 import Bm25
from curation.mining.lamer import Lamer, wording_of
from curation.mining.recipe import BiEncoderSpec, Bm25Spec, JudgeSpec, MineRecipe, MultiVectorSpec, ProposerSpec
from curation.mining.teachers import Teacher
from db.store import Store

ShowDone = Callable[[int, int | None], None]


class LamerSpec(LamerTable):
    """LameR: BM25 searches with what an LLM answers to each query. It proposes, and cannot score pairs."""

    kind: Literal["lamer"]

    def __hash__(self) -> int:
        # An engine's own arguments are a dictionary, which has no hash.
        return hash(self.model_dump_json())


_ProposerSpec = Annotated[Bm25Spec | BiEncoderSpec | MultiVectorSpec | LamerSpec, Field(discriminator="kind")]


class MiningRecipe(MineRecipe):
    """A mining recipe whose teachers may be LameR too."""

    # A table that curation does not know goes to `build` alone.
    teachers: tuple[_ProposerSpec, ...] = Field(min_length=1)  # type: ignore[assignment]

    def identity(self) -> dict[str, Any]:
        """As its base has it; of LameR, neither where its engine stands nor what it may cost."""
        known = super().identity()
        known["teachers"] = [
            teacher.identity() if isinstance(teacher, LamerSpec) else fields
            for teacher, fields in zip(self.teachers, known["teachers"], strict=True)
        ]
        return known


def teacher_builder(
    store: Store, recipe: MiningRecipe
) -> Callable[[ProposerSpec | JudgeSpec | LamerSpec, Sequence[str], ShowDone], Teacher]:
    """What makes the recipe's teachers, those that ask a model through the store's ledger too."""

    def build(spec: ProposerSpec | JudgeSpec | LamerSpec, passages: Sequence[str], progress: ShowDone) -> Teacher:
        if not isinstance(spec, LamerSpec):
            return build_teacher(spec, passages, progress)
        answers = lamer_answers(
            store, spec, name=recipe.name, on_progress=lambda asked: progress(asked.num_answered, asked.num_planned)
        )
        wording = wording_of(recipe.collection)
        return Lamer(Bm25(passages), passages, answers, answerer=spec.answerer, wording=wording)

    return build
