"""Threads for work that would keep the server from answering others, and a bound on what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from modalign.errors import OverloadedError

T = TypeVar("T")


class Pool:
    """Some threads, and calls that wait for them.

    Args:
        name: What messages and threads are called by.
        threads: Calls at a time.
        queue: Calls that wait, at most.
    """

    def __init__(self, name: str, *, threads: int, queue: int) -> None:
        self.name = name
        self._limit = threads + queue
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Calls that wait or are being run."""
        return self._taken

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call in a thread; where nobody waits for it any more, it is not begun.

        Raises:
            OverloadedError: As many calls wait as may.
        """
        with self._lock:
            if self._taken >= self._limit:
                raise OverloadedError(
                    f"{self.name}: {self._taken} requests are waiting, as many as may; try again",
                    waiting=self._taken,
                )
            self._taken += 1
        future = self._executor.submit(call)
        future.add_done_callback(self._give_back)
        return await asyncio.wrap_future(future)

    def _give_back(self, _: Future[Any]) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> None:
        """Finish what was taken, and end the threads."""
        self._executor.shutdown(wait=True)
