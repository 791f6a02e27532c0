"""Ending a run in the middle, for the tests of going on."""

from __future__ import annotations

from collections.abc import Callable


class Stop(Exception):  # noqa: N818 - it is no error
    """What ends a run in the middle."""


def stopping_at(step: int) -> Callable[[str, int, int, str], None]:
    """Return a progress that ends the run at a step."""

    def told(task: str, done: int, total: int, note: str) -> None:
        if done == step:
            raise Stop

    return told
