"""Batches and pools: who waits, who is dropped, who gets an error, and what a stop finishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")

from modalign.encoders import Encoder, Features
from modalign.errors import DataError, OverloadedError
from modalign.serve.batching import Batcher
from modalign.serve.encoding import Encoded, encode_together
from modalign.serve.pools import Pool
from served_spaces import wait_for


class Lengths(Encoder):
    """Encodes a text as its length, held up while `gate` is closed."""

    modality, spec, reads, output, width = "text", "lengths", "text", "vectors", 1

    def __init__(self) -> None:
        self.gate = Event()
        self.gate.set()
        self.begun = Event()
        self.batches: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {}

    def prepare(self, value: str) -> int:
        if value == "broken":
            raise DataError("text 'broken': is broken, expected a whole one; mend it")
        return len(value)

    def compute(self, inputs: Sequence[int], *, rows: int, length: int) -> Features:
        self.begun.set()
        assert self.gate.wait(10)
        self.batches.append(len(inputs))
        if 13 in inputs:
            raise RuntimeError("thirteen")
        return Features(np.array(inputs, np.float32)[:, None])


Words = Batcher[str, Encoded]


def doubled(features: Features) -> np.ndarray:
    """Stand in for a space: what is stored of a text is twice its length."""
    values: np.ndarray = 2 * features.values
    return values


@pytest.fixture
def encoder() -> Lengths:
    return Lengths()


@pytest.fixture
def batcher(encoder: Lengths) -> Iterator[Words]:
    found = Batcher("text", partial(encode_together, encoder, doubled), queue=4, batch=3)
    yield found
    encoder.gate.set()
    found.close()


def hold_up(encoder: Lengths, batcher: Words) -> Any:
    """Close the gate behind an item that is being computed; return its future."""
    encoder.gate.clear()
    encoder.begun.clear()
    (first,) = batcher.submit(["first"])
    assert encoder.begun.wait(5)
    return first


def value(future: Any) -> float:
    found = future.result(5)
    assert found.vector.shape == (1,)
    assert found.vector[0] == 2 * found.features.values[0, 0]
    return float(found.features.values[0, 0])


def test_what_arrives_meanwhile_is_the_next_batch(encoder: Lengths, batcher: Words):
    first = hold_up(encoder, batcher)
    later = [batcher.submit([text])[0] for text in ("a", "bb", "ccc", "dddd")]
    encoder.gate.set()
    assert [value(future) for future in (first, *later)] == [5, 1, 2, 3, 4]
    assert encoder.batches == [1, 3, 1]


def test_a_broken_item_fails_alone(encoder: Lengths, batcher: Words):
    hold_up(encoder, batcher)
    a, broken, b = (batcher.submit([text])[0] for text in ("a", "broken", "bb"))
    encoder.gate.set()
    assert (value(a), value(b)) == (1, 2)
    with pytest.raises(DataError, match="text 'broken': is broken"):
        broken.result(5)


def test_a_fault_of_the_program_reaches_its_own_request_alone(encoder: Lengths, batcher: Words):
    hold_up(encoder, batcher)
    a, poison, b = (batcher.submit([text])[0] for text in ("a", "x" * 13, "bb"))
    encoder.gate.set()
    assert (value(a), value(b)) == (1, 2)
    with pytest.raises(RuntimeError, match="thirteen"):
        poison.result(5)
    assert value(batcher.submit(["four"])[0]) == 4


def test_a_full_queue_refuses_at_once(encoder: Lengths, batcher: Words):
    hold_up(encoder, batcher)
    waiting = batcher.submit(["a", "b", "c"])
    begin = time.perf_counter()
    with pytest.raises(OverloadedError, match="text: 3 items are waiting, at most 4 may"):
        batcher.submit(["d", "e"])
    assert time.perf_counter() - begin < 0.1
    assert batcher.waiting == 3
    waiting += batcher.submit(["d"])
    encoder.gate.set()
    assert [value(future) for future in waiting] == [1, 1, 1, 1]


def test_what_is_cancelled_is_not_computed(encoder: Lengths, batcher: Words):
    hold_up(encoder, batcher)
    gone, kept, late = (batcher.submit([text])[0] for text in ("gone", "kept!", "late"))
    assert gone.cancel()
    assert late.cancel()
    encoder.gate.set()
    assert value(kept) == 5
    assert value(batcher.submit(["on"])[0]) == 2
    assert encoder.batches == [1, 1, 1]
    with pytest.raises(CancelledError):
        gone.result(5)


def test_what_is_cancelled_makes_room(encoder: Lengths, batcher: Words):
    hold_up(encoder, batcher)
    for future in batcher.submit(["a", "b", "c", "d"]):
        assert future.cancel()
    (kept,) = batcher.submit(["kept"])
    encoder.gate.set()
    assert value(kept) == 4


def test_a_stop_finishes_what_was_taken_and_takes_no_more(encoder: Lengths):
    batcher = Batcher("text", partial(encode_together, encoder, doubled), queue=8, batch=2)
    hold_up(encoder, batcher)
    waiting = batcher.submit(["a", "bb", "ccc"])
    encoder.gate.set()
    batcher.close()
    assert all(future.done() for future in waiting)
    assert [value(future) for future in waiting] == [1, 2, 3]
    assert not batcher.works
    with pytest.raises(OverloadedError, match="the server is stopping"):
        batcher.submit(["late"])


def test_sizes_of_batches_are_observed(encoder: Lengths):
    sizes: list[int] = []
    batcher = Batcher(
        "text", partial(encode_together, encoder, doubled), queue=8, batch=3, observe=sizes.append
    )
    hold_up(encoder, batcher)
    batcher.submit(["a", "b", "c", "d"])
    encoder.gate.set()
    batcher.close()
    assert sizes == [1, 3, 1]


def test_only_what_is_alike_is_done_together():
    gate, begun, batches = Event(), Event(), list[list[str]]()

    def work(values: Sequence[str]) -> list[str | Exception]:
        begun.set()
        assert gate.wait(10)
        batches.append(list(values))
        return [value.upper() for value in values]

    batcher = Batcher("letters", work, queue=9, batch=2, alike=lambda value: value[0])
    (first,) = batcher.submit(["first"])
    assert begun.wait(5)
    later = batcher.submit(["a1", "b1", "a2", "b2", "a3"])
    gate.set()
    assert [future.result(5) for future in later] == ["A1", "B1", "A2", "B2", "A3"]
    batcher.close()
    assert first.result(0) == "FIRST"
    assert batches == [["first"], ["a1", "a2"], ["b1", "b2"], ["a3"]]


def test_several_threads_work_at_a_time():
    both = Barrier(2, timeout=5)

    def work(values: Sequence[str]) -> list[int | Exception]:
        return [both.wait()]

    batcher = Batcher("pairs", work, queue=4, batch=1, threads=2)
    assert sorted(future.result(5) for future in batcher.submit(["a", "b"])) == [0, 1]
    batcher.close()


def test_a_pool_refuses_more_than_may_wait():
    gate = Event()

    async def crowd(pool: Pool) -> tuple[list[int], int]:
        running = [asyncio.create_task(pool.run(lambda: gate.wait(5) and 7)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError, match="search: 3 requests are waiting, as many as may"):
            await pool.run(lambda: 8)
        taken = pool.taken
        gate.set()
        return await asyncio.gather(*running), taken

    pool = Pool("search", threads=1, queue=2)
    assert asyncio.run(crowd(pool)) == ([7, 7, 7], 3)
    wait_for(lambda: pool.taken == 0, seconds=5)
    assert asyncio.run(pool.run(lambda: 9)) == 9
    pool.close()


def test_a_call_that_nobody_waits_for_is_not_begun():
    gate, begun = Event(), list[str]()

    async def crowd(pool: Pool) -> None:
        first = asyncio.create_task(pool.run(lambda: gate.wait(5)))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(pool.run(lambda: begun.append("gone")))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        await first

    pool = Pool("search", threads=1, queue=2)
    asyncio.run(crowd(pool))
    pool.close()
    assert (begun, pool.taken) == ([], 0)
