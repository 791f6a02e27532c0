"""A bounded queue before some threads: what arrives while they work is the next batch.

A request waits for its own items alone. One that has gone (its client left, its time is up) is
dropped before it is worked on; an item that fails is the error of its own request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Generic, TypeVar

from modalign.errors import OverloadedError

T = TypeVar("T")
R = TypeVar("R")
# Does a batch: a result or an error of each item.
Work = Callable[[Sequence[T]], Sequence[R | Exception]]


@dataclass
class Waiting(Generic[T, R]):
    """An item that is to be worked on, and whoever waits for it."""

    value: T
    future: Future[R] = field(default_factory=Future)


class Batcher(Generic[T, R]):
    """Works on items of many requests together, in threads of its own.

    Args:
        name: What messages and threads are called by.
        work: Does a batch.
        queue: Items that wait, at most.
        batch: Items done together, at most.
        threads: Batches at a time.
        alike: Only items of which it gives the same are done together.
        observe: Told the size of each batch.
    """

    def __init__(
        self,
        name: str,
        work: Work[T, R],
        *,
        queue: int,
        batch: int,
        threads: int = 1,
        alike: Callable[[T], Hashable] = lambda item: None,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.name = name
        self._work = work
        self._queue = queue
        self._batch = batch
        self._alike = alike
        self._observe = observe
        self._items: deque[Waiting[T, R]] = deque()
        self._changed = Condition()
        self._closed = False
        # Daemons: a second Ctrl-C need not wait for a batch.
        self._threads = [Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._items)

    @property
    def works(self) -> bool:
        """Whether items are still taken and worked on."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, values: Sequence[T]) -> list[Future[R]]:
        """Queue the items of a request, all of them or none.

        Returns:
            For each a future of what becomes of it; cancelled before it is begun, it never is.

        Raises:
            OverloadedError: They do not fit into the queue, or the server is stopping.
        """
        with self._changed:
            if self._closed:
                raise OverloadedError("the server is stopping; try again later")
            # What has been given up makes room.
            if len(self._items) + len(values) > self._queue:
                self._items = deque(item for item in self._items if not item.future.cancelled())
            if len(self._items) + len(values) > self._queue:
                raise OverloadedError(
                    f"{self.name}: {len(self._items)} items are waiting, at most {self._queue} "
                    "may; try again",
                    waiting=len(self._items),
                )
            items = [Waiting[T, R](value) for value in values]
            self._items.extend(items)
            self._changed.notify()
        return [item.future for item in items]

    def close(self) -> None:
        """Finish what was taken, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._observe(len(batch))
            results = self._results([item.value for item in batch])
            for item, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    item.future.set_exception(result)
                else:
                    item.future.set_result(result)

    def _next_batch(self) -> list[Waiting[T, R]]:
        """Wait for items; return none when the queue is closed and empty."""
        batch: list[Waiting[T, R]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return []
                batch = self._taken()
            if self._items:
                # Of another kind, or too many: there may be a thread for them.
                self._changed.notify()
        return batch

    def _taken(self) -> list[Waiting[T, R]]:
        """Take the first item and those like it from the queue, without what was given up."""
        batch: list[Waiting[T, R]] = []
        left: deque[Waiting[T, R]] = deque()
        kind: Hashable = None
        for item in self._items:
            wanted = not batch or (len(batch) < self._batch and self._alike(item.value) == kind)
            if not wanted:
                left.append(item)
            elif item.future.set_running_or_notify_cancel():
                kind = kind if batch else self._alike(item.value)
                batch.append(item)
        self._items = left
        return batch

    def _results(self, values: Sequence[T]) -> Sequence[R | Exception]:
        """Work on items; what fails in company is tried alone."""
        try:
            return self._work(values)
        except Exception as error:  # handed to the request that it belongs to
            if len(values) == 1:
                return [error]
            return [self._results([value])[0] for value in values]
