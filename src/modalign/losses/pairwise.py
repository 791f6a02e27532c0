"""Other ways to bring pairs together: each pair by itself, and whole distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modalign.errors import ShapeError
from modalign.losses.contrast import check_pairs, check_positives, info_nce

# Added to wanted shares of 0, whose logarithm is none.
SHARE_FLOOR = 1e-8


def sigmoid_loss(
    u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Return the sigmoid loss: every pair of a batch is a question of its own, match or not.

    -sum over i, j of log sigmoid(z_ij (u_i.v_j / t + b)) / B with z = 1 for positives, -1 for
    the others; a row may have any number of positives, also none.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D].
        positives: True where u_i and v_j belong together, bool [B, B'].
        temperature: Divisor of similarity, > 0.
        bias: Log odds of a match at similarity 0.

    Returns:
        A scalar.

    Raises:
        ShapeError: The shapes do not fit.

    Source: Zhai et al. 2023, arXiv:2303.15343, algorithm 1. Differs: many positives.
    """
    check_pairs(u, v, positives)
    logits = (u @ v.T).float() / temperature + bias
    return F.softplus(torch.where(positives, -logits, logits)).sum() / len(u)


def distribution_matching(
    u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor | float
) -> Tensor:
    """Return similarity-distribution matching: KL of the softmax of a row to its true shares.

    For a row i with p_ij the softmax over j of u_i.v_j / t and q_ij = 1 / |P(i)| for its
    positives: sum over j of p_ij log(p_ij / (q_ij + 1e-8)); the mean over rows, and of both
    directions.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D].
        positives: bool [B, B'], one at least in every row and column.
        temperature: Divisor of similarity, > 0.

    Returns:
        A scalar.

    Raises:
        ShapeError: The shapes do not fit.
        UsageError: A row or a column has no positive.

    Source: Jiang & Ye 2023, arXiv:2303.12501, equations 5 and 6. Differs: the mean of both
    directions, not their sum.
    """
    check_positives(u, v, positives)
    logits = (u @ v.T).float() / temperature
    return (_divergence(logits, positives) + _divergence(logits.T, positives.T)) / 2


def _divergence(logits: Tensor, positives: Tensor) -> Tensor:
    wanted = positives / positives.sum(1, keepdim=True)
    log_shares = logits.log_softmax(1)
    each = log_shares.exp() * (log_shares - (wanted + SHARE_FLOOR).log())
    return each.sum(1).mean()


def n_way_info_nce(
    vectors: Sequence[Tensor],
    present: Tensor,
    temperature: Tensor | float,
    *,
    items: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE of three or more modalities at once: each against all others together.

    The others of a row are joined by the product of their unit vectors, brought to length 1, so
    that what no two modalities tell alone can be told by all. A missing modality leaves the
    product as it is; a row takes part for a modality where it has that one and another.

    Args:
        vectors: Of each modality, unit vectors, float [B, D]; rows that are missing may hold
            anything finite.
        present: Which modalities each row has, bool [B, M].
        temperature: Divisor of similarity, > 0.
        items: Which item each row has of each modality, int64 [B, M]: rows of one item are
            positives of each other; by default all are different.

    Returns:
        A scalar: the mean over modalities of symmetric InfoNCE; 0 where no row takes part.

    Raises:
        ShapeError: The shapes do not fit, or there are fewer than two modalities.

    Source: Saporta et al. 2024, arXiv:2411.01053 (the multilinear product and the loss of each
    modality against the others). Differs: the product has length 1; negatives are the
    batch's own tuples, in both directions; a missing modality is left out.
    """
    rows = len(vectors[0])
    shapes = {tuple(v.shape) for v in vectors}
    if len(vectors) < 2 or len(shapes) > 1 or present.shape != (rows, len(vectors)):
        raise ShapeError(
            f"vectors {sorted(shapes)} of {len(vectors)} modalities and present "
            f"{tuple(present.shape)}: expected two or more of one shape [B, D], and [B, M]"
        )
    losses = []
    for number, target in enumerate(vectors):
        others = torch.cat([present[:, :number], present[:, number + 1 :]], dim=1)
        used = present[:, number] & others.any(1)
        if not bool(used.any()):
            continue
        query = product_of(
            [v[used] for place, v in enumerate(vectors) if place != number], others[used]
        )
        kept = torch.arange(rows, device=target.device) if items is None else items[:, number]
        same = kept[used, None] == kept[used]
        losses.append(info_nce(query, target[used], same, temperature))
    return torch.stack(losses).mean() if losses else vectors[0].sum() * 0.0


def product_of(vectors: Sequence[Tensor], present: Tensor) -> Tensor:
    """Return the product of the vectors that are there, of length 1.

    Args:
        vectors: Unit vectors, float [B, D] each.
        present: Which of them count, bool [B, M]; one at least a row.

    Returns:
        float [B, D].

    Source: Saporta et al. 2024, arXiv:2411.01053, equation 2, brought to length 1.
    """
    # Each number of a unit vector is about D^-1/2: scaled up, products neither vanish nor grow.
    scale = vectors[0].shape[1] ** 0.5
    product = torch.ones_like(vectors[0])
    for place, found in enumerate(vectors):
        product = product * torch.where(present[:, place, None], found * scale, 1.0)
    return F.normalize(product, dim=-1)
