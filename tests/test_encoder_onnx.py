"""ONNX models and their cards: what goes in, what comes out, every way a card can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoder_cases import write_clips, write_images, write_sound, write_sounds
from modalign.encoders import Encoder, load_encoder
from modalign.encoders.onnx.card import AudioInput, ImageInput, read_card
from modalign.errors import DataError, UsageError
from modalign.media import read_audio, read_frames, read_image, resize_image
from onnx_models import (
    audio_card,
    audio_weights,
    image_card,
    image_weights,
    write_audio_model,
    write_card,
    write_image_model,
)

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.5, 0.25, 0.2])


def opened(path: Path, query: str = "", modality: str | None = None) -> Encoder:
    return load_encoder(f"onnx:{path}{query}", modality=modality)


def convolved(pixels: np.ndarray) -> np.ndarray:
    """The tiny model in loops: uint8 [8, 8, 3] -> [4, 5]."""
    inputs = (pixels / 255 - MEAN) / STD
    weights = image_weights().astype(np.float64)  # [5, 3, 4, 4]
    rows = []
    for top in (0, 4):
        for left in (0, 4):
            patch = inputs[top : top + 4, left : left + 4].transpose(2, 0, 1)
            rows.append([(patch * kernel).sum() for kernel in weights])
    return np.array(rows)


def changed(card: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The card's "input" with other fields; None takes one out."""
    inner = card["input"] | fields
    return card | {"input": {name: value for name, value in inner.items() if value is not None}}


# --- images -------------------------------------------------------------------------------------


def test_pixels_are_resized_normalised_and_run_through_the_model(tmp_path):
    path, images = write_image_model(tmp_path / "m"), write_images(tmp_path, 3)
    features = opened(path).encode(images)
    for row, image in enumerate(images):
        small = resize_image(read_image(image), size=(8, 8), interpolation="bilinear")
        np.testing.assert_allclose(features.values[row], convolved(small).mean(axis=0), rtol=1e-4)


def test_tokens_are_the_output_the_card_names(tmp_path):
    path, images = write_image_model(tmp_path / "m"), write_images(tmp_path, 1)
    features = opened(path, "?output=tokens").encode(images)
    small = resize_image(read_image(images[0]), size=(8, 8), interpolation="bilinear")
    assert features.mask.tolist() == [[True] * 4]
    np.testing.assert_allclose(features.values[0], convolved(small), rtol=1e-4)


def test_scale_and_offset_are_another_way_to_say_mean_and_std(tmp_path):
    images = write_images(tmp_path, 2)
    one = write_image_model(tmp_path / "one")
    card = changed(
        image_card(),
        mean=None,
        std=None,
        scale=(1 / (255 * STD)).tolist(),
        offset=(-MEAN / STD).tolist(),
    )
    other = write_image_model(tmp_path / "other", **card)
    np.testing.assert_allclose(
        opened(other).encode(images).values, opened(one).encode(images).values, rtol=1e-5
    )


def test_both_ways_together_must_agree(tmp_path):
    card = image_card()
    agreeing = changed(card, mean=[0.5] * 3, std=[0.5] * 3, scale=0.00784314, offset=-1.0)
    opened(write_image_model(tmp_path / "a", **agreeing))
    contradicting = changed(card, mean=[0.5] * 3, std=[0.5] * 3, scale=0.00392157, offset=0.0)
    path = write_image_model(tmp_path / "b", **contradicting)
    with pytest.raises(DataError, match="'scale' and 'offset' contradict 'mean' and 'std'"):
        opened(path)


def test_bgr_models_get_their_channels_turned_round(tmp_path):
    images = write_images(tmp_path, 1)
    path = write_image_model(tmp_path / "m", **changed(image_card(), colour_order="BGR"))
    small = resize_image(read_image(images[0]), size=(8, 8), interpolation="bilinear")
    np.testing.assert_allclose(
        opened(path).encode(images).values[0], convolved(small[..., ::-1]).mean(axis=0), rtol=1e-4
    )


def test_the_card_decides_how_an_image_is_fitted(tmp_path):
    images = write_images(tmp_path, 3)
    pixels = read_image(images[2])
    for fit in ("stretch", "crop", "short_side"):
        resize = {"interpolation": "bicubic", "fit": fit, "size": [8, 8]}
        path = write_image_model(tmp_path / fit, **changed(image_card(), resize=resize))
        small = resize_image(pixels, size=(8, 8), interpolation="bicubic", fit=fit)
        expected = convolved(small).mean(axis=0)
        np.testing.assert_allclose(opened(path).encode(images[2:]).values[0], expected, rtol=1e-4)


def test_both_layouts_hold_the_same_numbers():
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    common = {"size": (2, 4), "interpolation": "nearest", "fit": "stretch", "rows": None}
    filled = {}
    for layout in ("NCHW", "NHWC"):
        given = ImageInput(
            name="x", layout=layout, colour_order="RGB", scale=(1.0, 2.0, 3.0),
            offset=(0.5, 0.0, 0.0), **common,
        )  # fmt: skip
        filled[layout] = np.full((3, *given.shape), 7, np.float32)
        given.fill(filled[layout], [pixels, pixels + 1])
        assert (filled[layout][2] == 7).all(), "rows beyond the pieces are not touched"
    assert filled["NHWC"].shape == (3, 2, 4, 3)
    np.testing.assert_array_equal(filled["NCHW"].transpose(0, 2, 3, 1), filled["NHWC"])
    assert filled["NHWC"][1, 0, 1].tolist() == [4.5, 10.0, 18.0]


def test_a_model_of_fixed_rows_gets_them(tmp_path):
    images = write_images(tmp_path, 3)
    fixed = changed(image_card(), shape=[2, 3, 8, 8])
    features = opened(write_image_model(tmp_path / "m", rows=2, **fixed)).encode(images)
    free = opened(write_image_model(tmp_path / "n")).encode(images)
    np.testing.assert_allclose(features.values, free.values, rtol=1e-5)


# --- clips --------------------------------------------------------------------------------------


def test_a_clip_is_the_mean_of_its_frames(tmp_path):
    path, clips = write_image_model(tmp_path / "m"), write_clips(tmp_path, 2)
    feature = opened(path, "?frames=3", "video").encode(clips[1:]).values[0]
    frames = [resize_image(frame, size=(8, 8)) for frame in read_frames(clips[1], count=3)]
    expected = np.mean([convolved(frame).mean(axis=0) for frame in frames], axis=0)
    np.testing.assert_allclose(feature, expected, rtol=1e-4)


@pytest.mark.parametrize(("count", "first", "last"), [(4, [0, 1], [2, 3]), (3, [0, 1], [1, 2])])
def test_the_delta_is_the_second_half_minus_the_first(tmp_path, count, first, last):
    path, clips = write_image_model(tmp_path / "m"), write_clips(tmp_path, 1)
    query = f"?frames={count}&pool=mean+delta"
    feature = opened(path, query, "video").encode(clips).values[0]
    frames = [resize_image(frame, size=(8, 8)) for frame in read_frames(clips[0], count=count)]
    outputs = np.array([convolved(frame).mean(axis=0) for frame in frames])
    delta = outputs[last].mean(axis=0) - outputs[first].mean(axis=0)
    np.testing.assert_allclose(feature[:5], outputs.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(feature[5:], delta, atol=1e-4)
    assert np.abs(delta).max() > 0.01


def test_the_tokens_of_a_clip_are_its_frames(tmp_path):
    path, clips = write_image_model(tmp_path / "m"), write_clips(tmp_path, 1)
    tokens = opened(path, "?frames=3&output=tokens", "video").encode(clips)
    frames = [resize_image(frame, size=(8, 8)) for frame in read_frames(clips[0], count=3)]
    expected = [convolved(frame).mean(axis=0) for frame in frames]
    np.testing.assert_allclose(tokens.values[0], expected, rtol=1e-4)


def test_frames_make_a_model_of_images_read_clips_under_any_name(tmp_path):
    path = write_image_model(tmp_path)
    assert opened(path, "?frames=3").modality == "video"
    assert opened(path, "?frames=3", "gesture").modality == "gesture"
    assert opened(path, "?frames=3").describe()["frames"] == 3
    assert opened(path, "", "video").describe()["frames"] == 8
    assert opened(path, "", "sketch").describe()["frames"] == 0


# --- sounds -------------------------------------------------------------------------------------


def windows_of(samples: int, *, window: int = 32, hop: int = 20) -> np.ndarray:
    given = AudioInput("x", 8000, window, hop, 1.0, None)
    return given.windows(np.arange(1, samples + 1, dtype=np.float32))


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (1, [1]),
        (32, [1]),
        (42, [1]),  # half a hop is left over: not more than half
        (43, [1, 21]),
        (52, [1, 21]),
        (62, [1, 21]),
        (63, [1, 21, 41]),
        (72, [1, 21, 41]),
    ],
)
def test_windows_start_every_hop_and_a_large_rest_gets_one_of_its_own(samples, starts):
    assert windows_of(samples)[:, 0].tolist() == starts


def test_a_window_holds_its_samples_then_silence():
    assert windows_of(3)[0].tolist() == [1, 2, 3] + [0] * 29
    assert windows_of(43)[1].tolist() == [*range(21, 44)] + [0] * 9


def test_no_hop_skips_samples_where_it_is_longer_than_the_window():
    assert windows_of(10, window=4, hop=6)[:, 0].tolist() == [1, 7]


def test_a_sound_is_the_mean_of_its_windows(tmp_path):
    path, (sound,) = write_audio_model(tmp_path / "m"), write_sounds(tmp_path, [100])
    samples = read_audio(sound, sample_rate_hz=8000)
    outputs = [np.abs(samples[s : s + 32] @ audio_weights()) for s in (0, 20, 40, 60)]
    feature = opened(path).encode([sound]).values[0]
    np.testing.assert_allclose(feature, np.mean(outputs, axis=0), rtol=1e-4)
    tokens = opened(path, "?output=tokens").encode([sound])
    np.testing.assert_allclose(tokens.values[0], outputs, rtol=1e-4)


def test_a_sound_of_one_window_does_not_change(tmp_path):
    path, sounds = write_audio_model(tmp_path / "m"), write_sounds(tmp_path, [20])
    feature = opened(path, "?pool=mean+delta").encode(sounds).values[0]
    assert feature[:6].all()
    assert not feature[6:].any()


def test_full_scale_is_what_the_card_says(tmp_path):
    sounds = write_sounds(tmp_path, [100])
    one = opened(write_audio_model(tmp_path / "one")).encode(sounds).values
    card = changed(audio_card(), range=[-128, 128])
    other = opened(write_audio_model(tmp_path / "other", **card)).encode(sounds).values
    np.testing.assert_allclose(other, one * 128, rtol=1e-5)


# --- cards --------------------------------------------------------------------------------------


def test_a_missing_card_is_named_with_an_example_that_works(tmp_path):
    path = write_image_model(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"tiny\.json: cannot be read .*write it, for example") as e:
        opened(path)
    example = json.loads(str(e.value).split("for example ")[1])
    write_card(path, example)
    assert read_card(path.with_suffix(".json")).width == 1280


INPUT = image_card()["input"]
RESIZE = INPUT["resize"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "text"}, "field 'modality' is \"text\", expected one of image, audio"),
        ({"modality": None}, "field 'modality' is null"),
        ({"inputs": 1}, "field 'inputs' is unknown"),
        ({"input": []}, r"field 'input' is \[\], expected an object"),
        ({"pooled": "pool"}, "field 'pooled' is 'pool', expected one of 'outputs': embedding, tok"),
        ({"tokens": "embedding"}, "output 'embedding': field 'shape'.*positions, width"),
        ({"pooled": "tokens"}, "output 'tokens': field 'shape' is .* for 'pooled'"),
        ({"dimension": 6}, "field 'dimension' is 6, expected 5 as other fields say"),
        ({"sha256": 5}, "field 'sha256' is 5, expected a text"),
        ({"input": INPUT | {"maen": [0.5] * 3}}, "in 'input': field 'maen' is unknown"),
        ({"input": INPUT | {"shape": ["N", 3, "H", "W"]}}, "field 'shape' is .*height, width"),
        ({"input": INPUT | {"shape": 8}}, "field 'shape' is 8, expected a list"),
        ({"input": INPUT | {"layout": "NHWC"}}, 'field \'layout\' is "NHWC", expected "NCHW"'),
        ({"input": INPUT | {"dtype": "uint8"}}, 'field \'dtype\' is "uint8", expected "float32"'),
        ({"input": INPUT | {"colour_order": "RBG"}}, "field 'colour_order' is .* RGB, BGR"),
        ({"input": INPUT | {"alpha": "black"}}, "field 'alpha' is"),
        ({"input": INPUT | {"std": [1, 1]}}, r"field 'std' is \[1, 1\], expected one number, or"),
        ({"input": INPUT | {"std": [1, 0, 1]}}, "field 'std' has a zero"),
        ({"input": INPUT | {"std": True}}, "field 'std' is true"),
        ({"input": INPUT | {"resize": RESIZE | {"size": [8, 9]}}}, r"'size' is \[8, 9\], expected"),
        ({"input": INPUT | {"resize": RESIZE | {"fit": "pad"}}}, "field 'fit' is \"pad\""),
        ({"input": INPUT | {"resize": RESIZE | {"interpolation": "area"}}}, "'interpolation' is"),
        ({"input": INPUT | {"resize": RESIZE | {"crop": 1}}}, "in 'resize': field 'crop' is unk"),
        ({"input": {k: v for k, v in INPUT.items() if k != "std"}}, "field 'std' is missing"),
        ({"input": {k: v for k, v in INPUT.items() if k != "name"}}, "field 'name' is missing"),
        ({"input": {k: v for k, v in INPUT.items() if k not in ("mean", "std")}}, "field 'scale'"),
        ({"outputs": {"embedding": {}}}, "output 'embedding': field 'shape' is missing"),
        ({"outputs": {"embedding": {"shape": ["N", 5], "size": 5}}}, "field 'size' is unknown"),
    ],
)
def test_a_wrong_field_of_an_image_card_is_named(tmp_path, change, message):
    path = write_image_model(tmp_path, **change)
    with pytest.raises(DataError, match=message) as raised:
        opened(path)
    assert str(raised.value).startswith(f"card {tmp_path / 'tiny.json'}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": ["N", 1, 32]}, r"field 'shape' is .*\[\"N\", samples of a window\]"),
        ({"sample_rate": None}, "field 'sample_rate' is missing"),
        ({"sample_rate": 0}, "field 'sample_rate' is 0, expected 1 or more"),
        ({"hop_samples": True}, "field 'hop_samples' is true, expected a whole number"),
        ({"hop_samples": -1}, "field 'hop_samples' is -1"),
        ({"window_samples": 64}, "field 'window_samples' is 64, expected 32 as other fields say"),
        ({"hop_seconds": 0.02}, "field 'hop_seconds' is 0.02, expected 0.0025"),
        ({"channels": 2}, "field 'channels' is 2, expected 1"),
        ({"range": [0, 1]}, r"field 'range' is \[0, 1\], expected two numbers around zero"),
        ({"mean": 0.5}, "field 'mean' is unknown"),
    ],
)
def test_a_wrong_field_of_an_audio_card_is_named(tmp_path, fields, message):
    path = write_audio_model(tmp_path, **changed(audio_card(), **fields))
    with pytest.raises(DataError, match=message):
        opened(path)


def test_remarks_in_a_card_change_nothing(tmp_path):
    plain = opened(write_image_model(tmp_path / "a"))
    path = write_image_model(tmp_path / "b", note="x", licence="MIT", proof={"top1": 0.8})
    assert opened(path).fingerprint == plain.fingerprint


def test_a_card_that_is_no_json_is_refused(tmp_path):
    path = write_image_model(tmp_path)
    path.with_suffix(".json").write_text("{'modality'", encoding="utf-8")
    with pytest.raises(DataError, match=r"tiny\.json: is no JSON"):
        opened(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(image_card(), name="pixels"), "'name' is 'pixels', and the model's inputs are im"),
        (changed(image_card(), shape=["N", 3, 9, 8]), r"input has shape .*\[\"N\", 3, 9, 8\]"),
        (changed(image_card(), shape=[2, 3, 8, 8]), None),
        (
            {"outputs": {"embedding": {"shape": ["N", 6]}}, "tokens": None},
            r"output 'embedding' has shape \[\"N\", 5\] in the model, expected \[\"N\", 6\]",
        ),
        (
            {"outputs": {"pool": {"shape": ["N", 5]}}, "pooled": "pool", "tokens": None},
            "output 'pool' is unknown; known: embedding, tokens",
        ),
    ],
)
def test_a_card_that_contradicts_its_model_is_refused(tmp_path, change, message):
    path = write_image_model(tmp_path, **change)
    if message is None:  # a model of any rows may be given a fixed number
        assert opened(path).batch_size == 2
        return
    with pytest.raises((DataError, UsageError), match=message):
        opened(path)


def test_a_model_of_fixed_rows_needs_a_card_that_says_so(tmp_path):
    path = write_image_model(tmp_path, rows=1)
    with pytest.raises(DataError, match=r"input has shape \[1, 3, 8, 8\] in the model"):
        opened(path)


def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path):
    path = write_image_model(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_card(path, image_card() | {"sha256": digest})
    opened(path)
    write_card(path, image_card() | {"sha256": "0" * 64})
    with pytest.raises(DataError, match=f"its sha256 is {digest}, expected 0000"):
        opened(path)


@pytest.mark.parametrize("data", [b"", b"no model at all", b"\x08\x07:\x03\n\x01x"])
def test_a_file_that_is_no_model_is_refused(tmp_path, data):
    path = write_image_model(tmp_path)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"tiny\.onnx: onnxruntime cannot open it|inputs are"):
        opened(path)


def test_an_absent_model_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.onnx: cannot be read \(No such file"):
        opened(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("query", "modality", "message"),
    [
        ("?outputs=tokens", None, "option 'outputs' is unknown; known: frames, output, pool, thr"),
        ("?output=logits", None, "output 'logits' is unknown; known: tokens, vectors"),
        ("?frames=0", "video", "frames=0, expected a whole number from 1 to 256"),
        ("?frames=4", "image", "frames= is for clips"),
        ("?threads=-1", None, "threads=-1, expected a whole number from 0"),
        ("?pool=max", "video", "pool 'max' is unknown; known: mean, mean"),
        ("?pool=mean", None, "pool= joins the windows of a sound or the frames of a clip"),
        ("?pool=mean&output=tokens", "video", "pool= joins"),
        ("", "audio", "encodes image, expected audio"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, query, modality, message):
    path = write_image_model(tmp_path)
    with pytest.raises(UsageError, match=message):
        opened(path, query, modality)


def test_tokens_are_refused_where_the_card_has_none(tmp_path):
    path = write_image_model(tmp_path, tokens=None)
    with pytest.raises(UsageError, match=r"tiny\.json names no output under 'tokens'"):
        opened(path, "?output=tokens")


def test_a_sound_is_no_clip(tmp_path):
    path = write_audio_model(tmp_path)
    with pytest.raises(UsageError, match="frames= is for clips"):
        opened(path, "?frames=4")
    with pytest.raises(UsageError, match="encodes audio, expected video"):
        opened(path, "", "video")


def test_threads_change_neither_the_fingerprint_nor_the_place_of_the_file(tmp_path):
    path = write_image_model(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = opened(tmp_path / "b" / "tiny.onnx", "?threads=2")
    assert moved.fingerprint == opened(path).fingerprint


def test_other_weights_are_another_encoder(tmp_path):
    path = write_image_model(tmp_path)
    before, images = opened(path), write_images(tmp_path, 1)
    weights = image_weights()
    path.write_bytes(path.read_bytes().replace(weights.tobytes(), (2 * weights).tobytes()))
    after = opened(path)
    assert after.fingerprint != before.fingerprint
    assert (after.encode(images).values != before.encode(images).values).all()


# --- real models --------------------------------------------------------------------------------


def valid_bytes(encoder: Encoder, values: list[str]) -> list[bytes]:
    features = encoder.encode(values, exact=True)
    if features.mask is None:
        return [row.tobytes() for row in features.values]
    return [v[m].tobytes() for v, m in zip(features.values, features.mask, strict=True)]


def real_images(folder: Path) -> list[str]:
    return [str(path) for path in sorted((folder / "imagenet_sample").rglob("*.jpg"))[:21]]


def real_sounds(folder: Path) -> list[str]:
    return [str(path) for path in sorted((folder / "esc10").rglob("*.ogg"))[:7]]


REAL: list[tuple[str, str | None, Callable[[Path], list[str]]]] = [
    ("mobilenetv2_224.onnx?threads=1", None, real_images),
    ("mobilenetv2_224.onnx?threads=2", None, real_images),
    ("mobilenetv2_224.onnx?output=tokens", None, real_images),
    ("yamnet.onnx?threads=1", None, real_sounds),
    ("yamnet.onnx?threads=2&output=tokens", None, real_sounds),
]


@pytest.mark.data
@pytest.mark.parametrize(("target", "modality", "find"), REAL)
def test_real_models_give_the_same_bits_alone_in_company_and_in_any_order(
    data_folder, target, modality, find
):
    values = find(data_folder)
    assert len(values) >= 7
    encoder = load_encoder(f"onnx:{data_folder}/encoders/{target}", modality=modality)
    together = valid_bytes(encoder, values)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = valid_bytes(encoder, [values[i] for i in order])
    assert [shuffled[i] for i in np.argsort(order)] == together
    for row in (0, 3, len(values) - 1):
        assert valid_bytes(encoder, [values[row]]) == [together[row]]


@pytest.mark.data
def test_a_real_model_without_exact_agrees_within_1e_5(data_folder):
    encoder = load_encoder(f"onnx:{data_folder}/encoders/mobilenetv2_224.onnx")
    values = real_images(data_folder)[:5]
    exact = encoder.encode(values, exact=True).values
    for row, value in enumerate(values):
        loose = encoder.encode([value]).values[0]
        assert np.abs(loose - exact[row]).max() <= 1e-5 * np.abs(exact[row]).max()


@pytest.mark.data
def test_the_real_image_model_knows_what_is_on_photos(data_folder):
    """Preprocessing is right: top-1 is .834 over 500 photos, .80 or more of the first 40."""
    import csv

    folder = data_folder / "imagenet_sample"
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:40]
    encoder = load_encoder(f"onnx:{data_folder}/encoders/mobilenetv2_224.onnx")
    right = 0
    for row in rows:
        pixels = encoder.prepare(str(folder / row["image"]))
        batch = np.empty((1, 3, 224, 224), np.float32)
        encoder._card.input.fill(batch, pixels)
        (logits,) = encoder._session.run(["logits"], {"image": batch})
        right += int(logits[0].argmax()) == int(row["class_index"]) + 1  # 0 is background
    assert right / len(rows) >= 0.75


def test_transparent_images_lie_on_white(tmp_path):
    clear = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    feature = opened(write_image_model(tmp_path / "m")).encode([str(tmp_path / "clear.png")])
    white = convolved(np.full((8, 8, 3), 255, np.uint8)).mean(axis=0)
    np.testing.assert_allclose(feature.values[0], white, rtol=1e-4)


def test_silence_is_a_feature_too(tmp_path):
    sound = write_sound(tmp_path / "silence.wav", np.zeros(100))
    assert not opened(write_audio_model(tmp_path / "m")).encode([sound]).values.any()
