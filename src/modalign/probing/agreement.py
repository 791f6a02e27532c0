"""How alike two encoders see the same items: pure functions of paired features."""

from __future__ import annotations

import numpy as np

from modalign.errors import ShapeError, UsageError


def mutual_nearest_neighbours(x: np.ndarray, y: np.ndarray, *, k: int = 10) -> float:
    """Return the mean share of neighbours that an item has on both sides.

    Args:
        x: float [N, D_x], of any length.
        y: float [N, D_y], row by row the partners of `x`.
        k: Neighbours looked at by cosine, 1 <= k < N.

    Returns:
        A fraction in [0, 1]; about k / N for encoders that agree on nothing.

    Raises:
        ShapeError: The rows do not fit.
        UsageError: `k` is out of range.

    Source: Huh et al. 2024, arXiv:2405.07987, section 2.
    """
    _check_rows(x, y)
    if not 1 <= k < len(x):
        raise UsageError(f"neighbours: k is {k}, expected 1 to {len(x) - 1}, fewer than the rows")
    ours, theirs = (_neighbours(side, k) for side in (x, y))
    shared = [len(set(a) & set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    return float(np.mean(shared) / k)


def _neighbours(vectors: np.ndarray, k: int) -> np.ndarray:
    values = np.asarray(vectors, np.float32)
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12))
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argpartition(-similarity, k - 1, axis=1)[:, :k]


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centred kernel alignment, unbiased.

    Args:
        x: float [N, D_x], N >= 4.
        y: float [N, D_y], row by row the partners of `x`.

    Returns:
        1 for sides that differ by a rotation and a scale, about 0 for unrelated ones, for which
        it may be slightly negative; 0 where a side does not vary.

    Raises:
        ShapeError: The rows do not fit, or are fewer than 4.

    Source: Kornblith et al. 2019, arXiv:1905.00414, with the unbiased estimate of Song et al.
    2012: the plain one grows with the width and is near 1 where rows are few.
    """
    _check_rows(x, y)
    if len(x) < 4:
        raise ShapeError(f"alignment of kernels: {len(x)} rows, expected 4 or more")
    kernels = []
    for side in (x, y):
        rows = np.asarray(side, np.float64)
        rows = rows - rows.mean(0)
        kernel = rows @ rows.T
        np.fill_diagonal(kernel, 0.0)
        kernels.append(kernel)
    both, first, second = (
        _independence(a, b)
        for a, b in ((kernels[0], kernels[1]), (kernels[0], kernels[0]), (kernels[1], kernels[1]))
    )
    scale = first * second
    return float(both / np.sqrt(scale)) if scale > 0 else 0.0


def _independence(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased Hilbert-Schmidt criterion of two kernels without a diagonal."""
    n = len(a)
    total = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2))
    total -= 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
    return float(total / (n * (n - 3)))


def _check_rows(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"rows {x.shape} and {y.shape}, expected [N, D] each, of one N")
