"""Encoders that need no download: fixed formulas in numpy, nothing learned.

    builtin:pixels   image   colours and edges on a grid, which outline has which colour
    builtin:ngrams   text    hashed words and pieces of words
    builtin:logmel   audio   loudness by pitch and time
    builtin:frames   video   pixels of eight frames, and what moved where between them

They serve the demo, tests and first tries. They know colours, outlines, places, spellings and
pitches, not meanings: to them a cat is as far from a kitten as from a car. Real work wants a
trained encoder.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from typing import Any, ClassVar, cast

import numpy as np

from modalign.encoders.contract import Encoder, Features, Output, stack_features
from modalign.encoders.registry import (
    Spec,
    check_options,
    choice_option,
    chosen_modality,
    count_option,
)
from modalign.errors import DataError, check_known
from modalign.media import read_audio, read_frames, read_image, resize_image

# Raised whenever a formula below changes: cached features of another revision are other features.
REVISION = 1


def load(
    target: str, *, modality: str | None = None, device: str = "cpu", **options: str
) -> BuiltinEncoder:
    """Make a built-in encoder.

    Args:
        target: "pixels", "ngrams", "logmel" or "frames".
        modality: A name of one's own for it, such as "sketch".
        device: Not used: numpy computes on the CPU.
        options: `output` is vectors or tokens; one size each, `BuiltinEncoder.size`.

    Raises:
        UsageError: The target or an option is unknown, or does not encode `modality`.
    """
    check_known(target, TARGETS, what="builtin encoder")
    spec = str(Spec("builtin", target, options))
    kind = TARGETS[target]
    check_options(options, ("output", kind.size.name), spec=spec)
    output = choice_option(options, "output", ("vectors", "tokens"), spec=spec)
    size = kind.size
    count = count_option(options, size.name, size.default, allowed=size.allowed, spec=spec)
    encoder = kind(cast(Output, output), count)
    encoder.modality = chosen_modality(modality, kind.modality, spec=spec)
    encoder.spec = spec
    return encoder


@dataclass(frozen=True)
class Size:
    """The one size a built-in encoder lets its user choose."""

    name: str
    default: int
    allowed: range


class BuiltinEncoder(Encoder):
    """An encoder whose features are computed item by item, so that neighbours cannot matter.

    Attributes:
        target: Its name after "builtin:".
        size: The option that sets `count`.
        count: Cells a side, buckets, slices or frames.
    """

    target: ClassVar[str]
    size: ClassVar[Size]

    def __init__(self, output: Output, count: int) -> None:
        self.output = output
        self.count = count
        self.spec = f"builtin:{self.target}"

    def describe(self) -> dict[str, Any]:
        """Return the formula's name and revision, and the options."""
        return {
            "adapter": "builtin",
            "target": self.target,
            "revision": REVISION,
            "output": self.output,
            self.size.name: self.count,
        }

    def prepare(self, value: str) -> Features:
        """Compute the feature of one item; preparing is all there is to do."""
        feature = self._vector(value) if self.output == "vectors" else self._tokens(value)
        values = feature.astype(np.float32)[None]
        if self.output == "vectors":
            return Features(values)
        return Features(values, np.ones(values.shape[:2], bool))

    def compute(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        """Join what is already computed."""
        return stack_features(inputs, width=self.width, output=self.output)

    @cached_property
    def width(self) -> int:  # type: ignore[override]  # computed, where others assign it
        """D_m."""
        return self._width()

    @abstractmethod
    def _width(self) -> int: ...

    @abstractmethod
    def _vector(self, value: str) -> np.ndarray: ...

    @abstractmethod
    def _tokens(self, value: str) -> np.ndarray: ...


# --- pictures ---------------------------------------------------------------------------------

CELL = 8  # pixels a side of one cell of the grid
PAINTS = 8  # six hues, light, dark
LEVELS = 4  # steps of each colour in the colour histogram
TURNS = 12  # directions an outline's side may face
SLOPES = 8  # directions of an edge, where up is not told from down
FAINT = 1 / 255  # a slope of one level is rounding, and most of a picture's pixels


@dataclass(frozen=True)
class Picture:
    """A small picture, and how much of each paint lies where.

    Attributes:
        colours: 0..1, float32 [S, S, 3].
        paints: Shares that sum to 1 at each pixel, float32 [S, S, 8].
    """

    colours: np.ndarray
    paints: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray, *, side: int) -> Picture:
        """Shrink a picture to `side` pixels a side, proportions ignored: nothing is cut off."""
        small = resize_image(pixels, size=(side, side), interpolation="bilinear", fit="stretch")
        colours = small.astype(np.float32) / 255
        return cls(colours, _paints(colours))

    @cached_property
    def outlines(self) -> np.ndarray:
        """How much of each paint's outline faces which way, float64 [8, 12]."""
        down, right = np.gradient(self.paints, axis=(0, 1))
        paint = np.broadcast_to(np.arange(PAINTS), down.shape)
        return _directions(down, right, groups=paint, bins=TURNS, whole_turn=True)

    @cached_property
    def edges(self) -> np.ndarray:
        """Mean strength of edges by direction in each cell, float64 [cells, cells, 8]."""
        cells = len(self.colours) // CELL
        down, right = np.gradient(self.colours, axis=(0, 1))
        cell = _cell_numbers(len(self.colours), cells)[..., None]
        cell = np.broadcast_to(cell, down.shape)
        sums = _directions(down, right, groups=cell, bins=SLOPES, whole_turn=False)
        return sums.reshape(cells, cells, SLOPES) / CELL**2

    @cached_property
    def histogram(self) -> np.ndarray:
        """Share of pixels by coarse colour, float32 [64]."""
        steps = np.minimum((self.colours * LEVELS).astype(np.intp), LEVELS - 1)
        bucket = (steps[..., 0] * LEVELS + steps[..., 1]) * LEVELS + steps[..., 2]
        counts = np.bincount(bucket.ravel(), minlength=LEVELS**3)
        return (counts / bucket.size).astype(np.float32)

    @cached_property
    def centres(self) -> np.ndarray:
        """Where each paint lies, -1..1 from the centre, by how much there is: float32 [8, 2]."""
        side = len(self.paints)
        axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        amount = self.paints.sum(axis=(0, 1)) + 1e-3 * side * side  # absent paints: the centre
        down = (self.paints * axis[:, None, None]).sum(axis=(0, 1)) / amount
        right = (self.paints * axis[None, :, None]).sum(axis=(0, 1)) / amount
        return np.stack([down, right], axis=1)


class Pixels(BuiltinEncoder):
    """An image: colours, edges and paints, on a grid and as a whole; tokens are the cells."""

    modality = "image"
    reads = "file"
    target = "pixels"
    size = Size("cells", 8, range(2, 10))

    def _width(self) -> int:
        if self.output == "tokens":
            return 3 + 3 + SLOPES + PAINTS + 2
        whole = LEVELS**3 + PAINTS * TURNS + PAINTS + PAINTS * 2
        return self.count**2 * (3 + SLOPES) + whole

    def _picture(self, value: str) -> Picture:
        return Picture.of(read_image(value), side=CELL * self.count)

    def _vector(self, value: str) -> np.ndarray:
        picture = self._picture(value)
        grid = (self.count, self.count)
        # The factors bring each part's summed variance over drawn scenes to about 1.
        parts = [
            0.2 * _cell_means(picture.colours, grid),
            0.8 * np.sqrt(picture.edges),
            1.4 * np.sqrt(picture.histogram),
            0.13 * np.sqrt(picture.outlines),
            2.2 * np.sqrt(picture.paints.mean(axis=(0, 1))),
            1.5 * picture.centres,
        ]
        return np.concatenate([part.ravel() for part in parts])

    def _tokens(self, value: str) -> np.ndarray:
        picture, grid = self._picture(value), (self.count, self.count)
        means = _cell_means(picture.colours, grid)
        squares = _cell_means(picture.colours**2, grid)
        parts = [
            means,
            np.sqrt(np.maximum(squares - means**2, 0)),
            np.sqrt(picture.edges),
            _cell_means(picture.paints, grid),
            np.stack(np.meshgrid(*[np.linspace(-1, 1, self.count)] * 2, indexing="ij"), axis=-1),
        ]
        return np.concatenate(parts, axis=-1).reshape(self.count**2, -1)


def _paints(colours: np.ndarray) -> np.ndarray:
    """Return how much of six hues, of light and of dark makes up each pixel: [..., 8].

    The largest channel minus the smallest is hue, shared between the two nearest of red, yellow,
    green, cyan, blue, magenta; the smallest is light; what the largest lacks to 1 is dark.

    Source:
        Smith 1978, "Color gamut transform pairs": the hexcone's hue. Differs: shared softly.
    """
    # Channel by channel: numpy reduces a last axis of three ten times slower.
    red, green, blue = np.ascontiguousarray(np.moveaxis(colours, -1, 0))
    largest = np.maximum(np.maximum(red, green), blue)
    smallest = np.minimum(np.minimum(red, green), blue)
    chroma = largest - smallest
    divisor = np.where(chroma > 0, chroma, 1)
    hue = np.select(
        [largest == red, largest == green],
        [(green - blue) / divisor, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    distance = np.abs((hue[..., None] - np.arange(6) + 3) % 6 - 3)
    hues = chroma[..., None] * np.maximum(0, 1 - distance)
    shares: np.ndarray = np.concatenate(
        [hues, smallest[..., None], 1 - largest[..., None]], axis=-1
    )
    return shares.astype(np.float32)


def _directions(
    down: np.ndarray, right: np.ndarray, *, groups: np.ndarray, bins: int, whole_turn: bool
) -> np.ndarray:
    """Sum vectors by direction within groups, each shared between the two nearest directions.

    Args:
        down: Their part downwards, any shape.
        right: Their part to the right, the same shape.
        groups: Which group each belongs to, 0..G-1, the same shape.
        bins: Directions told apart, evenly spaced.
        whole_turn: Whether opposite directions differ.

    Returns:
        Summed lengths, float64 [G, bins].

    Source:
        Dalal & Triggs 2005, "Histograms of oriented gradients", without block normalisation.
    """
    size = (int(groups.max()) + 1) * bins
    length = np.hypot(down, right)
    clear = length > FAINT
    length, rows = length[clear], groups[clear] * bins
    turn = 2 * np.pi if whole_turn else np.pi
    angle = np.arctan2(down[clear], right[clear]) * (bins / turn)
    first = np.floor(angle).astype(np.intp)
    upper = length * (angle - first)
    sums: np.ndarray = np.bincount(rows + first % bins, length - upper, size)
    sums += np.bincount(rows + (first + 1) % bins, upper, size)
    return sums.clip(min=0).reshape(-1, bins)  # rounding may leave -1e-18


def _cell_numbers(side: int, cells: int) -> np.ndarray:
    """Return which cell each pixel lies in, row by row: int [side, side]."""
    place = np.arange(side) // (side // cells)
    return place[:, None] * cells + place


def _cell_means(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the mean of each cell: [S, S, C] -> [h, w, C]."""
    (height, width), (rows, columns) = values.shape[:2], grid
    cells = values.reshape(rows, height // rows, columns, width // columns, -1)
    means: np.ndarray = cells.mean(axis=1).mean(axis=2)
    return means


# --- texts ------------------------------------------------------------------------------------

# A run of letters and digits, or one sign: "!?" and a smiley are words too.
WORD = re.compile(r"\w+|[^\w\s]")
# Where tokens stop, as text encoders do; vectors read the whole text.
LONGEST_TEXT = 256


class Ngrams(BuiltinEncoder):
    """A text: hashed words, pairs of words and pieces of 3 to 5 letters; tokens are the words.

    A bucket's sign is part of the hash, so that texts which share nothing have similarity
    around 0 however narrow the vector.

    Source:
        Weinberger et al. 2009, arXiv:0902.2206, eq. 3 (signed hashing); word pieces between
        boundary marks as in Bojanowski et al. 2017, arXiv:1607.04606, section 3.2.
    """

    modality = "text"
    reads = "text"
    target = "ngrams"
    size = Size("width", 1024, range(64, 1537))
    lookahead = 1024
    batch_size = 256

    def _width(self) -> int:
        return self.count

    def _words(self, text: str) -> list[str]:
        words = WORD.findall(unicodedata.normalize("NFKC", text).lower())
        if not words:
            raise DataError(
                "a text is empty, expected at least one word; fill it in",
                value=text,
            )
        return words

    def _vector(self, value: str) -> np.ndarray:
        words = self._words(value)
        vector = np.zeros(self.count)
        for word, times in Counter(words).items():
            buckets, weights = _word_buckets(word, self.count)
            np.add.at(vector, buckets, weights * (1 + np.log(times)))
        for pair, times in Counter(pairwise(words)).items():
            bucket, sign = _bucket("\x1f".join(pair), self.count)
            vector[bucket] += sign * 0.5 * (1 + np.log(times))
        return _unit(vector)

    def _tokens(self, value: str) -> np.ndarray:
        words = self._words(value)[:LONGEST_TEXT]
        vectors = np.zeros((len(words), self.count))
        for vector, word in zip(vectors, words, strict=True):
            buckets, weights = _word_buckets(word, self.count)
            np.add.at(vector, buckets, weights)
        return np.stack([_unit(vector) for vector in vectors])


@lru_cache(maxsize=50_000)
def _word_buckets(word: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the buckets of a word and its pieces, and the signed weight of each.

    The word counts 1 and its pieces together as much, whatever its length.
    """
    marked = f"<{word}>"
    pieces = {
        marked[start : start + size]
        for size in (3, 4, 5)
        for start in range(len(marked) - size + 1)
    }
    hashed = [_bucket(text, width) for text in [word, *sorted(pieces)]]
    weights = np.array([1.0] + [len(pieces) ** -0.5] * len(pieces))
    buckets, signs = np.array(hashed).T
    return buckets, weights * signs


def _bucket(text: str, width: int) -> tuple[int, int]:
    """Return a bucket and a sign that are the same in every process, unlike hash()."""
    number = int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    )
    return (number >> 1) % width, 1 if number & 1 else -1


def _unit(vector: np.ndarray) -> np.ndarray:
    # Signs can cancel to nothing in theory; the zero vector then stays what it is.
    return vector / (np.linalg.norm(vector) or 1.0)


# --- sounds -----------------------------------------------------------------------------------

SAMPLE_RATE_HZ = 16_000
WINDOW, HOP, BANDS = 1024, 160, 64
LOWEST_HZ, HIGHEST_HZ = 60.0, 7_600.0
# Far below a whisper beside full scale; silence is its logarithm and no less.
FLOOR = 1e-6
FRAMES_AT_ONCE = 4096


class LogMel(BuiltinEncoder):
    """A sound: loudness by pitch and time; tokens are slices of equal length.

    A clip is cut into the same number of slices whatever its length, so rhythm is relative to
    the clip; its length in seconds is one number of the vector.
    """

    modality = "audio"
    reads = "file"
    target = "logmel"
    size = Size("slices", 32, range(4, 65))

    def _width(self) -> int:
        if self.output == "tokens":
            return BANDS
        return 3 * BANDS + self.count * (BANDS // 4) + 2 * self.count + self.count + 1

    def _vector(self, value: str) -> np.ndarray:
        frames = self._frames(value)
        loudness = frames.mean(axis=1)
        envelope = _slices(loudness[:, None], 2 * self.count)[:, 0]
        ripple = np.abs(np.fft.rfft(envelope - envelope.mean()))[1 : self.count + 1]
        loud = frames[loudness >= np.quantile(loudness, 0.75)]
        coarse = _slices(frames, self.count).reshape(self.count, BANDS // 4, 4).mean(axis=2)
        # The factors bring each part's summed variance over drawn scenes to about 1.
        parts = [
            0.08 * frames.mean(axis=0),
            0.1 * frames.std(axis=0),
            0.05 * loud.mean(axis=0),
            0.028 * coarse,
            0.18 * envelope,
            0.4 * ripple / np.sqrt(self.count),
            np.log([len(frames) * HOP / SAMPLE_RATE_HZ]),
        ]
        return np.concatenate([part.ravel() for part in parts])

    def _tokens(self, value: str) -> np.ndarray:
        return _slices(self._frames(value), self.count) / 4

    def _frames(self, value: str) -> np.ndarray:
        """Return log loudness above the floor, float32 [T, 64]."""
        return log_mel(read_audio(value, sample_rate_hz=SAMPLE_RATE_HZ))


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the logarithm of mel-band power, 0 at silence: [S] -> float32 [T, 64].

    Args:
        samples: 16 kHz, -1..1, float32 [S], S >= 1; the sound is surrounded by silence, so
            that T = ceil(S / 160) whatever its length.

    Source:
        O'Shaughnessy 1987: mel = 2595 log10(1 + Hz / 700); triangular bands as in
        Davis & Mermelstein 1980.
    """
    count = -(-len(samples) // HOP)
    padded = np.pad(samples, (WINDOW // 2, WINDOW // 2 + HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:count]
    taper = np.hanning(WINDOW).astype(np.float32)
    power = np.empty((count, BANDS), np.float32)
    for start in range(0, count, FRAMES_AT_ONCE):  # an hour of windows would not fit in memory
        block = windows[start : start + FRAMES_AT_ONCE] * taper
        spectrum = np.abs(np.fft.rfft(block, axis=1)) ** 2 / taper.sum() ** 2
        power[start : start + FRAMES_AT_ONCE] = spectrum @ _mel_bands()
    loudness: np.ndarray = np.log(power + FLOOR) - np.float32(np.log(FLOOR))
    return loudness


@cache
def _mel_bands() -> np.ndarray:
    """Return how much of each frequency each band takes, float32 [513, 64]."""
    lowest, highest = 2595 * np.log10(1 + np.array([LOWEST_HZ, HIGHEST_HZ]) / 700)
    corners = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE_HZ)[:, None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _slices(frames: np.ndarray, count: int) -> np.ndarray:
    """Cut [T, C] into `count` slices and average each; short clips repeat frames: [count, C]."""
    starts = np.arange(count) * len(frames) // count
    stops = np.maximum(starts + 1, (np.arange(count) + 1) * len(frames) // count)
    return np.stack([frames[a:b].mean(axis=0) for a, b in zip(starts, stops, strict=True)])


# --- clips ------------------------------------------------------------------------------------

CLIP_CELLS = 8
FLOW_CELLS = 4
COURSES = 8  # directions of movement


class Frames(BuiltinEncoder):
    """A clip: pixels of evenly spaced frames, and what moved where; tokens are the frames."""

    modality = "video"
    reads = "file"
    target = "frames"
    size = Size("frames", 8, range(2, 17))
    lookahead = 16

    def _width(self) -> int:
        grid, outlines = CLIP_CELLS**2, PAINTS * TURNS
        if self.output == "tokens":
            return grid * 3 + outlines + LEVELS**3 + PAINTS * 2 + grid * 3
        flow = (FLOW_CELLS**2 + PAINTS) * COURSES
        return grid * (3 + 3 + SLOPES + 1) + outlines + LEVELS**3 + flow + self.count * PAINTS * 2

    def _pictures(self, value: str) -> list[Picture]:
        frames = read_frames(value, count=self.count)
        return [Picture.of(frame, side=CELL * CLIP_CELLS) for frame in frames]

    def _vector(self, value: str) -> np.ndarray:
        pictures = self._pictures(value)
        grid = (CLIP_CELLS, CLIP_CELLS)
        colours = np.stack([picture.colours for picture in pictures])
        change = np.abs(np.diff(colours, axis=0)).mean(axis=0)
        edges = np.mean([picture.edges for picture in pictures], axis=0)
        centres = np.stack([picture.centres for picture in pictures])
        # The factors bring each part's summed variance over drawn scenes to about 1.
        parts = [
            0.2 * _cell_means(colours[0], grid),
            0.2 * _cell_means(colours[-1], grid),
            0.8 * np.sqrt(edges),
            1.6 * np.sqrt(_cell_means(change.mean(axis=-1, keepdims=True), grid)),
            0.14 * np.sqrt(np.mean([picture.outlines for picture in pictures], axis=0)),
            1.4 * np.sqrt(np.mean([picture.histogram for picture in pictures], axis=0)),
            *_flow(pictures),
            # From the mean, so that the way it went is not drowned by where it was.
            3.0 * (centres - centres.mean(axis=0)),
        ]
        return np.concatenate([part.ravel() for part in parts])

    def _tokens(self, value: str) -> np.ndarray:
        pictures = self._pictures(value)
        grid = (CLIP_CELLS, CLIP_CELLS)
        cells = np.stack([_cell_means(picture.colours, grid) for picture in pictures])
        change = np.diff(cells, axis=0, append=cells[-1:])  # nothing follows the last frame
        return np.stack(
            [
                np.concatenate(
                    [
                        cells[row].ravel(),
                        0.15 * np.sqrt(picture.outlines).ravel(),
                        2.0 * np.sqrt(picture.histogram),
                        picture.centres.ravel(),
                        change[row].ravel(),
                    ]
                )
                for row, picture in enumerate(pictures)
            ]
        )


def _flow(pictures: Sequence[Picture]) -> list[np.ndarray]:
    """Return how much moves which way: on a 4 x 4 grid [4, 4, 8], and by paint [8, 8].

    What brightens where the slope falls to the right has moved to the right: the movement
    across an edge is minus the change in time times the slope.

    Source:
        The normal flow of Horn & Schunck 1981, eq. 2, weighted by the slope instead of divided.
    """
    paints = np.stack([picture.paints for picture in pictures])
    count, side = paints.shape[:2]
    # Half the size: what moves less than two pixels from frame to frame stands still.
    paints = paints.reshape(count, side // 2, 2, side // 2, 2, PAINTS).mean(axis=(2, 4))
    before, change = paints[:-1], np.diff(paints, axis=0)
    down, right = np.gradient(before, axis=(1, 2))
    cell = _cell_numbers(side // 2, FLOW_CELLS)[..., None]
    group = np.broadcast_to(cell * PAINTS + np.arange(PAINTS), down.shape)
    courses = _directions(
        -change * down, -change * right, groups=group, bins=COURSES, whole_turn=True
    ).reshape(FLOW_CELLS**2, PAINTS, COURSES)
    return [0.2 * np.sqrt(courses.sum(axis=1)), 0.2 * np.sqrt(courses.sum(axis=0))]


TARGETS: dict[str, type[BuiltinEncoder]] = {
    kind.target: kind for kind in (Pixels, Ngrams, LogMel, Frames)
}
