"""Closed forms: linear maps of two sides into one space, from streamed statistics.

Nothing of the rows is kept but their number, means and covariances, so a million pairs need no
more memory than D x D. Fitted in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap

import numpy as np

from modalign.errors import DataError, ShapeError, UsageError, check_known

METHODS = ("cca", "ridge", "procrustes", "subspace")
# Variances below this share of the largest are rounding, not directions.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class AffineMap:
    """x -> x @ matrix + offset.

    Attributes:
        matrix: float32 [D_in, D].
        offset: float32 [D].
    """

    matrix: np.ndarray
    offset: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Map float [N, D_in] to float32 [N, D]."""
        mapped: np.ndarray = np.asarray(x, np.float32) @ self.matrix + self.offset
        return mapped


@dataclass(frozen=True)
class LinearMaps:
    """Both sides' maps into one space, where the cosine compares.

    Attributes:
        first: Of the first side.
        second: Of the second side.
        correlations: Canonical correlations, descending, float64 [D]; None of other methods.
    """

    first: AffineMap
    second: AffineMap
    correlations: np.ndarray | None = None


class PairMoments:
    """Number, means and covariances of paired rows, block by block.

    Args:
        width_x: D_x.
        width_y: D_y.
        names: Of both sides, as messages name them.

    Source: the pairwise update of Chan, Golub & LeVeque 1979, STAN-CS-79-773.
    """

    def __init__(
        self, width_x: int, width_y: int, *, names: tuple[str, str] = ("first", "second")
    ) -> None:
        self.names = names
        self.widths = (width_x, width_y)
        self.count = 0
        self._mean = np.zeros(width_x + width_y)
        self._scatter = np.zeros((width_x + width_y, width_x + width_y))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take rows in.

        Args:
            x: float [n, D_x].
            y: float [n, D_y], row by row the partners of `x`.

        Raises:
            ShapeError: The rows do not fit.
            DataError: A value is NaN or infinite.
        """
        if x.shape != (len(y), self.widths[0]) or y.shape != (len(x), self.widths[1]):
            raise ShapeError(
                f"pairs: rows {x.shape} and {y.shape}, expected [n, {self.widths[0]}] and "
                f"[n, {self.widths[1]}]"
            )
        if not len(x):
            return
        rows = np.concatenate([x, y], axis=1, dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(bad):
            row = self.count + int(bad[0])
            raise DataError(f"pairs: NaN or infinite in row {row}, expected numbers", row=row)
        mean = rows.mean(0)
        rows -= mean
        self._merge(len(rows), mean, rows.T @ rows)

    def merge(self, other: PairMoments) -> None:
        """Take in what another one took.

        Raises:
            ShapeError: It is of other widths.
        """
        if other.widths != self.widths:
            raise ShapeError(f"moments of widths {other.widths}, expected {self.widths}")
        if other.count:
            self._merge(other.count, other._mean, other._scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        step = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(step, step * (self.count * count / total))
        self._mean += step * (count / total)
        self.count = total

    @property
    def mean_x(self) -> np.ndarray:
        """Of the first side, float64 [D_x]."""
        return self._mean[: self.widths[0]]

    @property
    def mean_y(self) -> np.ndarray:
        """Of the second side, float64 [D_y]."""
        return self._mean[self.widths[0] :]

    @property
    def cov_xx(self) -> np.ndarray:
        """Covariance of the first side, divided by the number of rows, float64 [D_x, D_x]."""
        return self._covariance()[: self.widths[0], : self.widths[0]]

    @property
    def cov_yy(self) -> np.ndarray:
        """Covariance of the second side, float64 [D_y, D_y]."""
        return self._covariance()[self.widths[0] :, self.widths[0] :]

    @property
    def cov_xy(self) -> np.ndarray:
        """Covariance between the sides, float64 [D_x, D_y]."""
        return self._covariance()[: self.widths[0], self.widths[0] :]

    def _covariance(self) -> np.ndarray:
        covariance: np.ndarray = self._scatter / max(self.count, 1)
        return covariance


@dataclass(frozen=True)
class _Side:
    """Principal axes of one side: columns of `axes`, variances descending."""

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray

    def penalty(self, regularisation: float) -> float:
        """What is added to every variance: a multiple of their mean over all dimensions."""
        return regularisation * float(self.variances.sum()) / len(self.mean)

    def affine(self, matrix: np.ndarray) -> AffineMap:
        """Return the map of centred rows by a matrix."""
        return AffineMap(matrix.astype(np.float32), (-self.mean @ matrix).astype(np.float32))


class ClosedForms:
    """Closed forms of some pairs; what is costly is computed once for all settings.

    Args:
        moments: Of the pairs.

    Raises:
        DataError: There are fewer than two pairs, or a side does not vary at all.
    """

    def __init__(self, moments: PairMoments) -> None:
        if moments.count < 2:
            raise DataError(f"closed form: {moments.count} pairs, expected two at least")
        self.widths = moments.widths
        self._moments = moments
        # Canonical directions, and of which settings.
        self._asked: tuple[float, int] | None = None
        self._found: tuple[np.ndarray, np.ndarray, np.ndarray]

    @cached_property
    def _sides(self) -> tuple[_Side, _Side]:
        m = self._moments
        made = [
            _principal(name, mean, covariance)
            for name, mean, covariance in (
                (m.names[0], m.mean_x, m.cov_xx),
                (m.names[1], m.mean_y, m.cov_yy),
            )
        ]
        return made[0], made[1]

    @cached_property
    def _cross(self) -> np.ndarray:
        """Covariance between both sides' principal axes."""
        first, second = self._sides
        cross: np.ndarray = first.axes.T @ self._moments.cov_xy @ second.axes
        return cross

    def fit(
        self, method: str, *, regularisation: float, width: int, power: float = 1.0
    ) -> LinearMaps:
        """Fit by the name of a method.

        Args:
            method: One of METHODS.
            regularisation: See the methods; procrustes has none.
            width: D at most; ridge has that of the second side.
            power: See `cca`.
        """
        check_known(method, METHODS, what="closed form")
        fits: dict[str, Callable[[], LinearMaps]] = {
            "cca": lambda: self.cca(regularisation, width, power=power),
            "ridge": lambda: self.ridge(regularisation),
            "procrustes": lambda: self.procrustes(width),
            "subspace": lambda: self.subspace(regularisation, width),
        }
        return fits[method]()

    def cca(self, regularisation: float, width: int, *, power: float = 1.0) -> LinearMaps:
        """Regularised canonical correlation; a direction counts by its correlation ** power.

        Args:
            regularisation: Added to every variance, in mean variances of its side, >= 0.
            width: Directions kept, at most.
            power: 0 counts all directions alike.

        Source: Hotelling 1936; the ridge of Vinod 1976; powers of the correlations as in Gong
        et al. 2014, arXiv:1212.4522.
        """
        _check(regularisation, width)
        first, second = self._sides
        x, y, correlations = self._canonical(regularisation, width)
        weights = correlations**power
        return LinearMaps(first.affine(x * weights), second.affine(y * weights), correlations)

    def _canonical(
        self, regularisation: float, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both sides' canonical directions and their correlations.

        Those asked for last are kept: powers are tried one after the other.
        """
        if (regularisation, width) != self._asked:
            first, second = self._sides
            scales = [
                1 / np.sqrt(side.variances + side.penalty(regularisation))
                for side in (first, second)
            ]
            left, correlations, right = np.linalg.svd(
                self._cross * scales[0][:, None] * scales[1], full_matrices=False
            )
            kept = slice(0, min(width, len(correlations)))
            x, y = starmap(
                lambda side, scale, turn: (side.axes * scale) @ turn[:, kept],
                zip((first, second), scales, (left, right.T), strict=True),
            )
            self._asked, self._found = (regularisation, width), (x, y, correlations[kept])
        return self._found

    def ridge(self, regularisation: float, *, into: str = "second") -> LinearMaps:
        """Ridge regression of one side into the other, which is only centred.

        Args:
            regularisation: Added to every variance, in mean variances of its side, >= 0.
            into: "first" or "second".

        Source: Hoerl & Kennard 1970.
        """
        _check(regularisation, 1)
        check_known(into, ["first", "second"], what="side")
        first, second = self._sides
        source, target = (first, second) if into == "second" else (second, first)
        cross = self._cross if into == "second" else self._cross.T
        shrunk = source.axes / (source.variances + source.penalty(regularisation))
        regressed = source.affine(shrunk @ cross @ target.axes.T)
        as_is = target.affine(np.eye(len(target.mean)))
        return LinearMaps(regressed, as_is) if into == "second" else LinearMaps(as_is, regressed)

    def procrustes(self, width: int) -> LinearMaps:
        """The rotation that brings one side's leading axes closest to the other's.

        Args:
            width: Axes kept of each side, at most.

        Source: Schönemann 1966.
        """
        _check(0.0, width)
        first, second = self._sides
        kept = min(width, first.axes.shape[1], second.axes.shape[1])
        left, _, right = np.linalg.svd(self._cross[:kept, :kept], full_matrices=False)
        rotated = first.axes[:, :kept] @ left @ right
        return LinearMaps(first.affine(rotated), second.affine(second.axes[:, :kept]))

    def subspace(self, regularisation: float, width: int) -> LinearMaps:
        """An affine map from one side's leading axes to the other's, by ridge regression.

        Args:
            regularisation: Added to every variance, in mean variances of its side, >= 0.
            width: Axes kept of each side, at most.
        """
        _check(regularisation, width)
        first, second = self._sides
        kept = min(width, first.axes.shape[1], second.axes.shape[1])
        variances = first.variances[:kept] + first.penalty(regularisation)
        map_ = (first.axes[:, :kept] / variances) @ self._cross[:kept, :kept]
        return LinearMaps(first.affine(map_), second.affine(second.axes[:, :kept]))


def fit_linear(
    method: str, moments: PairMoments, *, regularisation: float, width: int, power: float = 1.0
) -> LinearMaps:
    """Fit one closed form; see `ClosedForms.fit`."""
    return ClosedForms(moments).fit(method, regularisation=regularisation, width=width, power=power)


def _principal(name: str, mean: np.ndarray, covariance: np.ndarray) -> _Side:
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    kept = variances > RANK_TOLERANCE * max(float(variances[0]), 0.0)
    if not kept.any():
        raise DataError(
            f"closed form: all features of the {name} side are equal, expected some that differ; "
            "check its encoder and its items"
        )
    return _Side(mean, axes[:, kept], variances[kept])


def _check(regularisation: float, width: int) -> None:
    if not 0 <= regularisation < np.inf:
        raise UsageError(f"regularisation is {regularisation}, expected 0 or more, finite")
    if width < 1:
        raise UsageError(f"width is {width}, expected 1 or more")
