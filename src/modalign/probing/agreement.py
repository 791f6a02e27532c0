"""How alike two encoders see the same items: pure functions of paired features."""

from __future__ import annotations

import numpy as np

from modalign.errors import ShapeError, UsageError


def mutual_nearest_neighbours(x: np.ndarray, y: np.ndarray, *, k: int = 10) -> float:
    """Return the mean share of neighbours that an item has on both sides.

    Items that are equally near share the places that are left among the k, on each side by
    itself: what a draw among them would give on average.

    Args:
        x: float [N, D_x], of any length.
        y: float [N, D_y], row by row the partners of `x`.
        k: Neighbours looked at by cosine, 1 <= k < N.

    Returns:
        A fraction in [0, 1]; about k / (N - 1) for encoders that agree on nothing.

    Raises:
        ShapeError: The rows do not fit.
        UsageError: `k` is out of range.

    Source: Huh et al. 2024, arXiv:2405.07987, section 2. Differs: equally near items, above.
    """
    _check_rows(x, y)
    if not 1 <= k < len(x):
        raise UsageError(f"neighbours: k is {k}, expected 1 to {len(x) - 1}, fewer than the rows")
    ours, theirs = (_neighbours(side, k) for side in (x, y))
    return float((ours * theirs).sum(1).mean() / k)


def _neighbours(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return how much every row counts among the k nearest of each, float64 [N, N] in [0, 1]."""
    values = np.asarray(vectors, np.float32)
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12))
    similarity = _products(unit)
    np.fill_diagonal(similarity, -np.inf)
    bar = np.partition(similarity, -k, axis=1)[:, -k, None]
    nearer, as_near = similarity > bar, similarity == bar
    left = k - nearer.sum(1, keepdims=True)
    counted: np.ndarray = nearer + as_near * (left / as_near.sum(1, keepdims=True))
    return counted


def _products(unit: np.ndarray) -> np.ndarray:
    """Return all similarities; rows that are equal are equally near, whatever is rounded."""
    kinds, kind = np.unique(unit, axis=0, return_inverse=True)
    alike = len(kinds) < len(unit)
    found: np.ndarray = (kinds @ kinds.T)[kind[:, None], kind] if alike else unit @ unit.T
    return found


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centred kernel alignment, unbiased.

    Args:
        x: float [N, D_x], N >= 4.
        y: float [N, D_y], row by row the partners of `x`.

    Returns:
        In [-1, 1]: 1 for sides that differ by a rotation and a scale, about 0 for unrelated
        ones, which chance moves by about sqrt(2 / (N * (N - 3))) either way: .003 of 500 rows,
        .08 of 20, .7 of 4. It is the cosine of two doubly centred kernels, so below 0 where
        items that are alike on one side differ on the other. 0 where a side does not vary.

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
