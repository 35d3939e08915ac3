"""The loss by value against loops over rows, its gradient against autograd, both against sentence-transformers."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import cos_sim, pairwise_cos_sim
from torch import Tensor
from torch.nn import functional

from trainer.contrast import GROUPS, Contrast, Row, contrast_of, known_positives
from trainer.loss import Terms, cosine_loss, embedding_loss, terms_of
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, Negative

MODEL: Any = SimpleNamespace(get_embedding_dimension=lambda: 12)


def recipe(**fields: object) -> TrainRecipe:
    return TrainRecipe.model_validate({"name": "t", "release": "r", **fields})


def example(
    name: str,
    written: dict[str, int],
    mined: tuple[str, ...] = (),
    *,
    query: str | None = None,
    positive: str | None = None,
) -> GradedExample:
    """Teacher scores fall with the length of a negative's name; mined ones that start with x have none."""
    grades = {1: "hard", 2: "medium", 3: "medium", 4: "easy"}
    return GradedExample(
        id=name,
        query=query or f"query {name}",
        positive=positive or f"positive {name}",
        written=tuple(
            Negative(text, text, rank, grades[rank], True, {"t": 0.9 - rank / 7}) for text, rank in written.items()
        ),
        mined=tuple(
            Negative(text, text, None, None, False, {} if text.startswith("x") else {"t": 0.3 + len(text) / 70})
            for text in mined
        ),
        num_written_slots=4,
        num_mined_slots=4,
        positive_scores={} if name == "unscored" else {"t": 0.95},
    )


# Uneven on purpose: four, two, one and no negatives of their own; a query twice, with different positives; a passage
# that is one row's negative and another's positive; a text that was both mined and written; a row without scores.
EXAMPLES = [
    example("a", {"a1": 1, "a2": 2, "a3": 3, "a4": 4}, ("x mined", "mined b")),
    example("b", {"b2": 2, "shared": 1}),
    example("c", {}, ("positive a", "shared")),
    example("d", {"d4": 4}, ("d4",), query="query a", positive="positive d"),
    example("unscored", {"e1": 1, "e3": 3}),
    example("f", {}),
]
ROWS = [Row(one, [*one.written, *one.mined], one.query) for one in EXAMPLES]
CONTRAST = contrast_of(ROWS, known_positives(EXAMPLES), "t")


def embeddings(seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Vectors of uneven lengths, close enough to each other that no term vanishes, in float64."""
    draws = torch.Generator().manual_seed(seed)
    shared = torch.randn(size, generator=draws, dtype=torch.float64)

    def some(num: int) -> Tensor:
        vectors = shared + torch.randn(num, size, generator=draws, dtype=torch.float64)
        return vectors * (0.5 + torch.rand(num, 1, generator=draws, dtype=torch.float64))

    return some(len(CONTRAST.queries)), some(len(CONTRAST.passages))


def brute_force(queries: Tensor, passages: Tensor, asked: TrainRecipe, length: int) -> Tensor:
    """Sum over rows of the loss, by its definition, text by text; differentiable."""
    place = {text: number for number, text in enumerate(CONTRAST.passages)}
    known = known_positives(EXAMPLES)
    total = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        query = functional.normalize(queries[CONTRAST.queries.index(row.asked), :length], dim=0)
        cosine = {
            text: query @ functional.normalize(passages[number, :length], dim=0) for text, number in place.items()
        }
        positive = cosine[row.example.positive]
        own = {n.text: n for n in sorted(row.negatives, key=lambda n: n.is_written)}
        same_query = {n.text for other in ROWS if other.asked == row.asked for n in other.negatives if n.is_written}
        terms = [torch.ones((), dtype=torch.float64)]
        for text in place:
            if text in known[row.example.query]:
                continue
            if asked.mask_margin is not None and cosine[text] > positive + asked.mask_margin and text not in same_query:
                continue
            group: Any = "in_batch"
            if text in own:
                group = (own[text].grade or "hard") if own[text].is_written else "mined"
            terms_of_group = asked.grades.get(group)
            weight, margin, temperature = 1.0, 0.0, asked.temperature
            if terms_of_group is not None:
                weight, margin = terms_of_group.weight, terms_of_group.margin
                temperature = terms_of_group.temperature or temperature
            terms.append(weight * torch.exp((cosine[text] - positive + margin) / temperature))
        total = total + torch.log(torch.stack(terms).sum())
        if asked.ordering is not None:
            level = {1: 1, 2: 2, 3: 2, 4: 3}
            ordered = [(0, positive)] + [
                (level[n.rank], cosine[n.text])
                for n in row.example.written
                if n.rank and n.text not in known[row.example.query]
            ]
            pairs = [(x, y) for at, x in ordered for behind, y in ordered if at < behind]
            for better, worse in pairs:
                wrong = torch.exp((worse - better) / asked.ordering.temperature)
                total = total + asked.ordering.weight * torch.log1p(wrong) / len(pairs)
        if asked.distillation is not None and row.example.positive_scores:
            total = total + asked.distillation.weight * distilled(row, cosine, known, asked.distillation)
    return total


def distilled(row: Row, cosine: dict[str, Tensor], known: dict[str, set[str]], terms: Any) -> Tensor | float:
    scored = {n.text: n.scores["t"] for n in row.negatives if n.scores and n.text not in known[row.example.query]}
    if not scored:
        return 0.0
    texts = [row.example.positive, *scored]
    student = torch.stack([cosine[text] for text in texts]) / terms.temperature
    teacher = torch.tensor([0.95, *scored.values()], dtype=torch.float32).double() / terms.teacher_temperature
    if terms.kind == "margin_mse":
        return (((student[0] - student[1:]) - (teacher[0] - teacher[1:])) ** 2).mean()
    share = teacher.softmax(0)
    return terms.temperature**2 * (share * (share.log() - student.log_softmax(0))).sum()


RECIPES = {
    "plain": {},
    "masked": {"mask_margin": 0.02},
    "masked below": {"mask_margin": -0.1},
    "graded": {
        "grades": {
            "hard": {"weight": 1.5, "margin": 0.1, "temperature": 0.09},
            "medium": {"weight": 0.5, "temperature": 0.2},
            "easy": {"margin": 0.05},
            "mined": {"weight": 0},
            "in_batch": {"weight": 0.3, "temperature": 0.03},
        }
    },
    "ordered": {"ordering": {"weight": 1.3, "temperature": 0.07}},
    "kl": {"distillation": {"teacher": "t", "temperature": 0.2, "teacher_temperature": 0.3, "weight": 2}},
    "margin mse": {"distillation": {"teacher": "t", "kind": "margin_mse", "temperature": 0.8, "weight": 3}},
    "matryoshka": {"matryoshka": {"dimensions": [12, 5, 2], "weights": [1, 0.5, 0.25]}},
    "short only": {"matryoshka": {"dimensions": [3]}},
}
RECIPES["all"] = {name: value for fields in RECIPES.values() for name, value in fields.items()}


@pytest.mark.parametrize("name", RECIPES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_value_and_gradient_equal_the_definition(name: str, seed: int) -> None:
    asked = recipe(temperature=0.1, **RECIPES[name])
    queries, passages = (vectors.requires_grad_() for vectors in embeddings(seed))
    lengths = [(12, 1.0)]
    if asked.matryoshka is not None:
        lengths = list(zip(asked.matryoshka.dimensions, asked.matryoshka.weights or [1.0], strict=True))
    expected = sum((w * brute_force(queries, passages, asked, n) for n, w in lengths), torch.zeros(()))
    expected.backward()
    found = embedding_loss(queries.detach(), passages.detach(), CONTRAST, terms_of(asked), lengths=lengths)
    torch.testing.assert_close(found.losses_B.sum(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.queries_QE, queries.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.passages_NE, passages.grad, rtol=1e-5, atol=1e-6)


def test_groups_and_masks_of_the_uneven_batch() -> None:
    place = {text: number for number, text in enumerate(CONTRAST.passages)}
    part = lambda row, text: GROUPS[int(CONTRAST.group_BN[row, place[text]])]  # noqa: E731
    assert part(0, "a3") == "medium" and part(0, "x mined") == "mined" and part(1, "a3") == "in_batch"
    assert part(1, "shared") == "hard" and part(2, "shared") == "mined" and part(2, "positive a") == "mined"
    assert part(3, "d4") == "easy"
    # Both positives of the query that came twice are left out for both of its rows, and for no other.
    assert not CONTRAST.allowed_BN[0, place["positive d"]] and not CONTRAST.allowed_BN[3, place["positive a"]]
    assert CONTRAST.allowed_BN[1, place["positive d"]] and CONTRAST.allowed_BN[2, place["positive a"]]
    assert CONTRAST.written_BN[3, place["a1"]] and not CONTRAST.written_BN[2, place["shared"]]
    assert len(CONTRAST.passages) == len(place) and len(CONTRAST.queries) == 5


def test_the_mask_by_margin_spares_what_was_written_for_the_query() -> None:
    one, other = example("a", {"w": 1}, ("m",)), example("b", {"v": 1})
    rows = [Row(e, [*e.written, *e.mined], e.query) for e in (one, other)]
    contrast = contrast_of(rows, known_positives([one, other]))
    cosines = torch.full((2, len(contrast.passages)), 0.95)
    cosines[0, contrast.positive_B[0]] = cosines[1, contrast.positive_B[1]] = 0.5
    loss = cosine_loss(cosines, contrast, terms_of(recipe(temperature=1.0, mask_margin=0.1)))
    pushed = {contrast.passages[n] for n in loss.gradient_BN[0].nonzero().flatten().tolist()}
    assert pushed == {"positive a", "w"}
    torch.testing.assert_close(loss.losses_B, torch.full((2,), math.log(1 + math.exp(0.45))))


def test_a_row_with_nothing_against_it_has_no_loss() -> None:
    alone = [example("a", {})]
    contrast = contrast_of([Row(alone[0], [], alone[0].query)], known_positives(alone))
    loss = cosine_loss(torch.tensor([[0.3]]), contrast, terms_of(recipe()))
    assert float(loss.losses_B) == 0 and float(loss.gradient_BN.abs().sum()) == 0


# Beside sentence-transformers: a rectangle of rows with two negatives each, all texts distinct.


def rectangle(num: int = 5) -> tuple[Contrast, list[Tensor]]:
    """Columns anchor, positive, negative_1, negative_2, and the same as a contrast."""
    examples = [example(f"r{i}", {f"w{i}": 1}, (f"m{i}",)) for i in range(num)]
    contrast = contrast_of([Row(e, [*e.written, *e.mined], e.query) for e in examples], known_positives(examples), "t")
    draws = torch.Generator().manual_seed(num)
    columns = [(0.7 + torch.randn(num, 12, generator=draws)).requires_grad_() for _ in range(4)]
    return contrast, columns


def ours(contrast: Contrast, columns: list[Tensor], terms: Terms, **options: Any) -> tuple[float, list[Tensor]]:
    """Mean loss and gradient by column. Passages stand as positives, then each row's negatives."""
    place = {text: number for number, text in enumerate(contrast.passages)}
    order = [[place[f"{kind}{i}"] for i in range(len(columns[0]))] for kind in ("positive r", "w", "m")]
    passages = torch.empty(len(place), 12)
    for rows, column in zip(order, columns[1:], strict=True):
        passages[rows] = column.detach()
    found = embedding_loss(columns[0].detach(), passages, contrast, terms, **options)
    num = len(columns[0])
    return float(found.losses_B.mean()), [found.queries_QE / num, *(found.passages_NE[rows] / num for rows in order)]


def assert_alike(contrast: Contrast, columns: list[Tensor], loss: Tensor, terms: Terms, **options: Any) -> None:
    loss.backward()
    value, gradients = ours(contrast, columns, terms, **options)
    assert math.isclose(value, float(loss.detach()), rel_tol=1e-5)
    for gradient, column in zip(gradients, columns, strict=True):
        torch.testing.assert_close(gradient, column.grad, rtol=1e-4, atol=1e-6)


def without_contrastive(**fields: object) -> Terms:
    """A term alone: every negative weighs nothing in the contrastive one."""
    groups = {name: {"weight": 0} for name in GROUPS[1:]}
    return terms_of(recipe(grades=groups, **fields))


def test_infonce_is_multiple_negatives_ranking() -> None:
    contrast, columns = rectangle()
    loss = losses.MultipleNegativesRankingLoss(MODEL, scale=20.0).compute_loss_from_embeddings(columns, torch.empty(0))
    assert_alike(contrast, columns, loss, terms_of(recipe(temperature=0.05)))


def test_one_row_is_cosent_over_a_positive_and_its_negatives() -> None:
    contrast, columns = rectangle(1)
    anchors, others = columns[0].expand(3, -1), torch.cat(columns[1:])
    loss = losses.CoSENTLoss(MODEL, scale=12.5).compute_loss_from_embeddings(
        [anchors, others], torch.tensor([1.0, 0.0, 0.0])
    )
    assert_alike(contrast, columns, loss, terms_of(recipe(temperature=0.08)))


def test_ordering_of_one_pair_is_cosent_of_that_pair() -> None:
    contrast, columns = rectangle(1)
    loss = losses.CoSENTLoss(MODEL, scale=4.0).compute_loss_from_embeddings(
        [columns[0].expand(2, -1), torch.cat(columns[1:3])], torch.tensor([1.0, 0.0])
    )
    terms = without_contrastive(ordering={"weight": 1, "temperature": 0.25})
    loss.backward()
    value, gradients = ours(contrast, columns, terms)
    assert math.isclose(value, float(loss.detach()), rel_tol=1e-5)
    torch.testing.assert_close(gradients[0], columns[0].grad, rtol=1e-4, atol=1e-6)


def teacher_scores(contrast: Contrast) -> Tensor:
    """[rows, positive w m], as sentence-transformers takes them."""
    return torch.tensor([[0.95, 0.9 - 1 / 7, 0.3 + len(f"m{i}") / 70] for i in range(len(contrast.query_B))])


def test_margin_mse_is_sentence_transformers_own() -> None:
    contrast, columns = rectangle()
    loss_fn = losses.MarginMSELoss(MODEL, similarity_fct=pairwise_cos_sim)
    loss = loss_fn.compute_loss_from_embeddings(columns, teacher_scores(contrast))
    assert_alike(contrast, columns, loss, without_contrastive(distillation={"teacher": "t", "kind": "margin_mse"}))


def test_kl_is_sentence_transformers_own() -> None:
    contrast, columns = rectangle()
    make: Callable[..., Any] = losses.DistillKLDivLoss
    loss_fn = make(MODEL, similarity_fct=pairwise_cos_sim, student_temperature=0.1, teacher_temperature=0.3)
    loss = loss_fn.compute_loss_from_embeddings(columns, teacher_scores(contrast))
    terms = {"teacher": "t", "temperature": 0.1, "teacher_temperature": 0.3}
    assert_alike(contrast, columns, loss, without_contrastive(distillation=terms))


def test_matryoshka_is_the_weighted_sum_over_cut_embeddings() -> None:
    contrast, columns = rectangle()
    loss_fn = losses.MultipleNegativesRankingLoss(MODEL, scale=10.0, similarity_fct=cos_sim)
    parts = [w * loss_fn.compute_loss_from_embeddings([c[:, :n] for c in columns], torch.empty(0)) for n, w in LENGTHS]
    assert_alike(contrast, columns, torch.stack(parts).sum(), terms_of(recipe(temperature=0.1)), lengths=LENGTHS)


LENGTHS = [(12, 1.0), (6, 0.5), (2, 0.25)]


def test_derivatives_of_the_cosines_sum_to_zero_and_masked_places_get_none() -> None:
    queries, passages = embeddings(3)
    found = embedding_loss(queries, passages, CONTRAST, terms_of(recipe()))
    torch.testing.assert_close(found.pull_BN.sum(1), torch.zeros(len(ROWS), dtype=torch.float64), atol=1e-9, rtol=0)
    forbidden = ~CONTRAST.allowed_BN
    forbidden[torch.arange(len(ROWS)), CONTRAST.positive_B] = False
    assert (found.pull_BN[forbidden] == 0).all() and (found.pull_BN[~forbidden] != 0).all()
