"""How an index is made of a gallery, and opened."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modalign.gallery import Gallery
from modalign.index.contract import Progress, no_progress
from modalign.index.galleries import add_gallery, check_metadata, common_folder
from modalign.index.header import Header
from modalign.index.index import Index
from modalign.index.registry import AUTO, EXACT, engine_class, parse_engine
from modalign.index.rows import Rows
from modalign.index.tuning import check_recall, sampled
from modalign.storage import building, check_free, sweep


def build_index(
    gallery: Gallery,
    folder: Path,
    *,
    engine: str = AUTO,
    settings: Mapping[str, Any] | None = None,
    queries: Mapping[str, np.ndarray] | None = None,
    recall: float = 0.99,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    media_root: Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Index:
    """Make an index of a gallery, whole or not at all.

    Args:
        gallery: Its items, in its order.
        folder: Where to; the folder it lies in must exist.
        engine: "exact", "faiss", "lancedb", "qdrant" or a plugin's name, with the kind behind a
            hyphen where one is meant ("faiss-hnsw"); "auto" chooses by the number of items.
        settings: Further settings of the engine, as {"uri": "s3://bucket/vectors"}.
        queries: Real queries by their modality, float [Q, D], to tune the engine by; without
            them it is tuned on the gallery's own rows, which says little of queries of another
            modality.
        recall: What it is tuned for: the share of the 10 nearest that is found.
        metadata: A JSON object by id; ids without one have none.
        media_root: The folder that the items' files lie in; by default the one that all values
            that are absolute paths have in common.
        seed: Of all that is drawn.
        progress: Told of how far it is.

    Raises:
        UsageError: The folder is there already, the engine is unknown, `recall` is not in (0, 1],
            or metadata is of ids that are not there.
        DataError: The disk is full.
        MissingExtraError: The engine's package is not installed.
    """
    folder = Path(folder)
    check_recall(recall)
    check_free(folder)
    name, chosen = parse_engine(engine, settings or {}, rows=len(gallery))
    if name != EXACT:
        engine_class(name).settle(chosen, rows=len(gallery), width=gallery.width)
    check_metadata(metadata or {}, gallery.ids)
    for given in (queries or {}).values():
        sampled(given, seed=seed)
    header = Header(
        modality=gallery.modality,
        width=gallery.width,
        dtype=gallery.header.dtype,
        embedding=gallery.embedding,
        encoder=gallery.encoder,
        identity=secrets.token_hex(16),
        engine=name,
        settings=chosen,
        media_root=str(media_root) if media_root else common_folder(gallery.values),
    )
    if folder.parent.is_dir():
        sweep(folder.parent, name=folder.name)
    with building(folder) as work:
        header.write(work)
        rows = Rows.create(work, width=header.width, dtype=header.dtype, identity=header.identity)
        add_gallery(rows, gallery, metadata or {}, progress)
        rows.close()
        with Index(work) as index:
            index.rebuild(queries=queries, recall=recall, seed=seed, progress=progress)
    return load_index(folder)


def load_index(folder: Path, *, read_only: bool = False) -> Index:
    """Open an index; ids and vectors stay on the disk until they are asked for.

    Args:
        folder: That `build_index` wrote.
        read_only: Neither change it nor remove what a killed writer left.

    Raises:
        UsageError: The folder is no index.
        DataError: The index is of a newer format.
        CorruptError: A file of the rows is missing or not what was written; flipped bits in the
            vectors are found by `verify` alone. A broken engine is no error: see
            `Index.engine_problem`.
    """
    index = Index(Path(folder), read_only=read_only)
    if not read_only:
        index.mend()
    return index
