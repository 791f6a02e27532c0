"""Vectors of a store as an encoder: an item's value is an id in it.

    store:lancedb:FOLDER#TABLE?vector=embedding&id=name        and so for every kind of store

What the vectors mean is known to whoever stored them; nothing is computed, and nothing is cached,
for the store may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from modalign.encoders.contract import (
    LARGEST_STORED,
    Encoder,
    Failure,
    Features,
    batched,
    shortened,
    stack_features,
)
from modalign.encoders.registry import Spec
from modalign.errors import DataError, UsageError
from modalign.stores.contract import Store, check_cosine
from modalign.stores.registry import StoreSpec, open_store

# Ids asked of the store at a time.
BLOCK = 4096
PREFIX = "store"
# Ids of the store that a message shows.
EXAMPLES = 3


def load(
    target: str, *, modality: str | None = None, device: str = "cpu", **options: str
) -> StoreVectors:
    """Open a store.

    Args:
        target: KIND:PATH[#COLLECTION], as `modalign attach` takes it.
        modality: What the vectors stand for; a store cannot tell.
        device: Not used: nothing is computed.
        options: Of the store's kind.

    Raises:
        UsageError: No modality is given, or the spec is none.
        DataError: The store is not there or broken.
    """
    spec = Spec(PREFIX, target, options)
    if modality is None:
        raise UsageError(
            f"encoder {spec}: the modality is not given, and a store does not tell; name it, as "
            f"in --encoder text={spec}",
            spec=str(spec),
        )
    return StoreVectors(open_store(str(spec).removeprefix(f"{PREFIX}:")), modality=modality)


class StoreVectors(Encoder):
    """Looks vectors up in a store by id.

    Attributes:
        store: Open until this object goes, or until `store.close()`.
    """

    reads = "key"
    output = "vectors"
    cached = False
    batch_size = BLOCK
    lookahead = BLOCK

    def __init__(self, store: Store, *, modality: str) -> None:
        self.store = store
        self.modality = modality
        self.spec = f"{PREFIX}:{store.name}"
        self.width = store.width

    def describe(self) -> dict[str, Any]:
        """Return which vectors of which store these are: not where it lies, nor how many."""
        facts = self.store.facts
        options = StoreSpec.parse(facts.name).options
        named: dict[str, Any] = {n: options[n] for n in ("vector", "id") if n in options}
        return {
            "adapter": PREFIX,
            "kind": facts.kind,
            "collection": facts.collection,
            "width": facts.width,
            "metric": facts.metric,
            **named,
        }

    def prepare(self, value: str) -> Features:
        """Return the vector of one id.

        Raises:
            DataError: The store has no such id.
        """
        (found,) = self._looked_up([value])
        if isinstance(found, DataError):
            raise found
        return found

    def compute(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        """Join what is already computed."""
        return stack_features(inputs, width=self.width, output=self.output)

    def encode_stream(self, values: Iterable[str], *, exact: bool) -> Iterator[Features | Failure]:
        """Ask for ids by the block: a call for each would be the whole cost."""
        done = 0
        for ids in batched(values, BLOCK):
            for offset, found in enumerate(self._looked_up(ids)):
                yield Failure(done + offset, found) if isinstance(found, DataError) else found
            done += len(ids)

    def _looked_up(self, ids: Sequence[str]) -> Iterator[Features | DataError]:
        """Yield each id's vector, or what is wrong with it."""
        found, vectors = self.store.vectors(list(ids))
        # A map is trained for the order of cosines: said at the first vectors, not after training.
        check_cosine(self.store, vectors)
        place = {name: row for row, name in enumerate(found)}
        for name in ids:
            if name not in place:
                yield self._missing(name)
                continue
            vector = vectors[place[name]]
            if float(np.abs(vector).max()) > LARGEST_STORED:
                yield self._too_large(name)
            else:
                yield Features(vector[None])

    def _missing(self, name: str) -> DataError:
        examples = ", ".join(repr(shortened(i)) for i in self.store.ids_sample(EXAMPLES))
        return DataError(
            f"{shortened(name)}: store {self.store.name} has no such id, expected one of its "
            f"{self.store.count:,}, such as {examples}; name the column of ids with --column, or "
            "leave rows without a stored vector out with --on-error skip",
            value=name,
        )

    def _too_large(self, name: str) -> DataError:
        return DataError(
            f"{shortened(name)}: its vector in store {self.store.name} holds numbers above "
            f"{LARGEST_STORED:.0f}, expected smaller ones; scale the store's vectors",
            value=name,
        )
