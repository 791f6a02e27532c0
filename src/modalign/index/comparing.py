"""What each kind of engine costs and keeps, measured on one gallery."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import UsageError
from modalign.gallery import Gallery
from modalign.index.contract import Progress, no_progress
from modalign.index.index import Index
from modalign.index.making import build_index
from modalign.index.ranking import unit_queries
from modalign.index.tuning import FEWEST, OWN_ROWS, SAMPLE, kept_shares, sampled

KINDS = ("flat", "ivf", "hnsw", "int8", "binary", "truncated")
TIMED = 100


@dataclass(frozen=True)
class KindFigures:
    """One kind of engine on one source of queries.

    Attributes:
        kind: Of the engine, "exact" for none.
        source: The queries' modality; "" for the gallery's own vectors.
        bytes: Of what the engine keeps.
        build_seconds: It took to build.
        recall_at_10: Share of the 10 nearest that is found, as it is tuned.
        recall_at_1: Share of the nearest.
        least_recall_at_10: The same at the least effort there is.
        milliseconds: Median of single queries, as it is tuned.
        effort: That it is tuned to; None where every row is looked at.
        reached: Whether it reaches the recall that was wanted.
    """

    kind: str
    source: str
    bytes: int
    build_seconds: float
    recall_at_10: float
    recall_at_1: float
    least_recall_at_10: float
    milliseconds: float
    effort: dict[str, int] | None
    reached: bool

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)


def compare_kinds(
    gallery: Gallery,
    folder: Path,
    *,
    queries: Mapping[str, np.ndarray] | None = None,
    kinds: Sequence[str] = KINDS,
    recall: float = 0.99,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[KindFigures]:
    """Build each kind of FAISS index in turn, tune it on half of the queries, measure the rest.

    Args:
        gallery: What is searched.
        folder: Where to build; it must not exist, and is left with the last kind in it.
        queries: Real ones by modality; by default some of the gallery's own vectors.
        kinds: Of FAISS.
        recall: Wanted.
        seed: Of all that is drawn.
        progress: Told of how far it is.

    Raises:
        UsageError: A modality has fewer than 40 queries, or the gallery is so small itself.
        MissingExtraError: FAISS is not installed.
    """
    with build_index(gallery, folder, engine="exact", seed=seed, progress=progress) as index:
        chosen, held_out = _halves(gallery, queries, seed=seed)
        figures = [_measured(index, "exact", source, rows) for source, rows in held_out.items()]
        for number, kind in enumerate(kinds):
            progress("kinds", number, len(kinds), kind)
            index.rebuild(
                f"faiss-{kind}", queries=chosen, recall=recall, seed=seed, progress=progress
            )
            figures += [_measured(index, kind, source, rows) for source, rows in held_out.items()]
        progress("kinds", len(kinds), len(kinds), "")
    return figures


def format_figures(figures: Sequence[KindFigures]) -> str:
    """Return figures as a table."""
    rows = [
        ("kind", "queries", "bytes", "build s", "recall@10", "recall@1", "least", "ms", "effort")
    ]
    rows += [
        (
            each.kind,
            each.source or "own rows",
            f"{each.bytes:,}",
            f"{each.build_seconds:.1f}",
            f"{each.recall_at_10:.4f}",
            f"{each.recall_at_1:.4f}",
            f"{each.least_recall_at_10:.4f}",
            f"{each.milliseconds:.2f}",
            ", ".join(f"{name} {value}" for name, value in (each.effort or {}).items())
            or ("every row" if each.reached else "every row: the kind does not reach it"),
        )
        for each in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _halves(
    gallery: Gallery, queries: Mapping[str, np.ndarray] | None, *, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the queries to tune by, and those to measure by."""
    if not queries:
        drawn = np.random.default_rng(seed).permutation(len(gallery))[: 2 * SAMPLE]
        queries = {OWN_ROWS: gallery.vectors[np.sort(drawn)]}
    chosen, held_out = {}, {}
    for source, rows in queries.items():
        if len(rows) < 2 * FEWEST:
            raise UsageError(
                f"report: {len(rows)} {source or 'own'} queries, expected {2 * FEWEST} at least: "
                "half of them to tune by, half to measure; give more",
                queries=len(rows),
            )
        drawn_rows = np.asarray(rows)[np.random.default_rng(seed).permutation(len(rows))]
        half = len(rows) // 2
        chosen[source] = drawn_rows[:half]
        held_out[source] = sampled(drawn_rows[half:], seed=seed)
    return chosen, held_out


def _measured(index: Index, kind: str, source: str, queries: np.ndarray) -> KindFigures:
    unit = unit_queries(queries, index.width, where=index.where)
    state = index.state()
    truth = state.exact(unit, 10)
    nearest = [(rows[:1], similarity[:1]) for rows, similarity in truth]
    found = state.find(unit, 10, source=source)
    first = [(rows[:1], similarity[:1]) for rows, similarity in found]
    least = found if state.artefact is None else state.find_by_engine(unit, 10, 0)
    figures = index.figures()
    calibration = state.calibrations.get(source)
    return KindFigures(
        kind=kind,
        source=source,
        bytes=figures["engine_disk_bytes"] or figures["vector_bytes"],
        build_seconds=figures["build_seconds"],
        recall_at_10=round(float(kept_shares(found, truth).mean()), 6),
        recall_at_1=round(float(kept_shares(first, nearest).mean()), 6),
        least_recall_at_10=round(float(kept_shares(least, truth).mean()), 6),
        milliseconds=_median_milliseconds(index, queries[:TIMED], source),
        effort=None if calibration is None else calibration.effort,
        reached=calibration is None or calibration.reached,
    )


def _median_milliseconds(index: Index, queries: np.ndarray, source: str) -> float:
    index.search(queries[:1], 10, source=source)
    seconds = []
    for query in queries:
        begin = time.perf_counter()
        index.search(query[None], 10, source=source)
        seconds.append(time.perf_counter() - begin)
    return round(1e3 * float(np.median(seconds)), 3)
