"""Which kinds of stores there are, and how a spec becomes a store."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from modalign.errors import UsageError, check_known
from modalign.stores.contract import Store


@dataclass(frozen=True)
class Kind:
    """One kind of store.

    Attributes:
        target: Where its `open` lives, as module:attribute; imported when asked for.
        form: How its spec reads, for messages.
        options: It knows.
        collections: Whether it holds several, of which '#' names one.
    """

    target: str
    form: str
    options: tuple[str, ...]
    collections: bool = True


KINDS = {
    "lancedb": Kind(
        "modalign.stores.lancedb_table:open_table",
        "lancedb:FOLDER#TABLE",
        ("vector", "id", "value", "metric"),
    ),
    "qdrant": Kind(
        "modalign.stores.qdrant_collection:open_collection",
        "qdrant:FOLDER#COLLECTION or qdrant:http://HOST:PORT#COLLECTION",
        ("vector", "id", "value", "metric"),
    ),
    "chroma": Kind(
        "modalign.stores.chroma_collection:open_collection",
        "chroma:FOLDER#COLLECTION",
        ("value", "metric"),
    ),
    "faiss": Kind(
        "modalign.stores.faiss_file:open_index",
        "faiss:FILE.index",
        ("ids", "metric"),
        collections=False,
    ),
    "parquet": Kind(
        "modalign.stores.parquet_file:open_parquet",
        "parquet:FILE.parquet",
        ("vector", "id", "value", "metric"),
        collections=False,
    ),
    "npy": Kind(
        "modalign.stores.array_file:open_npy",
        "npy:FILE.npy",
        ("ids", "metric"),
        collections=False,
    ),
    "npz": Kind(
        "modalign.stores.array_file:open_npz",
        "npz:FILE.npz",
        ("vector", "id", "ids", "value", "metric"),
        collections=False,
    ),
}


@dataclass(frozen=True)
class StoreSpec:
    """KIND:PATH[#COLLECTION][?option=value&...], taken apart.

    Attributes:
        text: As it was given.
        kind: One of KINDS.
        path: A file, a folder or an address.
        collection: After '#'; None where there is none.
        options: After '?'.
    """

    text: str
    kind: str
    path: str
    collection: str | None
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> StoreSpec:
        """Take a spec apart.

        Raises:
            UsageError: The kind or an option is unknown; the path is missing; an option has no
                value or is given twice; a file is followed by '#'.
        """
        head, _, query = text.partition("?")
        kind, colon, target = head.partition(":")
        if not colon:
            raise UsageError(
                f"store {text!r}: expected KIND:PATH, as in {KINDS['lancedb'].form}; known kinds: "
                f"{', '.join(sorted(KINDS))}",
                spec=text,
            )
        check_known(kind, KINDS, what=f"store {text}: kind")
        # The last '#', for a folder may have one in its name.
        several = KINDS[kind].collections and "#" in target
        path, _, collection = target.rpartition("#") if several else (target, "", "")
        if not path:
            raise UsageError(f"store {text!r}: expected {KINDS[kind].form}", spec=text)
        return cls(text, kind, path, collection or None, _options(text, kind, query))

    @property
    def where(self) -> str:
        """Path and collection, as messages name them."""
        return f"{self.path}#{self.collection}" if self.collection else self.path


def open_store(spec: str) -> Store:
    """Open a store that somebody else made, to read and search it.

    Args:
        spec: KIND:PATH[#COLLECTION][?option=value&...], as in
            "lancedb:vectors#captions?vector=embedding&id=name". `vector` and `id` name columns,
            fields or arrays, `value` that of the text or path beside them, `ids` a file of ids,
            one a line; `metric` (cosine, l2, dot) is what the store is expected to search by,
            and chosen by it where the store itself has none.

    Raises:
        UsageError: The spec is none, or the table or collection is not there.
        DataError: The path is not there, its content is broken, or its vectors do not fit
            together.
        MismatchError: The store's metric is unknown, or not the one asked for.
        MissingExtraError: The store's package is not installed.
    """
    parsed = StoreSpec.parse(spec)
    module, _, attribute = KINDS[parsed.kind].target.partition(":")
    opener: Callable[[StoreSpec], Store] = getattr(importlib.import_module(module), attribute)
    return opener(parsed)


def _options(text: str, kind: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        option, equals, value = (unquote(side) for side in part.partition("="))
        if not equals or not value:
            raise UsageError(
                f"store {text!r}: option {part!r} is not name=value; options after '?' are joined "
                "by '&'",
                spec=text,
            )
        check_known(option, KINDS[kind].options, what=f"store {text}: option")
        if option in options:
            raise UsageError(f"store {text!r}: option {option!r} is given twice", spec=text)
        options[option] = value
    if "metric" in options:
        check_known(options["metric"], ("cosine", "l2", "dot"), what=f"store {text}: metric")
    return options
