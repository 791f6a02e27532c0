"""The fields of a request, checked, as what is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modalign.errors import UsageError, check_known
from modalign.serve.indexes import ServedIndex
from modalign.serve.refusals import NotThereError, TooLargeError
from modalign.serve.settings import LARGEST_K, TEXT_CHARACTERS
from modalign.serve.uploads import Desk, Upload, parsed, read_data_uri

DEFAULT_K = 20
SEARCH_FIELDS = ("like", "weights", "k", "indexes", "modality", "filter")
EMBEDDING_FIELDS = ("model", "input", "encoding_format", "dimensions", "user")
ENCODINGS = ("float", "base64")


@dataclass(frozen=True)
class Served:
    """What there is to ask for.

    Attributes:
        space: Its name.
        reads: What an item of each queryable modality is: "text" or "file".
        indexes: By name.
        leads: Tells whether a way leads from one modality to another.
    """

    space: str
    reads: Mapping[str, str]
    indexes: Mapping[str, ServedIndex]
    leads: Callable[[str, str], bool]

    def index(self, name: str) -> ServedIndex:
        """Return an index.

        Raises:
            NotThereError: There is none of this name.
        """
        if name not in self.indexes:
            raise NotThereError(
                f"index {name!r} is unknown; known: {', '.join(sorted(self.indexes))}"
            )
        return self.indexes[name]


@dataclass(frozen=True, eq=False)
class AskedPart:
    """One thing that is searched by.

    Attributes:
        modality: Of it.
        value: A text, or an uploaded file; None where an item is meant.
        index: Where the item is that more like it is wanted of.
        item_id: Its id.
        weight: Of it among the others.
    """

    modality: str
    value: str | Upload | None = None
    index: ServedIndex | None = None
    item_id: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class AskedSearch:
    """A search.

    Attributes:
        parts: What is searched by, one at least.
        indexes: What is searched, one at least.
        k: Answers.
        where: A filter of metadata; empty for none.
    """

    parts: Sequence[AskedPart]
    indexes: Sequence[ServedIndex]
    k: int
    where: Mapping[str, Any]

    @cached_property
    def liked(self) -> frozenset[tuple[ServedIndex, str]]:
        """The items that more like them is wanted of: they themselves are no answer."""
        return frozenset((p.index, p.item_id) for p in self.parts if p.index is not None)

    @property
    def is_like(self) -> bool:
        """Whether it asks for more like one item and for nothing else."""
        return len(self.parts) == 1 and bool(self.liked)


@dataclass(frozen=True)
class AskedEmbeddings:
    """Items that are to be embedded.

    Attributes:
        model: As it was named.
        modality: Of them.
        values: Texts, or files.
        base64: Whether vectors are wanted as base64 of float32, little-endian.
        width: What the client expects; None for any.
    """

    model: str
    modality: str
    values: Sequence[str | Upload]
    base64: bool
    width: int | None


# Searching --------------------------------------------------------------------------------


def asked_search(fields: Mapping[str, Any], served: Served, desk: Desk) -> AskedSearch:
    """Read a search.

    Raises:
        UsageError: A field is unknown, of another type or out of range, or nothing is asked.
        NotThereError: There is no such index or item.
        TooLargeError: A text or a file is larger than it may be.
    """
    # null is as good as nothing.
    given = {name: value for name, value in fields.items() if value is not None}
    check_fields(given, [*served.reads, *SEARCH_FIELDS])
    names = [name for name in (*served.reads, "like") if name in given]
    if not names:
        raise UsageError(
            f"search: there is nothing to search by, expected one of {', '.join(served.reads)}, "
            "like"
        )
    weights = read_weights(given.get("weights", {}), names)
    parts = [read_part(name, given[name], weights.get(name, 1.0), served, desk) for name in names]
    wanted = read_list(given["indexes"], "indexes") if "indexes" in given else None
    modalities = read_list(given["modality"], "modality") if "modality" in given else None
    return AskedSearch(
        parts,
        chosen_indexes(served, [part.modality for part in parts], wanted, modalities),
        read_whole(given.get("k", DEFAULT_K), "k", lowest=1, highest=LARGEST_K),
        read_object(given.get("filter", {}), "filter"),
    )


def read_part(name: str, value: Any, weight: float, served: Served, desk: Desk) -> AskedPart:
    """Read what is searched by."""
    if name == "like":
        index, item_id = read_like(value, served)
        return AskedPart(index.modality, index=index, item_id=item_id, weight=weight)
    return AskedPart(name, read_value(value, name, served.reads[name], desk), weight=weight)


def read_like(value: Any, served: Served) -> tuple[ServedIndex, str]:
    """Return the index and the id that INDEX/ID names."""
    name, slash, item_id = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not (slash and name and item_id):
        raise UsageError(
            "like: expected INDEX/ID, the name of an index and the id of an item in it"
        )
    return served.index(name), item_id


def read_value(value: Any, what: str, reads: str, desk: Desk) -> str | Upload:
    """Read an item: a text, or a file as it came or as a data URI."""
    if reads == "file":
        if isinstance(value, Upload):
            return value
        if not isinstance(value, str):
            raise UsageError(f"{what}: is no text, expected a file, or a data URI")
        return read_data_uri(value, desk, what=what)
    if not isinstance(value, str):
        raise UsageError(f"{what}: is {named_type(value)}, expected a text")
    if not value.strip():
        raise UsageError(f"{what}: is empty, expected what to go by; write some words")
    if len(value) > TEXT_CHARACTERS:
        raise TooLargeError(
            f"{what}: has {len(value)} characters, expected at most {TEXT_CHARACTERS}; shorten it"
        )
    return value


def read_weights(value: Any, names: Iterable[str]) -> dict[str, float]:
    """Return the weights of the parts that have one."""
    weights = read_object(value, "weights")
    for name, weight in weights.items():
        check_known(name, names, what="weights: part")
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 < weight <= 1e6 or not math.isfinite(weight):
            raise UsageError(
                f"weights: {name} is {shown(weight)}, expected a number above 0 and at most "
                "1000000; leave a part out that is not to count"
            )
    return {name: float(weight) for name, weight in weights.items()}


def chosen_indexes(
    served: Served,
    sources: Sequence[str],
    wanted: Sequence[str] | None,
    modalities: Sequence[str] | None,
) -> list[ServedIndex]:
    """Return the indexes that are to be searched.

    Args:
        served: What there is.
        sources: Modalities that are searched by.
        wanted: Names; None for all that ways lead to.
        modalities: Of the answers; None for any.

    Raises:
        UsageError: A name is unknown, or nothing is left.
    """
    for name in modalities or ():
        known = {index.modality for index in served.indexes.values()}
        check_known(name, known, what="modality: that of an index,")
    for name in wanted or ():
        check_known(name, served.indexes, what="indexes: index")
    found = [served.indexes[name] for name in dict.fromkeys(wanted or served.indexes)]
    if modalities:
        found = [index for index in found if index.modality in modalities]
    if wanted is None:
        found = [
            index
            for index in found
            if all(source == index.modality or served.leads(source, index.modality)
                   for source in sources)
        ]  # fmt: skip
    if not found:
        raise UsageError(
            f"search: there is no index that {' and '.join(sources)} can be searched in"
            f"{' among those asked for' if wanted or modalities else ''}; choose others"
        )
    return found


# Embedding --------------------------------------------------------------------------------


def asked_embeddings(
    fields: Mapping[str, Any], served: Served, desk: Desk, *, most: int
) -> AskedEmbeddings:
    """Read a request shaped as OpenAI's.

    Args:
        fields: Of the body.
        served: What there is.
        desk: Where files go.
        most: Items of one request.

    Raises:
        UsageError: A field is unknown, missing, of another type or out of range.
        NotThereError: There is no such model.
        TooLargeError: A text or a file is larger than it may be.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    check_fields(given, EMBEDDING_FIELDS)
    for name in ("model", "input"):
        if name not in given:
            raise UsageError(f"{name}: is missing, expected it; see /docs")
    modality = read_model(given["model"], served)
    encoding = given.get("encoding_format", "float")
    if encoding not in ENCODINGS:
        raise UsageError(
            f"encoding_format: is {shown(encoding)}, expected {' or '.join(ENCODINGS)}"
        )
    if not isinstance(given.get("user", ""), str):
        raise UsageError(f"user: is {named_type(given['user'])}, expected a text; leave it out")
    width = given.get("dimensions")
    items = given["input"]
    items = items if isinstance(items, list) else [items]
    if not 1 <= len(items) <= most:
        raise UsageError(
            f"input: holds {len(items)} items, expected 1 to {most}; send fewer at once"
        )
    return AskedEmbeddings(
        given["model"],
        modality,
        [read_value(item, "input", served.reads[modality], desk) for item in items],
        encoding == "base64",
        None if width is None else read_whole(width, "dimensions", lowest=1, highest=1 << 20),
    )


def read_model(model: Any, served: Served) -> str:
    """Return the modality that a model's name stands for."""
    if not isinstance(model, str):
        raise UsageError(f"model: is {named_type(model)}, expected MODALITY or SPACE:MODALITY")
    for modality in served.reads:
        if model in (modality, f"{served.space}:{modality}"):
            return modality
    raise NotThereError(f"model {model!r} is unknown; known: {', '.join(served.reads)}")


# Fields -----------------------------------------------------------------------------------


def check_fields(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise a UsageError where a field is none of those known."""
    for name in given:
        check_known(name, known, what="field")


def read_whole(value: Any, what: str, *, lowest: int, highest: int) -> int:
    """Return a whole number, of a form from its digits."""
    number: Any = value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        number = int(value)
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not lowest <= number <= highest:
        raise UsageError(
            f"{what}: is {shown(value)}, expected a whole number from {lowest} to {highest}"
        )
    return number


def read_object(value: Any, what: str) -> dict[str, Any]:
    """Return a JSON object, of a form from its text."""
    found = parsed(value, what) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise UsageError(f"{what}: is {named_type(found)}, expected a JSON object")
    return found


def read_list(value: Any, what: str) -> list[str]:
    """Return names: a list, or a text with commas between them."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{what}: is {named_type(value)}, expected names with commas between them")
    names = [name.strip() for name in names]
    if not names or not all(names):
        raise UsageError(f"{what}: a name is empty, expected one at least; leave the field out")
    return names


def named_type(value: Any) -> str:
    """Return what a value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if isinstance(value, Upload):
        return "a file"
    return "nothing" if value is None else names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a value as it fits into a message."""
    return repr(value)[:60] if isinstance(value, (str, int, float)) else named_type(value)
