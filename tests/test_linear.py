"""Closed forms: streamed statistics, each form against a slow twin, and poor data."""

from __future__ import annotations

import numpy as np
import pytest

from modalign.connectors.linear import METHODS, ClosedForms, PairMoments, fit_linear
from modalign.errors import DataError, ShapeError, UsageError


def drawn(rows: int = 200, *, widths: tuple[int, int] = (7, 5), seed: int = 0) -> list[np.ndarray]:
    """Two views of one hidden state, far from the origin and of uneven scale."""
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((rows, 3))
    return [
        state @ rng.standard_normal((3, width)) * 4
        + rng.standard_normal((rows, width)) * np.linspace(0.2, 2, width)
        + 100.0 * side
        for side, width in enumerate(widths)
    ]


def moments_of(x: np.ndarray, y: np.ndarray, *, block: int = 10_000) -> PairMoments:
    moments = PairMoments(x.shape[1], y.shape[1])
    for start in range(0, len(x), block):
        moments.add(x[start : start + block], y[start : start + block])
    return moments


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(0)


# Streaming


@pytest.mark.parametrize("block", [1, 7, 200])
def test_blocks_of_any_size_give_the_covariances_of_all_rows(block):
    x, y = drawn()
    found = moments_of(x, y, block=block)
    assert found.count == 200
    np.testing.assert_allclose(found.mean_y, y.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov_xx, np.cov(x.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(found.cov_xy, centred(x).T @ centred(y) / 200, atol=1e-10)
    np.testing.assert_allclose(found.cov_yy, np.cov(y.T, bias=True), rtol=1e-9)


def test_merged_moments_are_those_of_all_rows():
    x, y = drawn()
    merged = moments_of(x[:50], y[:50])
    merged.merge(PairMoments(7, 5))
    merged.merge(moments_of(x[50:], y[50:]))
    np.testing.assert_allclose(merged.cov_xy, moments_of(x, y).cov_xy, atol=1e-10)


def test_rows_far_from_the_origin_lose_no_digits():
    x, y = drawn()
    near, far = moments_of(x, y), moments_of(x + 1e7, y)
    np.testing.assert_allclose(far.cov_xx, near.cov_xx, rtol=1e-6)


def test_rows_that_do_not_fit_are_refused():
    moments = PairMoments(7, 5)
    with pytest.raises(ShapeError, match=r"rows \(4, 7\) and \(3, 5\), expected \[n, 7\]"):
        moments.add(np.zeros((4, 7)), np.zeros((3, 5)))
    with pytest.raises(ShapeError, match=r"moments of widths \(2, 2\), expected \(7, 5\)"):
        moments.merge(PairMoments(2, 2))


def test_a_row_with_nan_is_named():
    x, y = drawn(20)
    y[3, 1] = np.nan
    moments = moments_of(*drawn(10))
    with pytest.raises(DataError, match="NaN or infinite in row 13, expected numbers"):
        moments.add(x, y)
    assert moments.count == 10


# Each form and its slow twin


@pytest.mark.parametrize("regularisation", [0.0, 0.1, 3.0])
def test_canonical_directions_solve_the_eigenproblem(regularisation):
    x, y = drawn()
    found = ClosedForms(moments_of(x, y)).cca(regularisation, 5, power=0.0)
    a, b = centred(x), centred(y)
    cxx, cyy, cxy = a.T @ a / 200, b.T @ b / 200, a.T @ b / 200
    cxx += regularisation * np.trace(cxx) / 7 * np.eye(7)
    cyy += regularisation * np.trace(cyy) / 5 * np.eye(5)
    problem = np.linalg.solve(cxx, cxy) @ np.linalg.solve(cyy, cxy.T)
    squares = np.sort(np.linalg.eigvals(problem).real)[::-1][:5]
    np.testing.assert_allclose(found.correlations, np.sqrt(np.maximum(squares, 0)), atol=1e-7)
    w, v = found.first.matrix.astype(np.float64), found.second.matrix.astype(np.float64)
    np.testing.assert_allclose(w.T @ cxx @ w, np.eye(5), atol=2e-5)
    np.testing.assert_allclose(w.T @ cxy @ v, np.diag(found.correlations), atol=2e-5)


def test_directions_count_by_the_power_of_their_correlation():
    forms = ClosedForms(moments_of(*drawn()))
    even, weighted = forms.cca(0.1, 4, power=0.0), forms.cca(0.1, 4, power=2.0)
    expected = even.first.matrix * even.correlations**2
    np.testing.assert_allclose(weighted.first.matrix, expected, rtol=1e-5)


@pytest.mark.parametrize("into", ["first", "second"])
def test_ridge_is_least_squares_on_rows_with_a_penalty_added(into):
    x, y = drawn()
    maps = ClosedForms(moments_of(x, y)).ridge(0.2, into=into)
    source, target = (x, y) if into == "second" else (y, x)
    a, b = centred(source), centred(target)
    penalty = np.sqrt(0.2 * np.square(a).sum() / a.shape[1])
    rows = np.concatenate([a, penalty * np.eye(a.shape[1])])
    wanted = np.concatenate([b, np.zeros((a.shape[1], b.shape[1]))])
    slow = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    sides = (maps.first, maps.second) if into == "second" else (maps.second, maps.first)
    np.testing.assert_allclose(sides[0].apply(source), a @ slow, atol=2e-3)
    np.testing.assert_allclose(sides[1].apply(target), b, atol=2e-3)


def test_procrustes_is_a_rotation_and_no_other_one_is_closer():
    x, y = drawn(widths=(5, 5))
    maps = ClosedForms(moments_of(x, y)).procrustes(5)
    wanted = maps.second.apply(y)

    def distance(matrix: np.ndarray) -> float:
        return float(np.square(centred(x) @ matrix - wanted).sum())

    rotation = maps.first.matrix.astype(np.float64)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(5), atol=1e-5)
    rng = np.random.default_rng(1)
    for _ in range(20):
        step = rng.standard_normal((5, 5)) * 0.1
        other = np.linalg.qr(rotation @ (np.eye(5) + step - step.T))[0]
        other *= np.sign(np.diag(other.T @ rotation))
        assert distance(rotation) <= distance(other) + 1e-3


@pytest.mark.parametrize(("widths", "kept"), [((7, 5), 9), ((7, 5), 3), ((4, 6), 2)])
def test_procrustes_between_leading_axes_is_that_of_the_rows_themselves(widths, kept):
    x, y = drawn(widths=widths)
    maps = ClosedForms(moments_of(x, y)).procrustes(kept)
    kept = min(kept, *widths)
    axes = [np.linalg.svd(centred(side), full_matrices=False)[2][:kept].T for side in (x, y)]
    a, b = centred(x) @ axes[0], centred(y) @ axes[1]
    left, _, right = np.linalg.svd(a.T @ b)
    # Axes have no sign: similarities are compared.
    found = maps.first.apply(x) @ maps.second.apply(y).T
    np.testing.assert_allclose(found, a @ left @ right @ b.T, rtol=1e-3, atol=1e-2)


def test_a_subspace_is_ridge_between_leading_axes():
    x, y = drawn()
    maps = ClosedForms(moments_of(x, y)).subspace(0.1, 3)
    axes = [np.linalg.svd(centred(side), full_matrices=False)[2][:3].T for side in (x, y)]
    a, b = centred(x) @ axes[0], centred(y) @ axes[1]
    penalty = 0.1 * np.square(centred(x)).sum() / 7
    slow = np.linalg.solve(a.T @ a + penalty * np.eye(3), a.T @ b)
    # Axes have no sign: similarities are compared.
    found = maps.first.apply(x) @ maps.second.apply(y).T
    np.testing.assert_allclose(found, a @ slow @ b.T, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_form_finds_partners_among_rows_it_was_not_fitted_on(method):
    x, y = drawn(400, widths=(6, 6), seed=3)
    if method == "procrustes":
        y = centred(x) @ np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0] + 5
    maps = fit_linear(method, moments_of(x[:300], y[:300]), regularisation=0.01, width=6)
    u, v = maps.first.apply(x[300:]), maps.second.apply(y[300:])
    u, v = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (u, v))
    best = (u @ v.T).argsort(1)[:, -10:]
    assert np.mean([row in found for row, found in enumerate(best)]) > 0.4


# Poor data


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("regularisation", [0.0, 0.3])
def test_fewer_pairs_than_dimensions_and_constant_ones_give_numbers(method, regularisation):
    x, y = drawn(6, widths=(12, 9))
    x[:, 4], y[:, 0] = 3.0, 0.0
    x[1], y[1] = x[0], y[0]  # a pair said twice
    maps = fit_linear(method, moments_of(x, y), regularisation=regularisation, width=20)
    for side, rows in ((maps.first, x), (maps.second, y)):
        assert side.matrix.shape[1] == maps.first.matrix.shape[1]
        assert np.isfinite(side.apply(rows)).all()
        assert np.abs(side.matrix).max() < 1e4


def test_a_side_that_does_not_vary_is_named():
    x, y = drawn(30)
    with pytest.raises(DataError, match="all features of the second side are equal, expected some"):
        fit_linear("cca", moments_of(x, np.ones_like(y)), regularisation=0.1, width=3)


def test_one_pair_is_too_few():
    with pytest.raises(DataError, match="1 pairs, expected two at least"):
        ClosedForms(moments_of(*drawn(1)))


def test_settings_out_of_range_are_refused():
    forms = ClosedForms(moments_of(*drawn(30)))
    with pytest.raises(UsageError, match=r"regularisation is -1, expected 0 or more"):
        forms.cca(-1, 3)
    with pytest.raises(UsageError, match="width is 0, expected 1 or more"):
        forms.cca(0.1, 0)
    with pytest.raises(UsageError, match="closed form"):
        forms.fit("pca", regularisation=0.1, width=3)
