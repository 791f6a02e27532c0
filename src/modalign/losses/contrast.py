"""Contrast: InfoNCE with many positives, in one pass, and against a frozen bank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modalign.errors import ShapeError, UsageError

# Columns of a frozen bank looked at together: bounds the memory of a step.
BANK_BLOCK = 16384
# Largest spread of logits, 2 / temperature, whose exponentials float32 holds without a maximum
# taken off first: exp(-80) is 2e-35.
PLAIN_SPREAD = 80.0


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
    check_positives(u, v, positives)
    divisor = temperature.detach() if isinstance(temperature, Tensor) else temperature
    if 2 / float(divisor) <= PLAIN_SPREAD:
        return one_pass_info_nce(u, v, positives, temperature)
    logits = (u @ v.T).float() / temperature
    return (_rows_loss(logits, positives) + _rows_loss(logits.T, positives.T)) / 2


def check_positives(u: Tensor, v: Tensor, positives: Tensor) -> None:
    """Raise unless the positives fit both sides, and each row and column has one.

    Raises:
        ShapeError: The shapes do not fit.
        UsageError: A row or a column has no positive.
    """
    check_pairs(u, v, positives)
    if not (bool(positives.any(0).all()) and bool(positives.any(1).all())):
        raise UsageError("a row or a column of the batch has no positive, expected at least one")


def check_pairs(u: Tensor, v: Tensor, pairs: Tensor) -> None:
    """Raise a ShapeError unless a matrix of pairs fits both sides."""
    if pairs.shape != (len(u), len(v)):
        raise ShapeError(
            f"pairs are {tuple(pairs.shape)}, expected ({len(u)}, {len(v)}), the rows of both sides"
        )


def one_pass_info_nce(
    u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor | float
) -> Tensor:
    """Return `info_nce` with one exponential a pair of vectors, for both directions at once.

    A cosine is at most 1, so exp((u.v - 1) / t) needs no maximum of its row; rows and columns
    are sums of the same matrix, and the gradient is that matrix scaled. Where 2 / t is above
    `PLAIN_SPREAD` the smallest would vanish: `info_nce` takes the usual path there.

    Args:
        u: Unit vectors, float [B, D].
        v: Unit vectors, float [B', D].
        positives: bool [B, B'], one at least in every row and column.
        temperature: Divisor of similarity, >= 2 / `PLAIN_SPREAD`.

    Returns:
        A scalar.

    Source: as `info_nce`; one exponential for both softmaxes is ours.
    """
    given = torch.as_tensor(temperature, dtype=torch.float32, device=u.device)
    loss: Tensor = _OnePassInfoNCE.apply(u, v, positives, given)  # type: ignore[no-untyped-call]
    return loss


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


class _OnePassInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor) -> Tensor:
        kept = torch.promote_types(u.dtype, torch.float32)
        scale = 1.0 / temperature.to(kept)
        similarity = (u @ v.T).to(kept)
        rows, columns = positives.nonzero(as_tuple=True)
        logits = (similarity[rows, columns] - 1.0) * scale
        # Exponentials of the negatives; from here on the matrix is worked on in place.
        pull = similarity.sub_(1.0).mul_(scale).exp_()
        pull[rows, columns] = 0.0
        there, row_push, row_pull = _half(pull.sum(1), rows, logits)
        back, column_push, column_pull = _half(pull.sum(0), columns, logits)
        # d loss / d logit of every pair: negatives pull, positives push.
        pull.mul_(row_pull.unsqueeze(1).add(column_pull.unsqueeze(0)))
        pull[rows, columns] = -(row_push + column_push)
        ctx.save_for_backward(u, v, pull.mul_(scale / 2), scale)
        return (there + back) / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, v, pull, scale = ctx.saved_tensors
        pull = pull.to(u.dtype)
        to_u = pull @ v
        to_v = pull.T @ u
        # A logit is u.v / t: its derivative by t is -u.v / t^2.
        to_temperature = -(u * to_u).sum().to(scale.dtype) * scale
        return grads[0] * to_u, grads[0] * to_v, None, grads[0] * to_temperature


def _half(negatives: Tensor, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one direction's loss, what pushes each positive, and what scales a row's pulls.

    Args:
        negatives: Sum of the exponentials of each row's negatives, [B].
        rows: Row of each positive, int64 [P].
        logits: Of each positive, [P].
    """
    share = 1.0 / torch.bincount(rows, minlength=len(negatives))[rows].to(logits.dtype)
    share /= len(negatives)
    # A row without negatives: log 0 is -inf, of which softplus and sigmoid are 0.
    excess = negatives.log()[rows] - logits
    push = share * torch.sigmoid(excess)
    pull = torch.zeros_like(negatives).index_add_(0, rows, push)
    scaled = torch.where(negatives > 0, pull / negatives.clamp_min(1e-38), 0.0)
    return (share * F.softplus(excess)).sum(), push, scaled


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
