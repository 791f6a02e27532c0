"""Perturbations of texts and pictures: what users type and send, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

TextPerturbation = Callable[[str, np.random.Generator], str]
PicturePerturbation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

ARTICLES = frozenset(("a", "an", "the", "two", "three", "some"))
ATTRIBUTES = ("red", "blue", "small", "large", "old", "young", "bright", "dark", "wooden", "wet")
# One word in so many is mistyped, swapped.
WORDS_A_TYPO = 5
WORDS_A_SWAP = 6
# Shorter ones are hardly mistyped.
LETTERS = 4
CROPPED_SIDE = 0.6
# Of the shorter side.
BLUR_RADIUS = 0.01
NOISE_DEVIATION = 20.0


def attributes_inserted(text: str, rng: np.random.Generator) -> str:
    """Put an adjective that nobody said after every article or number, else in front."""
    found: list[str] = []
    inserted = False
    for word in text.split():
        found.append(word)
        if word.lower() in ARTICLES:
            found.append(str(rng.choice(ATTRIBUTES)))
            inserted = True
    return " ".join(found if inserted else [str(rng.choice(ATTRIBUTES)), *found])


def words_swapped(text: str, rng: np.random.Generator) -> str:
    """Let two words change places, once for every six words; a single word stays."""
    words = text.split()
    if len(words) < 2:
        return text
    for _ in range(max(1, len(words) // WORDS_A_SWAP)):
        a, b = rng.choice(len(words), 2, replace=False)
        words[a], words[b] = words[b], words[a]
    return " ".join(words)


def mistyped(text: str, rng: np.random.Generator) -> str:
    """Mistype one word in five, one at least: two letters swapped, one dropped or doubled.

    Words of fewer than four letters stay.
    """
    words = text.split()
    long = [place for place, word in enumerate(words) if len(word) >= LETTERS]
    if not long:
        return text
    count = min(len(long), max(1, round(len(words) / WORDS_A_TYPO)))
    for place in rng.choice(long, count, replace=False):
        words[place] = _typo(words[place], rng)
    return " ".join(words)


def _typo(word: str, rng: np.random.Generator) -> str:
    at, kind = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + (word[at + 1 :] if kind == 1 else word[at] + word[at:])


def cropped(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep 60 % of each side, at a drawn place."""
    height, width = pixels.shape[:2]
    rows, columns = (max(1, round(CROPPED_SIDE * side)) for side in (height, width))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return pixels[top : top + rows, left : left + columns].copy()


def blurred(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian of 1 % of the shorter side."""
    radius = BLUR_RADIUS * min(pixels.shape[:2])
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise of deviation 20 of 255 to every value."""
    values = pixels + NOISE_DEVIATION * rng.standard_normal(pixels.shape, dtype=np.float32)
    noisy_pixels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return noisy_pixels


def greyscale(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take the colours away."""
    return np.array(Image.fromarray(pixels).convert("L").convert("RGB"))


TEXT_PERTURBATIONS: dict[str, TextPerturbation] = {
    "attributes": attributes_inserted,
    "swapped": words_swapped,
    "typos": mistyped,
}
PICTURE_PERTURBATIONS: dict[str, PicturePerturbation] = {
    "crop": cropped,
    "blur": blurred,
    "noise": noisy,
    "greyscale": greyscale,
}
