"""Small galleries and queries for the tests of indexes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modalign.gallery import Gallery
from modalign.index import Index, build_index

ROWS, WIDTH = 640, 24
WEIGHTS = "w" * 64


def drawn(rows: int = ROWS, *, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Return float16 vectors around twelve centres, of any length."""
    rng = np.random.default_rng([seed, rows, width])
    centres = rng.standard_normal((12, width))
    vectors = centres[rng.integers(12, size=rows)] + 0.5 * rng.standard_normal((rows, width))
    stored: np.ndarray = (3 * vectors).astype(np.float16)
    return stored


def other_queries(count: int, *, width: int = WIDTH, seed: int = 1) -> np.ndarray:
    """Return queries of another modality: near the same centres, and shifted away from them."""
    rng = np.random.default_rng([seed, width])
    centres = np.random.default_rng([0, ROWS, width]).standard_normal((12, width))
    shift = 0.8 * rng.standard_normal(width)
    noise = 0.7 * rng.standard_normal((count, width))
    queries: np.ndarray = (centres[rng.integers(12, size=count)] + shift + noise).astype(np.float32)
    return queries


def gallery_of(vectors: np.ndarray, *, prefix: str = "", modality: str = "image") -> Gallery:
    """Return a gallery in memory whose ids are numbers behind a prefix."""
    return Gallery.from_arrays(
        [f"{prefix}{row}" for row in range(len(vectors))],
        vectors,
        modality=modality,
        embedding=WEIGHTS,
        encoder="encoder",
        values=[f"/media/{prefix}{row}.jpg" for row in range(len(vectors))],
    )


def metadata_of(ids: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return a label, a year and tags by id."""
    return {
        name: {"label": ("dog", "cat", "rain")[n % 3], "year": 1990 + n % 40, "tags": [f"t{n % 5}"]}
        for n, name in enumerate(ids)
    }


def exact_index(folder: Path, vectors: np.ndarray | None = None) -> Index:
    """Return an index with metadata, searched exactly."""
    gallery = gallery_of(drawn() if vectors is None else vectors)
    return build_index(gallery, folder, engine="exact", metadata=metadata_of(gallery.ids))
