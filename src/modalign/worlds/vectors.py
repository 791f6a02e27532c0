"""Worlds of plain vectors: several modalities as noisy, nonlinear views of one hidden state."""

from __future__ import annotations

import zlib

import numpy as np

from modalign.errors import UsageError


def draw_vectors(
    count: int,
    *,
    widths: dict[str, int],
    latent: int = 16,
    noise: float = 0.1,
    seed: int,
) -> dict[str, np.ndarray]:
    """Draw rows that belong together: row i of every modality shows the same hidden state.

    A view is a random network of one hidden layer, tanh(z A / sqrt(latent)) B / sqrt(2 latent),
    plus noise. It depends on the seed and on the modality's name alone, so that a further modality
    changes no other. Draw once and slice, to have training and test rows of the same views.

    Args:
        count: Rows, 0 or more.
        widths: The width of each modality's vectors, by name.
        latent: Width of the hidden state, standard normal.
        noise: Standard deviation of the noise added to each number; the view's own is near 0.6.
        seed: Equal seeds draw equal worlds.

    Returns:
        float32 [count, width] by modality.

    Raises:
        UsageError: `count` or `noise` is negative, or a width is not positive.
    """
    _check_sizes(count, widths, latent=latent, noise=noise)
    states = np.random.default_rng([seed, 0]).standard_normal((count, latent))
    return {
        name: _view(states, width, noise=noise, key=(seed, 1, zlib.crc32(name.encode())))
        for name, width in widths.items()
    }


def _view(states: np.ndarray, width: int, *, noise: float, key: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(key)
    latent = states.shape[1]
    hidden = np.tanh(states @ rng.standard_normal((latent, 2 * latent)) / np.sqrt(latent))
    view = hidden @ rng.standard_normal((2 * latent, width)) / np.sqrt(2 * latent)
    view += noise * rng.standard_normal(view.shape)
    rows: np.ndarray = view.astype(np.float32)
    return rows


def _check_sizes(count: int, widths: dict[str, int], *, latent: int, noise: float) -> None:
    if count < 0 or noise < 0:
        raise UsageError(
            f"draw_vectors: count is {count} and noise {noise}, expected 0 or more of both"
        )
    for name, width in {**widths, "latent": latent}.items():
        if width < 1:
            raise UsageError(f"draw_vectors: the width of {name!r} is {width}, expected at least 1")
