"""Memory of a server that runs for months: it stays at what is in use."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

# Objects made, and not yet let go of, before garbage is looked for; Python begins at 700.
GARBAGE_ITEMS = 10_000
# Between the times that freed memory is given back.
GIVE_BACK_S = 10.0


def keep_loaded() -> None:
    """Look for garbage no more among what is loaded.

    It stays as long as the server does: looking through it, again and again, was a tenth of the
    time of a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_ITEMS)


async def give_back_regularly(seconds: float = GIVE_BACK_S) -> None:
    """Look for garbage, and give freed memory back to the system, every so many seconds.

    Python by itself does so after a million objects: what failed requests leave, errors and the
    frames that they hold, had grown to tens of MiB by then. It ends when it is cancelled.
    """
    give_back = memory_returner()
    while True:
        await asyncio.sleep(seconds)
        # Milliseconds, since what is loaded is not looked through; and in no request's way.
        await asyncio.to_thread(gc.collect)
        if give_back is not None:
            await asyncio.to_thread(give_back)


def memory_returner() -> Callable[[], object] | None:
    """Return what gives freed memory back to the system; None where the C library does so itself.

    glibc keeps freed pages that lie below one in use, of every thread's own area; under requests of
    all sizes they grow for hours. `malloc_trim` releases them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(0)
