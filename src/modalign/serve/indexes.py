"""What is searched: an index, or a gallery that answers the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonpath, dirname, isabs
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from modalign.errors import UsageError
from modalign.gallery import HEADER_FILE, Gallery, Hits, Searchable
from modalign.index import Index, IndexedItem, is_index
from modalign.serve.refusals import NotThereError

# The value of an item, None where it is not stored, and its metadata.
Described = tuple[str | None, dict[str, Any]]
# They part the names of a request, and an index's name from an id.
RESERVED = ("/", ",")


class Catalogue(Searchable, Protocol):
    """A searchable that knows its items one by one."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def media_root(self) -> Path | None:
        """The folder that the items' files lie in; None where it is not known."""

    @property
    def engine_name(self) -> str:
        """What searches it."""

    def found(self, id: str) -> IndexedItem | None:
        """Return an item; None where there is none of this id."""

    def described(self, rows: Sequence[int]) -> dict[int, Described]:
        """Return the value and the metadata of those rows that are there."""

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return their vectors, float32 [n, D]."""

    def filtered(self, where: Mapping[str, Any]) -> Searchable:
        """Return what holds only the items whose metadata fit."""

    def metadata_fields(self) -> dict[str, list[Any] | None]:
        """Return the fields items have, and the values of each where there are few."""


class IndexCatalogue(Index):
    """An index that says of many rows at once what they are."""

    def described(self, rows: Sequence[int]) -> dict[int, Described]:
        """Return the value and the metadata of those rows that are there."""
        return self.rows.items_at(rows)


class GalleryCatalogue:
    """A gallery with its items' ids looked up; it has no metadata."""

    engine_name = "exact"

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._rows = {name: row for row, name in enumerate(gallery.ids)}

    def __len__(self) -> int:
        return len(self.gallery)

    @property
    def modality(self) -> str:
        """Of the items."""
        return self.gallery.modality

    @property
    def width(self) -> int:
        """D."""
        return self.gallery.width

    @property
    def embedding(self) -> str:
        """Hash of what the vectors passed through."""
        return self.gallery.embedding

    @property
    def where(self) -> str:
        """How messages name it."""
        return self.gallery.where

    @cached_property
    def media_root(self) -> Path | None:
        """The folder that all of the items' paths lie in."""
        values = self.gallery.values
        if not values or not all(isabs(value) for value in values):
            return None
        return Path(commonpath([dirname(value) for value in values]))

    def search(self, queries: np.ndarray, k: int, *, source: str | None = None) -> Hits:
        """Search, exactly."""
        return self.gallery.search(queries, k, source=source)

    def result_vectors(self, hits: Hits, query: int) -> np.ndarray:
        """Return the vectors of what was found for a query."""
        return self.gallery.result_vectors(hits, query)

    def shown(self, hits: Hits) -> list[list[str | None]]:
        """Return what each hit was."""
        return self.gallery.shown(hits)

    def found(self, id: str) -> IndexedItem | None:
        """Return an item; None where there is none of this id."""
        row = self._rows.get(id)
        return None if row is None else IndexedItem(id, row, *self.described([row])[row])

    def described(self, rows: Sequence[int]) -> dict[int, Described]:
        """Return the value and the metadata of some rows."""
        values = self.gallery.values
        return {row: (None if values is None else values[row], {}) for row in rows}

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return their vectors, float32 [n, D]."""
        return np.asarray(self.gallery.vectors[self._rows_of(ids)], np.float32)

    def _rows_of(self, ids: Sequence[str]) -> list[int]:
        for name in ids:
            if name not in self._rows:
                raise UsageError(
                    f"{self.where}: {name!r} is not there, expected an id of it", id=name
                )
        return [self._rows[name] for name in ids]

    def filtered(self, where: Mapping[str, Any]) -> Searchable:
        """Refuse: there is nothing to go by."""
        raise UsageError(
            f"{self.where}: its items have no metadata to filter by; make an index of it with "
            "`modalign index`, or leave the filter out"
        )

    def metadata_fields(self) -> dict[str, list[Any] | None]:
        """Return none."""
        return {}


@dataclass(frozen=True, eq=False)
class ServedIndex:
    """An index under the name that clients know it by.

    Attributes:
        name: Of letters that a path and a list can hold.
        folder: Where it lies.
        catalogue: What is searched.
        root: The folder its media must lie in; None where none are served.
    """

    name: str
    folder: Path
    catalogue: Catalogue
    root: Path | None

    @cached_property
    def modality(self) -> str:
        """Of the items."""
        return self.catalogue.modality

    @cached_property
    def address(self) -> str:
        """The name as a path holds it."""
        return quote(self.name, safe="")

    def item(self, item_id: str) -> IndexedItem:
        """Return an item.

        Raises:
            NotThereError: There is none of this id.
        """
        found = self.catalogue.found(item_id)
        if found is None:
            raise NotThereError(f"index {self.name}: has no item {item_id!r}")
        return found

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Return items' vectors as they are stored, float32 [n, D].

        Raises:
            NotThereError: There is none of one of these ids.
        """
        try:
            return self.catalogue.vectors_of(ids)
        except UsageError as error:
            raise NotThereError(f"index {self.name}: has no item {ids[0]!r}") from error


def each_of(text: str) -> list[str]:
    """Return what `--index` names: a folder that holds indexes or galleries stands for all."""
    folder = Path(text)
    if not folder.is_dir() or is_searchable(folder):
        return [text]
    # What begins with a dot is not finished.
    within = [each for each in sorted(folder.iterdir()) if each.name[0] != "."]
    return [str(each) for each in within if is_searchable(each)] or [text]


def is_searchable(folder: Path) -> bool:
    """Return whether a folder is an index or a gallery."""
    return is_index(folder) or (folder / HEADER_FILE).is_file()


def open_served(text: str, *, media_root: Path | None = None) -> ServedIndex:
    """Open an index or a gallery named as the command line names it.

    Args:
        text: A folder, or NAME=FOLDER; a folder's own name is the name where none is given.
        media_root: Where its media may lie, instead of what it says itself.

    Raises:
        UsageError: There is neither an index nor a gallery, or the name cannot be one.
    """
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = Path(text).resolve().name, text
    if not name or any(sign in name for sign in RESERVED):
        raise UsageError(
            f"--index {text}: {name!r} cannot be a name, expected one without "
            f"{' and '.join(RESERVED)}; give NAME=INDEX",
            name=name,
        )
    folder = Path(path)
    catalogue = opened(folder)
    root = media_root or catalogue.media_root
    root = None if root is None else root.resolve()
    # All of the disk is no folder of media; who means it says --media-root.
    if media_root is None and root == Path("/"):
        root = None
    return ServedIndex(name, folder, catalogue, root)


def opened(folder: Path) -> Catalogue:
    """Open a folder: an index, or a gallery.

    Raises:
        UsageError: It is neither.
    """
    if is_index(folder):
        return IndexCatalogue(folder, read_only=True)
    if (folder / "space.json").exists():
        raise UsageError(
            f"--index {folder}: is a space, expected an index or a gallery; check the path"
        )
    return GalleryCatalogue(Gallery.load(folder))
