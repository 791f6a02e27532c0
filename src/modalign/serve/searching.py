"""Searches of many requests: those that ask alike are one search of several queries."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from modalign.errors import UsageError
from modalign.gallery import Hits, Searchable
from modalign.serve.encoding import Encoded
from modalign.serve.indexes import Described, ServedIndex
from modalign.serve.requests import AskedPart, AskedSearch
from modalign.space import Found, QueryPart
from modalign.space.searching import part_query, ranked, search_queries

if TYPE_CHECKING:
    from modalign.space import Space

# A result's index, id and row in it, and where it stands: (index, place among its results).
Place = tuple[ServedIndex, str, int, int, int]


@dataclass(frozen=True, eq=False)
class Search:
    """A search whose parts are encoded.

    Attributes:
        asked: What a request asks for.
        encoded: What became of each part that is no item of an index; None of one that is.
    """

    asked: AskedSearch
    encoded: Sequence[Encoded | None]

    @property
    def k(self) -> int:
        """Results asked for, with those that are left out."""
        return self.asked.k + len(self.asked.liked)

    def hides(self, index: ServedIndex, item_id: str) -> bool:
        """Whether a result is the item that more like it is wanted of."""
        return (index, item_id) in self.asked.liked


class Searcher:
    """Searches a space's indexes, in whatever thread it is called.

    Args:
        space: The indexes' own.
        reads: What an item of each modality is.
    """

    def __init__(self, space: Space, reads: Mapping[str, str]) -> None:
        self._space = space
        self._reads = reads
        self._asks_as_stored = all(
            space.family.asks_as_stored(*direction) for direction in space.directions()
        )

    def alike(self, search: Search) -> Hashable:
        """Return what searches have in common that can be one."""
        asked = search.asked
        if len(asked.parts) > 1 or asked.where:
            return search
        return (asked.parts[0].modality, tuple(index.name for index in asked.indexes), search.k)

    def together(self, searches: Sequence[Search]) -> list[dict[str, Any] | Exception]:
        """Search by several queries that ask alike; an error is of all of them."""
        parts = self._parts(searches)
        indexes, catalogues = filtered(searches[0].asked)
        if len(searches) == 1:
            found = [self._space.search_parts(catalogues, parts[0], k=searches[0].k)]
        else:
            found = self._found(catalogues, [each[0] for each in parts], k=searches[0].k)
        placed = [
            kept_places(search, results, indexes)
            for search, results in zip(searches, found, strict=True)
        ]
        described = {
            index.name: index.catalogue.described(
                [row for places in placed for at, _, row, _, _ in places if at is index]
            )
            for index in indexes
        }
        return [
            {
                "hits": self._hits(results, places, described),
                "from": [part.modality for part in search.asked.parts],
                "to": list(dict.fromkeys(index.modality for index in indexes)),
                "ranked_by": results.ranked_by,
            }
            for search, results, places in zip(searches, found, placed, strict=True)
        ]

    def _parts(self, searches: Sequence[Search]) -> list[list[QueryPart]]:
        """Return what a space searches by, of each search."""
        stored = like_vectors(searches)
        return [
            [
                QueryPart(
                    asked.modality,
                    None if encoded is None or self._asks_as_stored else encoded.features,
                    stored=stored[asked] if encoded is None else self._vector(encoded),
                    weight=asked.weight,
                )
                for asked, encoded in zip(search.asked.parts, search.encoded, strict=True)
            ]
            for search in searches
        ]

    def _vector(self, encoded: Encoded) -> np.ndarray | None:
        """Return what is stored of an item, where a space asks every gallery by that."""
        return encoded.vector if self._asks_as_stored else None

    def _found(
        self, catalogues: Sequence[Searchable], parts: Sequence[QueryPart], *, k: int
    ) -> list[Found]:
        """Put several queries of one part each to the same indexes."""
        hits = []
        for catalogue in catalogues:
            queries = [part_query(self._space, part, catalogue.modality) for part in parts]
            source, rows = parts[0].modality, np.concatenate(queries)
            hits.append(search_queries(self._space, catalogue, rows, source=source, k=k))
        each = [[hits_of(results, query) for results in hits] for query in range(len(parts))]
        return [Found(results, *ranked(results, k)) for results in each]

    def _hits(
        self,
        found: Found,
        places: Sequence[Place],
        described: Mapping[str, Mapping[int, Described]],
    ) -> list[dict[str, Any]]:
        similarity = [hits.similarity[0].tolist() for hits in found.hits]
        return [
            {
                **shown(index, item_id, *described[index.name][row], self._reads[index.modality]),
                "similarity": round(similarity[number][place], 6),
                "probability": probability(found, number, place),
            }
            for index, item_id, row, number, place in places
            if row in described[index.name]  # else it was deleted a moment ago
        ]


def like_vectors(searches: Sequence[Search]) -> dict[AskedPart, np.ndarray]:
    """Read the vectors of the items that more like them is wanted of, an index at a time."""
    wanted: dict[ServedIndex, list[AskedPart]] = {}
    for search in searches:
        for part in search.asked.parts:
            if part.index is not None:
                wanted.setdefault(part.index, []).append(part)
    return {
        part: vector
        for index, parts in wanted.items()
        for part, vector in zip(parts, index.vectors([part.item_id for part in parts]), strict=True)
    }


def filtered(asked: AskedSearch) -> tuple[list[ServedIndex], list[Searchable]]:
    """Return what is searched: indexes, less those that know nothing of the filter.

    Returns:
        The indexes, and of each all of it or what the filter leaves.

    Raises:
        UsageError: No index can be filtered so.
    """
    if not asked.where:
        return list(asked.indexes), [index.catalogue for index in asked.indexes]
    found: dict[ServedIndex, Searchable] = {}
    refused: list[UsageError] = []
    for index in asked.indexes:
        try:
            found[index] = index.catalogue.filtered(asked.where)
        except UsageError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return list(found), list(found.values())


def hits_of(hits: Hits, query: int) -> Hits:
    """Return the results of one of several queries."""
    one = slice(query, query + 1)
    chances = None if hits.probability is None else hits.probability[one]
    return Hits(hits.ids[one], hits.rows[one], hits.similarity[one], chances)


def kept_places(search: Search, found: Found, indexes: Sequence[ServedIndex]) -> list[Place]:
    """Return the results that are shown, the best first."""
    rows = [hits.rows[0].tolist() for hits in found.hits]
    places = [
        (indexes[number], found.hits[number].ids[0][place], rows[number][place], number, place)
        for number, place in found.order
    ]
    return [place for place in places if not search.hides(*place[:2])][: search.asked.k]


def probability(found: Found, number: int, place: int) -> float | None:
    """Return how probable a result is, None where that is not known."""
    values = found.hits[number].probability
    return None if values is None else round(float(values[0, place]), 4)


def shown(
    index: ServedIndex, item_id: str, value: str | None, metadata: dict[str, Any], reads: str
) -> dict[str, Any]:
    """Return what is said of an item: of a file its name alone, never where it lies."""
    is_file = reads == "file" and value is not None
    has_media = is_file and index.root is not None
    address = f"{index.address}/{in_path(item_id)}" if has_media else ""
    has_picture = has_media and index.modality != "audio"
    return {
        "index": index.name,
        "id": item_id,
        "modality": index.modality,
        "value": value.rpartition("/")[2] if is_file and value is not None else value,
        "metadata": metadata,
        "media": f"/v1/media/{address}" if has_media else None,
        "thumbnail": f"/v1/thumbnails/{address}" if has_picture else None,
    }


def in_path(name: str) -> str:
    """Return a name as a path holds it; most need nothing."""
    return name if name.isascii() and name.isalnum() else quote(name, safe="")
