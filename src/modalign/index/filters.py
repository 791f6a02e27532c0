"""Metadata of items, and the filters that choose items by it.

Metadata is a JSON object of text, numbers, booleans or lists of these; null is as good as not
there. A filter is a JSON object too, and all of it must hold:

    {"label": "dog"}                      the field has this value, or one of its list is it
    {"label": ["dog", "cat"]}             any of these
    {"label": null}                       the field is not there
    {"year": {"gte": 2000, "lt": 2010}}   gt, gte, lt, lte among numbers or among texts
    {"label": {"ne": "dog"}}              no such value; items without the field fit too

A true is no 1: booleans, numbers and text are of three kinds, and only like is compared with like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from modalign.errors import UsageError

BOOLEAN, NUMBER, TEXT = 1, 2, 3
Operator = Literal["in", "ne", "gt", "gte", "lt", "lte", "absent"]
COMPARED: dict[str, str] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS = (*COMPARED, "ne")
# What one statement of SQLite takes.
MOST_VALUES, MOST_CONDITIONS = 10_000, 100
# Beyond this, SQLite holds no whole number.
LARGEST_INTEGER = 2**63 - 1


class Fact(NamedTuple):
    """A value of a field as the database compares it: its kind first."""

    kind: int
    value: int | float | bytes


@dataclass(frozen=True)
class Condition:
    """One thing that must hold of a field.

    Attributes:
        field: Its name.
        operator: "in" for any of `facts`; "absent" has none, all others one.
        facts: What is compared with.
    """

    field: str
    operator: Operator
    facts: tuple[Fact, ...] = ()


def packed(text: str) -> bytes:
    """Return text as it is stored; names of files may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def unpacked(data: bytes) -> str:
    """Return what `packed` was given."""
    return data.decode("utf-8", "surrogatepass")


def fact_of(value: Any, *, where: str) -> Fact:
    """Return a value as it is compared.

    Raises:
        UsageError: It is no text, boolean or finite number that 64 bits hold.
    """
    if isinstance(value, bool):
        return Fact(BOOLEAN, int(value))
    if isinstance(value, str):
        return Fact(TEXT, packed(value))
    if isinstance(value, int) and abs(value) <= LARGEST_INTEGER:
        return Fact(NUMBER, value)
    if isinstance(value, float) and math.isfinite(value):
        return Fact(NUMBER, value)
    raise UsageError(
        f"{where}: {value!r} is {type(value).__name__}, expected text, true, false, a finite "
        "number of 64 bits, or a list of these",
        value=value,
    )


def value_of(fact: Fact) -> bool | int | float | str:
    """Return what `fact_of` was given."""
    if fact.kind == BOOLEAN:
        return bool(fact.value)
    return unpacked(fact.value) if isinstance(fact.value, bytes) else fact.value


def facts_of(metadata: Mapping[str, Any], *, where: str) -> list[tuple[str, Fact]]:
    """Return (field, value) of an item's metadata, each once.

    Raises:
        UsageError: A name is no text, or a value is of another form.
    """
    found: dict[tuple[str, Fact], None] = {}
    for name, value in metadata.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"{where}: metadata field {name!r}, expected a name", field=name)
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None:
                found[name, fact_of(each, where=f"{where}, metadata field {name!r}")] = None
    return list(found)


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Return checked metadata as it is stored."""
    return json.dumps(metadata, allow_nan=False)


def parse_filter(where: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Return the conditions of a filter, in the order given.

    Raises:
        UsageError: The filter is no object, or an operator or a value is of another form.
    """
    if not isinstance(where, Mapping):
        raise UsageError(
            f"filter: is {type(where).__name__}, expected a JSON object, as in "
            '{"label": "dog", "year": {"gte": 2000}}'
        )
    found = tuple(condition for name, wanted in where.items() for condition in _of(name, wanted))
    values = sum(len(condition.facts) for condition in found)
    if values > MOST_VALUES or len(found) > MOST_CONDITIONS:
        raise UsageError(
            f"filter: {len(found):,} conditions of {values:,} values, expected at most "
            f"{MOST_CONDITIONS} of {MOST_VALUES:,}; ask in parts",
            values=values,
        )
    return found


def _of(name: Any, wanted: Any) -> list[Condition]:
    if not isinstance(name, str):
        raise UsageError(f"filter: field {name!r}, expected the name of a metadata field")
    place = f"filter field {name!r}"
    if isinstance(wanted, Mapping):
        return [_compared(name, word, value, place) for word, value in _operators(wanted, place)]
    if wanted is None:
        return [Condition(name, "absent")]
    values: Sequence[Any] = wanted if isinstance(wanted, list | tuple) else [wanted]
    facts = (fact_of(value, where=place) for value in values)
    return [Condition(name, "in", tuple(dict.fromkeys(facts)))]


def _operators(wanted: Mapping[Any, Any], place: str) -> list[tuple[Any, Any]]:
    if not wanted:
        raise UsageError(f"{place}: {{}} says nothing, expected one of {', '.join(OPERATORS)}")
    return list(wanted.items())


def _compared(name: str, word: Any, value: Any, place: str) -> Condition:
    if word not in OPERATORS:
        raise UsageError(
            f"{place}: operator {word!r} is unknown; known: {', '.join(OPERATORS)}; a plain value "
            "or a list of values is compared as it is",
            operator=word,
        )
    fact = fact_of(value, where=f"{place}, {word}")
    if word in COMPARED and fact.kind == BOOLEAN:
        raise UsageError(
            f"{place}: {word} {value!r}, expected a number or text; true and false have no order"
        )
    return Condition(name, word, (fact,))
