"""InfoNCE by value, its derivative identities, and what the mask leaves out."""

import math

import torch

from trainer.loss import info_nce

SIMILARITIES = torch.tensor([[0.9, 0.2, -0.3, 0.5], [0.1, -0.8, 0.4, 0.4]], dtype=torch.float64)
POSITIVE = torch.tensor([0, 2])
ALLOWED = torch.tensor([[True, True, False, True], [True, True, True, True]])


def test_value_equals_brute_force_on_uneven_masks() -> None:
    losses = info_nce(SIMILARITIES, POSITIVE, ALLOWED, temperature=0.2)
    for row in range(2):
        terms = [math.exp(float(SIMILARITIES[row, n]) / 0.2) for n in range(4) if ALLOWED[row, n]]
        expected = -math.log(math.exp(float(SIMILARITIES[row, POSITIVE[row]]) / 0.2) / sum(terms))
        assert math.isclose(float(losses[row]), expected, rel_tol=1e-5)


def test_own_positive_counts_even_where_the_mask_forbids_it() -> None:
    forbidden = ALLOWED.clone()
    forbidden[0, 0] = False
    assert torch.equal(
        info_nce(SIMILARITIES, POSITIVE, forbidden, temperature=0.2),
        info_nce(SIMILARITIES, POSITIVE, ALLOWED, temperature=0.2),
    )


def test_derivatives_sum_to_zero_and_masked_places_get_none() -> None:
    similarities = SIMILARITIES.float().requires_grad_()
    info_nce(similarities, POSITIVE, ALLOWED, temperature=0.5).sum().backward()
    gradient = similarities.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2), atol=1e-6, rtol=0)
    assert gradient[0, 2] == 0 and (gradient[ALLOWED] != 0).all()
    share = torch.softmax(SIMILARITIES[1].float() / 0.5, 0)
    torch.testing.assert_close(gradient[1, 2], -(1 - share[2]) / 0.5)
