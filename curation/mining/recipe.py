"""What a mining run is: which teachers propose, what a negative must stay below, how many are taken and how.

A teacher proposes its best `depth` passages of a query. Known positives leave; the method's ceiling removes suspected
false negatives, by the `judge`'s scores where there is one, else by each teacher's own; a sample is taken; and several
teachers' lists are combined into one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.mining.positive_aware import Method

_VALUES: dict[Method, tuple[float, float]] = {
    "absolute": (-1e6, 1e6),
    "margin": (0, 1e6),
    "percentage": (0, 1),
    "shifted": (1, 10_000),
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bm25Spec(_Strict):
    """BM25 over the collection's passages."""

    kind: Literal["bm25"]


class BiEncoderSpec(_Strict):
    """A sentence-transformers model: `minilm`, or a folder, one trained by Gradus too.

    A prompt that is not given is the model's own for queries and for documents.
    """

    kind: Literal["bi_encoder"]
    model: str = Field(min_length=1)
    query_prompt: str | None = None
    document_prompt: str | None = None
    max_length: int | None = Field(default=None, ge=1)


class MultiVectorSpec(_Strict):
    """A late-interaction model's folder; another model's token vectors stand in for those of a model trained for it."""

    kind: Literal["multi_vector"]
    model: str = Field(min_length=1)
    query_prompt: str | None = None
    document_prompt: str | None = None
    max_length: int | None = Field(default=None, ge=1)


class CrossEncoderSpec(_Strict):
    """A cross-encoder's folder: it judges pairs, and cannot search."""

    kind: Literal["cross_encoder"]
    model: str = Field(min_length=1)
    max_length: int | None = Field(default=None, ge=1)


ProposerSpec = Annotated[Bm25Spec | BiEncoderSpec | MultiVectorSpec, Field(discriminator="kind")]
JudgeSpec = Annotated[Bm25Spec | BiEncoderSpec | MultiVectorSpec | CrossEncoderSpec, Field(discriminator="kind")]


class GradeSpec(_Strict):
    """Grades of mined negatives, which have none otherwise: `hard` and `medium` bound the two upper grades.

    By `rank`, the last rank that is hard and the last that is medium; by `score`, the least score of each.
    """

    by: Literal["rank", "score"]
    hard: float
    medium: float

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        is_ordered = self.hard < self.medium if self.by == "rank" else self.hard > self.medium
        if not is_ordered:
            wanted = "below" if self.by == "rank" else "above"
            raise ValueError(f"by {self.by}, hard = {self.hard:g} has to be {wanted} medium = {self.medium:g}")
        return self


class MineRecipe(_Strict):
    """A mining recipe (NV-Retriever, arXiv 2407.15831, sections 3 and 4).

    `examples` says for which examples: `all` of the collection with a positive in `split`, or only the `generated`
    ones, which have machine-written negatives. `value` is what the method needs: a cap (`absolute`), a margin, a
    share of the positive's score (`percentage`), or how many to skip (`shifted`). `consensus` has the teachers that
    score pairs, and the judge, hold one ceiling together, with its `weight` and `offset` (consensus.py).

    `combine`: `union` orders what all teachers proposed by the judge's score; `cross_sample` takes all negatives of a
    query from one teacher; `intra_sample` takes the teachers in turn, and with `intra_sample_unique` each passage once.

    `too_few` says what becomes of a query with fewer survivors than asked: it is kept with what it has; dropped, for
    training data of fixed width; or searched `deeper`, below the ceiling, over the whole collection, which is what
    the paper's methods mean and needs a bi-encoder that proposes by its own scores.
    """

    name: str = Field(min_length=1)
    collection: str
    split: str = "train"
    examples: Literal["all", "generated"] = "all"
    teachers: tuple[ProposerSpec, ...] = Field(min_length=1)
    judge: JudgeSpec | None = None
    method: Method | Literal["consensus"] = "percentage"
    value: float | None = None
    weight: float | None = Field(default=None, ge=0, le=1)
    offset: float | None = Field(default=None, ge=-100, le=100)
    depth: int = Field(default=50, ge=1, le=10_000)
    combine: Literal["union", "cross_sample", "intra_sample", "intra_sample_unique"] = "union"
    sampling: Literal["top", "softmax", "top1_softmax"] = "top"
    sample_from: int = Field(default=10, ge=1)
    temperature: float = Field(default=0.05, gt=0)
    num_negatives: int = Field(default=8, ge=1)
    too_few: Literal["keep", "drop", "deeper"] = "keep"
    grades: GradeSpec | None = None
    seed: int = 0

    @property
    def threshold(self) -> float:
        """The method's value; percentage means the paper's 95 % unless told."""
        return 0.95 if self.value is None and self.method == "percentage" else self.value or 0.0

    @property
    def consensus_weight(self) -> float:
        return 0.5 if self.weight is None else self.weight

    @property
    def consensus_offset(self) -> float:
        return -0.5 if self.offset is None else self.offset

    def identity(self) -> dict[str, Any]:
        """What makes the same run; keys that this method does not know are left out."""
        unknown = set() if self.method == "consensus" else {"weight", "offset"}
        return self.model_dump(mode="json", exclude=unknown)

    @property
    def shift(self) -> int:
        return int(self.threshold) if self.method == "shifted" else 0

    @property
    def num_taken_from(self) -> int:
        """How many survivors a sample is drawn from, or, without sampling, how many are taken."""
        return self.num_negatives if self.sampling == "top" else max(self.sample_from, self.num_negatives)

    @model_validator(mode="after")
    def _value_fits_the_method(self) -> Self:
        for name in ("weight", "offset"):
            if self.method != "consensus" and (given := getattr(self, name)) is not None:
                raise ValueError(f"{name} = {given:g} means nothing to method {self.method!r}: remove it")
        if self.method == "naive" or self.method == "consensus":  # noqa: PLR1714
            if self.value is not None:
                raise ValueError(f"value = {self.value:g} means nothing to method {self.method!r}: remove it")
            return self
        if self.value is None:
            if self.method != "percentage":
                raise ValueError(f"method {self.method!r} needs a value")
            return self
        low, high = _VALUES[self.method]
        if not low <= self.value <= high or (self.method == "shifted" and self.value != int(self.value)):
            raise ValueError(f"value = {self.value:g}: method {self.method!r} takes {_meaning(self.method)}")
        return self

    @model_validator(mode="after")
    def _teachers_fit_together(self) -> Self:
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("teachers: the same one stands there twice; remove it")
        if self.method == "consensus" and len({*self.teachers, self.judge} - {None}) < 2:
            raise ValueError("method = 'consensus' needs two teachers or more, or a teacher and another [judge]")
        if self.combine == "union" and len(self.teachers) > 1 and self.judge is None:
            raise ValueError(
                "combine = 'union' of several teachers needs a [judge], whose scores put their passages in one order"
            )
        if self.combine != "union" and len(self.teachers) == 1:
            raise ValueError(f"combine = {self.combine!r} needs two teachers or more; there is one")
        if self.too_few == "deeper" and self.judge is not None and self.judge not in self.teachers:
            raise ValueError("too_few = 'deeper' searches by the judge's scores: name the judge among the teachers")
        if self.too_few == "deeper" and self.method in ("naive", "shifted", "consensus"):
            raise ValueError(
                f"too_few = 'deeper' searches below a ceiling that one teacher's scores have; {self.method!r} has none"
            )
        return self


def _meaning(method: Method) -> str:
    meanings = {"percentage": "a share from 0 to 1", "margin": "a margin of 0 or more", "absolute": "a score"}
    return meanings.get(method, "a whole number of ranks to skip, from 1")
