"""A scene as a sound: a short phrase of beeps.

| part of the state | heard as |
|---|---|
| count | the number of beeps |
| colour | the pitch, red lowest and pink highest |
| shape | the timbre: which overtones, and how strong |
| position | when the phrase starts (left early, right late); how high its chime is (top high) |
| motion | up and down: the pitch glides; right and left: swells and fades; growing: vibrato |
| background | a low hum (dark) or an airy hiss (light) |
"""

from __future__ import annotations

import math

import numpy as np

from modalign.worlds.scenes import ATTRIBUTES, Scene

SAMPLE_RATE_HZ = 16_000
SAMPLES = 19_200
PHRASE_S = 0.72
GAP_S = 0.06

# A chord of D major over two and a half octaves, one pitch a colour.
PITCHES_HZ = (147.0, 185.0, 220.0, 294.0, 370.0, 440.0, 587.0, 740.0)
# (multiple of the pitch, strength)
TIMBRES = {
    "circle": ((1, 1.0),),
    "square": ((1, 1.0), (3, 0.6), (5, 0.45), (7, 0.35)),
    "triangle": ((1, 0.7), (2, 1.0)),
    "star": ((1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5), (6, 0.5), (8, 0.4)),
    "ring": ((1, 1.0), (2.76, 0.8), (5.4, 0.6)),
    "cross": ((1, 0.4), (4, 0.9), (5, 0.6)),
}
ONSETS_S = {-1: 0.04, 0: 0.23, 1: 0.42}
CHIMES_HZ = {-1: 6400.0, 0: 5200.0, 1: 4200.0}
GLIDE_SEMITONES = 5.0
# What is heard of a background: a band of noise, and how loud it is.
BANDS_HZ = {"dark": (50.0, 120.0, 0.05), "light": (7000.0, 7800.0, 0.02)}


def synthesise_sound(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Make the sound of a scene.

    Args:
        scene: The hidden state.
        rng: Decides tuning, tempo, loudness, phases and noise.

    Returns:
        One channel at SAMPLE_RATE_HZ, float32 [SAMPLES] in [-1, 1].
    """
    time = np.arange(SAMPLES) / SAMPLE_RATE_HZ
    onset = ONSETS_S[scene.column] + rng.uniform(-0.02, 0.02)
    # Progress through the phrase: 0 at its start, 1 at its end.
    progress = (time - onset) / (PHRASE_S * rng.uniform(0.97, 1.03))
    envelope = _beeps(progress, scene.count) * _loudness(np.clip(progress, 0, 1), scene.motion)
    phase = _phase(scene, np.clip(progress, 0, 1), rng)
    tone = _tone(scene.shape, phase, rng)
    chime = np.sin(2 * math.pi * CHIMES_HZ[scene.row] * rng.uniform(0.99, 1.01) * time)
    phrase = envelope * (tone + 0.14 * chime)
    sound = phrase * rng.uniform(0.75, 1.0) + _noise(scene.background, rng)
    samples: np.ndarray = np.clip(0.6 * sound, -1, 1).astype(np.float32)
    return samples


def _beeps(progress: np.ndarray, count: int) -> np.ndarray:
    """Return the envelope of `count` beeps that fill the phrase, with soft edges, [S] in [0, 1]."""
    gap = GAP_S / PHRASE_S
    length = (1 - gap * (count - 1)) / count
    into = np.where((progress >= 0) & (progress < 1), progress, -1) % (length + gap)
    inside = (progress >= 0) & (progress < 1) & (into < length)
    edge = np.minimum(into, length - into) * PHRASE_S / 0.012
    return np.where(inside, np.clip(edge, 0, 1), 0.0)


def _loudness(progress: np.ndarray, motion: str) -> np.ndarray:
    """Return how loud each moment is, [S] in (0, 1]: what moves to the right swells."""
    if motion == "right":
        return 0.12 + 0.88 * progress**1.5
    if motion == "left":
        return 0.12 + 0.88 * (1 - progress) ** 1.5
    return np.full_like(progress, 0.75)


def _phase(scene: Scene, progress: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the phase of the fundamental at each moment, radians [S]."""
    pitch_hz = PITCHES_HZ[ATTRIBUTES["colour"].index(scene.colour)] * rng.uniform(0.99, 1.01)
    semitones = np.zeros_like(progress)
    if scene.motion in ("up", "down"):
        semitones = GLIDE_SEMITONES * (progress - 0.5) * (1 if scene.motion == "up" else -1)
    elif scene.motion == "growing":
        rate_hz = rng.uniform(13, 15)
        wave = np.sin(2 * math.pi * rate_hz * PHRASE_S * progress)
        semitones = (0.4 + 1.6 * progress) * wave
    frequency_hz = pitch_hz * 2 ** (semitones / 12)
    phase: np.ndarray = 2 * math.pi * np.cumsum(frequency_hz) / SAMPLE_RATE_HZ
    return phase


def _tone(shape: str, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the overtones of a shape's timbre added up, of equal power for every shape, [S]."""
    power = sum(strength**2 for _, strength in TIMBRES[shape])
    tone = np.zeros_like(phase)
    for multiple, strength in TIMBRES[shape]:
        wobble = rng.uniform(0.9, 1.1)
        tone += wobble * strength * np.sin(multiple * phase + rng.uniform(0, 2 * math.pi))
    return tone / math.sqrt(power)


def _noise(background: str, rng: np.random.Generator) -> np.ndarray:
    """Return a faint noise everywhere and a louder one in the background's band, [S]."""
    low_hz, high_hz, level = BANDS_HZ[background]
    frequencies_hz = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE_HZ)
    band = (frequencies_hz >= low_hz) & (frequencies_hz <= high_hz)
    # A band holds a share of all frequencies; its samples' standard deviation becomes `level`.
    strength = 0.002 + band * level / math.sqrt(band.mean())
    spectrum = rng.standard_normal((len(band), 2)) @ (1, 1j) * strength
    noise: np.ndarray = np.fft.irfft(spectrum, SAMPLES, norm="forward") / math.sqrt(2 * SAMPLES)
    return noise
