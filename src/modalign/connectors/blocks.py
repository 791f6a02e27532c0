"""Running a connector so that a row's bits do not depend on its neighbours.

A matrix product may round a row differently in another shape of batch, so the connector
always runs on blocks of the same shape: a single query is padded to a full block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from modalign.encoders import Features
from modalign.encoders.contract import length_bucket
from modalign.errors import DataError, ShapeError

# Rows of a block of vectors: a single query pays for a whole block, so it is small.
BLOCK_ROWS = 32
# Positions of a block of tokens, rows x padded length.
BLOCK_POSITIONS = 1024


def map_in_blocks(
    connector: nn.Module,
    features: Features,
    *,
    way: Callable[[Tensor, Tensor | None], Tensor],
    device: str = "cpu",
    rows: int = BLOCK_ROWS,
) -> np.ndarray:
    """Send features through a connector; the same row gives the same bits in any company.

    Args:
        connector: Put in eval mode meanwhile.
        features: [N, D_m], or [N, L, D_m] with a mask.
        way: What of the connector is called with (values, mask) for vectors, [n, D].
        device: Where the connector is.
        rows: Of a block of vectors; a row's bits depend on it.

    Returns:
        What `way` gives, float32 [N, D].

    Raises:
        DataError: A row is not finite, or has no valid position.
    """
    check_features(features)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with evaluating(connector), torch.inference_mode():
        for members, values, mask in iter_blocks(features, rows=rows):
            vectors = way(
                torch.from_numpy(values).to(device),
                None if mask is None else torch.from_numpy(mask).to(device),
            )
            parts.append((members, vectors[: len(members)].cpu().numpy()))
    return in_order(parts, len(features))


def iter_blocks(
    features: Features, *, rows: int = BLOCK_ROWS
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield (row numbers, values float32, mask) in blocks whose shape no other row decides."""
    if features.mask is None:
        for start in range(0, len(features), rows):
            members = np.arange(start, min(start + rows, len(features)))
            values = np.empty((rows, features.width), np.float32)
            values[: len(members)] = features.values[members]
            # Padding that costs least: where it goes through a mixture, the first row does.
            values[len(members) :] = values[0]
            yield members, values, None
        return
    lengths = last_valid(features.mask)
    buckets = np.array([length_bucket(int(length)) for length in lengths], np.int64)
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket)
        size = max(1, BLOCK_POSITIONS // int(bucket))
        for start in range(0, len(members), size):
            yield token_block(features, members[start : start + size], size, int(bucket))


def token_block(
    features: Features, rows: np.ndarray, size: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a block of token features padded to `size` rows and `length` positions."""
    assert features.mask is not None
    held = min(length, features.values.shape[1])
    values = np.zeros((size, length, features.width), np.float32)
    mask = np.zeros((size, length), bool)
    values[: len(rows), :held] = features.values[rows, :held]
    mask[: len(rows), :held] = features.mask[rows, :held]
    values[len(rows) :], mask[len(rows) :] = values[0], mask[0]
    return rows, values, mask


def check_features(features: Features) -> None:
    """Raise unless every row is finite and has a valid position."""
    flat = features.values.reshape(len(features), -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(1))
    if len(bad):
        raise DataError(
            f"features: {len(bad)} of {len(flat)} rows hold NaN or infinite values (first: row "
            f"{bad[0]}), expected finite ones; mend or drop them",
            row=int(bad[0]),
        )
    if features.mask is not None:
        if features.mask.shape != features.values.shape[:2]:
            raise ShapeError(
                f"features {features.values.shape} and mask {features.mask.shape} differ"
            )
        empty = np.flatnonzero(~features.mask.any(1))
        if len(empty):
            raise DataError(
                f"features: row {empty[0]} has no valid position, expected at least one",
                row=int(empty[0]),
            )


def last_valid(mask: np.ndarray) -> np.ndarray:
    """Return each row's length up to its last valid position, int64 [N]."""
    return np.asarray(mask.shape[1] - np.argmax(mask[:, ::-1], axis=1), np.int64)


def in_order(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """Put blocks of (row numbers, vectors) back into the order of rows."""
    if not parts:
        return np.zeros((0, 0), np.float32)
    result = np.empty((count, parts[0][1].shape[1]), np.float32)
    for rows, vectors in parts:
        result[rows] = vectors
    return result


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode for a while, and leave it as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def as_tensors(features: Features, device: str) -> tuple[Tensor, Tensor | None]:
    """Return features as float32 tensors on a device."""
    values = torch.from_numpy(np.ascontiguousarray(features.values)).to(device).float()
    mask = None if features.mask is None else torch.from_numpy(features.mask).to(device)
    return values, mask
