"""The one place that opens foreign media: files or bytes -> pixels, samples, frames.

Pillow reads images and animations, PyAV (FFmpeg) reads sound and video. Whatever is wrong with a
file is one DataError that names it. The rules are the same for all three readers:

- What a file is, its content says, never its name. Only the file itself is read: a playlist
  that points at other files or at the network is refused.
- A file cut short is an error where its format shows it, not half a picture. WAV written to a
  pipe states no length and is read to its end. Matroska, MP3, Ogg and FLAC cut between two
  packets look whole and are read as far as they go.
- Sizes and durations are checked against `MediaLimits` from the header, before decoding, and
  again while decoding, because headers lie.
- One thread per decoder and one result per file, bit for bit. The readers may be called from
  several threads at once.

Colour profiles and non-square pixels are not corrected for.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from modalign.errors import DataError, ShapeError, UsageError, check_known

Media = str | Path | BinaryIO
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "lanczos"]
Fit = Literal["stretch", "crop", "short_side"]
Kind = Literal["image", "audio", "video"]


@dataclass(frozen=True)
class MediaLimits:
    """How much one file may ask for, so that a hostile or mistaken one cannot take the machine.

    Attributes:
        pixels: Width times height of an image or of one frame.
        file_bytes: Size of the file.
        duration_s: Length of sound or video, seconds.
        frames: Frames of a video or an animation.
        samples: Samples of one channel of sound: silence of a high rate packs very small.
        video_pixels: Pixels of all frames of a video or an animation: decoding takes that long.
    """

    pixels: int = 100_000_000
    file_bytes: int = 2_000_000_000
    duration_s: float = 3600.0
    frames: int = 100_000
    samples: int = 700_000_000
    video_pixels: int = 1_000_000_000_000


DEFAULT_LIMITS = MediaLimits()

# What Pillow raises on broken bytes, besides OSError.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# The formats tried, most frequent first. Not among them: those that run programs (EPS), and
# those without a signature (TGA).
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What browsers show a frame for whose file says 0.
_DEFAULT_FRAME_MS = 100
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}
# Lossy codecs overshoot full scale a little; integers stored as floats overshoot it by 32768.
_LOUDEST = 8.0
_RESAMPLED_AT_ONCE = 65_536
_CONVERTED_AT_ONCE = 64
# More than the resampler's filter is long: it gives nothing for inputs shorter than that.
_SILENCE_AFTER = 1024
# Sound or video is cut short where less than this share of what the header states is there.
_WHOLE_SHARE = 0.9


# --- before decoding ------------------------------------------------------------------------


def check_media(media: Media, *, kind: Kind, limits: MediaLimits = DEFAULT_LIMITS) -> None:
    """Refuse what is not of a kind or asks for too much, without decoding it.

    Pictures are known by their header, animations by that of each frame, sound and video by their
    header and the times of all packets. A still picture is a video of one frame; a video with a
    sound track is sound.

    Args:
        media: A path, or a seekable binary file, read from its start.
        kind: What it is to be.
        limits: What the file may ask for.

    Raises:
        DataError: The file is missing, empty, of another kind, or beyond a limit.
    """
    expected = {"image": "an image", "audio": "sound", "video": "a video"}[kind]
    with _opened(media, limits, expected=expected) as opened:
        image = _identified(opened, limits)
        if image is not None and kind == "audio":
            raise opened.unfit(f"is a picture ({image.format})", expected)
        if image is None and kind == "image":
            raise opened.unfit(
                "is no image that can be read", "one of " + ", ".join(_IMAGE_FORMATS)
            )
        if image is not None:
            frames = _frames_of(image, opened, limits)
            if kind == "video":
                opened.check_frames(frames, limits)
                opened.check_video_pixels(frames * image.width * image.height, limits)
            return
        opened.file.seek(0)
        if kind == "video":
            _timeline(opened, limits)
        else:
            _check_sound(opened, limits)


def _frames_of(image: Image.Image, opened: _Opened, limits: MediaLimits) -> int:
    """Count the frames of an image file, no further than the limit, undecoded."""
    with _decoding(opened, _PILLOW_ERRORS, f"a whole {image.format} image"):
        if image.format == "GIF":
            return _gif_frames(opened, limits)
        if image.format != "TIFF":  # of others the header says it
            return int(getattr(image, "n_frames", 1))
        for page in range(limits.frames + 1):
            try:
                image.seek(page)
            except EOFError:
                return page
            opened.check_pixels(image.width, image.height, limits)
        return limits.frames + 1


def _gif_frames(opened: _Opened, limits: MediaLimits) -> int:
    """Count the frames of a GIF by its blocks; each may be larger than the whole says it is."""
    file = opened.file
    file.seek(10)
    (flags,) = file.read(1)
    file.seek(2, os.SEEK_CUR)
    _skip_palette(file, flags)
    frames = 0
    while frames <= limits.frames and (mark := file.read(1)) in (b"!", b","):
        if mark == b"!":
            file.seek(1, os.SEEK_CUR)
        else:
            left, top, width, height, flags = struct.unpack("<HHHHB", file.read(9))
            opened.check_pixels(left + width, top + height, limits)
            _skip_palette(file, flags)
            file.seek(1, os.SEEK_CUR)
            frames += 1
        while size := file.read(1):
            if size == b"\0":
                break
            file.seek(size[0], os.SEEK_CUR)
    return frames


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)


def _check_sound(opened: _Opened, limits: MediaLimits) -> None:
    """Sum up the packets of a sound."""
    with _container(opened) as container:
        stream = _stream(container, "audio", opened, limits)
        rate, ticks = stream.codec_context.sample_rate, 0
        for packet in _packets(container, stream, opened):
            ticks += packet.duration or 0
            duration_s = float(ticks * stream.time_base)
            opened.check_duration(duration_s, limits)
            opened.check_samples(round(duration_s * rate), limits)


# --- images ---------------------------------------------------------------------------------


def read_image(media: Media, *, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read an image as it is meant to be looked at.

    EXIF rotation is applied (a broken EXIF block says no rotation), transparency is pasted on
    white, 16-bit grey is scaled to 8 bits, CMYK, palette and 1-bit images are converted. Of an
    animation the first frame counts.

    Args:
        media: A path, or a seekable binary file, read from its start.
        limits: What the file may ask for; checked before a pixel is decoded.

    Returns:
        RGB, uint8 [H, W, 3], writable.

    Raises:
        DataError: The file is missing, empty, cut short, no image, or beyond a limit.
    """
    with _opened(media, limits, expected="an image") as opened:
        image = _identified(opened, limits)
        if image is None:
            raise opened.unfit(
                "is no image that can be read", "one of " + ", ".join(_IMAGE_FORMATS)
            )
        return _upright_rgb(image, opened)


def resize_image(
    pixels: np.ndarray,
    *,
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    fit: Fit = "stretch",
) -> np.ndarray:
    """Bring an image to the size an encoder wants. Shrinking averages: Pillow's filters do.

    Args:
        pixels: uint8 [H, W, 3].
        size: Height and width of the result.
        interpolation: Pillow's filter.
        fit: "stretch" ignores the proportions; "crop" takes the largest central part of the
            proportions of `size` (a square for a square) and resizes it; "short_side" resizes
            until the image just covers `size`, the long side rounded down, and cuts the centre
            out. Odd margins leave the smaller half above and on the left.

    Returns:
        uint8 [h, w, 3]; `pixels` itself where it is of that size already.

    Raises:
        ShapeError: `pixels` is not uint8 [H, W, 3] with at least one pixel.
        UsageError: `size`, `interpolation` or `fit` is not as above.
        DataError: The image is so narrow that covering `size` takes too many pixels.
    """
    _check_geometry(pixels, size, interpolation, fit)
    if pixels.shape[:2] == tuple(size):
        return pixels
    resample = Image.Resampling[interpolation.upper()]
    inner = size
    if fit == "crop":
        pixels = _central(pixels, _largest_within(pixels.shape[:2], size))
    elif fit == "short_side":
        inner = _covering(pixels.shape[:2], size)
    resized = Image.fromarray(pixels).resize((inner[1], inner[0]), resample)
    return np.array(_central(np.asarray(resized), size))


def _check_geometry(
    pixels: np.ndarray, size: tuple[int, int], interpolation: str, fit: str
) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ShapeError(
            f"pixels: {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3] with at "
            "least one pixel; read_image gives it",
            shape=pixels.shape,
        )
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"size: {size}, expected (height, width), each 1 or more", size=size)
    check_known(interpolation, ("nearest", "bilinear", "bicubic", "box", "lanczos"),
                what="interpolation")  # fmt: skip
    check_known(fit, ("stretch", "crop", "short_side"), what="fit")


def _central(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def _largest_within(outer: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) inside `outer` of the proportions of `size`."""
    (height, width), (h, w) = outer, size
    if height * w <= width * h:
        return height, max(1, height * w // h)
    return max(1, width * h // w), width


def _covering(outer: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) `outer` takes when it is scaled to just cover `size`."""
    (height, width), (h, w) = outer, size
    covering = (h, width * h // height) if height * w <= width * h else (height * w // width, w)
    if covering[0] * covering[1] > DEFAULT_LIMITS.pixels:
        raise DataError(
            f"image of {height} x {width} pixels: covering {h} x {w} makes it {covering[0]} x "
            f"{covering[1]}, expected at most {DEFAULT_LIMITS.pixels} pixels; use fit 'crop'",
            size=size,
        )
    return covering


def _identified(opened: _Opened, limits: MediaLimits) -> Image.Image | None:
    """Read an image's header, or return None where no image format knows the file.

    Not through `Image.open`: that warns and raises by a limit of its own, which is one global
    number for the whole process.
    """
    Image.init()
    _silence_pillow()
    head = opened.file.read(16)
    opened.file.seek(0)
    for name in _IMAGE_FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None or accepts(head) is not True:
            continue
        with _decoding(opened, _PILLOW_ERRORS, f"a whole {name} image"):
            image = factory(opened.file, "")
        opened.check_pixels(image.width, image.height, limits)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            _ignore(Image.DecompressionBombWarning, "")  # our own limit has let it pass
        return image
    return None


def _silence_pillow() -> None:
    """Drop what Pillow's readers warn of: odd metadata, which does not change the pixels.

    `warnings.catch_warnings` would do it for a moment only, but swaps state that threads share.
    """
    _ignore(UserWarning, r"PIL\.\w+ImagePlugin")


def _ignore(category: type[Warning], module: str) -> None:
    pattern = re.compile(module) if module else None
    if ("ignore", None, category, pattern, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=category, module=module)


def _upright_rgb(image: Image.Image, opened: _Opened) -> np.ndarray:
    """Decode the current frame: uint8 [H, W, 3]."""
    with _decoding(opened, _PILLOW_ERRORS, f"a whole {image.format} image"):
        image.load()
        image_8bit = _eight_bit(image, opened)
        turn = _TURNS.get(_orientation(image))
        rgb = _on_white(image_8bit)
        return np.array(rgb if turn is None else rgb.transpose(turn))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except _PILLOW_ERRORS:
        return None


def _eight_bit(image: Image.Image, opened: _Opened) -> Image.Image:
    """Scale 16-bit grey to 8 bits, where converting would clip it."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise opened.unfit(
            f"has {'float' if image.mode == 'F' else '32-bit'} pixels from {values.min():.6g} "
            f"to {values.max():.6g}",
            "integers of 8 or 16 bits",
            "scale it to 0..255 and save it again",
        )
    # Rounded to the nearest: 65535 -> 255, 128 -> 0, 129 -> 1.
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


# --- sound ----------------------------------------------------------------------------------


def read_audio(
    media: Media, *, sample_rate_hz: int, limits: MediaLimits = DEFAULT_LIMITS
) -> np.ndarray:
    """Read the sound of an audio or video file: its first audio stream, as one channel.

    The channels are averaged, each with the same weight, then resampled by FFmpeg. What lies
    beyond full scale (lossy codecs and resampling overshoot a little) is clipped.

    Args:
        media: A path, or a seekable binary file, read from its start.
        sample_rate_hz: Samples per second of the result, 100 to 768,000.
        limits: What the file may ask for.

    Returns:
        float32 [S] in -1..1, S = the duration times the rate, rounded up; at least one sample.

    Raises:
        DataError: The file is missing, empty, cut short, without sound, beyond a limit, or
            holds NaN, infinite or wildly loud samples; or the decoder reports an error.
        UsageError: `sample_rate_hz` is out of range.
    """
    if not 100 <= sample_rate_hz <= 768_000:
        raise UsageError(
            f"sample_rate_hz: {sample_rate_hz}, expected 100 to 768000", rate=sample_rate_hz
        )
    with _opened(media, limits, expected="sound") as opened, _container(opened) as container:
        stream = _stream(container, "audio", opened, limits)
        blocks: list[np.ndarray] = []
        rate = count = 0
        for frames in _alike(_decoded(container, stream, opened)):
            if rate not in (0, frames[0].sample_rate):
                raise opened.unfit(
                    f"changes from {rate} to {frames[0].sample_rate} samples/s", "one sample rate"
                )
            rate = frames[0].sample_rate
            count += sum(frame.samples for frame in frames)
            opened.check_duration(count / rate, limits)
            opened.check_samples(count, limits)
            blocks.append(_mono(frames, opened))
        if not count:
            raise opened.unfit("holds no samples", "sound")
        _check_whole(count / rate, container, stream, opened)
        resampled = _resampled(np.concatenate(blocks), rate, sample_rate_hz)
    return np.clip(resampled, -1.0, 1.0, out=resampled)


def _alike(frames: Iterator[AudioFrame]) -> Iterator[list[AudioFrame]]:
    """Group decoded blocks of one kind: they are small, and numpy is slow on small arrays."""
    for _, group in groupby(
        frames, key=lambda frame: (frame.sample_rate, frame.format.name, frame.layout.nb_channels)
    ):
        while together := list(islice(group, _CONVERTED_AT_ONCE)):
            yield together


def _mono(frames: Sequence[AudioFrame], opened: _Opened) -> np.ndarray:
    """Average the channels of decoded blocks of one kind: float32 [S], full scale at 1."""
    frame = frames[0]
    values = np.concatenate([part.to_ndarray() for part in frames], axis=1)
    if not frame.format.is_planar:  # [1, S * C], channels alternate
        values = values.reshape(-1, frame.layout.nb_channels).T  # [C, S]
    kind = frame.format.name.removesuffix("p")
    samples = values.astype(np.float32)
    samples = (samples - 128.0 if kind == "u8" else samples) / np.float32(_FULL_SCALE[kind])
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak <= _LOUDEST:
        raise opened.unfit(
            f"holds samples up to {peak:.6g}" if np.isfinite(peak) else "holds NaN or infinity",
            "samples in -1..1",
            "scale the samples and save it again",
        )
    mean: np.ndarray = samples.mean(axis=0, dtype=np.float32)
    return mean


def _resampled(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resample by FFmpeg: ceil(S * target / rate) samples."""
    if rate == target:
        return samples
    resampler = AudioResampler(format="flt", layout="mono", rate=target)
    length = -(-len(samples) * target // rate)
    out = np.zeros(length, np.float32)
    filled = 0
    for block in _with_silence_after(samples):
        frame = AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = rate
        for part in resampler.resample(frame):
            piece = part.to_ndarray()[0][: length - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
    return out


def _with_silence_after(samples: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), _RESAMPLED_AT_ONCE):
        yield samples[start : start + _RESAMPLED_AT_ONCE]
    yield np.zeros(_SILENCE_AFTER, np.float32)


# --- video ----------------------------------------------------------------------------------


def read_frames(media: Media, *, count: int, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read frames evenly spaced in time from a video or an animation.

    The duration is cut into `count` equal parts, and the frame shown at the centre of each is
    taken, by presentation timestamps: a variable frame rate comes out right. A clip with fewer
    frames repeats some; a still image repeats itself. Rotation is applied (a mirroring is not),
    transparency is pasted on white. Decodes once and holds only what it returns.

    Args:
        media: A path, or a seekable binary file, read from its start.
        count: Frames wanted, 1 or more.
        limits: What the file may ask for.

    Returns:
        RGB, uint8 [count, H, W, 3].

    Raises:
        DataError: The file is missing, empty, cut short, without pictures, beyond a limit, or
            changes its size midway; or the decoder reports an error.
        UsageError: `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"count: {count}, expected 1 or more", count=count)
    with _opened(media, limits, expected="a video") as opened:
        image = _identified(opened, limits)
        if image is not None:
            return _stacked(_animation_frames(image, count, opened, limits), count, opened)
        opened.file.seek(0)
        timeline = _timeline(opened, limits)
        opened.file.seek(0)
        return _stacked(_video_frames(timeline, count, opened, limits), count, opened)


def _stacked(frames: Iterator[np.ndarray], count: int, opened: _Opened) -> np.ndarray:
    out = np.empty(0, np.uint8)
    for row, pixels in enumerate(frames):
        if row == 0:
            out = np.empty((count, *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            sizes = [f"{shape[1]} x {shape[0]}" for shape in (out.shape[1:], pixels.shape)]
            raise opened.unfit(f"changes its size from {sizes[0]} to {sizes[1]}", "one size")
        out[row] = pixels
    return out


def _centres(start: int, end: int, count: int) -> list[int]:
    """Return the centres of `count` equal parts, rounded down to whole ticks.

    Frames start at whole ticks, so the frame shown then is the one shown at the exact centre.
    """
    return [start + (2 * part + 1) * (end - start) // (2 * count) for part in range(count)]


def _animation_frames(
    image: Image.Image, count: int, opened: _Opened, limits: MediaLimits
) -> Iterator[np.ndarray]:
    """Yield the frames of an image file at the centres of `count` parts of its duration."""
    with _decoding(opened, _PILLOW_ERRORS, f"a whole {image.format} animation"):
        total = getattr(image, "n_frames", 1)
        opened.check_frames(total, limits)
        opened.check_video_pixels(total * image.width * image.height, limits)
        lengths_ms = [_length_ms(image, index) for index in range(total)] if total > 1 else [1]
    opened.check_duration(sum(lengths_ms) / 1000, limits)
    ends = np.cumsum(lengths_ms)
    shown, pixels = -1, np.empty(0)
    for target in _centres(0, int(ends[-1]), count):
        wanted = int(np.searchsorted(ends, target, side="right"))
        if wanted != shown:
            with _decoding(opened, _PILLOW_ERRORS, f"a whole {image.format} animation"):
                image.seek(wanted)
            shown, pixels = wanted, _upright_rgb(image, opened)
        yield pixels


def _length_ms(image: Image.Image, index: int) -> int:
    image.seek(index)
    image.load()
    return round(image.info.get("duration") or 0) or _DEFAULT_FRAME_MS


@dataclass(frozen=True)
class _Timeline:
    """When a video starts and ends, in its own ticks.

    Attributes:
        in_order: When each decoded frame starts, where the container has no presentation
            times; empty where the frames themselves know.
    """

    start: int
    end: int
    in_order: Sequence[int] = ()


def _timeline(opened: _Opened, limits: MediaLimits) -> _Timeline:
    """Read a video's timeline from its packets, undecoded."""
    with _container(opened) as container:
        stream = _stream(container, "video", opened, limits)
        # AVI stores decoding times only; presentation times FFmpeg makes up for it are wrong.
        is_avi = container.format.name == "avi"
        spans: list[tuple[int | None, int]] = []
        for packet in _packets(container, stream, opened):
            if packet.size and not packet.is_discard:
                opened.check_frames(len(spans) + 1, limits)
                spans.append((packet.dts if is_avi else packet.pts, packet.duration or 0))
        if not spans:
            raise opened.unfit("holds no frames", "a video")
        timeline = _timeline_of(spans, has_presentation_times=not is_avi)
        duration_s = float((timeline.end - timeline.start) * stream.time_base)
        opened.check_duration(duration_s, limits)
        context = stream.codec_context
        opened.check_video_pixels(len(spans) * context.width * context.height, limits)
        _check_whole(duration_s, container, stream, opened)
    return timeline


def _timeline_of(
    spans: Sequence[tuple[int | None, int]], *, has_presentation_times: bool
) -> _Timeline:
    """Turn packets' (time, length) into a timeline; a bare stream of frames has no times."""
    timed = sorted((time, length) for time, length in spans if time is not None)
    steps = [length for _, length in spans if length]
    steps = sorted(steps or [b - a for (a, _), (b, _) in pairwise(timed) if b > a])
    step = steps[len(steps) // 2] if steps else 1
    if len(timed) < len(spans):
        return _Timeline(0, step * len(spans), range(0, step * len(spans), step))
    last, length = timed[-1]
    in_order = () if has_presentation_times else tuple(time for time, _ in timed)
    return _Timeline(timed[0][0], last + (length or step), in_order)


def _video_frames(
    timeline: _Timeline, count: int, opened: _Opened, limits: MediaLimits
) -> Iterator[np.ndarray]:
    """Yield the frames shown at the centres of `count` parts, holding one frame at a time."""
    targets = _centres(timeline.start, timeline.end, count)
    with _container(opened) as container:
        stream = _stream(container, "video", opened, limits)
        reformatter = VideoReformatter()
        row, held, pixels = 0, None, None
        for index, frame in enumerate(_decoded(container, stream, opened)):
            opened.check_frames(index + 1, limits)
            opened.check_pixels(frame.width, frame.height, limits)
            time = _time_of(frame, index, timeline)
            while held is not None and row < len(targets) and targets[row] < time:
                pixels = _frame_rgb(held, reformatter) if pixels is None else pixels
                yield pixels
                row += 1
            if row == len(targets):
                return
            held, pixels = frame, None
        if held is None:
            raise opened.unfit("holds no frame that can be decoded", "a video")
        pixels = _frame_rgb(held, reformatter)
        for _ in range(row, len(targets)):
            yield pixels


def _time_of(frame: VideoFrame, index: int, timeline: _Timeline) -> int:
    """Return when a decoded frame starts; one beyond those the packets announced, at the end."""
    if index < len(timeline.in_order):
        return timeline.in_order[index]
    return timeline.end if timeline.in_order or frame.pts is None else frame.pts


def _frame_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Convert one decoded frame: uint8 [H, W, 3], upright."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    kind = "rgba" if has_alpha else "rgb24"
    pixels = reformatter.reformat(frame, format=kind, threads=1).to_ndarray()
    if has_alpha:
        pixels = np.asarray(_on_white(Image.fromarray(pixels)))
    return np.rot90(pixels, round(frame.rotation / 90))


# --- what both decoders share ---------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """An open file and what its errors are called by."""

    file: BinaryIO
    name: str

    def unfit(self, what: str, expected: str, way_out: str = "") -> DataError:
        way_out = way_out or "replace the file"
        return DataError(f"{self.name}: {what}, expected {expected}; {way_out}", file=self.name)

    def beyond(self, what: str, limit: str) -> DataError:
        return self.unfit(what, f"at most {limit}", "shrink it, or raise the limit in MediaLimits")

    def check_pixels(self, width: int, height: int, limits: MediaLimits) -> None:
        if width * height > limits.pixels:
            raise self.beyond(
                f"{width} x {height} = {width * height} pixels", f"{limits.pixels} pixels"
            )

    def check_frames(self, frames: int, limits: MediaLimits) -> None:
        if frames > limits.frames:
            raise self.beyond(f"{frames} frames or more", f"{limits.frames} frames")

    def check_video_pixels(self, pixels: int, limits: MediaLimits) -> None:
        if pixels > limits.video_pixels:
            raise self.beyond(f"{pixels} pixels in all frames", f"{limits.video_pixels} pixels")

    def check_samples(self, samples: int, limits: MediaLimits) -> None:
        if samples > limits.samples:
            raise self.beyond(f"{samples} samples or more", f"{limits.samples} samples")

    def check_duration(self, duration_s: float, limits: MediaLimits) -> None:
        if duration_s > limits.duration_s:
            raise self.beyond(f"{duration_s:.6g} s or longer", f"{limits.duration_s:.6g} s")


@contextmanager
def _opened(media: Media, limits: MediaLimits, *, expected: str) -> Iterator[_Opened]:
    """Open a path, or lend an open file, at its start; refuse what is empty or too large."""
    if isinstance(media, (str, Path)):
        with _opened_path(media, expected) as file:
            yield _checked_size(_Opened(file, str(media)), limits, expected)
    elif not media.seekable():
        raise UsageError("media: an open file that cannot seek; wrap its bytes in io.BytesIO")
    else:
        name = getattr(media, "name", None)
        opened = _Opened(media, name if isinstance(name, str) else "bytes in memory")
        yield _checked_size(opened, limits, expected)


def _opened_path(path: str | Path, expected: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode  # first: opening a pipe would wait for its writer
        file = open(path, "rb") if stat.S_ISREG(mode) else None  # noqa: SIM115
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}: cannot be opened ({reason}), expected {expected}; check the path, which is "
            "relative to the file that lists it",
            file=str(path),
        ) from error
    if file is None:
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise DataError(
            f"{path}: is {what}, expected a file with {expected}; name the file", file=str(path)
        )
    return file


def _checked_size(opened: _Opened, limits: MediaLimits, expected: str) -> _Opened:
    size = opened.file.seek(0, os.SEEK_END)
    opened.file.seek(0)
    if size == 0:
        raise opened.unfit("0 bytes", expected)
    if size > limits.file_bytes:
        raise opened.beyond(f"{size} bytes", f"{limits.file_bytes} bytes")
    return opened


@contextmanager
def _decoding(
    opened: _Opened, errors: tuple[type[Exception], ...], expected: str
) -> Iterator[None]:
    """Turn a decoder's errors into one DataError."""
    try:
        yield
    except errors as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise opened.unfit(f"broken or cut short ({reason})", expected) from error


class _Nameless:
    """A file without its name, by which FFmpeg would otherwise guess the format."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@contextmanager
def _container(opened: _Opened) -> Iterator[InputContainer]:
    """Open a file with FFmpeg; every error of FFmpeg inside the block is a DataError."""
    with (
        _decoding(opened, (av.FFmpegError, OSError), "sound or video FFmpeg can decode"),
        av.open(
            _Nameless(opened.file),
            mode="r",
            # Playlists may not open other files: no protocol is on the list.
            container_options={"protocol_whitelist": "none"},
            metadata_errors="replace",
        ) as container,
    ):
        yield container


def _stream(container: InputContainer, kind: str, opened: _Opened, limits: MediaLimits) -> Any:
    """Return the first stream of a kind ("audio", "video"), ready to decode with one thread."""
    streams = [
        stream
        for stream in container.streams
        if stream.type == kind and not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        there = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise opened.unfit(f"has no {kind} stream (streams: {there})", f"one with {kind}")
    stream = streams[0]
    context: Any = stream.codec_context
    if context is None:
        raise opened.unfit(f"its {kind} is coded in an unknown way", "a codec FFmpeg knows")
    if container.duration is not None:
        opened.check_duration(container.duration / av.time_base, limits)
    if kind == "video":
        opened.check_pixels(context.width, context.height, limits)
    context.thread_count = 1
    return stream


def _packets(container: InputContainer, stream: Any, opened: _Opened) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt and not _is_endless_wav(container, opened):
            raise opened.unfit("cut short", "a whole file")
        yield packet


def _decoded(container: InputContainer, stream: Any, opened: _Opened) -> Iterator[Any]:
    for packet in _packets(container, stream, opened):
        yield from packet.decode()


def _is_endless_wav(container: InputContainer, opened: _Opened) -> bool:
    """Tell whether this is a WAV written to a pipe: its header could not state a length."""
    if container.format.name != "wav":
        return False
    position = opened.file.tell()
    opened.file.seek(4)
    stated = int.from_bytes(opened.file.read(4), "little")
    opened.file.seek(position)
    return stated == 0 or stated >= 0x7FFF0000


def _check_whole(found_s: float, container: InputContainer, stream: Any, opened: _Opened) -> None:
    """Refuse a file that ends long before its header says.

    Only of formats whose header states each stream's length; elsewhere FFmpeg estimates it.
    """
    if stream.duration is None or not container.format.name.startswith(("mov", "avi")):
        return
    stated_s = float(stream.duration * stream.time_base)
    if found_s < _WHOLE_SHARE * stated_s:
        raise opened.unfit(f"cut short after {found_s:.4g} s", f"{stated_s:.4g} s as it states")
