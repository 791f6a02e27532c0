"""Pairs and the features of their items, kept in step while broken items are dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from modalign.encoders import Encoder
from modalign.encoders.contract import canonical_json
from modalign.errors import UsageError
from modalign.features import EncodedItems, FeatureRows, encode_items
from modalign.features.encoding import Progress, no_progress
from modalign.pairs import SPLITS, Pairs, row_numbers, rows_of
from modalign.space.paired import PairedTables, RowTables


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs whose items all have features.

    Attributes:
        pairs: What is left of the pairs.
        tables: Features by modality, in the order of the pairs' items.
        encoded: Items the encoder ran on, by modality; the others were cached.
        seconds: What encoding took, by modality.
        digest: Hash of all features' content keys and the pairs between them.
    """

    pairs: Pairs
    tables: dict[str, FeatureRows]
    encoded: dict[str, int]
    seconds: dict[str, float]
    digest: str

    def paired(self, first: str, second: str, split: str) -> PairedTables:
        """Return the features and pairs of a split, renumbered to its own items."""
        pairs = self.pairs.positives(first, second, split=split)
        kept_first, a = np.unique(pairs[:, 0], return_inverse=True)
        kept_second, b = np.unique(pairs[:, 1], return_inverse=True)
        tables = {
            first: self.tables[first].subset(kept_first),
            second: self.tables[second].subset(kept_second),
        }
        return PairedTables(first, second, tables, np.stack([a, b], axis=1))

    def joined(self, modalities: Sequence[str], split: str) -> RowTables:
        """Return the features and rows of a split, renumbered to its own items.

        A row with several items of a modality comes as often, with each of them in turn.
        """
        pairs = self.pairs
        of_split = np.flatnonzero(pairs.splits == SPLITS.index(split))
        starts, counts = [], []
        for modality in modalities:
            rows = pairs.links[modality].rows
            starts.append(np.searchsorted(rows, of_split, side="left"))
            counts.append(np.searchsorted(rows, of_split, side="right") - starts[-1])
        times = np.maximum(np.max(counts, axis=0), 1)
        row = np.repeat(np.arange(len(of_split)), times)
        turn = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
        tables, columns = {}, []
        for modality, start, count in zip(modalities, starts, counts, strict=True):
            there = count[row] > 0
            place = start[row] + turn % np.maximum(count[row], 1)
            items = pairs.links[modality].items[place[there]]
            kept, number = np.unique(items, return_inverse=True)
            column = np.full(len(row), -1, np.int64)
            column[there] = number
            tables[modality] = self.tables[modality].subset(kept)
            columns.append(column)
        return RowTables(tables, np.stack(columns, axis=1))


def places_of_pairs(
    pairs: Pairs, members: Mapping[str, np.ndarray], first: str, second: str, *, split: str | None
) -> np.ndarray:
    """Return which items of a split belong together, by their places among its members.

    Args:
        pairs: All of them.
        members: Of each modality, which of its items are of the split, ascending, int64.
        first: A modality.
        second: Another.
        split: Which rows; None: all.

    Returns:
        int64 [P, 2].
    """
    items = pairs.positives(first, second, split=split)
    places = [np.searchsorted(members[m], items[:, n]) for n, m in enumerate((first, second))]
    return np.stack(places, axis=1)


def encode_pairs(
    pairs: Pairs,
    encoders: Mapping[str, Encoder],
    *,
    cache: Path,
    skip_errors: bool = False,
    progress: Progress = no_progress,
) -> EncodedPairs:
    """Encode what the cache lacks of every modality; drop what is broken if asked to.

    Raises:
        DataError: An item is broken and errors are not skipped.
        UsageError: The pairs were read for another kind of encoder.
    """
    results: dict[str, EncodedItems] = {}
    for modality in pairs.modalities:
        check_reads(pairs, modality, encoders[modality])
        results[modality] = encode_items(
            pairs.items[modality],
            encoders[modality],
            cache=cache,
            skip_errors=skip_errors,
            progress=progress,
        )
    left = pairs
    for modality, result in results.items():
        left = drop_failed(left, modality, result)
    tables = {
        modality: matching_table(left, modality, result) for modality, result in results.items()
    }
    return EncodedPairs(
        left,
        tables,
        {modality: result.encoded for modality, result in results.items()},
        {f"encode {modality}": round(result.seconds, 3) for modality, result in results.items()},
        content_digest(left, {modality: result.digest for modality, result in results.items()}),
    )


def check_reads(pairs: Pairs, modality: str, encoder: Encoder) -> None:
    """Raise unless the pairs' cells are what the encoder reads."""
    found = pairs.items[modality].reads
    if found != encoder.reads:
        raise UsageError(
            f"{pairs.source.name}: {modality} cells were read as {found}, encoder {encoder.spec} "
            f"reads {encoder.reads}; read the pairs with reads={{{modality!r}: {encoder.reads!r}}}",
            found=found,
            expected=encoder.reads,
        )


def drop_failed(pairs: Pairs, modality: str, result: EncodedItems) -> Pairs:
    """Drop the items without a feature, and the rows that depend on them."""
    if not result.failures:
        return pairs
    index = {name: row for row, name in enumerate(pairs.items[modality].ids)}
    failed = [
        (index[name], str(failure.error))
        for failure in result.failures
        if (name := result.items.ids[failure.index]) in index
    ]
    return pairs.without(modality, [row for row, _ in failed], [reason for _, reason in failed])


def matching_table(pairs: Pairs, modality: str, result: EncodedItems) -> FeatureRows:
    """Return the features of the items that are left, in their order."""
    ids = pairs.items[modality].ids
    if len(ids) == len(result.items.ids):
        return result.table
    index = {result.items.ids[kept]: row for row, kept in enumerate(result.kept)}
    return result.table.subset(np.array([index[name] for name in ids], np.int64))


def content_digest(pairs: Pairs, contents: Mapping[str, str]) -> str:
    """Return a hash of what training will see."""
    digest = hashlib.sha256(canonical_json(dict(contents)))
    digest.update(pairs.splits.tobytes())
    for modality in pairs.modalities:
        digest.update(pairs.links[modality].rows.tobytes())
        digest.update(pairs.links[modality].items.tobytes())
    return digest.hexdigest()


def pairs_record(encoded: EncodedPairs) -> dict[str, Any]:
    """Return what a stage keeps of its pairs."""
    pairs = encoded.pairs
    return {
        "source": pairs.source.name,
        "sha256": pairs.sha256,
        "rows": pairs.split_sizes(),
        "items": {modality: len(items) for modality, items in pairs.items.items()},
        "skipped": len(pairs.skipped),
        "content": encoded.digest,
        "split": split_record(pairs),
    }


def split_record(pairs: Pairs) -> dict[str, Any] | None:
    """Return what rows were held out with, and which; None where a column named the splits."""
    if pairs.validation_share is None:
        return None
    return {
        "seed": pairs.split_seed,
        "validation": pairs.validation_share,
        "rows": row_numbers(pairs.held_out()),
    }


def split_as_trained(pairs: Pairs, records: Sequence[Mapping[str, Any]]) -> Pairs:
    """Return pairs with the rows held out that training held out of the same file.

    Drawn again, the rows would depend on the seed, the share, and the columns that are read.
    What several stages drew is held out where all of them did.

    Args:
        pairs: Of any file.
        records: What the stages keep of their pairs.

    Returns:
        The pairs as they are, where no stage was trained on their file or a column splits it.

    Raises:
        UsageError: A stage took the splits from a column that was not read now.
    """
    same = [r for r in records if r["sha256"] == pairs.sha256 and "split" in r]
    drawn = [record["split"] for record in same if record["split"] is not None]
    if not drawn and same and pairs.validation_share is not None:
        raise UsageError(
            f"{pairs.source.name}: the space was trained on the rows that its split column names, "
            "and the column was not read, expected the same split; name the column with "
            "--column split=COLUMN, or let evaluate measure all rows with --split all",
            file=str(pairs.source),
        )
    if not drawn:
        return pairs
    rows = reduce(np.intersect1d, [rows_of(split["rows"]) for split in drawn])
    return pairs.holding_out(rows, seed=drawn[0]["seed"], share=drawn[0]["validation"])
