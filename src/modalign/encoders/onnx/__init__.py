"""Any ONNX model of images or sounds, with a JSON card beside it that says what goes in.

    onnx:FILE.onnx    reads FILE.json, the card

    {"modality": "image",
     "input": {"name": "image", "shape": ["N", 3, 224, 224],
               "resize": {"interpolation": "bilinear", "fit": "crop"},
               "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
     "outputs": {"embedding": {"shape": ["N", 1280]}, "tokens": {"shape": ["N", 49, 1280]}},
     "pooled": "embedding", "tokens": "tokens"}

    {"modality": "audio",
     "input": {"name": "waveform", "shape": ["N", 15600], "sample_rate": 16000,
               "hop_samples": 7680},
     "outputs": {"embedding": {"shape": ["N", 1024]}}, "pooled": "embedding"}

`scale` and `offset` (of pixels 0..255) may stand in place of `mean` and `std` (of 0..1). A
sound goes through the model window by window, a video frame by frame; pooled vectors are
the mean over them, tokens are all of them in a row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from modalign.encoders.onnx.card import read_card
from modalign.encoders.onnx.model import OnnxEncoder, Reading, check_against_model, open_session
from modalign.encoders.registry import Spec, check_options, count_option
from modalign.errors import DataError

OPTIONS = ("output", "threads", "frames", "pool")


def load(
    target: str, *, modality: str | None = None, device: str = "cpu", **options: str
) -> OnnxEncoder:
    """Make an encoder of an ONNX file and its card.

    Args:
        target: The .onnx file; weights kept in further files are not read.
        modality: By default the card's. "video" makes a model of images read clips, frame by
            frame.
        device: Not used: onnxruntime computes on the CPU here.
        options: `output` is vectors or tokens; `threads` is onnxruntime's, 0 for its own choice;
            `frames` taken from a clip (8); `pool` of windows or frames is mean, or mean+delta:
            appended to it the mean of the second half minus that of the first.

    Raises:
        UsageError: An option is unknown, or does not go with the card or another option.
        DataError: The model or its card is missing or broken, or they contradict each other.
        MissingExtraError: onnxruntime is not installed.
    """
    spec = str(Spec("onnx", target, options))
    check_options(options, OPTIONS, spec=spec)
    path = Path(target)
    weights = _read_weights(path)
    card = read_card(path.with_suffix(".json"))
    digest = hashlib.sha256(weights).hexdigest()
    if card.sha256 not in (None, digest):
        raise DataError(
            f"{path}: its sha256 is {digest}, expected {card.sha256} as {card.path.name} says; "
            "fetch the model again, or correct the card",
            file=str(path),
        )
    reading = Reading.parse(card, modality, options, spec=spec)
    threads = count_option(options, "threads", 0, allowed=range(257), spec=spec)
    session = open_session(weights, threads=threads, path=path)
    check_against_model(card, session)
    return OnnxEncoder(session, card, reading, digest=digest, spec=spec)


def _read_weights(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}), expected an ONNX model; look at the path",
            file=str(path),
        ) from error
