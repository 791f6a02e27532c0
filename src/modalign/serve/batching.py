"""One encoder, one queue: what arrives while a batch is computed is the next batch.

A batch goes through the encoder and on to the vectors that a space stores of the modality: those
are computed in blocks, which one item fills as well as many.

A request waits for its own items alone. One that has gone (its client left, its time is up) is
dropped before it is computed; an item that fails is the error of its own request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread

import numpy as np

from modalign.encoders import Encoder, Features
from modalign.encoders.contract import stack_features
from modalign.errors import OverloadedError

Embed = Callable[[Features], np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """What becomes of an item.

    Attributes:
        features: Of the encoder, one row.
        vector: As it is stored of the modality, float32 [D].
    """

    features: Features
    vector: np.ndarray


@dataclass
class Waiting:
    """An item that is to be encoded, and whoever waits for it."""

    value: str
    future: Future[Encoded] = field(default_factory=Future)


class Batcher:
    """Encodes items of many requests together, in a thread of its own.

    Args:
        encoder: Of one modality.
        embed: Gives what is stored of features, float32 [N, D].
        queue: Items that wait, at most.
        batch: Items computed together, at most.
        observe: Told the size of each batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        embed: Embed,
        *,
        queue: int,
        batch: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.encoder = encoder
        self.queue = queue
        self._embed = embed
        self._batch = batch
        self._observe = observe
        self._items: deque[Waiting] = deque()
        self._changed = Condition()
        self._closed = False
        # A daemon: a second Ctrl-C need not wait for a batch.
        self._thread = Thread(target=self._work, name=f"encode {encoder.modality}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._items)

    @property
    def works(self) -> bool:
        """Whether items are still taken and computed."""
        return not self._closed and self._thread.is_alive()

    def submit(self, values: Sequence[str]) -> list[Future[Encoded]]:
        """Queue the items of a request, all of them or none.

        Returns:
            For each a future of what becomes of it; cancelled before it is computed, it never
            is.

        Raises:
            OverloadedError: They do not fit into the queue, or the server is stopping.
        """
        with self._changed:
            if self._closed:
                raise OverloadedError("the server is stopping; try again later")
            # What has been given up makes room.
            if len(self._items) + len(values) > self.queue:
                self._items = deque(item for item in self._items if not item.future.cancelled())
            if len(self._items) + len(values) > self.queue:
                raise OverloadedError(
                    f"{self.encoder.modality}: {len(self._items)} items are waiting, at most "
                    f"{self.queue} may; try again",
                    waiting=len(self._items),
                )
            items = [Waiting(value) for value in values]
            self._items.extend(items)
            self._changed.notify()
        return [item.future for item in items]

    def close(self) -> None:
        """Finish what was taken, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._observe(len(batch))
            results = self._encoded([item.value for item in batch])
            for item, result in zip(batch, results, strict=True):
                if isinstance(result, Encoded):
                    item.future.set_result(result)
                else:
                    item.future.set_exception(result)

    def _next_batch(self) -> list[Waiting]:
        """Wait for items; return none when the queue is closed and empty."""
        batch: list[Waiting] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return []
                while self._items and len(batch) < self._batch:
                    item = self._items.popleft()
                    if item.future.set_running_or_notify_cancel():
                        batch.append(item)
        return batch

    def _encoded(self, values: Sequence[str]) -> list[Encoded | Exception]:
        """Encode; what fails in company and not as a broken item is tried alone."""
        try:
            return self._together(values)
        except Exception as error:  # handed to the request that it belongs to
            if len(values) == 1:
                return [error]
            return [self._encoded([value])[0] for value in values]

    def _together(self, values: Sequence[str]) -> list[Encoded | Exception]:
        encoder = self.encoder
        parts = list(encoder.encode_stream(values, exact=False))
        sound = [part for part in parts if isinstance(part, Features)]
        vectors = iter(
            self._embed(stack_features(sound, width=encoder.width, output=encoder.output))
            if sound
            else ()
        )
        return [
            Encoded(part, next(vectors)) if isinstance(part, Features) else part.error
            for part in parts
        ]
