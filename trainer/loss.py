"""The loss and its gradient with respect to the embeddings, in closed form.

For a row b with positive p and counted negatives n, all of the batch:

    info_b = log(1 + sum_n w_n exp((s_bn - s_bp + m_n) / t_n))

with weight w, margin m and temperature t of the part that n plays for b. With one temperature, weights of 1 and
margins of 0 this is InfoNCE. Temperatures divide differences, so that what all cosines share changes nothing. To it
come, for the rows that have them, RankNet over the known order and the distance to a teacher's scores. Everything is a
function of the cosines, whose gradient is written down here, so that no graph over the whole batch is ever built: the
trainer hands it to the graphs of the encoder, chunk by chunk.

Legend: B rows, N distinct passages, Q distinct queries, E dimensions, G groups, P pairs, C scored candidates.
Sources: InfoNCE, van den Oord et al. 2018; mask by margin, Qwen3-Embedding; RankNet on permutations, E2Rank;
MarginMSE, Hofstätter et al. 2020; Matryoshka, Kusupati et al. 2022; GradCache, Gao et al. 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from trainer.contrast import GROUPS, Contrast
from trainer.recipe import Distillation, GroupTerms, Ordering, TrainRecipe


@dataclass(frozen=True, slots=True)
class Terms:
    """What the loss is made of; one number per group, in the order of GROUPS."""

    temperature_G: tuple[float, ...]
    weight_G: tuple[float, ...]
    margin_G: tuple[float, ...]
    mask_margin: float | None = None
    ordering: Ordering | None = None
    distillation: Distillation | None = None

    @property
    def is_plain(self) -> bool:
        return len(set(self.temperature_G)) == 1 and set(self.weight_G) == {1.0} and set(self.margin_G) == {0.0}


def terms_of(recipe: TrainRecipe) -> Terms:
    grades: dict[str, GroupTerms] = {str(name): terms for name, terms in recipe.grades.items()}
    groups = [grades.get(name, GroupTerms()) for name in GROUPS]
    return Terms(
        temperature_G=tuple(group.temperature or recipe.temperature for group in groups),
        weight_G=tuple(group.weight for group in groups),
        margin_G=tuple(group.margin for group in groups),
        mask_margin=recipe.mask_margin,
        ordering=recipe.ordering,
        distillation=recipe.distillation,
    )


@dataclass(frozen=True, slots=True)
class CosineLoss:
    """A loss over cosines: value per row, and the gradient of the rows' sum."""

    losses_B: Tensor
    gradient_BN: Tensor


@dataclass(frozen=True, slots=True)
class EmbeddingLoss:
    """A batch's loss over embeddings.

    Attributes:
        losses_B: Loss of each row.
        cosines_BN: Of each row's query with each passage, at full length.
        pull_BN: Gradient of the rows' summed loss with respect to `cosines_BN`, at full length.
        queries_QE: Gradient of the rows' summed loss with respect to the queries' embeddings as given.
        passages_NE: The same for passages.
    """

    losses_B: Tensor
    cosines_BN: Tensor
    pull_BN: Tensor
    queries_QE: Tensor
    passages_NE: Tensor


def embedding_loss(
    queries_QE: Tensor,
    passages_NE: Tensor,
    contrast: Contrast,
    terms: Terms,
    *,
    lengths: Sequence[tuple[int, float]] = (),
) -> EmbeddingLoss:
    """Loss and gradients of a batch; embeddings need no unit length.

    Args:
        contrast: On the device of the embeddings.
        lengths: Matryoshka's (dimensions, weight); empty for the full length alone.
    """
    full = queries_QE.shape[1]
    whole = _at_length(queries_QE, passages_NE, full, contrast, terms)
    if not lengths:
        return whole
    losses, gradients = torch.zeros_like(whole.losses_B), [torch.zeros_like(queries_QE), torch.zeros_like(passages_NE)]
    for length, weight in lengths:
        one = whole if length == full else _at_length(queries_QE, passages_NE, length, contrast, terms)
        losses += weight * one.losses_B
        gradients[0][:, :length] += weight * one.queries_QE
        gradients[1][:, :length] += weight * one.passages_NE
    return replace(whole, losses_B=losses, queries_QE=gradients[0], passages_NE=gradients[1])


def _at_length(queries_QE: Tensor, passages_NE: Tensor, length: int, contrast: Contrast, terms: Terms) -> EmbeddingLoss:
    queries, queries_norm = _unit(queries_QE[:, :length])
    passages, passages_norm = _unit(passages_NE[:, :length])
    cosines_BN = queries[contrast.query_B] @ passages.T
    loss = cosine_loss(cosines_BN, contrast, terms)
    # Rows that share a query add up in its gradient.
    pull_QN = torch.zeros(len(queries), len(passages), dtype=cosines_BN.dtype, device=cosines_BN.device)
    pull_QN.index_add_(0, contrast.query_B, loss.gradient_BN)
    return EmbeddingLoss(
        losses_B=loss.losses_B,
        cosines_BN=cosines_BN,
        pull_BN=loss.gradient_BN,
        queries_QE=_through_unit(pull_QN @ passages, queries, queries_norm),
        passages_NE=_through_unit(pull_QN.T @ queries, passages, passages_norm),
    )


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    norms = vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return vectors / norms, norms


def _through_unit(gradient: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """The gradient before normalisation: what points along the vector changes nothing."""
    return (gradient - (gradient * unit).sum(-1, keepdim=True) * unit) / norms


def cosine_loss(cosines_BN: Tensor, contrast: Contrast, terms: Terms) -> CosineLoss:
    """All terms of the loss over the cosines."""
    loss = info_nce(cosines_BN, contrast, terms)
    if terms.ordering is not None:
        loss = _sum(loss, ranknet(cosines_BN, contrast.pairs_P3, terms.ordering))
    if terms.distillation is not None:
        distil = _kl if terms.distillation.kind == "kl" else _margin_mse
        loss = _sum(loss, distil(cosines_BN, contrast.candidates_BC, contrast.teacher_BC, terms.distillation))
    return loss


def _sum(one: CosineLoss, other: CosineLoss) -> CosineLoss:
    return CosineLoss(one.losses_B + other.losses_B, one.gradient_BN + other.gradient_BN)


def counted_negatives(cosines_BN: Tensor, contrast: Contrast, mask_margin: float | None) -> Tensor:
    """Which passages count against a row, [B, N]: none that is a known positive of its query, and none whose cosine
    makes it look like one, unless it was written for the query and is meant to come close."""
    rows = torch.arange(len(cosines_BN), device=cosines_BN.device)
    counted = contrast.allowed_BN.clone()
    counted[rows, contrast.positive_B] = False
    if mask_margin is None:
        return counted
    ceiling_B1 = cosines_BN[rows, contrast.positive_B][:, None] + mask_margin
    return counted & ((cosines_BN <= ceiling_B1) | contrast.written_BN)


def info_nce(cosines_BN: Tensor, contrast: Contrast, terms: Terms) -> CosineLoss:
    """The contrastive term; a row without a counted negative has loss 0."""
    rows = torch.arange(len(cosines_BN), device=cosines_BN.device)
    counted = counted_negatives(cosines_BN, contrast, terms.mask_margin)
    logits = cosines_BN - cosines_BN[rows, contrast.positive_B][:, None]
    temperature: Tensor | float = terms.temperature_G[0]
    if terms.is_plain:
        logits = logits / temperature
    else:
        temperature = logits.new_tensor(terms.temperature_G)[contrast.group_BN]
        logits = (logits + logits.new_tensor(terms.margin_G)[contrast.group_BN]) / temperature
        logits = logits + logits.new_tensor(terms.weight_G).log()[contrast.group_BN]
    logits = logits.masked_fill(~counted, float("-inf"))
    logits[rows, contrast.positive_B] = 0.0
    losses_B = logits.logsumexp(dim=1)
    gradient_BN = (logits - losses_B[:, None]).exp() / temperature
    gradient_BN[rows, contrast.positive_B] = 0.0
    gradient_BN[rows, contrast.positive_B] = -gradient_BN.sum(dim=1)
    return CosineLoss(losses_B, gradient_BN)


def ranknet(cosines_BN: Tensor, pairs_P3: Tensor, ordering: Ordering) -> CosineLoss:
    """Mean over a row's pairs of log(1 + exp((s_worse - s_better) / temperature)), times the weight."""
    losses_B, gradient_BN = cosines_BN.new_zeros(len(cosines_BN)), torch.zeros_like(cosines_BN)
    rows, better, worse = pairs_P3.unbind(1)
    share_P = ordering.weight / torch.bincount(rows, minlength=len(cosines_BN))[rows]
    wrong_P = (cosines_BN[rows, worse] - cosines_BN[rows, better]) / ordering.temperature
    losses_B.index_add_(0, rows, share_P * functional.softplus(wrong_P))
    pull_P = share_P * wrong_P.sigmoid() / ordering.temperature
    gradient_BN.index_put_((rows, worse), pull_P, accumulate=True)
    gradient_BN.index_put_((rows, better), -pull_P, accumulate=True)
    return CosineLoss(losses_B, gradient_BN)


def _kl(cosines_BN: Tensor, candidates_BC: Tensor, teacher_BC: Tensor, terms: Distillation) -> CosineLoss:
    """KL of the teacher's softmax from the model's over a row's candidates, times the squared temperature."""
    unused = teacher_BC.isnan()
    idle_B1 = unused.all(dim=1, keepdim=True) if unused.shape[1] else unused.new_ones(len(unused), 1)
    hidden = unused & ~idle_B1
    log_model = (cosines_BN.gather(1, candidates_BC) / terms.temperature).masked_fill(hidden, -1e30).log_softmax(1)
    log_teacher = (teacher_BC.nan_to_num() / terms.teacher_temperature).masked_fill(hidden, -1e30).log_softmax(1)
    share = log_teacher.exp() * ~idle_B1 * ~unused
    scale = terms.weight * terms.temperature**2
    losses_B = scale * (share * (log_teacher - log_model)).sum(dim=1)
    gradient_BC = scale * (log_model.exp() * ~idle_B1 * ~unused - share) / terms.temperature
    gradient_BN = torch.zeros_like(cosines_BN).scatter_add_(1, candidates_BC, gradient_BC)
    return CosineLoss(losses_B, gradient_BN)


def _margin_mse(cosines_BN: Tensor, candidates_BC: Tensor, teacher_BC: Tensor, terms: Distillation) -> CosineLoss:
    """Mean over a row's negatives of the squared difference between the teacher's margin and the model's."""
    if not candidates_BC.shape[1]:
        return CosineLoss(cosines_BN.new_zeros(len(cosines_BN)), torch.zeros_like(cosines_BN))
    cosines_BC = cosines_BN.gather(1, candidates_BC) / terms.temperature
    teacher_BC = teacher_BC / terms.teacher_temperature
    wrong_BC = (cosines_BC[:, :1] - cosines_BC) - (teacher_BC[:, :1] - teacher_BC)
    used = ~wrong_BC.isnan()
    used[:, 0] = False
    share_B1 = terms.weight / used.sum(dim=1, keepdim=True).clamp(min=1)
    wrong_BC = wrong_BC.nan_to_num() * used
    losses_B = (share_B1 * wrong_BC**2).sum(dim=1)
    gradient_BC = -2 * share_B1 * wrong_BC / terms.temperature
    gradient_BC[:, 0] = -gradient_BC.sum(dim=1)
    gradient_BN = torch.zeros_like(cosines_BN).scatter_add_(1, candidates_BC, gradient_BC)
    return CosineLoss(losses_B, gradient_BN)


def on_device(contrast: Contrast, device: torch.device) -> Contrast:
    """The contrast with its tensors on the device."""
    if device.type == "cpu":
        return contrast
    names = (
        "query_B", "positive_B", "group_BN", "allowed_BN", "written_BN", "pairs_P3", "candidates_BC", "teacher_BC"
    )  # fmt: skip
    return replace(contrast, **{name: getattr(contrast, name).to(device) for name in names})
