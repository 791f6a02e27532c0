"""A scene in English: several sentences that say the same in different words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modalign.errors import UsageError
from modalign.worlds.scenes import Scene

SHAPES = {
    "circle": (("circle", "circles"), ("disc", "discs"), ("dot", "dots")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"), ("wedge", "wedges")),
    "star": (("star", "stars"), ("five-pointed star", "five-pointed stars")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
}
COLOURS = {
    "red": ("red", "scarlet"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "turquoise": ("turquoise", "teal"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose-coloured"),
}
COUNTS = {
    1: ("one", "a single", "a"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
    4: ("four", "a group of four"),
}
POSITIONS = {
    "top left": ("in the top left", "in the upper left corner", "at the top left"),
    "top": ("at the top", "in the top middle", "at the upper edge"),
    "top right": ("in the top right", "in the upper right corner", "at the top right"),
    "left": ("on the left side", "at the left edge", "in the middle of the left side"),
    "centre": ("in the centre", "in the middle", "right in the middle"),
    "right": ("on the right side", "at the right edge", "in the middle of the right side"),
    "bottom left": ("in the bottom left", "in the lower left corner", "at the bottom left"),
    "bottom": ("at the bottom", "in the bottom middle", "at the lower edge"),
    "bottom right": ("in the bottom right", "in the lower right corner", "at the bottom right"),
}
MOTIONS = {
    "still": ("standing still", "at rest", "not moving"),
    "left": ("drifting to the left", "moving left", "sliding leftwards"),
    "right": ("drifting to the right", "moving right", "sliding rightwards"),
    "up": ("floating up", "moving upwards", "rising"),
    "down": ("sinking down", "moving downwards", "falling"),
    "growing": ("growing", "getting bigger", "growing larger and larger"),
}
BACKGROUNDS = {
    "dark": ("on a dark background", "in front of a night sky", "in the dark"),
    "light": ("on a light background", "in front of a bright sky", "in daylight"),
}
# Each says every part of the state, so that a caption points at one scene alone.
TEMPLATES = (
    "{things} {moving}, {where} {ground}",
    "{things} {moving} {ground}, {where}",
    "{where}, {things} {moving} {ground}",
    "{where} {ground}, {things} {moving}",
    "{ground}, {things} {where}, {moving}",
    "there {are} {things} {where}, {moving} {ground}",
    "{things} {where} {ground}, slowly {moving}",
    "a scene with {things} {moving}, {where} {ground}",
)
# What does not move does not do so slowly.
STILL_TEMPLATES = (*TEMPLATES[:6], "{things} {where} {ground}", TEMPLATES[7])


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one English sentence that says every part of the state.

    Args:
        scene: The hidden state.
        rng: Chooses the template and the synonyms.
    """
    return captions(scene, 1, rng)[0]


def captions(scene: Scene, count: int, rng: np.random.Generator) -> list[str]:
    """Return sentences about one scene, no two of one template.

    Args:
        scene: The hidden state.
        count: Sentences wanted, 1 to 8.
        rng: Chooses the templates and the synonyms.

    Raises:
        UsageError: `count` is out of range.
    """
    templates = STILL_TEMPLATES if scene.motion == "still" else TEMPLATES
    if not 1 <= count <= len(templates):
        raise UsageError(
            f"captions: count is {count}, expected 1 to {len(templates)}, one a template",
            count=count,
        )
    chosen = rng.permutation(len(templates))[:count]
    return [_sentence(templates[number], scene, rng) for number in chosen]


def _sentence(template: str, scene: Scene, rng: np.random.Generator) -> str:
    text = template.format(
        things=_things(scene, rng),
        are="is" if scene.count == 1 else "are",
        moving=_one_of(MOTIONS[scene.motion], rng),
        where=_one_of(POSITIONS[scene.position], rng),
        ground=_one_of(BACKGROUNDS[scene.background], rng),
    )
    return f"{text[0].upper()}{text[1:]}."


def _things(scene: Scene, rng: np.random.Generator) -> str:
    """Return what is seen: "two scarlet discs", "an orange ring"."""
    names = SHAPES[scene.shape]
    singular, plural = names[int(rng.integers(len(names)))]
    colour = _one_of(COLOURS[scene.colour], rng)
    number = _one_of(COUNTS[scene.count], rng)
    if number == "a" and colour[0] in "aeiou":
        number = "an"
    return f"{number} {colour} {singular if scene.count == 1 else plural}"


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
