"""Queries of one part or of several, as a picture and words, put to one gallery or to several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from modalign.encoders import Features
from modalign.errors import ShapeError, UsageError
from modalign.gallery import Hits, Searchable
from modalign.space.families import Family, unit_rows
from modalign.space.scored import RERANKED, scored_hits
from modalign.space.stages import Stage

RankedBy = Literal["similarity", "probability", "rank"]


class Asked(Protocol):
    """What a search needs of a space."""

    @property
    def family(self) -> Family:
        """The connectors."""

    def stage_of(self, modality: str) -> Stage:
        """Return the stage that brought a modality; raise where there is none."""

    def gallery_width(self, modality: str) -> int:
        """Return the width of what is stored of a modality."""

    def check_gallery(self, gallery: Searchable) -> None:
        """Raise unless the gallery is of this space."""

    def query(self, features: Features, *, source: str, target: str) -> np.ndarray:
        """Return what is asked of a target's gallery."""


@dataclass(frozen=True, eq=False)
class QueryPart:
    """One item that is searched by, alone or with others.

    Attributes:
        modality: Of the item.
        features: Of the modality's encoder, one row; or None where `stored` is given.
        stored: A vector as a gallery of the modality holds it, float [D]: more like this one.
        weight: Of this part among the others, > 0.

    Raises:
        UsageError: Both or neither are given, or the weight is not above 0 and finite.
        ShapeError: There is not exactly one row.
    """

    modality: str
    features: Features | None = None
    stored: np.ndarray | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check what is given."""
        if (self.features is None) == (self.stored is None):
            raise UsageError(
                f"query part of {self.modality}: expected features, or a stored vector, and one "
                "of them alone"
            )
        rows = 1 if self.features is None else len(self.features)
        if rows != 1 or (self.stored is not None and self.stored.ndim != 1):
            raise ShapeError(f"query part of {self.modality}: expected one row, or one vector")
        if not (self.weight > 0 and np.isfinite(self.weight)):
            raise UsageError(
                f"query part of {self.modality}: weight is {self.weight}, expected a number above "
                "0; leave the part out",
                weight=self.weight,
            )


@dataclass(frozen=True)
class Found:
    """What one query found in some galleries.

    Attributes:
        hits: Each gallery's own results, of one query.
        order: The results of all, the best first, as (gallery, place among its own results).
        ranked_by: "probability" where all have one, and "similarity" where one gallery has none;
            "rank" where several galleries have none in common: the first of each, then the second
            of each.
    """

    hits: list[Hits]
    order: list[tuple[int, int]]
    ranked_by: RankedBy


def search_parts(
    space: Asked, galleries: Sequence[Searchable], parts: Sequence[QueryPart], *, k: int
) -> Found:
    """Search; see `Space.search_parts`."""
    if not parts or not galleries:
        raise UsageError("search: expected a query and a gallery at least; give both")
    for gallery in galleries:
        space.check_gallery(gallery)
    hits = [search_one(space, gallery, parts, k=k) for gallery in galleries]
    order, ranked_by = ranked(hits, k)
    return Found(hits, order, ranked_by)


def search_one(space: Asked, gallery: Searchable, parts: Sequence[QueryPart], *, k: int) -> Hits:
    """Search one gallery by all parts together."""
    vectors = [part_query(space, part, gallery.modality) for part in parts]
    if len(parts) == 1:
        return search_queries(space, gallery, vectors[0], source=parts[0].modality, k=k)
    weights = np.array([part.weight for part in parts], np.float32)
    return gallery.search(space.family.composed(vectors, weights).astype(np.float32), k)


def part_query(space: Asked, part: QueryPart, target: str) -> np.ndarray:
    """Return what a part asks of a target's gallery, float32 [1, D of the target]."""
    if part.features is not None:
        return space.query(part.features, source=part.modality, target=target)
    assert part.stored is not None  # as the part was checked
    space.stage_of(part.modality)
    space.stage_of(target)
    stored = np.asarray(part.stored, np.float32)[None]
    width = space.gallery_width(part.modality)
    if stored.shape[1] != width:
        raise ShapeError(
            f"query part of {part.modality}: a vector of width {stored.shape[1]}, expected "
            f"{width}, as this space stores {part.modality}"
        )
    if part.modality == target or space.family.asks_as_stored(part.modality, target):
        return unit_rows(stored)
    # Of directed maps the encoder's own vector is stored: it goes through the map.
    return space.query(Features(stored), source=part.modality, target=target)


def search_queries(
    space: Asked, gallery: Searchable, queries: np.ndarray, *, source: str, k: int
) -> Hits:
    """Search by the vectors of one modality's items; correct and calibrate what is found."""
    scoring = space.family.scoring.get((source, gallery.modality))
    if scoring is None:
        return gallery.search(queries, k, source=source)
    asked = max(k, RERANKED) if scoring.corrects else k
    found = gallery.search(queries, asked, source=source)
    return scored_hits(found, queries, gallery, scoring, k)


def ranked(found: Sequence[Hits], k: int) -> tuple[list[tuple[int, int]], RankedBy]:
    """Order the results of one query in several galleries.

    Args:
        found: Of each gallery.
        k: Results kept, at most.

    Returns:
        (gallery, place) each, and what they are ordered by; ties in the order of the galleries.
    """
    places = [
        (number, place)
        for number, hits in enumerate(found)
        for place, hit_id in enumerate(hits.ids[0])
        if hit_id  # an approximate index may find fewer than it was asked for
    ]
    probabilities = [hits.probability for hits in found]
    if len(found) > 1 and any(probability is None for probability in probabilities):
        # Similarities of several directions are on scales of their own.
        return sorted(places, key=lambda hit: (hit[1], hit[0]))[:k], "rank"
    if len(found) > 1:
        likely = [np.zeros((1, 0)) if each is None else each for each in probabilities]
        return sorted(places, key=lambda hit: -likely[hit[0]][0, hit[1]])[:k], "probability"
    return places[:k], "similarity" if probabilities[0] is None else "probability"
