"""The items of a gallery as rows of an index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modalign.errors import UsageError
from modalign.gallery import Gallery
from modalign.index.contract import Progress
from modalign.index.rows import SEGMENT_ROWS, Rows, named_ids


def add_gallery(
    rows: Rows,
    gallery: Gallery,
    metadata: Mapping[str, Mapping[str, Any]],
    progress: Progress,
    *,
    replace: bool = False,
) -> None:
    """Add all items of a gallery, a segment at a time; each is durable when it is told of."""
    values = gallery.values
    for start in range(0, len(gallery), SEGMENT_ROWS):
        part = slice(start, min(start + SEGMENT_ROWS, len(gallery)))
        ids = list(gallery.ids[part])
        rows.add(
            ids,
            gallery.vectors[part],
            values=None if values is None else values[part],
            metadata=[metadata.get(name, {}) for name in ids] if metadata else None,
            replace=replace,
        )
        progress("rows", part.stop, len(gallery), "")


def check_metadata(metadata: Mapping[str, Any], ids: Iterable[str]) -> None:
    """Raise a UsageError that names ids which have metadata and are not there."""
    unknown = sorted(set(metadata) - set(ids)) if metadata else []
    if unknown:
        raise UsageError(
            f"metadata: {named_ids(unknown)} not in the gallery, expected its ids; correct or "
            "leave them out",
            ids=unknown,
        )


def common_folder(values: Sequence[str] | None) -> str | None:
    """Return the folder that all values lie in, where all are absolute paths; else None."""
    if not values or not all(os.path.isabs(value) for value in values):
        return None
    return os.path.commonpath([os.path.dirname(value) for value in values])
