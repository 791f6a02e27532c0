"""Indexes: durable vectors with ids, values and metadata, searched by engines of choice.

`build_index` makes one of a gallery, `load_index` opens it; `Index` is searched as a gallery is,
and takes new items.
"""

from modalign.index.header import is_index
from modalign.index.index import FilteredIndex, Index, IndexedItem
from modalign.index.making import build_index, load_index

__all__ = ["FilteredIndex", "Index", "IndexedItem", "build_index", "is_index", "load_index"]
