"""The contract every engine keeps: it proposes rows, and can be made again from the durable ones.

An engine sees unit vectors by their place, 0 to n - 1, and gives back places. It knows nothing of
ids, filters, deleted rows or true cosines: `Index` keeps these once for all engines, so an engine
costs recall at worst and never a wrong result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from modalign.errors import CorruptError, DataError, ModalignError, UsageError

Progress = Callable[[str, int, int, str], None]
# How hard an engine tries, in its own words, as {"nprobe": 16}: whole numbers that JSON holds.
Effort = Mapping[str, int]


def no_progress(task: str, done: int, total: int, note: str) -> None:
    """Report nothing."""


class UnitRows(Protocol):
    """The vectors an engine is built from."""

    @property
    def width(self) -> int:
        """D."""

    def __len__(self) -> int:
        """Return how many there are."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows in order, of unit length, float32 [n, D]; as often as it is asked."""

    def sample(self, count: int, *, seed: int) -> np.ndarray:
        """Return so many rows drawn without repeats, or all, float32 [n, D]."""


@dataclass(frozen=True)
class Plan:
    """What an engine is built with.

    Attributes:
        settings: Its own options, text or numbers; what is not there has a default.
        name: One no other build has: for what an engine must name outside of its folder.
        seed: Of all that is drawn.
        progress: Told of how far it is.
    """

    settings: Mapping[str, Any]
    name: str
    seed: int = 0
    progress: Progress = no_progress


class Engine(ABC):
    """An approximate index over n rows, open for search; calls from several threads are safe."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """What `kind` may be among the settings; the first for none in particular."""

    @classmethod
    @abstractmethod
    def settle(cls, settings: Mapping[str, Any], *, rows: int, width: int) -> dict[str, Any]:
        """Return the settings with every default in them, as a build of such a size has them.

        Raises:
            UsageError: A setting is unknown, or does not fit the size.
        """

    @classmethod
    @abstractmethod
    def build(cls, folder: Path, rows: UnitRows, plan: Plan) -> None:
        """Write the artefact into an empty folder; `plan.settings` are settled."""

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, *, rows: int, width: int, plan: Plan) -> Engine:
        """Open what `build` wrote.

        Raises:
            DataError: It is broken, or cannot be reached.
            MissingExtraError: The engine's package is not installed.
        """

    @abstractmethod
    def efforts(self) -> Sequence[Effort]:
        """Return the ladder: from the cheapest effort to that which finds nearly all."""

    @abstractmethod
    def candidates(self, queries: np.ndarray, k: int, effort: Effort) -> np.ndarray:
        """Return places that may be among the k nearest of each query.

        Args:
            queries: Of unit length, float32 [Q, D].
            k: Wanted; the engine may give more, as its effort says, or fewer.
            effort: One of the ladder.

        Returns:
            int64 [Q, m] in any order, each once a query, -1 for none.
        """

    @abstractmethod
    def memory_bytes(self) -> int:
        """Return what the engine holds in memory, estimated where it does not tell."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what was opened."""

    @classmethod  # noqa: B027 - most have nothing to remove
    def discard(cls, plan: Plan) -> None:
        """Remove what `build` made outside of its folder; nothing by default."""


def whole_setting(settings: Mapping[str, Any], name: str, default: int, *, allowed: range) -> int:
    """Return a whole number among the settings, `default` where it is not given.

    Raises:
        UsageError: It is no whole number, or not in `allowed`.
    """
    value = settings.get(name, default)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise UsageError(
            f"index engine: {name}={value}, expected a whole number from {allowed.start} to "
            f"{allowed.stop - 1}",
            setting=name,
            value=value,
        )
    return value


@contextmanager
def reading_engine(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an engine's errors about its own files into one CorruptError; ours pass through."""
    try:
        yield
    except ModalignError:
        raise
    except kinds as error:
        text = " ".join(str(error).split())
        raise CorruptError(
            f"{where}: cannot be used ({text[:200] or type(error).__name__}), expected what was "
            "built; build the engine again (modalign index --rebuild)",
            where=where,
        ) from error


def grouped(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same rows in blocks of `size` or a little more: each call of an engine costs."""
    held: list[np.ndarray] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= size:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


@contextmanager
def building_engine(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an engine's errors while it writes into one DataError; ours pass through."""
    try:
        yield
    except ModalignError:
        raise
    except kinds as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"{where}: the engine could not be built ({text[-200:] or type(error).__name__}), "
            "expected a disk with room, or a server that answers; see to it and run the same "
            "command again, the rows and any older engine are as they were",
            where=where,
        ) from error
