"""The hidden state behind the four modalities, and how states are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modalign.errors import UsageError, check_known

# Every part of the state and its values; the order fixes which state a number stands for.
ATTRIBUTES: dict[str, tuple[str | int, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "ring", "cross"),
    "colour": ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink"),
    "count": (1, 2, 3, 4),
    "position": (
        "top left",
        "top",
        "top right",
        "left",
        "centre",
        "right",
        "bottom left",
        "bottom",
        "bottom right",
    ),
    "motion": ("still", "left", "right", "up", "down", "growing"),
    "background": ("dark", "light"),
}

STATES = math.prod(len(values) for values in ATTRIBUTES.values())


@dataclass(frozen=True)
class Scene:
    """One hidden state; `ATTRIBUTES` lists the values of each part.

    Attributes:
        shape: What is seen: "circle", "square", ...
        colour: "red", "orange", ...
        count: How many there are, 1 to 4.
        position: The cell of a 3 x 3 grid: "top left", ..., "centre", ...
        motion: "still", a direction, or "growing".
        background: "dark" or "light".

    Raises:
        UsageError: A value is none of `ATTRIBUTES`.
    """

    shape: str
    colour: str
    count: int
    position: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            check_known(str(getattr(self, name)), map(str, values), what=f"scene: {name}")

    @property
    def column(self) -> int:
        """Where the grid cell lies across: -1 left, 0 middle, 1 right."""
        return ("right" in self.position) - ("left" in self.position)

    @property
    def row(self) -> int:
        """Where the grid cell lies downwards: -1 top, 0 middle, 1 bottom."""
        return ("bottom" in self.position) - ("top" in self.position)


def draw_scenes(count: int, *, seed: int) -> list[Scene]:
    """Draw scenes at random, all different as long as there are states left.

    Args:
        count: Scenes wanted, 0 or more. Beyond `STATES` they repeat, each as often as any other.
        seed: Equal seeds draw equal scenes; the first scenes do not depend on `count`.

    Raises:
        UsageError: `count` is negative.
    """
    if count < 0:
        raise UsageError(f"draw_scenes: count is {count}, expected 0 or more", count=count)
    order = np.random.default_rng(seed).permutation(STATES)
    return [scene_of(int(order[number % STATES])) for number in range(count)]


def scene_of(state: int) -> Scene:
    """Return the scene of a state's number, 0 <= state < STATES (mixed radix, last part first)."""
    parts: dict[str, str | int] = {}
    for name, values in reversed(ATTRIBUTES.items()):
        state, digit = divmod(state, len(values))
        parts[name] = values[digit]
    return Scene(**parts)  # type: ignore[arg-type]
