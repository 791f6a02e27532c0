"""Losses: pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modalign.errors import ShapeError, UsageError, check_known

# Columns of a frozen bank looked at together: bounds the memory of a step.
BANK_BLOCK = 16384


def info_nce(u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor | float) -> Tensor:
    """Return the symmetric InfoNCE loss of a batch with many-to-many positives.

    For a row i with positives P(i), the mean over p in P(i) of
    -log( e(i,p) / (e(i,p) + sum of e(i,n) over the n not in P(i)) ) with e = exp(u.v / t);
    then the mean over rows, and the mean of both directions. Two positives of one row are
    never each other's negatives. A row without negatives costs nothing.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D].
        positives: True where u_i and v_j belong together, bool [B, B']; every row and every
            column has at least one.
        temperature: Divisor of similarity, > 0.

    Returns:
        A scalar.

    Raises:
        ShapeError: The shapes do not fit.
        UsageError: A row or a column has no positive.

    Source: van den Oord et al. 2018, arXiv:1807.03748; symmetric as in Radford et al. 2021,
    arXiv:2103.00020, figure 3. Differs: many positives; with one a row it is the same.
    """
    if positives.shape != (len(u), len(v)):
        raise ShapeError(
            f"positives are {tuple(positives.shape)}, expected ({len(u)}, {len(v)}), the rows of "
            "both sides"
        )
    if not (bool(positives.any(0).all()) and bool(positives.any(1).all())):
        raise UsageError("a row or a column of the batch has no positive, expected at least one")
    logits = (u @ v.T).float() / temperature
    return (_rows_loss(logits, positives) + _rows_loss(logits.T, positives.T)) / 2


def directed_info_nce(
    u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor | float
) -> Tensor:
    """Return one direction of `info_nce`: each row of `u` looks for its positives in `v`.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D].
        positives: bool [B, B']; every row has at least one.
        temperature: Divisor of similarity, > 0.

    Returns:
        A scalar.

    Source: as `info_nce`.
    """
    return _rows_loss((u @ v.T).float() / temperature, positives)


def _rows_loss(logits: Tensor, positives: Tensor) -> Tensor:
    lowest = torch.finfo(logits.dtype).min
    negatives = logits.masked_fill(positives, lowest).logsumexp(1, keepdim=True)
    each = F.softplus(negatives - logits).masked_fill(~positives, 0.0)
    return (each.sum(1) / positives.sum(1)).mean()


def prediction_loss(predicted: Tensor, wanted: Tensor, *, kind: str, reduction: str) -> Tensor:
    """Return how far predicted features are from the true ones.

    "l2" is the squared difference, "smooth-l1" that of `torch.nn.functional.smooth_l1_loss`
    (half the square below 1, the difference less a half above), "cosine" 1 - cosine.

    Args:
        predicted: float [B, D].
        wanted: float [B, D].
        kind: "l2", "smooth-l1" or "cosine".
        reduction: Over the D of a row: "mean" or "sum"; a cosine has none. Over rows always
            the mean.

    Returns:
        A scalar.

    Raises:
        ShapeError: The shapes differ.
        UsageError: `kind` or `reduction` is unknown.

    Source: arXiv:2409.05929, equation 9 (squared L2); its code has smooth L1 and the mean.
    """
    check_known(kind, ["l2", "smooth-l1", "cosine"], what="prediction loss")
    check_known(reduction, ["mean", "sum"], what="reduction")
    if predicted.shape != wanted.shape:
        raise ShapeError(
            f"predicted {tuple(predicted.shape)} and wanted {tuple(wanted.shape)} differ, "
            "expected one shape [B, D]"
        )
    if kind == "cosine":
        return 1 - F.cosine_similarity(predicted.float(), wanted.float(), dim=-1).mean()
    distance = F.mse_loss if kind == "l2" else F.smooth_l1_loss
    each = distance(predicted.float(), wanted.float(), reduction="none")
    return (each.mean(-1) if reduction == "mean" else each.sum(-1)).mean()


def bank_info_nce(
    u: Tensor,
    bank: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    temperature: float,
    block: int = BANK_BLOCK,
) -> Tensor:
    """Return InfoNCE of a batch against a whole frozen bank: the exact negatives.

    The same as one direction of `info_nce` with v = bank, for any size of bank: it is read
    in blocks, so memory is B x `block`, and the gradient to `u` comes from the same pass.

    Args:
        u: Unit vectors, float [B, D]; the only input that gets a gradient.
        bank: Frozen unit vectors, float [N, D].
        rows: Row of `u` of each positive pair, int64 [P]; every row occurs.
        columns: Row of `bank` of each positive pair, int64 [P]; no pair occurs twice.
        temperature: Divisor of similarity, > 0.
        block: Rows of the bank looked at together.

    Returns:
        A scalar.

    Raises:
        UsageError: A row has no positive.

    Source: as `info_nce`; online softmax of Milakov & Gimelshein 2018, arXiv:1805.02867.
    """
    if len(torch.unique(rows)) != len(u):
        raise UsageError("a row of the batch has no positive in the bank, expected at least one")
    loss: Tensor = _BankInfoNCE.apply(  # type: ignore[no-untyped-call]
        u, bank, rows, columns, temperature, block
    )
    return loss


class _BankInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        bank: Tensor,
        rows: Tensor,
        columns: Tensor,
        temperature: float,
        block: int,
    ) -> Tensor:
        u = u.float()
        negatives, pull = _negatives(u, bank, (rows, columns), temperature, block)
        logits = (u[rows] * bank[columns]).sum(1) / temperature
        excess = negatives[rows] - logits
        share = 1.0 / torch.bincount(rows, minlength=len(u))[rows].to(u.dtype) / len(u)
        push = share * torch.sigmoid(excess)  # -d loss / d logit of each positive
        grad = pull * torch.zeros_like(negatives).index_add_(0, rows, push).unsqueeze(1)
        grad.index_add_(0, rows, -push.unsqueeze(1) * bank[columns])
        ctx.save_for_backward(grad / temperature)
        return (share * F.softplus(excess)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None, None, None, None, None


def _negatives(
    u: Tensor, bank: Tensor, positives: tuple[Tensor, Tensor], temperature: float, size: int
) -> tuple[Tensor, Tensor]:
    """Return logsumexp over each row's negatives [B], and their softmax-weighted mean [B, D]."""
    rows, columns = positives
    lowest = torch.finfo(u.dtype).min
    top = u.new_full((len(u),), lowest)
    total = u.new_zeros(len(u))
    pull = torch.zeros_like(u)
    for start in range(0, len(bank), size):
        block = bank[start : start + size]
        logits = u @ block.T / temperature
        inside = (columns >= start) & (columns < start + len(block))
        logits[rows[inside], columns[inside] - start] = lowest
        higher = torch.maximum(top, logits.amax(1))
        weights = torch.exp(logits - higher.unsqueeze(1))
        weights[logits == lowest] = 0.0
        keep = torch.exp(top - higher)
        total = total * keep + weights.sum(1)
        pull = pull * keep.unsqueeze(1) + weights @ block
        top = higher
    some = total > 0
    negatives = torch.where(some, top + total.clamp_min(1e-38).log(), lowest)
    return negatives, pull / torch.where(some, total, 1.0).unsqueeze(1)
