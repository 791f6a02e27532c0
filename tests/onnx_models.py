"""Tiny ONNX models with their cards, written byte by byte: no package is needed to make them.

Source:
    The field numbers of onnx.proto (ONNX IR version 7, operator set 13).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

FLOAT, INT64 = 1, 7
IMAGE_WIDTH, AUDIO_WIDTH, WINDOW = 5, 6, 32


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def attribute(name: str, value: int | list[int]) -> bytes:
    if isinstance(value, int):
        return field(5, field(1, name) + field(3, value) + field(20, 2))
    return field(5, field(1, name) + b"".join(field(8, each) for each in value) + field(20, 7))


def node(kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> bytes:
    ends = b"".join(field(1, name) for name in inputs) + field(2, output)
    settings = b"".join(attribute(name, value) for name, value in attributes.items())
    return field(1, ends + field(4, kind) + settings)


def constant(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(field(1, side) for side in values.shape)
    kind = FLOAT if values.dtype == np.float32 else INT64
    return field(5, dims + field(2, kind) + field(8, name) + field(9, values.tobytes()))


def port(number: int, name: str, shape: list[int | str]) -> bytes:
    sides = [field(1, field(1, s) if isinstance(s, int) else field(2, s)) for s in shape]
    tensor = field(1, FLOAT) + field(2, b"".join(sides))
    return field(number, field(1, name) + field(2, field(1, tensor)))


def model(*graph: bytes) -> bytes:
    return field(1, 7) + field(7, field(2, "tiny") + b"".join(graph)) + field(8, field(2, 13))


def image_weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(IMAGE_WIDTH, 3, 4, 4)).astype(np.float32)


def write_image_model(folder: Path, *, rows: int | str = "N", **changes: Any) -> Path:
    """A convolution of 8x8 pixels to 2x2 positions; the pooled output is their mean."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.onnx"
    path.write_bytes(
        model(
            node("Conv", ["image", "kernel"], "map", kernel_shape=[4, 4], strides=[4, 4]),
            node("Reshape", ["map", "flat"], "columns"),
            node("Transpose", ["columns"], "tokens", perm=[0, 2, 1]),
            node("ReduceMean", ["tokens"], "embedding", axes=[1], keepdims=0),
            constant("kernel", image_weights()),
            constant("flat", np.array([0, IMAGE_WIDTH, 4], np.int64)),
            port(11, "image", [rows, 3, 8, 8]),
            port(12, "embedding", [rows, IMAGE_WIDTH]),
            port(12, "tokens", [rows, 4, IMAGE_WIDTH]),
        )
    )
    write_card(path, image_card() | changes)
    return path


def image_card() -> dict[str, Any]:
    return {
        "modality": "image",
        "input": {
            "name": "image",
            "shape": ["N", 3, 8, 8],
            "resize": {"interpolation": "bilinear", "fit": "stretch"},
            "mean": [0.5, 0.4, 0.3],
            "std": [0.5, 0.25, 0.2],
        },
        "outputs": {
            "embedding": {"shape": ["N", IMAGE_WIDTH]},
            "tokens": {"shape": ["N", 4, IMAGE_WIDTH]},
        },
        "pooled": "embedding",
        "tokens": "tokens",
    }


def audio_weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(WINDOW, AUDIO_WIDTH)).astype(np.float32)


def write_audio_model(folder: Path, **changes: Any) -> Path:
    """The magnitude of six weighted sums of a window of 32 samples."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.onnx"
    path.write_bytes(
        model(
            node("MatMul", ["waveform", "weights"], "sums"),
            node("Abs", ["sums"], "embedding"),
            constant("weights", audio_weights()),
            port(11, "waveform", ["N", WINDOW]),
            port(12, "embedding", ["N", AUDIO_WIDTH]),
        )
    )
    write_card(path, audio_card() | changes)
    return path


def audio_card() -> dict[str, Any]:
    return {
        "modality": "audio",
        "input": {
            "name": "waveform",
            "shape": ["N", WINDOW],
            "sample_rate": 8000,
            "hop_samples": 20,
        },
        "outputs": {"embedding": {"shape": ["N", AUDIO_WIDTH]}},
        "pooled": "embedding",
    }


def write_card(model_path: Path, card: dict[str, Any]) -> None:
    model_path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
