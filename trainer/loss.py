"""InfoNCE over in-batch positives and all negatives of the batch, in closed form.

Legend: B rows of the batch, N distinct passages of the batch.
"""

import torch
from torch import Tensor


def info_nce(similarities_BN: Tensor, positive_B: Tensor, allowed_BN: Tensor, *, temperature: float) -> Tensor:
    """Loss per row, float32, [B].

    Args:
        similarities_BN: Cosines of each query with each passage of the batch.
        positive_B: Column of each query's positive.
        allowed_BN: False where a passage must not count against a query: it is another of its known positives.

    Source: van den Oord et al. 2018; masked logits as in the papers' in-batch false-negative masks.
    """
    logits = similarities_BN.float() / temperature
    rows = torch.arange(len(logits), device=logits.device)
    allowed = allowed_BN.clone()
    allowed[rows, positive_B] = True
    logits = logits.masked_fill(~allowed, float("-inf"))
    return torch.logsumexp(logits, dim=1) - logits[rows, positive_B]
