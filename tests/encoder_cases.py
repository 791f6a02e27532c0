"""What the contract suite runs over: for each adapter, an encoder, good items and broken ones.

To add an adapter, write a function `(folder: Path) -> Case` and decorate it with `@case`; where
it lives in a module of its own, import that module in test_encoders.py.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import onnx_models
from modalign.encoders import load_encoder
from modalign.encoders.contract import Encoder, Output, Reads


@dataclass(frozen=True)
class Case:
    """One adapter in one setting.

    Attributes:
        load: Makes the encoder, anew at each call.
        values: At least five good items with different features, of several lengths.
        broken: Items whose preparing is a DataError; none where there is no such item.
        modality: What the encoder must say of itself, as the next three.
        reads: "text", "file" or "key".
        output: "vectors" or "tokens".
        width: D_m.
        others: Make encoders of the same adapter whose features differ: other options or files.
    """

    load: Callable[[], Encoder]
    values: Sequence[str]
    broken: Sequence[str]
    modality: str
    reads: Reads
    output: Output
    width: int
    others: Sequence[Callable[[], Encoder]] = ()


CASES: dict[str, Callable[[Path], Case]] = {}


def case(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
    """Register a case under its function's name."""
    CASES[make.__name__] = make
    return make


def loader(spec: str, modality: str | None = None) -> Callable[[], Encoder]:
    return lambda: load_encoder(spec, modality=modality)


# --- items --------------------------------------------------------------------------------------


def write_images(folder: Path, count: int = 11, *, seed: int = 0) -> list[str]:
    """Blocks of colour of several sizes and proportions."""
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        blocks = rng.integers(0, 256, (3, 3 + number % 3, 3), np.uint8)
        paths.append(str(folder / f"image{number}.png"))
        Image.fromarray(blocks.repeat(9, axis=0).repeat(7, axis=1)).save(paths[-1])
    return paths


def write_clips(folder: Path, count: int = 5) -> list[str]:
    """A bright square that moves, in animations of different lengths."""
    paths = []
    for number in range(count):
        frames = np.full((3 + 2 * number, 24, 32, 3), 40, np.uint8)
        for step, frame in enumerate(frames):
            left = (2 * step + 5 * number) % 24
            frame[4 + number : 12 + number, left : left + 8] = (250, 30 * number, 90)
        images = [Image.fromarray(frame) for frame in frames]
        paths.append(str(folder / f"clip{number}.gif"))
        images[0].save(paths[-1], save_all=True, append_images=images[1:], duration=100)
    return paths


def write_sound(path: Path, samples: np.ndarray, *, rate: int = 8000) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return str(path)


def write_sounds(folder: Path, lengths: Sequence[int]) -> list[str]:
    """Noise of the given numbers of samples at 8 kHz."""
    rng = np.random.default_rng(2)
    return [
        write_sound(folder / f"sound{number}.wav", rng.uniform(-0.9, 0.9, length))
        for number, length in enumerate(lengths)
    ]


def broken_files(folder: Path) -> list[str]:
    torn = folder / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")
    return [str(torn), str(folder / "absent.png")]


# --- builtin ------------------------------------------------------------------------------------

TEXTS = [
    "A red circle on the left",
    "two blue squares",
    "Ein grünes Dreieck, rechts unten!",
    "x",
    "a red circle on the left, and then a great many more words than any of the others has",
    "日本語",
    "?!",
]


@case
def builtin_pixels(folder: Path) -> Case:
    return _builtin(folder, "pixels", width=8 * 8 * 11 + 64 + 96 + 8 + 16)


@case
def builtin_pixels_tokens(folder: Path) -> Case:
    return _builtin(folder, "pixels", width=24, query="output=tokens")


def _builtin(folder: Path, target: str, *, width: int, query: str = "") -> Case:
    spec = f"builtin:{target}" + (f"?{query}" if query else "")
    modality, values, size = {
        "pixels": ("image", lambda: write_images(folder), "cells=4"),
        "logmel": ("audio", lambda: write_sounds(folder, [800, 1, 9000, 4000, 81]), "slices=9"),
        "frames": ("video", lambda: write_clips(folder), "frames=3"),
    }[target]
    return Case(
        load=loader(spec),
        values=values(),
        broken=broken_files(folder),
        modality=modality,
        reads="file",
        output="tokens" if query else "vectors",
        width=width,
        others=[loader(f"builtin:{target}?{size}&{query}".rstrip("&"))],
    )


@case
def builtin_ngrams(folder: Path) -> Case:
    return Case(
        load=loader("builtin:ngrams"),
        values=TEXTS,
        broken=["", "  \n"],
        modality="text",
        reads="text",
        output="vectors",
        width=1024,
        others=[loader("builtin:ngrams?width=256"), loader("builtin:ngrams?output=tokens")],
    )


@case
def builtin_ngrams_tokens(folder: Path) -> Case:
    return Case(
        load=loader("builtin:ngrams?output=tokens&width=128"),
        values=TEXTS,
        broken=["", "  \n"],
        modality="text",
        reads="text",
        output="tokens",
        width=128,
    )


@case
def builtin_logmel(folder: Path) -> Case:
    return _builtin(folder, "logmel", width=3 * 64 + 32 * 16 + 64 + 32 + 1)


@case
def builtin_logmel_tokens(folder: Path) -> Case:
    return _builtin(folder, "logmel", width=64, query="output=tokens")


@case
def builtin_frames(folder: Path) -> Case:
    return _builtin(folder, "frames", width=1440)


@case
def builtin_frames_tokens(folder: Path) -> Case:
    return _builtin(folder, "frames", width=192 + 96 + 64 + 16 + 192, query="output=tokens")


# --- onnx ---------------------------------------------------------------------------------------


@case
def onnx_image(folder: Path) -> Case:
    return _onnx_image(folder, query="")


@case
def onnx_image_tokens(folder: Path) -> Case:
    return _onnx_image(folder, query="?output=tokens")


def _onnx_image(folder: Path, *, query: str) -> Case:
    path = onnx_models.write_image_model(folder / "model")
    changed = onnx_models.image_card()
    changed["input"] |= {"colour_order": "BGR"}
    other = onnx_models.write_image_model(folder / "other", input=changed["input"])
    return Case(
        load=loader(f"onnx:{path}{query}"),
        values=write_images(folder),
        broken=broken_files(folder),
        modality="image",
        reads="file",
        output="tokens" if query else "vectors",
        width=onnx_models.IMAGE_WIDTH,
        others=[loader(f"onnx:{other}{query}"), loader(f"onnx:{path}?frames=3")],
    )


@case
def onnx_image_one_at_a_time(folder: Path) -> Case:
    card = onnx_models.image_card()
    card["input"]["shape"][0] = 1
    path = onnx_models.write_image_model(folder / "model", rows=1, input=card["input"])
    return Case(
        load=loader(f"onnx:{path}"),
        values=write_images(folder, 5),
        broken=broken_files(folder),
        modality="image",
        reads="file",
        output="vectors",
        width=onnx_models.IMAGE_WIDTH,
    )


@case
def onnx_audio(folder: Path) -> Case:
    return _onnx_audio(folder, query="", width=onnx_models.AUDIO_WIDTH)


@case
def onnx_audio_delta(folder: Path) -> Case:
    return _onnx_audio(folder, query="?pool=mean+delta", width=2 * onnx_models.AUDIO_WIDTH)


@case
def onnx_audio_tokens(folder: Path) -> Case:
    return _onnx_audio(folder, query="?output=tokens", width=onnx_models.AUDIO_WIDTH)


def _onnx_audio(folder: Path, *, query: str, width: int) -> Case:
    path = onnx_models.write_audio_model(folder / "model")
    changed = onnx_models.audio_card()["input"] | {"hop_samples": 16}
    other = onnx_models.write_audio_model(folder / "other", input=changed)
    return Case(
        load=loader(f"onnx:{path}{query}"),
        values=write_sounds(folder, [32, 5, 200, 333, 64, 63, 500]),
        broken=broken_files(folder),
        modality="audio",
        reads="file",
        output="tokens" if "tokens" in query else "vectors",
        width=width,
        others=[loader(f"onnx:{other}{query}")],
    )


@case
def onnx_video(folder: Path) -> Case:
    return _onnx_video(folder, query="?frames=5", width=onnx_models.IMAGE_WIDTH)


@case
def onnx_video_delta(folder: Path) -> Case:
    width = 2 * onnx_models.IMAGE_WIDTH
    return _onnx_video(folder, query="?frames=4&pool=mean+delta", width=width)


@case
def onnx_video_tokens(folder: Path) -> Case:
    return _onnx_video(folder, query="?frames=3&output=tokens", width=onnx_models.IMAGE_WIDTH)


def _onnx_video(folder: Path, *, query: str, width: int) -> Case:
    path = onnx_models.write_image_model(folder / "model")
    return Case(
        load=loader(f"onnx:{path}{query}", "video"),
        values=write_clips(folder),
        broken=broken_files(folder),
        modality="video",
        reads="file",
        output="tokens" if "tokens" in query else "vectors",
        width=width,
        others=[loader(f"onnx:{path}", "video"), loader(f"onnx:{path}", "image")],
    )


# --- vectors ------------------------------------------------------------------------------------


@case
def vectors_npy(folder: Path) -> Case:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(9, 7))
    values[4, 2] = np.nan
    np.save(folder / "a.npy", values)
    (folder / "a.ids.txt").write_text("".join(f"id {row}\n" for row in range(9)), "utf-8")
    np.save(folder / "b.npy", values)
    return Case(
        load=loader(f"vectors:{folder}/a.npy", "sensor"),
        values=["id 3", "id 0", "id 8", "id 1", "id 5"],
        broken=["id 4", "id 9"],
        modality="sensor",
        reads="key",
        output="vectors",
        width=7,
        others=[
            loader(f"vectors:{folder}/b.npy", "sensor"),
            loader(f"vectors:{folder}/a.npy?made_by=thermometer", "sensor"),
        ],
    )


@case
def vectors_tokens(folder: Path) -> Case:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(6, 4, 3)).astype(np.float16)
    mask = np.arange(4) < np.array([1, 2, 4, 3, 1, 4])[:, None]
    ids = np.array([f"clip-{row}" for row in range(6)])
    np.savez(folder / "a.npz", vectors=values, mask=mask, ids=ids)
    np.savez(folder / "b.npz", vectors=values, ids=ids)
    return Case(
        load=loader(f"vectors:{folder}/a.npz", "sensor"),
        values=[f"clip-{row}" for row in (5, 0, 1, 3, 2, 4)],
        broken=["clip-6", ""],
        modality="sensor",
        reads="key",
        output="tokens",
        width=3,
        others=[loader(f"vectors:{folder}/b.npz", "sensor")],
    )


# --- hub ----------------------------------------------------------------------------------------


def _hub(folder: Path, kind: str, modality: str, *, width: int, query: str = "") -> Case:
    # Here, because it imports torch and transformers.
    import hub_checkpoints as hub

    path = hub.save_checkpoint(kind, folder / "model")
    other = "layer=1&pooling=mean" if not query else "output=tokens&layer=1"
    return Case(
        load=loader(f"hub:{path}{query}", modality),
        values={
            "text": hub.TEXTS[:3] + hub.TEXTS[4:6],
            "image": write_images(folder),
            "audio": write_sounds(folder, [800, 2500, 9000, 4000, 801]),
            "video": write_clips(folder),
        }[modality],
        broken=["\udc80"] if modality == "text" else broken_files(folder),
        modality=modality,
        reads="text" if modality == "text" else "file",
        output="tokens" if query else "vectors",
        width=width,
        others=[loader(f"hub:{path}?{other}", modality)],
    )


@case
def hub_text(folder: Path) -> Case:
    return _hub(folder, "bert", "text", width=16)


@case
def hub_text_tokens(folder: Path) -> Case:
    return _hub(folder, "bert", "text", width=16, query="?output=tokens")


@case
def hub_image(folder: Path) -> Case:
    return _hub(folder, "clip", "image", width=12)


@case
def hub_audio(folder: Path) -> Case:
    return _hub(folder, "wav2vec2", "audio", width=16)


@case
def hub_video(folder: Path) -> Case:
    return _hub(folder, "videomae", "video", width=16)
