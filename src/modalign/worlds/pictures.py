"""A scene as a picture and as a clip: soft shapes on a soft background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modalign.worlds.scenes import Scene

PICTURE_SIDE = 96
CLIP_SIDE = 80
FRAMES = 12
# Shapes are drawn this much larger and averaged down: smooth edges.
OVERSAMPLING = 4

PALETTE = {
    "red": (222, 48, 52),
    "orange": (245, 134, 32),
    "yellow": (246, 206, 46),
    "green": (58, 168, 76),
    "turquoise": (32, 190, 186),
    "blue": (48, 98, 222),
    "purple": (138, 62, 190),
    "pink": (244, 122, 178),
}
BACKGROUND_SHADES = {"dark": (34, 38, 58), "light": (236, 233, 226)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Where the members of a group stand, in units of their distance.
LAYOUTS = {
    1: ((0.0, 0.0),),
    2: ((-0.5, 0.0), (0.5, 0.0)),
    3: ((-0.5, 0.38), (0.5, 0.38), (0.0, -0.48)),
    4: ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
}
CELL_DISTANCE = 0.24
# How visible each ghost of the trail is, the nearest first.
TRAIL = (0.42, 0.27, 0.14)
TRAVEL = 0.18
# Pixels around the shapes that their shadow may reach.
MARGIN = 5

Outline = np.ndarray


@dataclass(frozen=True)
class Group:
    """The members of a scene with all that chance decided; lengths are shares of the side.

    Attributes:
        shape: The name of the shape.
        centres: Where the members are, float [count, 2], x then y.
        radius: The radius of one member.
        angle: How far each member is turned, radians.
    """

    shape: str
    centres: np.ndarray
    radius: float
    angle: float

    def moved(self, step: np.ndarray) -> Group:
        """Return the group shifted by `step`, float [2]."""
        return replace(self, centres=self.centres + step)

    def scaled(self, factor: float) -> Group:
        """Return the group with members `factor` times as large, each about its own centre."""
        return replace(self, radius=self.radius * factor)


@dataclass(frozen=True)
class Window:
    """A part of a square of `side` pixels: only what is painted on is computed."""

    left: int
    top: int
    right: int
    bottom: int
    side: int

    @property
    def area(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def width(self) -> int:
        """Columns of the window."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows of the window."""
        return self.bottom - self.top


def draw_picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene; ghosts beside the shapes show where they come from, or how they grow.

    Args:
        scene: The hidden state.
        rng: Decides size, exact place, turn and shades.

    Returns:
        Colours, uint8 [PICTURE_SIDE, PICTURE_SIDE, 3].
    """
    group = _place(scene, rng)
    colour, canvas = _shades(scene, rng, side=PICTURE_SIDE)
    ghosts = [_ghost(group, scene.motion, step) for step in range(1, len(TRAIL) + 1)]
    window = _window([group, *ghosts], side=PICTURE_SIDE)
    if scene.motion != "still":
        coverage = np.stack([_coverage(ghost, window) for ghost in ghosts])
        trail = (coverage * np.array(TRAIL, np.float32)[:, None, None]).max(axis=0)
        canvas[window.area] += trail[..., None] * (colour - canvas[window.area])
    canvas[window.area] = _painted(canvas[window.area], colour, _coverage(group, window)[None])[0]
    return _as_pixels(canvas)


def draw_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene in motion; halfway through it stands where a picture would show it.

    Args:
        scene: The hidden state.
        rng: Decides size, exact place, turn and shades.

    Returns:
        Colours, uint8 [FRAMES, CLIP_SIDE, CLIP_SIDE, 3].
    """
    group = _place(scene, rng)
    colour, canvas = _shades(scene, rng, side=CLIP_SIDE)
    moments = np.linspace(-0.5, 0.5, FRAMES) if scene.motion != "still" else np.zeros(1)
    groups = [_at(group, scene.motion, moment) for moment in moments]
    window = _window(groups, side=CLIP_SIDE)
    coverage = np.stack([_coverage(group, window) for group in groups])
    frames = np.repeat(_as_pixels(canvas)[None], FRAMES, axis=0)
    frames[:, *window.area] = _as_pixels(_painted(canvas[window.area], colour, coverage))
    return frames


def _place(scene: Scene, rng: np.random.Generator) -> Group:
    """Decide where the members stand and how large they are."""
    radius = rng.uniform(0.085, 0.105)
    turn = rng.uniform(-0.12, 0.12)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    cell = 0.5 + CELL_DISTANCE * np.array([scene.column, scene.row])
    centre = cell + rng.uniform(-0.025, 0.025, 2)
    offsets = np.array(LAYOUTS[scene.count]) @ rotation.T * radius * 2.45
    return Group(scene.shape, centre + offsets, radius, rng.uniform(-0.15, 0.15))


def _shades(scene: Scene, rng: np.random.Generator, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the colour of the shapes, float32 [3], and the background, float32 [H, W, 3]."""
    colour = np.array(PALETTE[scene.colour], np.float32) + rng.uniform(-9, 9, 3)
    ground = np.array(BACKGROUND_SHADES[scene.background]) + rng.uniform(-8, 8, 3)
    slope = rng.uniform(-9, 9, 2)
    axis = np.linspace(-1, 1, side)
    light = slope[0] * axis[None, :] + (slope[1] - 9) * axis[:, None]
    return colour.astype(np.float32), (ground + light[:, :, None]).astype(np.float32)


def _ghost(group: Group, motion: str, step: int) -> Group:
    """Return the group as it was (or, when growing, will be) `step` steps away."""
    if motion == "growing":
        return group.scaled(1 + 0.28 * step)
    return group.moved(-0.065 * step * _direction(motion))


def _at(group: Group, motion: str, moment: float) -> Group:
    """Return the group at a moment of the clip, -0.5 at its start to 0.5 at its end."""
    if motion == "growing":
        return group.scaled(0.8 + 0.7 * moment)
    return group.moved(TRAVEL * moment * _direction(motion))


def _direction(motion: str) -> np.ndarray:
    return np.array(DIRECTIONS.get(motion, (0, 0)))


def _window(groups: Sequence[Group], *, side: int) -> Window:
    """Return the part of the picture that holds all groups and their shadows."""
    low = np.min([group.centres.min(axis=0) - 1.3 * group.radius for group in groups], axis=0)
    high = np.max([group.centres.max(axis=0) + 1.3 * group.radius for group in groups], axis=0)
    left, top = np.clip(np.floor(low * side).astype(int) - MARGIN, 0, side).tolist()
    right, bottom = np.clip(np.ceil(high * side).astype(int) + MARGIN, 0, side).tolist()
    return Window(left, top, right, bottom, side)


def _coverage(group: Group, window: Window) -> np.ndarray:
    """Return how much of each pixel the group covers, float32 [h, w] of the window, in [0, 1]."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (window.width * OVERSAMPLING, window.height * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    corner = np.array((window.left, window.top)) / window.side
    for outline, ink in OUTLINES[group.shape]:
        turned = _turned(outline, group.angle) * group.radius
        for centre in group.centres:
            points = (centre - corner + turned) * (window.side * OVERSAMPLING)
            draw.polygon(points.ravel().tolist(), fill=ink)
    coverage: np.ndarray = np.asarray(canvas.reduce(OVERSAMPLING), np.float32) / 255
    return coverage


def _turned(outline: Outline, angle: float) -> Outline:
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: np.ndarray = outline @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


def _painted(canvas: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Paint shapes with a soft shadow below and light from the top left.

    Args:
        canvas: What lies behind, float32 [h, w, 3].
        colour: float32 [3].
        coverage: float32 [F, h, w].

    Returns:
        Colours, float32 [F, h, w, 3].
    """
    soft = _blurred(coverage)
    shadow = 0.34 * _shifted(soft, 3, 2)
    bevel = _shifted(soft, -1, -1) - _shifted(soft, 1, 1)
    shaded = canvas * (1 - shadow[..., None])
    painted: np.ndarray = shaded + coverage[..., None] * (colour + 70 * bevel[..., None] - shaded)
    return painted


def _as_pixels(colours: np.ndarray) -> np.ndarray:
    return np.clip(colours + 0.5, 0, 255).astype(np.uint8)


def _blurred(coverage: np.ndarray) -> np.ndarray:
    """Return the mean over five neighbours along both axes, float32 [F, h, w]."""
    rows = sum((_shifted(coverage, step, 0) for step in (-2, -1, 1, 2)), coverage)
    both = sum((_shifted(rows, 0, step) for step in (-2, -1, 1, 2)), rows)
    return both / np.float32(25)


def _shifted(values: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return values moved by whole pixels; the edge is repeated, so it has no bevel of its own."""
    height, width = values.shape[1:]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return values[:, rows[:, None], columns]


def _polygon(corners: int, *, radius: float = 1.0, start: float = -math.pi / 2) -> Outline:
    angles = start + np.arange(corners) * 2 * math.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> Outline:
    outline = _polygon(2 * points, radius=1.18)
    outline[1::2] *= inner
    return outline


def _cross(arm: float, reach: float) -> Outline:
    quarter = np.array([(arm, -reach), (arm, -arm), (reach, -arm)])
    return np.concatenate([_turned(quarter, turn * math.pi / 2) for turn in range(4)])


# Outlines about the origin with a radius near 1, drawn in order: ink, then what is cut out.
OUTLINES: dict[str, tuple[tuple[Outline, int], ...]] = {
    "circle": ((_polygon(48), 255),),
    "square": ((_polygon(4, radius=1.27, start=math.pi / 4), 255),),
    "triangle": ((_polygon(3, radius=1.25), 255),),
    "star": ((_star(5, 0.45), 255),),
    "ring": ((_polygon(48, radius=1.06), 255), (_polygon(48, radius=0.58), 0)),
    "cross": ((_cross(0.36, 1.08), 255),),
}
