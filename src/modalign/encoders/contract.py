"""The contract every encoder keeps: one frozen, already trained network, item -> feature.

An adapter writes three methods: `describe` (all that a feature depends on), `prepare` (one
item to one model input; the only step that opens media) and `compute` (one batch). Batching,
exactness, checks and hashing are written once, here.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from modalign.errors import DataError

T = TypeVar("T")
Reads = Literal["text", "file", "key"]
Output = Literal["vectors", "tokens"]

# The largest finite float16: features are stored in it.
LARGEST_STORED = 65504.0


@dataclass(frozen=True, eq=False)  # `==` of arrays is no truth value
class Features:
    """Encoder outputs of N items.

    Attributes:
        values: float32 or float16 [N, D_m], or [N, L, D_m] where `mask` is given. Padded
            positions are zero.
        mask: True at valid positions, bool [N, L]; None for pooled vectors.
    """

    values: np.ndarray
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Features:
        """Select rows; an integer keeps the axis."""
        if isinstance(rows, (int, np.integer)):
            # IndexError ends `for row in features`; a slice would give empty rows for ever.
            row = range(len(self))[rows]
            rows = slice(row, row + 1)
        return Features(self.values[rows], None if self.mask is None else self.mask[rows])

    @property
    def width(self) -> int:
        """D_m."""
        return int(self.values.shape[-1])


@dataclass(frozen=True)
class Failure:
    """An item that could not be encoded, and why."""

    index: int
    error: DataError


class Encoder(ABC):
    """A frozen network that turns items of one modality into features.

    Attributes:
        modality: "image", "text", "audio", "video" or any name.
        spec: The string that `load_encoder` makes this encoder from again.
        reads: What an item's value is: "text" itself, the path of a "file", or a "key".
        output: "vectors" [N, D_m] or "tokens" [N, L, D_m].
        width: D_m.
        batch_size: Rows computed at once; the fixed batch of `exact=True`.
        lookahead: Items prepared before computing, so that items of equal length meet in a
            batch. Large for what is cheap to hold (words), small for what is not (pixels).
        cached: Whether features may be kept: not where looking them up is all there is to do
            and what is looked up may change.
    """

    modality: str
    spec: str
    reads: Reads
    output: Output
    width: int
    batch_size: int = 16
    lookahead: int = 64
    cached: bool = True

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return all that a feature depends on, as JSON values.

        Weights (sha256), preprocessing, backend, pooling, dtype: two encoders with equal
        descriptions must give equal features. Nothing else belongs in it: no path, no
        device, no time.
        """

    @abstractmethod
    def prepare(self, value: str) -> Any:
        """Turn one item into one model input.

        Called from several threads at once.

        Raises:
            DataError: The item is broken; the message names it.
        """

    @abstractmethod
    def compute(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        """Run the network on one batch.

        Args:
            inputs: What `prepare` returned, 1 <= len(inputs) <= rows.
            rows: Rows to pad the batch to, so that its shape is fixed.
            length: Positions to pad each input to; 0 where `length_of` is 0.

        Returns:
            Features of `inputs` alone, float32, without the padding rows.
        """

    def length_of(self, prepared: Any) -> int:
        """Return the positions of one prepared input, 0 where all inputs are of one shape."""
        return 0

    def content(self, value: str) -> bytes:
        """Return the bytes that identify an item's content: the cache is keyed by their hash.

        Raises:
            DataError: The file cannot be read.
        """
        if self.reads != "file":
            return value.encode()
        try:
            return Path(value).read_bytes()
        except OSError as error:
            raise DataError(
                f"{value}: cannot be read ({error.strerror}); look at the path",
                file=value,
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of `describe()`, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()

    def encode(self, values: Iterable[str], *, exact: bool = False) -> Features:
        """Encode items.

        Args:
            values: Texts, paths or keys, as `reads` says.
            exact: Compute in batches of a fixed shape, so that an item's feature has the
                same bits whatever it is encoded with. Without it features agree within
                1e-5, and a single query costs less.

        Raises:
            DataError: An item is broken.
        """
        rows: list[Features] = []
        for part in self.encode_stream(values, exact=exact):
            if isinstance(part, Failure):
                raise part.error
            rows.append(part)
        return stack_features(rows, width=self.width, output=self.output)

    def encode_stream(self, values: Iterable[str], *, exact: bool) -> Iterator[Features | Failure]:
        """Encode items in order, one result an item: its feature (one row), or its failure.

        Items are prepared in threads, a window ahead of the computing.
        """
        workers = min(4, os.cpu_count() or 1) if self.reads == "file" else 1
        with ThreadPoolExecutor(workers) as pool:
            windows = batched(values, self.lookahead)
            upcoming = [(window, pool.map(self._attempt, window)) for window in islice(windows, 1)]
            done = 0
            while upcoming:
                window, prepared = upcoming.pop()
                ready = list(prepared)
                upcoming = [(w, pool.map(self._attempt, w)) for w in islice(windows, 1)]
                yield from self._encode_window(window, ready, first=done, exact=exact)
                done += len(window)

    def _attempt(self, value: str) -> Any:
        """Prepare one item; a broken item is a result, for it concerns this item alone.

        Other errors, such as a missing package, concern the call and are raised.
        """
        try:
            return self.prepare(value)
        except DataError as error:
            return error

    def _encode_window(
        self, window: Sequence[str], ready: list[Any], *, first: int, exact: bool
    ) -> list[Features | Failure]:
        results: dict[int, Features | Failure] = {}
        prepared: dict[int, Any] = {}
        for offset, item in enumerate(ready):
            if isinstance(item, DataError):
                results[offset] = Failure(first + offset, item)
            else:
                prepared[offset] = item
        for offsets, rows, length in self._plan(prepared, exact=exact):
            features = self.compute([prepared[i] for i in offsets], rows=rows, length=length)
            for row, offset in enumerate(offsets):
                results[offset] = self._checked(features[row], window[offset], first + offset)
        return [results[offset] for offset in range(len(window))]

    def _plan(
        self, prepared: dict[int, Any], *, exact: bool
    ) -> Iterator[tuple[list[int], int, int]]:
        """Group prepared inputs into batches: (offsets, rows to pad to, length to pad to)."""
        lengths = {offset: self.length_of(item) for offset, item in prepared.items()}
        if exact:
            buckets = {offset: length_bucket(length) for offset, length in lengths.items()}
            for bucket in sorted(set(buckets.values())):
                members = [offset for offset in prepared if buckets[offset] == bucket]
                for start in range(0, len(members), self.batch_size):
                    yield members[start : start + self.batch_size], self.batch_size, bucket
        else:
            order = sorted(prepared, key=lengths.__getitem__)
            for start in range(0, len(order), self.batch_size):
                members = order[start : start + self.batch_size]
                yield members, len(members), max(lengths[offset] for offset in members)

    def _checked(self, feature: Features, value: str, index: int) -> Features | Failure:
        """Refuse a feature that is not finite or that float16 cannot hold."""
        largest = float(np.abs(feature.values).max(initial=0.0))
        if largest <= LARGEST_STORED:
            return feature
        name = value if self.reads == "file" else shortened(value)
        what = "NaN or infinite" if not np.isfinite(largest) else f"as large as {largest:.4g}"
        return Failure(
            index,
            DataError(
                f"{name}: encoder {self.spec} gave a feature that is {what}, expected "
                f"finite values up to {LARGEST_STORED:.0f}; look at the item",
                value=value,
            ),
        )


def length_bucket(length: int) -> int:
    """Return the padded length of a sequence: the next of steps that grow with the length."""
    step = 4 if length <= 32 else 16 if length <= 128 else 64 if length <= 512 else 256
    return -(-length // step) * step


def stack_features(parts: Sequence[Features], *, width: int, output: Output) -> Features:
    """Join features of any lengths into one block, padded with zeros to the longest.

    Args:
        parts: Features of one width; none gives an empty block.
        width: D_m, for the empty block.
        output: "vectors" or "tokens", for the empty block.
    """
    if output == "vectors":
        if not parts:
            return Features(np.zeros((0, width), np.float32))
        return Features(np.concatenate([part.values for part in parts]))
    count = sum(len(part) for part in parts)
    longest = max((part.values.shape[1] for part in parts), default=0)
    dtype = parts[0].values.dtype if parts else np.dtype(np.float32)
    values = np.zeros((count, longest, width), dtype)
    mask = np.zeros((count, longest), bool)
    row = 0
    for part in parts:
        assert part.mask is not None
        block = slice(row, row + len(part)), slice(0, part.values.shape[1])
        values[block], mask[block] = part.values, part.mask
        row += len(part)
    return Features(values, mask)


def canonical_json(value: Any) -> bytes:
    """Return JSON that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def shortened(value: str, limit: int = 80) -> str:
    """Return a text that fits in a message."""
    return value if len(value) <= limit else value[: limit - 1] + "…"


def batched(values: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield tuples of `size` values, the last one shorter."""
    stream = iter(values)
    while window := tuple(islice(stream, size)):
        yield window
