"""The card beside an ONNX model: how items become its input, and which outputs are features."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from modalign.errors import DataError
from modalign.media import resize_image

EXAMPLE = (
    '{"modality": "image", "input": {"name": "image", "shape": ["N", 3, 224, 224], "resize": '
    '{"interpolation": "bilinear", "fit": "crop"}, "scale": 0.00784, "offset": -1.0}, "outputs": '
    '{"embedding": {"shape": ["N", 1280]}}, "pooled": "embedding"}'
)

# Fields that describe a model without changing a feature.
NOTES = (
    *("file", "name", "runtime", "inside", "trained_on", "source", "licence", "licence_file"),
    *("license", "license_file", "proof", "note", "bytes", "formula", "what"),
)
FITS = ("stretch", "crop", "short_side")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "lanczos")
# Two ways to write one number may differ in the last digits written.
TOLERANCE = 1e-4


class Fields:
    """The fields of one object of a card, each taken once; what is left over is an error.

    Args:
        values: The object.
        where: The card, and the object's place in it, for messages.
    """

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        if not isinstance(values, dict):
            raise self.error("", f"is {json.dumps(values)}", "an object")
        self._values = dict(values)

    def error(self, name: str, what: str, expected: str) -> DataError:
        """Make an error about one field."""
        place = f"{self.where}: field {name!r}" if name else self.where
        return DataError(f"{place} {what}, expected {expected}; correct the card", field=name)

    def take(self, name: str, kind: type | tuple[type, ...], *, default: Any = ...) -> Any:
        """Return a field's value.

        Raises:
            DataError: It is missing and there is no default, or it is of another type.
        """
        value = self._values.pop(name, default)
        if value is ...:
            raise self.error(name, "is missing", _described(kind))
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self.error(name, f"is {json.dumps(value)}", _described(kind))
        return value

    def choose(self, name: str, known: Sequence[str], *, default: Any = ...) -> str:
        """Return a field that is one of a few words."""
        value = self.take(name, str, default=default)
        if value not in known:
            raise self.error(name, f"is {json.dumps(value)}", "one of " + ", ".join(known))
        return str(value)

    def agree(self, name: str, expected: Any) -> None:
        """Take a field that repeats what other fields say, and check that it does."""
        value = self._values.pop(name, None)
        if value is not None and not _same(value, expected):
            raise self.error(
                name, f"is {json.dumps(value)}", f"{json.dumps(expected)} as other fields say"
            )

    def inner(self, name: str) -> Fields:
        """Return the fields of an object within."""
        return Fields(self.take(name, dict), f"{self.where}, in {name!r}")

    def finish(self) -> None:
        """Raise a DataError where a field is left that nobody knows."""
        for name in self._values:
            if name not in NOTES:
                raise DataError(
                    f"{self.where}: field {name!r} is unknown; take it out, or put remarks under "
                    "'note'",
                    field=name,
                )


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(value, (int, float)):
        return math.isclose(value, expected, rel_tol=1e-3)  # seconds are written rounded
    return bool(value == expected)


def _described(kind: type | tuple[type, ...]) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", list: "a list"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(names.get(one, "an object") for one in kinds)


@dataclass(frozen=True)
class ImageInput:
    """How pixels become the model's input: value = pixel * scale + offset, by channel.

    Attributes:
        name: The input's name.
        layout: "NCHW" or "NHWC".
        size: Height and width.
        colour_order: "RGB" or "BGR".
        interpolation: As `resize_image` takes it.
        fit: As `resize_image` takes it.
        scale: By channel, in the order of `colour_order`, for pixels 0..255.
        offset: The same.
        rows: Rows the model always wants; None for any number.
    """

    name: str
    layout: str
    size: tuple[int, int]
    colour_order: str
    interpolation: str
    fit: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    rows: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return (3, *self.size) if self.layout == "NCHW" else (*self.size, 3)

    @classmethod
    def parse(cls, fields: Fields) -> ImageInput:
        """Read the card's "input" of an image model.

        Raises:
            DataError: A field is missing, unknown, or contradicts another.
        """
        shape = fields.take("shape", list)
        layout = _layout_of(shape, fields)
        fields.agree("layout", layout)
        fields.agree("dtype", "float32")
        size = (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])
        resize = fields.inner("resize")
        resize.agree("size", list(size))
        interpolation = resize.choose("interpolation", INTERPOLATIONS)
        fit = _fit_of(resize)
        resize.finish()
        fields.choose("alpha", ("white", "paste on white first"), default="white")
        scale, offset = _normalisation(fields)
        return cls(
            name=fields.take("name", str),
            layout=layout,
            size=size,
            colour_order=fields.choose("colour_order", ("RGB", "BGR"), default="RGB"),
            interpolation=interpolation,
            fit=fit,
            scale=scale,
            offset=offset,
            rows=_rows_of(shape),
        )

    def resized(self, pixels: np.ndarray) -> np.ndarray:
        """Bring an image to the model's size, uint8 [h, w, 3]."""
        return resize_image(
            pixels,
            size=self.size,
            interpolation=cast(Any, self.interpolation),
            fit=cast(Any, self.fit),
        )

    def fill(self, batch: np.ndarray, pieces: Sequence[np.ndarray]) -> None:
        """Write pieces into the first rows of a batch: one conversion, the rest in place."""
        channels = (3, 1, 1) if self.layout == "NCHW" else (3,)
        used = batch[: len(pieces)]
        for row, pixels in zip(used, pieces, strict=True):
            ordered = pixels if self.colour_order == "RGB" else pixels[..., ::-1]
            row[...] = ordered.transpose(2, 0, 1) if self.layout == "NCHW" else ordered
        used *= np.array(self.scale, np.float32).reshape(channels)
        used += np.array(self.offset, np.float32).reshape(channels)


def _layout_of(shape: list[Any], fields: Fields) -> str:
    sides = [side for side in shape[1:] if isinstance(side, int) and side > 0]
    if len(shape) == 4 and len(sides) == 3 and 3 in (shape[1], shape[3]):
        return "NCHW" if shape[1] == 3 else "NHWC"
    expected = '["N", 3, height, width] or ["N", height, width, 3] with numbers'
    raise fields.error("shape", f"is {json.dumps(shape)}", expected)


def _fit_of(resize: Fields) -> str:
    fit: str = resize.take("fit", str)
    if fit == "crop the central square, then resize":
        return "crop"
    if fit not in FITS:
        raise resize.error("fit", f"is {json.dumps(fit)}", "one of " + ", ".join(FITS))
    return fit


def _normalisation(fields: Fields) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and offset for pixels 0..255, written as such or as mean and std of 0..1."""
    found = []
    scale, offset = _channels(fields, "scale"), _channels(fields, "offset")
    mean, std = _channels(fields, "mean"), _channels(fields, "std")
    for first, second, names in ((scale, offset, "scale offset"), (mean, std, "mean std")):
        if (first is None) != (second is None):
            missing = names.split()[first is not None]
            raise fields.error(missing, "is missing", "three numbers beside its partner")
    if std is not None and mean is not None:
        if not std.all():
            raise fields.error("std", "has a zero", "divisors")
        found.append((1 / (255 * std), -mean / std))
    if scale is not None and offset is not None:
        found.append((scale, offset))
    if not found:
        raise fields.error("scale", "is missing", "'scale' and 'offset', or 'mean' and 'std'")
    if not np.allclose(np.array(found[0]), np.array(found[-1]), rtol=TOLERANCE, atol=1e-6):
        written = f"{found[0][0].tolist()} and {found[0][1].tolist()}"
        raise fields.error("scale", "and 'offset' contradict 'mean' and 'std'", written)
    chosen = found[-1]
    return tuple(chosen[0].tolist()), tuple(chosen[1].tolist())


def _channels(fields: Fields, name: str) -> np.ndarray | None:
    """Return one number a channel, float64 [3]; one number stands for all three."""
    value = fields.take(name, (int, float, list), default=None)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value] * 3
    if len(numbers) != 3 or not all(type(number) in (int, float) for number in numbers):
        raise fields.error(name, f"is {json.dumps(value)}", "one number, or three")
    return np.array(numbers, np.float64)


@dataclass(frozen=True)
class AudioInput:
    """How samples become the model's input.

    Attributes:
        name: The input's name.
        sample_rate_hz: Of the model.
        window_samples: Samples in one window.
        hop_samples: From the start of one window to the start of the next.
        full_scale: What the loudest sample becomes; 1 by default.
        rows: Rows the model always wants; None for any number.
    """

    name: str
    sample_rate_hz: int
    window_samples: int
    hop_samples: int
    full_scale: float
    rows: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return (self.window_samples,)

    @classmethod
    def parse(cls, fields: Fields) -> AudioInput:
        """Read the card's "input" of an audio model.

        Raises:
            DataError: A field is missing, unknown, or contradicts another.
        """
        shape = fields.take("shape", list)
        if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 1:
            raise fields.error("shape", f"is {json.dumps(shape)}", '["N", samples of a window]')
        window, rate = shape[1], fields.take("sample_rate", int)
        hop = fields.take("hop_samples", int, default=window)
        for name, number in (("sample_rate", rate), ("hop_samples", hop)):
            if number < 1:
                raise fields.error(name, f"is {number}", "1 or more")
        fields.agree("window_samples", window)
        fields.agree("window_seconds", window / rate)
        fields.agree("hop_seconds", hop / rate)
        fields.agree("channels", 1)
        fields.agree("dtype", "float32")
        span = fields.take("range", list, default=[-1.0, 1.0])
        if len(span) != 2 or type(span[1]) not in (int, float) or span[0] != -span[1] <= 0:
            raise fields.error("range", f"is {json.dumps(span)}", "two numbers around zero")
        name = fields.take("name", str)
        return cls(name, rate, window, hop, float(span[1]), _rows_of(shape))

    def windows(self, samples: np.ndarray) -> np.ndarray:
        """Cut samples into windows that overlap in memory: float32 [W, window], W >= 1.

        A clip shorter than a window is filled up with silence. At the end of a longer one, a
        window filled up with silence is added where more than half a hop would go unheard.
        """
        rest = max(0, len(samples) - self.window_samples)
        count = 1 + rest // self.hop_samples
        if 2 * (rest % self.hop_samples) > self.hop_samples:
            count += 1
        needed = self.window_samples + (count - 1) * self.hop_samples
        if len(samples) < needed:
            samples = np.pad(samples, (0, needed - len(samples)))
        if self.full_scale != 1.0:
            samples = samples * np.float32(self.full_scale)
        views = np.lib.stride_tricks.sliding_window_view(samples, self.window_samples)
        return views[:: self.hop_samples][:count]

    def fill(self, batch: np.ndarray, pieces: Sequence[np.ndarray]) -> None:
        """Write pieces into the first rows of a batch."""
        for row, window in zip(batch, pieces, strict=False):
            row[...] = window


@dataclass(frozen=True)
class Card:
    """What the JSON beside a model says.

    Attributes:
        path: The card.
        modality: "image" or "audio".
        input: How an item becomes the model's input.
        pooled: The output that is one vector an input.
        tokens: The output that is a vector for each position; None where there is none.
        width: D_m, of both outputs.
        sha256: Of the model file, where the card says it.
    """

    path: Path
    modality: str
    input: ImageInput | AudioInput
    pooled: str
    tokens: str | None
    width: int
    sha256: str | None


def read_card(path: Path) -> Card:
    """Read and check a card.

    Raises:
        DataError: It is missing or no JSON; a field is missing, unknown or contradicts another.
    """
    try:
        fields = Fields(json.loads(path.read_text(encoding="utf-8")), f"card {path}")
    except OSError as error:
        raise DataError(
            f"card {path}: cannot be read ({error.strerror}), expected JSON that says what the "
            f"model takes; write it, for example {EXAMPLE}",
            file=str(path),
        ) from error
    except ValueError as error:
        raise DataError(f"card {path}: is no JSON ({error})", file=str(path)) from error
    modality = fields.choose("modality", ("image", "audio"))
    given = fields.inner("input")
    kind = ImageInput if modality == "image" else AudioInput
    model_input: ImageInput | AudioInput = kind.parse(given)
    given.finish()
    pooled, tokens, width = _outputs_of(fields)
    sha256 = fields.take("sha256", str, default=None)
    fields.finish()
    return Card(path, modality, model_input, pooled, tokens, width, sha256)


def _rows_of(shape: list[Any]) -> int | None:
    return shape[0] if isinstance(shape[0], int) else None


def _outputs_of(fields: Fields) -> tuple[str, str | None, int]:
    """Return the names of the pooled output and of the tokens, and the width of both."""
    outputs = fields.take("outputs", dict)
    pooled = fields.take("pooled", str)
    tokens = fields.take("tokens", str, default=None)
    width = _width_of(outputs, pooled, field="pooled", rank=2, fields=fields)
    fields.agree("dimension", width)
    if tokens is not None:
        token_width = _width_of(outputs, tokens, field="tokens", rank=3, fields=fields)
        if token_width != width:
            raise fields.error("tokens", f"are {token_width} wide", f"{width} as 'pooled' is")
    return pooled, tokens, width


def _width_of(outputs: dict[str, Any], name: str, *, field: str, rank: int, fields: Fields) -> int:
    if name not in outputs:
        known = ", ".join(sorted(outputs)) or "nothing"
        raise fields.error(field, f"is {name!r}", f"one of 'outputs': {known}")
    inner = Fields(outputs[name], f"{fields.where}, output {name!r}")
    shape = inner.take("shape", list)
    if len(shape) != rank or not isinstance(shape[-1], int) or shape[-1] < 1:
        expected = '["N", width]' if rank == 2 else '["N", positions, width]'
        raise inner.error("shape", f"is {json.dumps(shape)}", f"{expected} for {field!r}")
    inner.finish()
    return int(shape[-1])
