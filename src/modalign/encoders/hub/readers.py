"""How items become the inputs of a network: one reader for words, one for pixels, one for sound.

A reader's `prepare` sees one item and knows of no other, so nothing of a neighbour can enter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from transformers.utils import is_speech_available

from modalign.encoders.contract import Reads, shortened
from modalign.encoders.hub.architectures import Tower
from modalign.encoders.hub.checkpoint import (
    LOADING_ERRORS,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    first_line,
    input_files,
    quiet,
)
from modalign.encoders.hub.options import Options
from modalign.errors import DataError, UsageError
from modalign.media import read_audio, read_frames, read_image

# Tokens a text is cut to where neither the tokenizer nor the model names a limit.
DEFAULT_MAX_LENGTH = 512
# Pictures taken from a video for a network that looks at single pictures.
DEFAULT_FRAMES = 8


@dataclass(frozen=True)
class Batch:
    """What goes into the network.

    Attributes:
        inputs: The network's keyword arguments.
        mask: True where a hidden position belongs to the item, bool [rows, L]; None: all do.
    """

    inputs: dict[str, torch.Tensor]
    mask: torch.Tensor | None = None


class Reader(Protocol):
    """Turns items into inputs.

    Attributes:
        reads: What an item's value is.
        alone: Whether each item is computed by itself at its true length.
        batch_size, lookahead: As in `Encoder`.
        description: What the inputs depend on.
    """

    reads: Reads
    alone: bool
    batch_size: int
    lookahead: int
    description: dict[str, Any]

    def prepare(self, value: str) -> Any:
        """Turn one item into one model input."""

    def length_of(self, prepared: Any) -> int:
        """Return its positions, 0 where all are of one shape."""

    def collate(self, inputs: Sequence[Any], *, rows: int, length: int) -> Batch:
        """Join model inputs into one batch of `rows` rows."""


class TextReader:
    """Words: token ids, padded on the right.

    The padding side matters: positions are counted from the left, so with padding on the
    right a text has the same positions alone and in company.
    """

    reads: Reads = "text"
    alone = False
    batch_size = 32
    lookahead = 4096

    def __init__(
        self,
        tokenizer: Any,
        *,
        padding_id: int,
        vocabulary: int,
        max_length: int,
        fixed_length: int,
        files: dict[str, str],
    ) -> None:
        self._vocabulary = vocabulary
        self._fixed_length = fixed_length
        self._padding_id = padding_id
        # Set once, here: the tokenizer cannot change its truncation while another thread uses it.
        self._encode = partial(
            tokenizer,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        self._encode("a")
        self.description = {"files": files, "max_length": max_length}

    def prepare(self, value: str) -> list[int]:
        """Return the text's token ids.

        Raises:
            DataError: The text is no valid Unicode, or has no tokens the network knows.
        """
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{shortened(ascii(value))}: is no valid Unicode ({error.reason}), expected "
                "text; repair its encoding",
                value=value,
            ) from error
        ids: list[int] = self._encode(value)["input_ids"]
        if ids and max(ids) >= self._vocabulary:
            raise DataError(
                f"text {shortened(value)!r}: the tokenizer gives token {max(ids)}, and the model "
                f"knows {self._vocabulary}; they do not belong together, download them again",
                value=value,
            )
        if not ids:
            raise DataError(
                f"text {value!r}: has no tokens, expected at least one; leave the item out",
                value=value,
            )
        return ids

    def length_of(self, prepared: list[int]) -> int:
        """Return the number of tokens, 0 where every text is padded to one length."""
        return 0 if self._fixed_length else len(prepared)

    def collate(self, inputs: Sequence[list[int]], *, rows: int, length: int) -> Batch:
        """Pad ids to `length`, and the batch to `rows`.

        Where other rows stand beside a text, one more row of a single token is added. Without
        it a batch whose texts all fill it has no padding; transformers then drops the mask, and
        attention may take another kernel, so that a text's last bits hang on its neighbours.
        """
        length = self._fixed_length or length
        guard = rows > 1 and not self._fixed_length
        ids = np.full((rows + guard, length), self._padding_id, np.int64)
        mask = np.zeros((rows + guard, length), bool)
        for row in range(rows + guard):
            tokens = inputs[row] if row < len(inputs) else inputs[0][:1]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        batch = {"input_ids": torch.from_numpy(ids)}
        positions = torch.from_numpy(mask)
        if not self._fixed_length:
            batch["attention_mask"] = positions.long()
        return Batch(batch, positions)


class PixelReader:
    """Pictures, or the frames of a video, through the processor's Pillow backend."""

    reads: Reads = "file"
    alone = False

    def __init__(
        self, processor: Any, *, frames: int, together: bool, files: dict[str, str]
    ) -> None:
        self._processor = processor
        self._frames = frames
        self._together = together
        self.batch_size = max(1, 16 // max(1, frames))
        self.lookahead = 4 * self.batch_size
        self.description = {"files": files, "frames": frames, "backend": processor.backend}

    def prepare(self, value: str) -> np.ndarray:
        """Return pixels as the network wants them, float32 [F, 3, H, W]; a picture has F = 1.

        Raises:
            DataError: The file is missing, broken or no picture or video.
        """
        if self._frames:
            return self.pixels(list(read_frames(Path(value), count=self._frames)))
        return self.pixels([read_image(Path(value))])

    def pixels(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Resize, crop and scale pictures, uint8 [H, W, 3] each."""
        processed = self._processor(
            pictures, input_data_format="channels_last", return_tensors="np"
        )["pixel_values"]
        # A video's processor puts one axis more in front.
        return np.asarray(processed, np.float32).reshape(-1, *np.shape(processed)[-3:])

    def length_of(self, prepared: np.ndarray) -> int:
        """Return 0: all pictures come out in one size."""
        return 0

    def collate(self, inputs: Sequence[np.ndarray], *, rows: int, length: int) -> Batch:
        """Stack pixels: [rows, F, 3, H, W] for a video's network, else [rows * F, 3, H, W]."""
        pixels = torch.from_numpy(_filled(inputs, rows))
        return Batch({"pixel_values": pixels if self._together else pixels.flatten(0, 1)})


@dataclass(frozen=True)
class Sound:
    """One clip: the network's input, and its positions that hold sound (0: all)."""

    values: np.ndarray
    positions: int = 0


class SoundReader:
    """Sound, mono at the processor's sample rate.

    Of a clip longer than the network hears, the beginning is heard. (CLAP's own processor
    would draw a random part; a feature must not be random.)
    """

    reads: Reads = "file"

    def __init__(self, processor: Any, tower: Tower, config: Any, *, files: dict[str, str]) -> None:
        self._processor = processor
        self._config = config
        self._input = processor.model_input_names[0]
        self._rate_hz = int(processor.sampling_rate)
        self._most_samples = _most_samples(processor, tower)
        self._clap = "is_longer" in processor.model_input_names
        self._whisper = tower.feed == "whisper"
        self.alone = tower.feed == "waveform"
        self.batch_size = 4 if self._whisper else 8
        self.lookahead = 4 * self.batch_size
        self.description: dict[str, Any] = {"files": files}
        if tower.model_class == "ASTModel":
            # Its spectrogram is computed by torchaudio where that is installed.
            self.description["backend"] = "torchaudio" if is_speech_available() else "numpy"

    def prepare(self, value: str) -> Sound:
        """Return the clip as the network wants it.

        Raises:
            DataError: The file is missing or broken, or the clip is too short.
        """
        samples = read_audio(Path(value), sample_rate_hz=self._rate_hz)
        if len(samples) < self._fewest_samples:
            raise DataError(
                f"{shortened(value)}: {len(samples)} samples at {self._rate_hz} Hz, expected at "
                f"least {self._fewest_samples}; leave the clip out",
                value=value,
            )
        samples = samples[: self._most_samples]
        processed = self._processor(samples, sampling_rate=self._rate_hz, return_tensors="np")
        return Sound(
            np.asarray(processed[self._input][0], np.float32), self._positions(len(samples))
        )

    @property
    def _fewest_samples(self) -> int:
        """The samples that one position, or one window of the spectrogram, needs."""
        if not self.alone:
            return int(0.025 * self._rate_hz)
        needed = 1
        layers = zip(self._config.conv_kernel, self._config.conv_stride, strict=True)
        for kernel, stride in reversed(list(layers)):
            needed = (needed - 1) * int(stride) + int(kernel)
        return needed

    def _positions(self, samples: int) -> int:
        """Return the hidden positions that hold sound; Whisper's second layer halves frames."""
        if not self._whisper:
            return 0
        frames = math.ceil(samples / int(self._processor.hop_length))
        return math.ceil(frames / 2)

    def length_of(self, prepared: Sound) -> int:
        """Return 0: spectrograms are of one size, and waveforms are never padded."""
        return 0

    def collate(self, inputs: Sequence[Sound], *, rows: int, length: int) -> Batch:
        """Stack clips, with a mask where part of the input is silence after the clip."""
        batch = {self._input: torch.from_numpy(_filled([clip.values for clip in inputs], rows))}
        if self._clap:
            batch["is_longer"] = torch.zeros((rows, 1), dtype=torch.bool)
        if not self._whisper:
            return Batch(batch)
        valid = torch.tensor([clip.positions for clip in inputs])
        valid = torch.cat([valid, valid[:1].expand(rows - len(inputs))])
        positions = torch.arange(self._config.max_source_positions)
        return Batch(batch, positions[None] < valid[:, None])


def _most_samples(processor: Any, tower: Tower) -> int | None:
    """Return the samples that the network hears, None for all."""
    if tower.model_class == "ASTModel":
        # A frame starts every 10 ms and lasts 25 ms.
        return int((processor.max_length + 2) * processor.sampling_rate // 100)
    most: int | None = getattr(processor, "nb_max_samples", getattr(processor, "n_samples", None))
    return most


def _filled(inputs: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Stack arrays, repeating the first until there are `rows`."""
    return np.stack([*inputs, *[inputs[0]] * (rows - len(inputs))])


def open_reader(
    folder: Path, tower: Tower, modality: str, options: Options, config: Any, *, spec: str
) -> Reader:
    """Load the tokenizer or processor beside a model.

    Args:
        folder: The checkpoint.
        tower: The network that is fed.
        modality: What it encodes.
        options: The spec's.
        config: The tower's configuration.
        spec: For messages.

    Raises:
        UsageError: An option does not fit the network.
        DataError: The tokenizer or processor is missing or broken.
    """
    for name, fits in (("max_length", modality == "text"), ("frames", modality == "video")):
        if getattr(options, name) is not None and not fits:
            raise UsageError(
                f"encoder {spec}: option {name} means nothing for {modality}; leave it out",
                option=name,
            )
    if modality == "text":
        return _text_reader(folder, tower, options, config, spec=spec)
    files = input_files(folder, PROCESSOR_FILES, spec=spec)
    if modality == "audio":
        processor = _load(transformers.AutoFeatureExtractor.from_pretrained, folder, options, spec)
        return SoundReader(processor, tower, config, files=files)
    pillow = partial(transformers.AutoImageProcessor.from_pretrained, backend="pil")
    processor = _load(pillow, folder, options, spec)
    return _pixel_reader(processor, tower, modality, options, config, files=files, spec=spec)


def _load(opener: Callable[..., Any], folder: Path, options: Options, spec: str) -> Any:
    try:
        with quiet():
            return opener(
                folder, local_files_only=True, trust_remote_code=options.trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise DataError(
            f"encoder {spec}: the tokenizer or processor could not be loaded "
            f"({first_line(error)}); "
            "download the model again",
            folder=str(folder),
        ) from error


def _text_reader(
    folder: Path, tower: Tower, options: Options, config: Any, *, spec: str
) -> TextReader:
    files = input_files(folder, TOKENIZER_FILES, spec=spec)
    tokenizer = _load(transformers.AutoTokenizer.from_pretrained, folder, options, spec)
    positions = getattr(config, "max_position_embeddings", None)
    if positions and tower.positions_after_padding:
        positions -= config.pad_token_id + 1
    # A tokenizer without a limit says 1e30.
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit and limit < 1e6]
    limit = int(min(limits, default=DEFAULT_MAX_LENGTH))
    fewest = tokenizer.num_special_tokens_to_add() + 1
    max_length = options.max_length or limit
    if not fewest <= max_length <= limit:
        raise UsageError(
            f"encoder {spec}: max_length is {max_length}, expected {fewest} to {limit} tokens",
            max_length=max_length,
        )
    fixed = int(positions) if tower.feed == "fixed_tokens" and positions else 0
    return TextReader(
        tokenizer,
        padding_id=tokenizer.pad_token_id or 0,
        vocabulary=config.vocab_size,
        max_length=max_length,
        fixed_length=fixed,
        files=files,
    )


def _pixel_reader(
    processor: Any,
    tower: Tower,
    modality: str,
    options: Options,
    config: Any,
    *,
    files: dict[str, str],
    spec: str,
) -> PixelReader:
    if getattr(processor, "backend", None) != "pil":
        raise DataError(
            f"encoder {spec}: {type(processor).__name__} has no Pillow backend, expected an "
            "image processor that has one; use another checkpoint",
            processor=type(processor).__name__,
        )
    frames = (options.frames or DEFAULT_FRAMES) if modality == "video" else 0
    together = tower.feed == "clip"
    if together:
        frames = options.frames or config.num_frames
        if frames != config.num_frames:
            raise UsageError(
                f"encoder {spec}: frames is {frames}, and this network has positions for "
                f"{config.num_frames}; leave frames out",
                frames=frames,
            )
    reader = PixelReader(processor, frames=frames, together=together, files=files)
    _check_one_size(reader, spec=spec)
    return reader


def _check_one_size(reader: PixelReader, *, spec: str) -> None:
    """Refuse a processor whose output has the picture's own proportions."""
    wide, tall = (
        reader.pixels([np.zeros(shape, np.uint8)]).shape for shape in ((48, 64, 3), (64, 48, 3))
    )
    if wide != tall:
        raise DataError(
            f"encoder {spec}: the processor gives pictures of {wide[2:]} and {tall[2:]}, expected "
            "one size; set a square size or do_center_crop in preprocessor_config.json",
            sizes=(wide, tall),
        )
