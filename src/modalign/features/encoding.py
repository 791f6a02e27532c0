"""Encoding once: what a cache lacks is encoded, what it has is read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.encoders import Encoder, Failure, Features
from modalign.encoders.contract import stack_features
from modalign.errors import DataError, ModalignError
from modalign.features.store import KEY_BYTES, FeatureArray, FeatureRows, FeatureStore, FeatureTable
from modalign.pairs import Items
from modalign.storage import locked, sweep

# A shard is written when it is full or old enough: what a kill can cost.
SHARD_ROWS = 4096
SHARD_SECONDS = 20.0

Progress = Callable[[str, int, int, str], None]


def no_progress(task: str, done: int, total: int, note: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class EncodedItems:
    """The features of items, and what encoding them took.

    Attributes:
        items: The items, whole.
        kept: Index of the items that have a feature, int64 [N].
        table: Their features, in the order of `kept`.
        failures: The items that have none, and why; empty unless errors are skipped.
        encoded: Items that the encoder ran on; the others were in the cache.
        digest: Hash of all items' content keys.
        seconds: Wall time.
    """

    items: Items
    kept: np.ndarray
    table: FeatureRows
    failures: tuple[Failure, ...]
    encoded: int
    digest: str
    seconds: float

    @property
    def folder(self) -> Path | None:
        """Where the features are stored; None where they are not."""
        return self.table.store.folder if isinstance(self.table, FeatureTable) else None


def cache_folder() -> Path:
    """Return where features are cached: $MODALIGN_CACHE, or the user's cache folder."""
    chosen = os.environ.get("MODALIGN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modalign"


def encode_items(
    items: Items,
    encoder: Encoder,
    *,
    cache: Path,
    skip_errors: bool = False,
    progress: Progress = no_progress,
    shard_rows: int = SHARD_ROWS,
) -> EncodedItems:
    """Encode what the cache lacks of `items`, and return their features.

    Interrupted at any point, the rows written so far are kept and the next call goes on.
    Encoding is exact, so that the bits do not depend on what was encoded together.

    Args:
        items: What to encode.
        encoder: The encoder; its store lies in `cache` under its fingerprint.
        cache: A folder for the stores of all encoders.
        skip_errors: Leave broken items out, listed in `failures`, instead of raising.
        progress: Called with ("encode image", done, total, note).
        shard_rows: Rows a shard; what a kill can cost, and a file or three for each.

    Raises:
        DataError: An item is broken, or all of them are.
    """
    begin = time.perf_counter()
    if not encoder.cached:
        return _looked_up(items, encoder, skip_errors=skip_errors)
    folder = cache / f"{encoder.modality}-{encoder.fingerprint[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        sweep(folder)
        store = FeatureStore.open(folder, encoder)
        keys, failures = content_keys(items, encoder)
        lacking = _first_lacking(store, keys)
        writer = _Writer(store, keys, shard_rows)
        encoding = _encode_lacking(items, encoder, lacking, progress)
        failures += writer.write(encoding, skip_errors=skip_errors)
    if failures and not skip_errors:
        raise _placed(failures[0], items)
    rows = store.rows_of([key or b"" for key in keys])
    kept = np.flatnonzero(rows >= 0)
    _check_some(items, kept, failures)
    return EncodedItems(
        items,
        kept,
        FeatureTable(store, rows[kept]),
        _with_copies(failures, keys, items),
        writer.written,
        hashlib.sha256(b"".join(key or b"-" for key in keys)).hexdigest(),
        time.perf_counter() - begin,
    )


def _check_some(items: Items, kept: np.ndarray, failures: Sequence[Failure]) -> None:
    """Raise a DataError unless an item is left, or there were none."""
    if len(items.ids) and not len(kept):
        raise DataError(
            f"{items.source}: none of {len(items.ids)} {items.modality} items could be encoded; "
            f"the first: {failures[0].error}",
            file=items.source,
        )


def _looked_up(items: Items, encoder: Encoder, *, skip_errors: bool) -> EncodedItems:
    """Return features of items that are not to be cached, in memory."""
    begin = time.perf_counter()
    results = list(encoder.encode_stream(items.values, exact=True))
    failures = [result for result in results if isinstance(result, Failure)]
    if failures and not skip_errors:
        raise _placed(failures[0], items)
    features = [result for result in results if isinstance(result, Features)]
    kept = np.array([row for row, r in enumerate(results) if isinstance(r, Features)], np.int64)
    _check_some(items, kept, failures)
    stored = stack_features(features, width=encoder.width, output=encoder.output)
    halves = Features(stored.values.astype(np.float16), stored.mask)
    digest = hashlib.sha256(halves.values.tobytes())
    digest.update("\0".join(items.values[row] for row in kept).encode())
    return EncodedItems(
        items,
        kept,
        FeatureArray(halves),
        tuple(failures),
        len(features),
        digest.hexdigest(),
        time.perf_counter() - begin,
    )


def content_keys(items: Items, encoder: Encoder) -> tuple[list[bytes | None], list[Failure]]:
    """Return the content hash of each item, None where the item cannot be read."""
    keys: list[bytes | None] = []
    failures = []
    for index, value in enumerate(items.values):
        try:
            content = encoder.content(value)
        except DataError as error:
            keys.append(None)
            failures.append(Failure(index, error))
        else:
            keys.append(hashlib.blake2b(content, digest_size=KEY_BYTES).digest())
    return keys, failures


def _first_lacking(store: FeatureStore, keys: Sequence[bytes | None]) -> list[int]:
    """Return the index of the first item of each content that the store lacks."""
    first: dict[bytes, int] = {}
    rows = store.rows_of([key or b"" for key in keys])
    for index, key in enumerate(keys):
        if key is not None and rows[index] < 0:
            first.setdefault(key, index)
    return list(first.values())


def _encode_lacking(
    items: Items, encoder: Encoder, lacking: Sequence[int], progress: Progress
) -> Iterator[tuple[int, Features | Failure]]:
    """Yield (item index, its feature or failure) in order, telling the progress."""
    if not lacking:
        return
    task = f"encode {items.modality}"
    stream = encoder.encode_stream((items.values[index] for index in lacking), exact=True)
    for done, (index, result) in enumerate(zip(lacking, stream, strict=True), start=1):
        yield index, result
        if done % encoder.batch_size == 0 or done == len(lacking):
            progress(task, done, len(lacking), "")


class _Writer:
    """Gathers rows and commits them a shard at a time."""

    def __init__(self, store: FeatureStore, keys: Sequence[bytes | None], shard_rows: int) -> None:
        self.store = store
        self.keys = keys
        self.shard_rows = shard_rows
        self.written = 0
        self._waiting: list[tuple[bytes, Features]] = []
        self._since = time.monotonic()

    def write(
        self, encoding: Iterator[tuple[int, Features | Failure]], *, skip_errors: bool
    ) -> list[Failure]:
        """Store what comes; whatever ends it, what came before is stored."""
        failures = []
        try:
            for index, result in encoding:
                if isinstance(result, Failure):
                    failures.append(Failure(index, result.error))
                    if not skip_errors:
                        break
                    continue
                key = self.keys[index]
                assert key is not None
                self._waiting.append((key, result))
                late = time.monotonic() - self._since > SHARD_SECONDS
                if late or len(self._waiting) >= self.shard_rows:
                    self._commit()
        finally:
            self._commit()
        return failures

    def _commit(self) -> None:
        waiting = self._waiting
        self.store.append([key for key, _ in waiting], [feature for _, feature in waiting])
        # Not before: an interrupt in the middle of a commit is followed by a whole one.
        self._waiting = []
        self.written += len(waiting)
        self._since = time.monotonic()


def _with_copies(
    failures: Sequence[Failure], keys: Sequence[bytes | None], items: Items
) -> tuple[Failure, ...]:
    """Add the items that share their content with one that failed."""
    failed = {keys[f.index]: f.error for f in failures if keys[f.index] is not None}
    direct = {f.index: f for f in failures}
    every = [
        direct.get(index) or (Failure(index, failed[key]) if key in failed else None)
        for index, key in enumerate(keys)
    ]
    return tuple(failure for failure in every if failure is not None)


def _placed(failure: Failure, items: Items) -> ModalignError:
    """Return the failure's error with the file and row the item came from."""
    error = failure.error
    what = str(error)
    if items.rows[failure.index] == 0:  # a file of a folder is its own place
        what = what.removeprefix(f"{items.values[failure.index]}: ")
    return type(error)(
        f"{items.where(failure.index)}: {what}, or skip broken items with --on-error skip",
        **error.details,
    )
