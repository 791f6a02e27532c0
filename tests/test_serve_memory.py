"""A server's memory goes back to the system when it is freed, not only when it ends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from modalign.serve import memory

# More than Python's own allocator takes, less than what the C library maps for itself.
PIECE_BYTES, PIECES = 2000, 60_000
STATUS = Path("/proc/self/status")


def private_mib() -> float:
    """Return the memory this process holds, without mapped files, MiB."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def returner() -> Callable[[], object]:
    give_back = memory.memory_returner()
    if give_back is None or not STATUS.exists():
        pytest.skip("this C library has no malloc_trim")
    return give_back


def test_what_is_freed_below_something_in_use_goes_back() -> None:
    give_back = returner()
    pieces = [bytes(PIECE_BYTES) for _ in range(PIECES)]
    # One of a hundred stays, the last among them: the heap cannot shrink from its end.
    kept = pieces[99::100]
    pieces.clear()
    held = private_mib()
    give_back()
    assert held - private_mib() > 0.5 * PIECES * PIECE_BYTES / 2**20
    assert len(kept) == PIECES // 100


def test_it_is_given_back_until_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "memory_returner", lambda: lambda: calls.append(1))

    async def serve() -> int:
        task = asyncio.create_task(memory.give_back_regularly(0.01))
        while len(calls) < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        before = len(calls)
        await asyncio.sleep(0.05)
        return len(calls) - before

    assert asyncio.run(asyncio.wait_for(serve(), 10)) == 0


class Part:
    """What a failed request leaves: only a look for garbage ends what refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_looked_for_whether_or_not_the_c_library_keeps_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "memory_returner", lambda: None)
    gc.disable()

    async def ended() -> bool:
        part = weakref.ref(Part())
        task = asyncio.create_task(memory.give_back_regularly(0.01))
        while part() is not None:
            await asyncio.sleep(0.005)
        return task.cancel()

    try:
        assert asyncio.run(asyncio.wait_for(ended(), 20))
    finally:
        gc.enable()
