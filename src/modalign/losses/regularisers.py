"""Terms beside a loss: what keeps vectors spread out, near, and neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modalign.errors import ShapeError, UsageError
from modalign.losses.contrast import check_pairs


def uniformity(u: Tensor, v: Tensor, apart: Tensor, *, sharpness: float = 2.0) -> Tensor:
    """Return the log of the mean of exp(-s |u_i - v_j|^2): low where vectors are spread out.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D]; `u` itself for the spread of one modality.
        apart: Which pairs count: of different items, bool [B, B'].
        sharpness: s, > 0; larger, and the closest pairs alone count.

    Returns:
        A scalar, in [-4 s, 0]; 0 where no pair counts.

    Raises:
        ShapeError: The shapes do not fit.

    Source: Wang & Isola 2020, arXiv:2005.10242, equation 3; between modalities as in Fahim,
    Murphy & Fyshe 2024, arXiv:2405.18570.
    """
    check_pairs(u, v, apart)
    if not bool(apart.any()):
        return u.sum() * 0.0
    # Of unit vectors the squared distance is 2 - 2 u.v.
    exponents = sharpness * (2 * (u @ v.T).float() - 2)[apart]
    return exponents.logsumexp(0) - float(torch.log(apart.sum().float()))


def alignment(u: Tensor, v: Tensor, positives: Tensor) -> Tensor:
    """Return the mean squared distance of positives.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D].
        positives: bool [B, B'], one at least.

    Returns:
        A scalar, in [0, 4].

    Raises:
        ShapeError: The shapes do not fit.
        UsageError: There is no positive.

    Source: Wang & Isola 2020, arXiv:2005.10242, equation 2, with exponent 2.
    """
    check_pairs(u, v, positives)
    if not bool(positives.any()):
        raise UsageError("alignment: no pair of the batch belongs together, expected one at least")
    return (2 - 2 * (u @ v.T).float())[positives].mean()


def neighbourhood_loss(
    features: Tensor, vectors: Tensor, *, temperature: float, levels: int
) -> Tensor:
    """Return how much of the neighbourhoods of features is lost among their vectors.

    Rows of both sides are centred and brought to length 1; the softmax of their cosines is a
    walk from item to item, and its powers are walks of more steps. The Jensen-Shannon
    divergence of both walks, in nats, is averaged over rows; step l counts 1 / l, and the sum
    is divided by the levels.

    Args:
        features: Of a batch's items, as the encoder gave them, float [B, D_m].
        vectors: Of the same items, float [B, D].
        temperature: Of the softmax, > 0.
        levels: Steps of the longest walk, 1 or more.

    Returns:
        A scalar, in [0, log 2].

    Raises:
        ShapeError: The sides differ in rows.

    Source: Gröger et al. 2025, arXiv:2506.16895 (STRUCTURE).
    """
    if len(features) != len(vectors):
        raise ShapeError(
            f"features have {len(features)} rows and vectors {len(vectors)}, expected as many"
        )
    wanted, found = _walk(features, temperature), _walk(vectors, temperature)
    total = vectors.new_zeros(())
    there, here = wanted, found
    for level in range(1, levels + 1):
        total = total + _jensen_shannon(there, here) / level
        if level < levels:
            there, here = there @ wanted, here @ found
    return total / levels


def _walk(rows: Tensor, temperature: float) -> Tensor:
    rows = F.normalize(rows.float() - rows.float().mean(0), dim=-1)
    return (rows @ rows.T / temperature).softmax(1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = ((p + q) / 2).clamp_min(1e-30).log()
    there = p * (p.clamp_min(1e-30).log() - middle)
    back = q * (q.clamp_min(1e-30).log() - middle)
    return (there + back).sum(1).mean() / 2


def latent_mixup(
    first: Tensor, second: Tensor, positives: Tensor, *, partner: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each pair's features with those of another pair, by one share for both modalities.

    Args:
        first: Features of the first modality, a row a pair, float [B, D_1].
        second: Of the second, float [B, D_2].
        positives: Which rows belong together, bool [B, B].
        partner: The pair each is mixed with, a permutation, int64 [B].
        share: Of the pair itself, in [0, 1]; the rest is its partner's.

    Returns:
        Both sides mixed, and the mixed rows that belong together: both parts of them do.

    Raises:
        ShapeError: The sides differ in rows.

    Source: Vouitsis et al. 2024, arXiv:2312.10144 (FuseMix), algorithm 1. Differs: items that
    belong together are no negatives.
    """
    if not len(first) == len(second) == len(partner) or positives.shape != (len(first),) * 2:
        raise ShapeError(
            f"{len(first)} and {len(second)} rows, {len(partner)} partners and positives "
            f"{tuple(positives.shape)}: expected one number of pairs"
        )
    return (
        torch.lerp(first[partner], first, share),
        torch.lerp(second[partner], second, share),
        positives & positives[partner][:, partner],
    )
