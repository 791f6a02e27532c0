"""Prediction: how far predicted features are from the true ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from modalign.errors import ShapeError, check_known


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
