from __future__ import annotations

import io
import os
import struct
import warnings
import wave
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from modalign.errors import DataError, ShapeError, UsageError
from modalign.media import MediaLimits, read_audio, read_frames, read_image, resize_image

DATA = Path(
    os.environ.get("MODALIGN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(folder: Path, name: str, image: Image.Image, **options) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def wav(path: Path, samples: np.ndarray, *, rate: int = 16000) -> Path:
    """Write whole-number samples [S] or [S, C] of 1, 2 or 4 bytes; int32 is cut to 24 bits."""
    width = {"uint8": 1, "int16": 2, "int32": 3}[samples.dtype.name]
    data = samples.tobytes()
    if width == 3:
        data = samples.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def float_wav(path: Path, samples: np.ndarray, *, rate: int = 16000) -> Path:
    data = samples.astype("<f4").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, rate, rate * 4, 4, 32)
    body = head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def tone(hz: float, *, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def loudest_hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def clip(
    path: Path,
    levels,
    *,
    times=None,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    sound_s: float = 0.0,
    turn: int = 0,
) -> Path:
    """Write frames, grey ones by their level, shown from `times` (ms) on or for 40 ms each."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            codec, rate=1000 if times else 25, options={"crf": "1", "threads": "1"}
        )
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        sound = container.add_stream("aac", rate=16000, layout="mono") if sound_s else None
        for index, level in enumerate(levels):
            pixels = (
                level if isinstance(level, np.ndarray) else np.full((*size, 3), level, np.uint8)
            )
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[index] if times else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            samples = tone(440, rate=16000, seconds=sound_s).astype(np.float32)[None] / 2
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            block.sample_rate = 16000
            container.mux(sound.encode(block))
            container.mux(sound.encode())
    return path


def levels_of(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean())) for frame in frames]


# --- images ---------------------------------------------------------------------------------


def test_an_image_comes_back_as_its_rgb_pixels(tmp_path):
    pixels = noise()
    got = read_image(saved(tmp_path, "a.png", Image.fromarray(pixels)))
    assert got.dtype == np.uint8
    assert got.flags.writeable
    np.testing.assert_array_equal(got, pixels)


def test_text_path_and_open_file_give_the_same_pixels_from_the_start_of_the_file(tmp_path):
    path = saved(tmp_path, "a.jpg", Image.fromarray(noise()))
    held = io.BytesIO(path.read_bytes())
    held.seek(100)
    np.testing.assert_array_equal(read_image(str(path)), read_image(path))
    np.testing.assert_array_equal(read_image(held), read_image(path))
    assert not held.closed


def test_a_jpeg_is_decoded_to_the_pixels_of_bare_pillow(tmp_path):
    path = saved(tmp_path, "a.jpg", Image.fromarray(noise(223, 117)))
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))]
)
def test_exif_rotation_moves_the_marked_corner(tmp_path, orientation, corner):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read_image(saved(tmp_path, "a.jpg", Image.fromarray(pixels), exif=exif, quality=95))
    assert got.shape == ((16, 32, 3) if orientation in (1, 3) else (32, 16, 3))
    assert got[corner].min() > 240
    assert (got.mean(axis=2) > 128).sum() == 64


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_agrees_with_pillows_own_transposition(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.webp", "a.tiff"):
        options = {"lossless": True} if name.endswith("webp") else {}
        path = saved(tmp_path, name, Image.fromarray(noise(5, 7)), exif=exif, **options)
        with Image.open(path) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), wanted)


def test_a_broken_exif_block_says_no_rotation_and_nothing_leaks(tmp_path):
    broken = (
        b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0\xff\xff\xff\x7f\xff\xff\xff\x7f" * 2
    )
    path = saved(tmp_path, "a.jpg", Image.fromarray(noise()), exif=broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_image(path).shape == (48, 64, 3)
    assert caught == []


def test_transparency_is_pasted_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, [0, 255, 51]  # 51/255 = a fifth
    got = read_image(saved(tmp_path, "a.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(got[0], [[255, 255, 255], [200, 0, 0], [244, 204, 204]])


def test_grey_with_alpha_is_pasted_on_white(tmp_path):
    image = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA")
    assert read_image(saved(tmp_path, "a.png", image))[0, :, 0].tolist() == [255, 10]


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    as_index = saved(tmp_path, "index.png", image, transparency=1)
    np.testing.assert_array_equal(read_image(as_index)[0], [RED, (255, 255, 255), BLUE])
    as_table = saved(tmp_path, "table.png", image, transparency=bytes([255, 0, 255]))
    np.testing.assert_array_equal(read_image(as_table)[0], [RED, (255, 255, 255), BLUE])
    without = saved(tmp_path, "plain.png", image)
    np.testing.assert_array_equal(read_image(without)[0], [RED, GREEN, BLUE])


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 256, 32896, 65535]], np.uint16)
    for name in ("a.png", "a.tiff"):
        got = read_image(saved(tmp_path, name, Image.fromarray(values)))
        assert got[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 6 1 65535\n" + values.astype(">u2").tobytes())
    assert read_image(pgm)[0, :, 2].tolist() == [0, 0, 1, 1, 128, 255]


def test_float_and_wide_integer_pixels_have_no_known_white(tmp_path):
    path = saved(tmp_path, "f.tiff", Image.fromarray(np.array([[0.0, 0.5]], np.float32)))
    with pytest.raises(DataError, match=r"f\.tiff: has float pixels from 0 to 0\.5, expected int"):
        read_image(path)
    path = saved(tmp_path, "i.tiff", Image.fromarray(np.array([[-5, 70000]], np.int32)))
    with pytest.raises(DataError, match=r"i\.tiff: has 32-bit pixels from -5 to 70000"):
        read_image(path)


def test_grey_and_1_bit_images_are_spread_over_three_channels(tmp_path):
    grey = saved(tmp_path, "l.png", Image.fromarray(np.array([[3, 250]], np.uint8)))
    np.testing.assert_array_equal(read_image(grey)[0], [[3] * 3, [250] * 3])
    bits = saved(tmp_path, "1.png", Image.fromarray(np.array([[True, False]])))
    np.testing.assert_array_equal(read_image(bits)[0], [[255] * 3, [0] * 3])


def test_a_cmyk_jpeg_has_its_colours_the_right_way_round(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = read_image(saved(tmp_path, "a.jpg", image, quality=95))
    assert np.abs(got.astype(int) - RED).max() <= 3


def test_the_first_frame_of_an_animation_counts(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE))
    for name in ("a.gif", "a.png"):
        path = saved(tmp_path, name, first, save_all=True, append_images=[second])
        np.testing.assert_array_equal(read_image(path)[0, 0], RED)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tiff", "a.bmp"])
def test_an_image_cut_short_is_an_error_and_not_half_grey(tmp_path, name, kept):
    path = saved(tmp_path, name, Image.fromarray(noise(200, 200)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=rf"{name}: (broken or cut short|is no image)") as caught:
        read_image(path)
    assert caught.value.file == str(path)


def bomb(path: Path, side: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("side", [10_001, 12_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(tmp_path, side):
    path = bomb(tmp_path / "a.png", side)
    with pytest.raises(DataError, match=rf"a\.png: {side} x {side} = {side**2} pixels, expected "
                       "at most 100000000 pixels; shrink it"):  # fmt: skip
        read_image(path)


def test_the_limit_is_ours_and_not_pillows(tmp_path):
    small = saved(tmp_path, "a.png", Image.fromarray(noise(10, 10)))
    assert read_image(small, limits=MediaLimits(pixels=100)).shape == (10, 10, 3)
    with pytest.raises(DataError, match="10 x 10 = 100 pixels, expected at most 99 pixels"):
        read_image(small, limits=MediaLimits(pixels=99))
    # Pillow warns from 89,478,485 on and raises from twice that on; these pass to the decoder.
    for side in (9_700, 14_000):
        with pytest.raises(DataError, match="broken or cut short"):
            read_image(bomb(tmp_path / "b.png", side), limits=MediaLimits(pixels=200_000_000))


def test_pillows_own_bomb_warning_is_silent_below_our_limit(tmp_path):
    path = saved(tmp_path, "a.tiff", Image.new("L", (10, 10)))
    data = path.read_bytes()
    for tag in (256, 257):  # width and height
        for kind, layout in ((3, "<HHIHH"), (4, "<HHII")):
            rest = (0,) if kind == 3 else ()
            small = struct.pack(layout, tag, kind, 1, 10, *rest)
            data = data.replace(small, struct.pack(layout, tag, kind, 1, 9700, *rest))
    path.write_bytes(data)
    with pytest.raises(DataError, match="broken or cut short"):
        read_image(path)


def test_what_is_no_image_is_named_with_the_way_out(tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("dear diary", encoding="utf-8")
    message = r"notes\.jpg: is no image that can be read, expected one of JPEG, PNG, .*; replace"
    with pytest.raises(DataError, match=message + " the file"):
        read_image(text)
    with pytest.raises(DataError, match="bytes in memory: is no image"):
        read_image(io.BytesIO(b"dear diary"))


def test_formats_that_run_programs_are_not_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="is no image that can be read"):
        read_image(path)


def readers():
    return [
        pytest.param(read_image, id="image"),
        pytest.param(
            lambda media, **more: read_audio(media, sample_rate_hz=8000, **more), id="audio"
        ),
        pytest.param(lambda media, **more: read_frames(media, count=2, **more), id="frames"),
    ]


@pytest.mark.parametrize("read", readers())
class TestEveryReader:
    def test_names_a_missing_file(self, read, tmp_path):
        with pytest.raises(DataError, match=r"gone\.x: cannot be opened \(No such file.*check the"):
            read(tmp_path / "gone.x")

    def test_names_an_impossible_path(self, read):
        with pytest.raises(DataError, match=r"cannot be opened \(.*null"):
            read("a\0b")

    def test_refuses_a_folder_and_a_pipe(self, read, tmp_path):
        with pytest.raises(DataError, match="is a folder, expected a file with"):
            read(tmp_path)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="pipe: is no regular file"):
            read(tmp_path / "pipe")

    def test_refuses_zero_bytes(self, read, tmp_path):
        (tmp_path / "a.wav").touch()
        with pytest.raises(DataError, match=r"a\.wav: 0 bytes, expected"):
            read(tmp_path / "a.wav")

    def test_refuses_text_whatever_its_name(self, read, tmp_path):
        for name in ("a.wav", "a.mp4", "a.txt", "a.mp3", "a.jpg"):
            (tmp_path / name).write_text("dear diary\n" * 50, encoding="utf-8")
            with pytest.raises(DataError, match=rf"{name}: (broken|is no image)"):
                read(tmp_path / name)

    def test_refuses_too_many_bytes(self, read):
        with pytest.raises(DataError, match="9 bytes, expected at most 8 bytes; shrink it"):
            read(io.BytesIO(b"123456789"), limits=MediaLimits(file_bytes=8))

    def test_refuses_a_stream_that_cannot_seek(self, read):
        inward, outward = os.pipe()
        os.close(outward)
        with open(inward, "rb") as file, pytest.raises(UsageError, match=r"wrap its bytes in io"):
            read(file)

    def test_refuses_random_bytes(self, read):
        for seed in range(8):
            data = np.random.default_rng(seed).bytes(3000)
            with pytest.raises(DataError, match="bytes in memory: "):
                read(io.BytesIO(data))


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = saved(tmp_path, "a.png", Image.fromarray(noise()))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(DataError, match=r"cannot be opened \(Permission denied\)"):
        read_image(path)


# --- resizing -------------------------------------------------------------------------------


def test_an_image_of_the_size_comes_back_as_it_is():
    pixels = noise(6, 5)
    for fit in ("stretch", "crop", "short_side"):
        assert resize_image(pixels, size=(6, 5), fit=fit) is pixels


def test_crop_takes_the_central_square():
    pixels = np.zeros((4, 9, 3), np.uint8)
    pixels[:, 2:6] = 90  # five columns too many: two left, three right
    np.testing.assert_array_equal(resize_image(pixels, size=(2, 2), fit="crop"), 90)
    np.testing.assert_array_equal(
        resize_image(pixels, size=(4, 4), fit="crop", interpolation="nearest"), 90
    )
    assert resize_image(pixels.swapaxes(0, 1), size=(3, 3), fit="crop").min() == 90


def test_crop_keeps_the_proportions_of_an_oblong_size():
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[2:7] = 70  # ten wide, five high
    np.testing.assert_array_equal(resize_image(pixels, size=(2, 4), fit="crop")[:, :, 0][0, 0], 70)
    assert resize_image(pixels, size=(2, 4), fit="crop").shape == (2, 4, 3)


def test_short_side_resizes_before_it_cuts():
    pixels = noise(30, 47)
    whole = Image.fromarray(pixels).resize((15, 10), Image.Resampling.BICUBIC)  # 47 * 10 // 30
    wanted = np.asarray(whole)[:, 2:12]
    got = resize_image(pixels, size=(10, 10), fit="short_side", interpolation="bicubic")
    np.testing.assert_array_equal(got, wanted)


def test_stretch_averages_where_it_shrinks():
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, ::2] = 100
    got = resize_image(pixels, size=(1, 2), interpolation="box")
    np.testing.assert_array_equal(got, np.full((1, 2, 3), 50))
    assert got.flags.writeable


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "box", "lanczos"])
def test_every_interpolation_is_pillows_of_that_name(name):
    pixels = noise(33, 21)
    wanted = Image.fromarray(pixels).resize((9, 14), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(
        resize_image(pixels, size=(14, 9), interpolation=name), np.asarray(wanted)
    )


def test_resizing_refuses_what_it_cannot_do():
    with pytest.raises(
        ShapeError, match=r"pixels: float64 \[4, 4, 3\], expected uint8 \[H, W, 3\]"
    ):
        resize_image(np.zeros((4, 4, 3)), size=(2, 2))
    with pytest.raises(ShapeError, match=r"uint8 \[0, 4, 3\]"):
        resize_image(np.zeros((0, 4, 3), np.uint8), size=(2, 2))
    with pytest.raises(UsageError, match=r"size: \(0, 2\), expected \(height, width\)"):
        resize_image(noise(), size=(0, 2))
    with pytest.raises(UsageError, match=r"interpolation 'linear' is unknown; known: bicubic, bil"):
        resize_image(noise(), size=(2, 2), interpolation="linear")
    with pytest.raises(UsageError, match=r"fit 'pad' is unknown; known: crop, short_side, stretch"):
        resize_image(noise(), size=(2, 2), fit="pad")
    with pytest.raises(
        DataError, match=r"1 x 5000 pixels: covering 224 x 224 makes it 224 x 1120000"
    ):
        resize_image(noise(1, 5000), size=(224, 224), fit="short_side")


# --- sound ----------------------------------------------------------------------------------


def test_the_channels_are_averaged_by_hand(tmp_path):
    stereo = np.array([[16384, 0], [-32768, 16384], [32767, 32767]], np.int16)
    got = read_audio(wav(tmp_path / "a.wav", stereo), sample_rate_hz=16000)
    assert got.dtype == np.float32
    assert got.flags.writeable
    assert got.tolist() == [0.25, -0.25, 32767 / 32768]


def test_each_of_six_channels_counts_the_same(tmp_path):
    six = np.zeros((500, 6), np.int16)
    six[:, 3] = 24576  # the bass channel, which FFmpeg's own downmix drops
    got = read_audio(wav(tmp_path / "a.wav", six), sample_rate_hz=16000)
    np.testing.assert_array_equal(got, np.full(500, 0.125))


def test_every_sample_width_has_its_full_scale_at_one(tmp_path):
    eight = wav(tmp_path / "8.wav", np.array([0, 128, 192], np.uint8))
    assert read_audio(eight, sample_rate_hz=16000).tolist() == [-1.0, 0.0, 0.5]
    more = wav(tmp_path / "24.wav", np.array([-(2**23), 0, 2**22], np.int32))
    assert read_audio(more, sample_rate_hz=16000).tolist() == [-1.0, 0.0, 0.5]
    floats = float_wav(tmp_path / "f.wav", np.array([-1.0, 0.0, 0.5]))
    assert read_audio(floats, sample_rate_hz=16000).tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, rate):
    samples = (tone(1000, rate=rate, seconds=1.3) * 16384).astype(np.int16)
    got = read_audio(wav(tmp_path / "a.wav", samples, rate=rate), sample_rate_hz=16000)
    assert len(got) == -(-len(samples) * 16000 // rate)
    assert loudest_hz(got, 16000) == pytest.approx(1000, abs=1)
    wanted = tone(1000, rate=16000, seconds=2)[: len(got)] / 2
    assert np.abs(got - wanted)[300:-300].max() < 1e-3  # in phase, not delayed


def test_stereo_at_44100_becomes_mono_at_16000(tmp_path):
    left, right = (tone(hz, rate=44100, seconds=1) * 20000 for hz in (440, 3000))
    both = np.stack([left, right], axis=1).astype(np.int16)
    got = read_audio(wav(tmp_path / "a.wav", both, rate=44100), sample_rate_hz=16000)
    spectrum = np.abs(np.fft.rfft(got))
    assert len(got) == 16000
    assert set(np.argsort(spectrum)[-2:].tolist()) == {440, 3000}


def test_what_the_new_rate_cannot_hold_is_filtered_out(tmp_path):
    samples = (tone(10_000, rate=44100, seconds=1) * 30000).astype(np.int16)
    got = read_audio(wav(tmp_path / "a.wav", samples, rate=44100), sample_rate_hz=16000)
    assert np.abs(got)[300:-300].max() < 1e-3


@pytest.mark.parametrize("count", [1, 2, 5, 70_000])
def test_the_shortest_and_blockwise_sounds_have_their_length(tmp_path, count):
    path = wav(tmp_path / "a.wav", np.full(count, 8192, np.int16), rate=22050)
    got = read_audio(path, sample_rate_hz=16000)
    assert len(got) == -(-count * 16000 // 22050)
    assert got.max() > 0.1  # of 0.25; nothing but silence would mean it was lost
    if count > 1000:
        assert np.abs(got[300:-300] - 0.25).max() < 1e-4


def test_the_sound_of_a_video_is_read(tmp_path):
    path = clip(tmp_path / "a.mp4", range(0, 250, 10), sound_s=1.0)
    got = read_audio(path, sample_rate_hz=8000)
    assert loudest_hz(got, 8000) == pytest.approx(440, abs=2)
    assert len(got) == pytest.approx(8000, abs=1000)  # AAC pads


def test_a_video_without_sound_is_an_error(tmp_path):
    path = clip(tmp_path / "a.mp4", [10, 20])
    with pytest.raises(DataError, match=r"has no audio stream \(streams: video\), expected one w"):
        read_audio(path, sample_rate_hz=8000)


def test_a_wav_with_only_a_header_holds_no_samples(tmp_path):
    path = wav(tmp_path / "a.wav", np.zeros(0, np.int16))
    with pytest.raises(DataError, match=r"a\.wav: holds no samples, expected sound"):
        read_audio(path, sample_rate_hz=16000)


@pytest.mark.parametrize("kept", [20, 30, 40, 3001, 20_000])
def test_a_wav_cut_short_is_an_error(tmp_path, kept):
    path = wav(tmp_path / "a.wav", np.zeros(16000, np.int16))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        DataError, match=r"a\.wav: (cut short|broken or cut short|holds no samples)"
    ):
        read_audio(path, sample_rate_hz=16000)


def test_a_wav_written_to_a_pipe_is_read_to_its_end(tmp_path):
    path = wav(tmp_path / "a.wav", np.full(12345, 16384, np.int16))
    data = path.read_bytes()
    for unknown in (b"\xff\xff\xff\xff", b"\0\0\0\0"):
        path.write_bytes(data[:4] + unknown + data[8:40] + b"\xff\xff\xff\xff" + data[44:])
        assert len(read_audio(path, sample_rate_hz=16000)) == 12345


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_an_error(tmp_path, bad):
    path = float_wav(tmp_path / "a.wav", np.array([0.0, bad, 0.5]))
    with pytest.raises(DataError, match=r"a\.wav: holds NaN or infinity, expected samples in -1"):
        read_audio(path, sample_rate_hz=16000)


def test_integers_stored_as_floats_are_an_error_and_a_little_overshoot_is_clipped(tmp_path):
    path = float_wav(tmp_path / "a.wav", np.array([0.0, -30000.0]))
    with pytest.raises(
        DataError, match=r"holds samples up to 30000, expected .*; scale the samples"
    ):
        read_audio(path, sample_rate_hz=16000)
    path = float_wav(tmp_path / "b.wav", np.array([0.5, -1.25, 1.5]))
    assert read_audio(path, sample_rate_hz=16000).tolist() == [0.5, -1.0, 1.0]


def test_sound_beyond_the_limit_is_refused_from_the_header(tmp_path):
    path = wav(tmp_path / "a.wav", np.zeros(8000 * 5, np.int16), rate=8000)
    with pytest.raises(DataError, match=r"a\.wav: 5 s or longer, expected at most 4\.5 s; shrink"):
        read_audio(path, sample_rate_hz=16000, limits=MediaLimits(duration_s=4.5))
    assert len(read_audio(path, sample_rate_hz=100, limits=MediaLimits(duration_s=5.0))) == 500


def flac_that_lies(path: Path) -> Path:
    """Write 3 s of FLAC whose header says 1 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        samples = (tone(440, rate=16000, seconds=3) * 9000).astype(np.int16)
        for start in range(0, 48000, 4608):
            block = av.AudioFrame.from_ndarray(
                samples[None, start : start + 4608], format="s16", layout="mono"
            )
            block.sample_rate = 16000
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = struct.pack(">I", 16000)
    path.write_bytes(data)
    return path


def test_sound_is_measured_again_while_decoding_for_headers_lie(tmp_path):
    path = flac_that_lies(tmp_path / "a.flac")
    with av.open(str(path)) as container:
        assert container.duration == 1_000_000
    with pytest.raises(DataError, match=r"s or longer, expected at most 2 s"):
        read_audio(path, sample_rate_hz=16000, limits=MediaLimits(duration_s=2.0))
    assert len(read_audio(path, sample_rate_hz=16000)) == 48000


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.flac", "flac"),
        ("a.m4a", "aac"),
        ("a.aac", "aac"),
        ("a.aiff", "pcm_s16be"),
        ("a.au", "pcm_s16be"),
        ("a.opus", "libopus"),
        ("a.webm", "libopus"),
    ],
)
def test_whole_files_of_every_container_are_read_to_their_end(tmp_path, name, codec):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="stereo")
        samples = tone(440, rate=48000, seconds=1.017).astype(np.float32) / 2
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * 2), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    got = read_audio(tmp_path / name, sample_rate_hz=16000)
    assert len(got) == pytest.approx(16272, abs=1300)
    assert loudest_hz(got, 16000) == pytest.approx(440, abs=2)
    assert np.sqrt((got[1000:-2000] ** 2).mean()) == pytest.approx(0.3536, rel=0.06)


def test_an_mp3_with_a_cover_has_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(noise(16, 16), format="rgb24")))
        samples = tone(440, rate=16000, seconds=1).astype(np.float32)[None] / 2
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert loudest_hz(read_audio(path, sample_rate_hz=8000), 8000) == pytest.approx(440, abs=2)
    with pytest.raises(DataError, match=r"has no video stream \(streams: audio, video\)"):
        read_frames(path, count=1)


@pytest.mark.parametrize("rate", [0, 99, 768_001])
def test_a_sample_rate_out_of_range_is_the_callers_error(rate):
    with pytest.raises(UsageError, match=f"sample_rate_hz: {rate}, expected 100 to 768000"):
        read_audio("never-opened.wav", sample_rate_hz=rate)


# --- video ----------------------------------------------------------------------------------


def test_frames_are_taken_at_the_centres_of_equal_parts(tmp_path):
    path = clip(tmp_path / "a.mp4", range(0, 200, 10))  # 20 frames of 40 ms
    got = read_frames(path, count=5)
    assert got.shape == (5, 48, 64, 3)
    assert got.dtype == np.uint8
    assert np.abs(np.array(levels_of(got)) - [20, 60, 100, 140, 180]).max() <= 3


def test_time_counts_and_not_the_number_of_frames(tmp_path):
    # Nine quick frames, then one that is shown for as long as nine hundred milliseconds.
    times = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 990]
    path = clip(tmp_path / "a.mp4", [0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 240], times=times)
    got = levels_of(read_frames(path, count=4))
    assert np.abs(np.array(got) - 180).max() <= 3
    fine = levels_of(read_frames(path, count=100))
    assert np.abs(np.array(fine[:9]) - [0, 20, 40, 60, 80, 100, 120, 140, 160]).max() <= 4


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_every_container_gives_the_same_frames(tmp_path, name, codec):
    path = clip(tmp_path / name, range(0, 250, 10), codec=codec)
    got = np.array(levels_of(read_frames(path, count=25)))
    assert np.abs(got - range(0, 250, 10)).max() <= 6


def test_a_bare_stream_without_timestamps_is_spaced_by_its_frames(tmp_path):
    path = clip(tmp_path / "a.h264", range(0, 200, 10))
    got = np.array(levels_of(read_frames(path, count=5)))
    assert np.abs(got - [20, 60, 100, 140, 180]).max() <= 3


def test_a_clip_with_fewer_frames_than_wanted_repeats_them(tmp_path):
    got = levels_of(read_frames(clip(tmp_path / "a.mp4", [30, 200]), count=5))
    assert np.abs(np.array(got) - [30, 30, 200, 200, 200]).max() <= 3


def test_a_rotated_video_stands_upright(tmp_path):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :16] = 255  # top left
    path = clip(tmp_path / "a.mp4", [pixels] * 3, size=(32, 64), turn=90)
    got = read_frames(path, count=1)
    assert got.shape == (1, 64, 32, 3)
    assert got[0, -8:, :8].mean() > 240  # a quarter turn against the clock: bottom left
    assert got[0, :8, :8].mean() < 20


def test_animations_are_spaced_by_their_own_durations(tmp_path):
    images = [Image.new("RGB", (16, 16), (level,) * 3) for level in (0, 100, 200)]
    for name in ("a.gif", "a.png", "a.webp"):
        more = {"lossless": True} if name.endswith("webp") else {}
        path = saved(tmp_path, name, images[0], save_all=True, append_images=images[1:],
                     duration=[100, 100, 800], **more)  # fmt: skip
        assert levels_of(read_frames(path, count=10)) == [0, 100, *[200] * 8]
        assert levels_of(read_frames(path, count=2)) == [200, 200]
        # A frame that starts exactly at a centre is the one shown there.
        assert levels_of(read_frames(path, count=5)) == [100, *[200] * 4]


def test_transparent_animations_are_pasted_on_white(tmp_path):
    images = [Image.new("RGBA", (8, 8), (0, 0, 0, alpha)) for alpha in (255, 0)]
    path = saved(tmp_path, "a.webp", images[0], save_all=True, append_images=images[1:],
                 duration=50, lossless=True)  # fmt: skip
    assert levels_of(read_frames(path, count=2)) == [0, 255]


def test_transparent_video_is_pasted_on_white(tmp_path):
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "argb"
        for alpha in (255, 0):
            pixels = np.zeros((16, 16, 4), np.uint8)
            pixels[..., 3] = alpha
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    assert levels_of(read_frames(tmp_path / "a.mov", count=2)) == [0, 255]


def test_a_still_image_repeats_itself(tmp_path):
    path = saved(tmp_path, "a.png", Image.fromarray(noise()))
    np.testing.assert_array_equal(read_frames(path, count=3), np.stack([noise()] * 3))


def test_sound_alone_is_no_video(tmp_path):
    path = wav(tmp_path / "a.wav", np.zeros(1000, np.int16))
    with pytest.raises(DataError, match=r"has no video stream \(streams: audio\), expected one w"):
        read_frames(path, count=2)


@pytest.mark.parametrize("kept", [0.05, 0.4, 0.6, 0.8, 0.999])
def test_a_video_cut_short_is_an_error(tmp_path, kept):
    path = clip(tmp_path / "a.mp4", [noise()] * 40)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"a\.mp4: (cut short|broken or cut short)"):
        read_frames(path, count=1)


def test_a_video_cut_between_two_frames_is_an_error(tmp_path):
    path = clip(tmp_path / "a.mp4", [noise()] * 40)
    with av.open(str(path)) as container:
        ends = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: ends[20]])
    with pytest.raises(DataError, match=r"cut short after 0\.\d+ s, expected 1\.6 s as it states"):
        read_frames(path, count=1)


def test_video_limits_are_checked(tmp_path):
    path = clip(tmp_path / "a.mp4", range(0, 250, 10))
    for limits, message in [
        (MediaLimits(pixels=48 * 64 - 1), "64 x 48 = 3072 pixels, expected at most 3071 pixels"),
        (MediaLimits(frames=24), "25 frames or more, expected at most 24 frames"),
        (MediaLimits(duration_s=0.5), r"1 s or longer, expected at most 0\.5 s"),
    ]:
        with pytest.raises(DataError, match=message):
            read_frames(path, count=2, limits=limits)
    limits = MediaLimits(pixels=48 * 64, frames=25, duration_s=1.0)
    assert len(read_frames(path, count=2, limits=limits)) == 2


def test_animation_limits_are_checked(tmp_path):
    images = [Image.new("L", (16, 16), level) for level in (0, 100, 200)]
    path = saved(
        tmp_path, "a.gif", images[0], save_all=True, append_images=images[1:], duration=500
    )
    with pytest.raises(DataError, match="3 frames or more, expected at most 2 frames"):
        read_frames(path, count=2, limits=MediaLimits(frames=2))
    with pytest.raises(DataError, match=r"1\.5 s or longer, expected at most 1 s"):
        read_frames(path, count=2, limits=MediaLimits(duration_s=1.0))


def test_a_video_is_measured_again_by_its_packets_for_headers_lie(tmp_path):
    path = clip(tmp_path / "a.avi", range(0, 250, 10), codec="mpeg4", times=list(range(25)))
    data = path.read_bytes()
    place = data.index(b"vids") + 28  # after it: scale, rate, start, length in ticks
    data = data[: place + 4] + struct.pack("<I", 3) + data[place + 8 :]
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"0\.025 s or longer, expected at most 0\.02 s"):
        read_frames(path, count=1, limits=MediaLimits(duration_s=0.02))


def test_playlists_may_not_open_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative name would be found
    clip(tmp_path / "secret.mp4", [10, 20])
    listed = tmp_path / "a.mp4"
    for text in (
        "ffconcat version 1.0\nfile secret.mp4\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
    ):
        listed.write_text(text, encoding="utf-8")
        for media in (listed, io.BytesIO(text.encode())):
            with pytest.raises(DataError, match="broken or cut short"):
                read_frames(media, count=1)


def test_a_count_below_one_is_the_callers_error():
    with pytest.raises(UsageError, match="count: 0, expected 1 or more"):
        read_frames("never-opened.mp4", count=0)


# --- all of it ------------------------------------------------------------------------------


def test_threads_and_repeats_give_the_same_bits(tmp_path):
    video = clip(tmp_path / "a.mp4", [noise()] * 12, sound_s=0.5)
    photo = saved(tmp_path, "a.jpg", Image.fromarray(noise(99, 77)))

    def everything(_: int) -> bytes:
        parts = (
            read_image(photo),
            read_frames(video, count=3),
            read_audio(video, sample_rate_hz=8000),
        )
        return b"".join(part.tobytes() for part in parts)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(everything, range(24)))) == 1


class CountingThreads(io.BytesIO):
    """A file that looks at the threads of the process whenever it is read."""

    most = 0

    def read(self, size=-1):
        self.most = max(self.most, len(os.listdir("/proc/self/task")))
        return super().read(size)


def test_decoding_starts_no_threads_of_its_own(tmp_path):
    if not Path("/proc/self/task").exists():
        pytest.skip("the system does not list its threads")
    pictures = np.random.default_rng(3).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
    video = clip(tmp_path / "a.mp4", pictures, size=(96, 128))
    assert video.stat().st_size > 300_000  # so that it is still being read while it is decoded
    assert count_while_reading(video) <= 0


def count_while_reading(video: Path) -> int:
    media = CountingThreads(video.read_bytes())
    media.read(1)
    before = media.most
    read_frames(media, count=3)
    return media.most - before


def test_broken_media_leave_no_noise_behind(tmp_path, capfd):
    video = clip(tmp_path / "a.mp4", [noise()] * 20)
    capfd.readouterr()  # what the encoder said
    whole = video.read_bytes()
    for kept in (0.3, 0.7, 0.95):
        broken = io.BytesIO(whole[: int(len(whole) * kept)])
        with pytest.raises(DataError, match="cut short"):
            read_frames(broken, count=2)
    assert capfd.readouterr() == ("", "")


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    import tracemalloc

    path = clip(tmp_path / "a.mp4", [0, 255] * 150, size=(240, 320))
    frame_bytes = 240 * 320 * 3
    tracemalloc.start()
    read_frames(path, count=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * frame_bytes  # of 300 frames


def real(pattern: str, count: int) -> list[Path]:
    paths = sorted(DATA.glob(pattern))[:count]
    if not paths:
        pytest.skip(f"no {pattern} under {DATA}; set MODALIGN_DATA")
    return paths


@pytest.mark.data
def test_real_photos_are_those_of_bare_pillow():
    for path in real("flickr8k/images/*", 50):
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.data
def test_real_sounds_are_as_long_as_their_headers_say():
    for path in real("esc10/audio/*", 20):
        with av.open(str(path)) as container:
            stated_s = container.duration / av.time_base
        assert len(read_audio(path, sample_rate_hz=8000)) == pytest.approx(
            stated_s * 8000, rel=0.02
        )


@pytest.mark.data
def test_real_videos_give_frames_and_the_sound_that_lies_beside_them():
    for path in real("grid/video/*", 5):
        frames = read_frames(path, count=8)
        assert frames.shape == (8, *frames.shape[1:3], 3)
        assert frames.std() > 10
        ours = read_audio(path, sample_rate_hz=16000)
        theirs = read_audio(DATA / "grid/audio" / f"{path.stem}.ogg", sample_rate_hz=16000)
        shared = min(len(ours), len(theirs))
        assert np.corrcoef(ours[:shared], theirs[:shared])[0, 1] > 0.95
