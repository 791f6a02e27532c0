"""An ONNX model and its card, as an encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np

from modalign.encoders.contract import Encoder, Features, Output, batched
from modalign.encoders.onnx.card import AudioInput, Card
from modalign.encoders.registry import choice_option, chosen_modality, count_option
from modalign.errors import DataError, UsageError, check_known, import_extra
from modalign.media import read_audio, read_frames, read_image

# Raised whenever the steps before or after the model change: features are then others.
REVISION = 1
# Pieces (images, frames, windows) in one run. Measured with MobileNetV2 and YAMNet on a CPU:
# throughput is the same from 4 to 32, and a single item in exact mode pays for the whole run.
PIECES = 8


def open_session(weights: bytes, *, threads: int, path: Path) -> Any:
    """Open a model from its bytes: they are what was hashed, and no further file is read."""
    runtime = import_extra("onnxruntime", extra="onnx")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.use_deterministic_compute = True
    # Idle threads that spin take the cores from those that read the next items: measured with
    # two threads on two busy cores, 17 ms a photo with spinning and 10 ms without.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 4  # its own lines on stderr; what matters is raised
    try:
        return runtime.InferenceSession(weights, settings, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"{path}: onnxruntime cannot open it ({reason}); expected an ONNX model whose weights "
            "lie in the file itself",
            file=str(path),
        ) from error


def _runtime_errors() -> tuple[type[Exception], ...]:
    states = import_extra("onnxruntime.capi.onnxruntime_pybind11_state", extra="onnx")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return tuple(getattr(states, name) for name in (*names, "RuntimeException"))


def check_against_model(card: Card, session: Any) -> None:
    """Check that the model has the inputs and outputs its card speaks of."""
    inputs = {item.name: item for item in session.get_inputs()}
    if set(inputs) != {card.input.name}:
        raise DataError(
            f"card {card.path}: input 'name' is {card.input.name!r}, and the model's inputs are "
            f"{', '.join(sorted(inputs))}; expected one input, named the same",
            file=str(card.path),
        )
    entry = inputs[card.input.name]
    if entry.type != "tensor(float)":
        raise DataError(
            f"card {card.path}: the model's input is {entry.type}, expected tensor(float)",
            file=str(card.path),
        )
    _check_shape(card, "input", entry.shape, [card.input.rows or "N", *card.input.shape])
    outputs = {item.name: item for item in session.get_outputs()}
    for name, rank in ((card.pooled, 2), (card.tokens, 3)):
        if name is None:
            continue
        check_known(name, outputs, what=f"card {card.path}: output")
        claimed = ["N", *["L"] * (rank - 2), card.width]
        _check_shape(card, f"output {name!r}", outputs[name].shape, claimed)


def _check_shape(card: Card, what: str, actual: Sequence[Any], claimed: Sequence[Any]) -> None:
    """Compare where both sides are numbers; a symbol fits any number, but for the rows."""
    fits = len(actual) == len(claimed) and all(
        a == b for a, b in zip(actual[1:], claimed[1:], strict=True) if _numbers(a, b)
    )
    if what == "input" and isinstance(actual[0], int) and actual[0] != claimed[0]:
        fits = False
    if not fits:
        raise DataError(
            f"card {card.path}: {what} has shape {json.dumps(list(actual))} in the model, "
            f"expected {json.dumps(list(claimed))} as the card says; correct the card",
            file=str(card.path),
        )


def _numbers(first: Any, second: Any) -> bool:
    return isinstance(first, int) and isinstance(second, int)


@dataclass(frozen=True)
class Reading:
    """How items are read and what becomes of the model's outputs.

    Attributes:
        modality: What the encoder is called.
        frames: Frames taken from a clip; 0 where items are no clips.
        output: "vectors" or "tokens".
        pool: How windows or frames become one vector: "mean" or "mean+delta".
    """

    modality: str
    frames: int
    output: Output
    pool: str

    @classmethod
    def parse(
        cls, card: Card, modality: str | None, options: dict[str, str], *, spec: str
    ) -> Reading:
        """Read the options that concern it.

        Raises:
            UsageError: An option does not go with the card or with another.
        """
        # Under a name of one's own, frames= says that items are clips.
        clips = modality == "video" or ("frames" in options and modality != "image")
        clips = clips and card.modality == "image"
        output = choice_option(options, "output", ("vectors", "tokens"), spec=spec)
        pool = choice_option(options, "pool", ("mean", "mean+delta"), spec=spec)
        pieces = clips or card.modality == "audio"
        if "frames" in options and not clips:
            raise UsageError(
                f"encoder {spec}: frames= is for clips read by a model of images; say that the "
                "modality is video, or leave it out",
                option="frames",
            )
        if "pool" in options and (output == "tokens" or not pieces):
            raise UsageError(
                f"encoder {spec}: pool= joins the windows of a sound or the frames of a clip to "
                "one vector; leave it out",
                option="pool",
            )
        if output == "tokens" and not pieces and card.tokens is None:
            raise UsageError(
                f"encoder {spec}: output=tokens, and {card.path.name} names no output under "
                "'tokens'; take output=vectors",
                option="output",
            )
        frames = count_option(options, "frames", 8, allowed=range(1, 257), spec=spec)
        own = "video" if clips else card.modality
        name = chosen_modality(modality, own, spec=spec)
        return cls(name, frames if clips else 0, cast(Output, output), pool)


class OnnxEncoder(Encoder):
    """Runs an ONNX model on pieces: an image is one, a sound or a clip is several.

    Pieces of all items are run together in blocks. With the rows of the full batch, each
    block has the same shape, so that a piece's output has the same bits in any company.
    """

    reads = "file"

    def __init__(
        self, session: Any, card: Card, reading: Reading, *, digest: str, spec: str
    ) -> None:
        self._session = session
        self._card = card
        self._reading = reading
        self._digest = digest
        self._block = card.input.rows or PIECES
        self.modality = reading.modality
        self.spec = spec
        self.output = reading.output
        self.width = card.width * (2 if reading.pool == "mean+delta" else 1)
        self.batch_size = self._block
        self.lookahead = 2 * self._block

    @cached_property
    def _source(self) -> str:
        """The model's output that features are made of."""
        whole = self._reading.frames or self.output == "vectors" or self._card.tokens is None
        return self._card.pooled if whole else cast(str, self._card.tokens)

    def describe(self) -> dict[str, Any]:
        """Return the weights' hash and all that is done before and after them.

        The runtime's version is left out: versions differ by rounding, far less than two
        features must differ to matter, and an upgrade would cost encoding everything again.
        """
        return {
            "adapter": "onnx",
            "revision": REVISION,
            "runtime": "onnxruntime cpu float32",
            "weights": self._digest,
            "input": asdict(self._card.input),
            "source": self._source,
            "frames": self._reading.frames,
            "pool": self._reading.pool,
            "output": self.output,
        }

    def prepare(self, value: str) -> np.ndarray:
        """Read one item as pieces: uint8 [P, h, w, 3], or float32 [P, samples].

        Pixels stay bytes until they stand in the batch: a quarter of the memory.
        """
        model_input = self._card.input
        if isinstance(model_input, AudioInput):
            samples = read_audio(value, sample_rate_hz=model_input.sample_rate_hz)
            return model_input.windows(samples)
        if not self._reading.frames:
            return model_input.resized(read_image(value))[None]
        frames = read_frames(value, count=self._reading.frames)
        return np.stack([model_input.resized(frame) for frame in frames])

    def compute(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        """Run the pieces of all inputs, then put each input's outputs together."""
        fixed = rows == self.batch_size
        outputs = np.concatenate(list(self._runs(inputs, fixed=fixed)))
        bounds = np.cumsum([0, *(len(pieces) for pieces in inputs)])
        spans = [outputs[a:b] for a, b in pairwise(bounds)]
        if self.output == "vectors":
            return Features(np.stack([self._pooled(span) for span in spans]))
        return _padded([span.reshape(-1, self.width) for span in spans])

    def _runs(self, inputs: Sequence[Any], *, fixed: bool) -> Iterator[np.ndarray]:
        """Yield the outputs of one block of pieces after the other."""
        shape = self._card.input.shape
        for pieces in batched(chain.from_iterable(inputs), self._block):
            full = fixed or self._card.input.rows is not None
            batch = np.empty((self._block if full else len(pieces), *shape), np.float32)
            batch[len(pieces) :] = 0.0
            self._card.input.fill(batch, pieces)
            yield self._run(batch)[: len(pieces)]

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            (values,) = self._session.run([self._source], {self._card.input.name: batch})
        except _runtime_errors() as error:
            raise DataError(
                f"card {self._card.path}: the model refuses input {list(batch.shape)} "
                f"({str(error).splitlines()[0][:200]}); correct the card's shape",
                file=str(self._card.path),
            ) from error
        if values.shape[0] != len(batch) or values.shape[-1] != self._card.width:
            raise DataError(
                f"card {self._card.path}: output {self._source!r} came as {list(values.shape)}, "
                f"expected {len(batch)} rows, {self._card.width} wide; correct the card",
                file=str(self._card.path),
            )
        return cast(np.ndarray, values)

    def _pooled(self, span: np.ndarray) -> np.ndarray:
        """Join the outputs of one item's pieces: [P, D] -> [D] or [2 D]."""
        mean: np.ndarray = span.mean(axis=0)
        if self._reading.pool == "mean":
            return mean
        # An odd piece in the middle belongs to both halves; a single one has not changed.
        half = (len(span) + 1) // 2
        return np.concatenate([mean, span[-half:].mean(axis=0) - span[:half].mean(axis=0)])


def _padded(spans: Sequence[np.ndarray]) -> Features:
    longest = max(len(span) for span in spans)
    values = np.zeros((len(spans), longest, spans[0].shape[-1]), np.float32)
    mask = np.zeros((len(spans), longest), bool)
    for row, span in enumerate(spans):
        values[row, : len(span)], mask[row, : len(span)] = span, True
    return Features(values, mask)
