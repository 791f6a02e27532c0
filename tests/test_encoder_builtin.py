"""The built-in encoders: by hand where a formula can be, and what they must be able to tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder_cases import write_sound
from modalign.encoders import Encoder, load_encoder
from modalign.encoders.builtin import (
    LOWEST_HZ,
    Picture,
    _bucket,
    _directions,
    _flow,
    _mel_bands,
    _paints,
    _slices,
    log_mel,
)
from modalign.errors import DataError, UsageError

RATE = 16_000


def builtin(rest: str) -> Encoder:
    return load_encoder(f"builtin:{rest}")


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def tone(hz: float, seconds: float = 0.5, *, level: float = 0.5) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def square(left: int, top: int = 24, *, colour: tuple[int, int, int] = (255, 0, 0)) -> np.ndarray:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[top : top + 16, left : left + 16] = colour
    return pixels


# --- loading ------------------------------------------------------------------------------------


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match="'pixel' is unknown; known: frames, logmel, ngrams, pix"):
        builtin("pixel")


def test_an_option_of_another_target_is_refused():
    with pytest.raises(UsageError, match="option 'width' is unknown; known: cells, output"):
        builtin("pixels?width=64")


def test_a_size_out_of_range_is_refused():
    with pytest.raises(UsageError, match="cells=40, expected a whole number from 2 to 9"):
        builtin("pixels?cells=40")


def test_a_wrong_modality_is_refused():
    with pytest.raises(UsageError, match="encodes audio, expected text"):
        load_encoder("builtin:logmel", modality="text")


@pytest.mark.parametrize(
    "rest",
    ["pixels?cells=9", "ngrams?width=1536", "logmel?slices=64", "frames?frames=13"],
)
def test_features_stay_narrow_at_their_largest(rest):
    assert builtin(rest).width <= 1536


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "shares"),
    [
        ((1, 0, 0), {0: 1}),
        ((1, 1, 0), {1: 1}),
        ((0, 1, 0), {2: 1}),
        ((0, 1, 1), {3: 1}),
        ((0, 0, 1), {4: 1}),
        ((1, 0, 1), {5: 1}),
        ((1, 1, 1), {6: 1}),
        ((0, 0, 0), {7: 1}),
        ((1, 0.5, 0), {0: 0.5, 1: 0.5}),
        ((1, 0, 0.25), {0: 0.75, 5: 0.25}),
        ((0.75, 0.25, 0.25), {0: 0.5, 6: 0.25, 7: 0.25}),
    ],
)
def test_a_colour_is_mixed_of_paints(colour, shares):
    expected = np.zeros(8)
    for paint, share in shares.items():
        expected[paint] = share
    np.testing.assert_allclose(_paints(np.array(colour, np.float32)), expected, atol=1e-6)


def test_paints_sum_to_one():
    colours = np.random.default_rng(0).random((50, 3), np.float32)
    np.testing.assert_allclose(_paints(colours).sum(axis=1), 1, rtol=1e-5)


def test_vectors_are_shared_between_the_two_nearest_directions():
    down, right = np.array([0.0, 2.0, 1.0]), np.array([1.0, 0.0, 1.0])
    groups = np.array([0, 1, 1])
    sums = _directions(down, right, groups=groups, bins=4, whole_turn=True)
    half = 2**0.5 / 2
    expected = [[1, 0, 0, 0], [half, 2 + half, 0, 0]]  # right, down, left, up
    np.testing.assert_allclose(sums, expected, atol=1e-6)


def test_half_a_turn_does_not_tell_up_from_down():
    down, right, groups = np.array([1.0, -1.0]), np.zeros(2), np.zeros(2, int)
    whole = _directions(down, right, groups=groups, bins=4, whole_turn=True)
    half = _directions(down, right, groups=groups, bins=4, whole_turn=False)
    np.testing.assert_allclose(whole, [[0, 1, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(half, [[0, 0, 2, 0]], atol=1e-9)


def test_directions_keep_the_summed_length():
    rng = np.random.default_rng(1)
    down, right = rng.normal(size=(2, 40))
    groups = rng.integers(0, 3, 40)
    sums = _directions(down, right, groups=groups, bins=7, whole_turn=True)
    for group in range(3):
        length = np.hypot(down, right)[groups == group].sum()
        np.testing.assert_allclose(sums[group].sum(), length)


def test_the_outline_of_a_square_faces_four_ways_and_has_its_colour():
    outlines = Picture.of(square(24), side=64).outlines
    red = outlines[0]
    assert set(np.argsort(red)[-4:]) == {0, 3, 6, 9}
    assert red[[0, 3, 6, 9]].sum() > 0.9 * red.sum()
    # Dark lies around it; there is no outline of green.
    assert not outlines[2].any()
    np.testing.assert_allclose(outlines[7].sum(), red.sum(), rtol=1e-4)


def test_a_centre_moves_with_its_paint():
    left, right = (Picture.of(square(x), side=64).centres[0] for x in (4, 44))
    np.testing.assert_allclose(left, [0, -right[1]], atol=1e-5)
    assert right[1] > 0.5
    low = Picture.of(square(24, 44), side=64).centres[0]
    np.testing.assert_allclose(low, right[::-1], atol=1e-5)


def test_a_speck_does_not_pull_its_centre_far_from_the_middle():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    assert np.abs(Picture.of(pixels, side=64).centres[0]).max() < 0.25


def test_what_is_not_in_the_picture_has_its_centre_in_the_middle():
    assert not Picture.of(square(4), side=64).centres[4].any()


def test_the_histogram_counts_pixels_by_colour():
    histogram = Picture.of(square(24), side=64).histogram
    assert histogram[0] == 1 - 256 / 4096
    assert histogram[3 * 16] == 256 / 4096


def test_tokens_of_a_picture_are_its_cells_row_by_row(tmp_path):
    Image.fromarray(square(0, 0)).save(tmp_path / "a.png")
    tokens = builtin("pixels?output=tokens&cells=4").encode([str(tmp_path / "a.png")]).values[0]
    assert tokens.shape == (16, 24)
    np.testing.assert_allclose(tokens[0, :3], [1, 0, 0], atol=0.05)  # shrinking blurs the edge
    assert tokens[1:, :3].max() < 0.05
    third = 1 / 3
    places = [[-1, -1], [-1, -third], [-1, third], [-1, 1], [-third, -1]]
    np.testing.assert_allclose(tokens[:5, -2:], places, rtol=1e-6)


def test_a_vector_tells_colour_place_and_number(tmp_path):
    two = np.maximum(square(4), square(44))
    pictures = [square(24), square(24, colour=(0, 0, 255)), square(4), two]
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    values = builtin("pixels").encode(paths).values
    distances = np.linalg.norm(values[:, None] - values, axis=2)
    assert (distances + 9 * np.eye(4)).min() > 0.3


# --- texts --------------------------------------------------------------------------------------


def test_texts_have_unit_length():
    values = builtin("ngrams").encode(["a red circle", "x", "Donaudampfschifffahrt " * 50]).values
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)


def test_case_width_and_spaces_do_not_matter():
    values = builtin("ngrams").encode(["Red  circle", " red circle\n", "ｒｅｄ circle"]).values
    assert (values == values[0]).all()


def test_the_order_of_words_matters_a_little():
    one, other = builtin("ngrams").encode(["red circle", "circle red"]).values
    assert 0.8 < cosine(one, other) < 0.999


def test_shared_words_and_spellings_are_near_and_nothing_shared_is_far():
    texts = ["a red circle", "a red square", "a redder circle", "zwölf Boxkämpfer jagen"]
    values = builtin("ngrams").encode(texts).values
    near, inflected, far = (cosine(values[0], values[row]) for row in (1, 2, 3))
    assert near > 0.4
    assert inflected > 0.5
    assert abs(far) < 0.15


def test_a_repeated_word_counts_by_its_logarithm():
    once, often = (builtin("ngrams?width=64").encode([text]).values[0] for text in ("a", "a a a"))
    # "a a a" is 1 + ln 3 times "a", and the pair "a a" twice in one bucket.
    bucket, sign = _bucket("a\x1fa", 64)
    word = np.zeros(64)
    for text in ("a", "<a>"):
        at, towards = _bucket(text, 64)
        word[at] += towards
    expected = word * (1 + np.log(3))
    expected[bucket] += sign * 0.5 * (1 + np.log(2))
    np.testing.assert_allclose(once, word / np.linalg.norm(word), rtol=1e-6)
    np.testing.assert_allclose(often, expected / np.linalg.norm(expected), rtol=1e-6)


def test_tokens_of_a_text_are_its_words_and_signs():
    features = builtin("ngrams?output=tokens").encode(["Red, red", "a"])
    assert features.mask.tolist() == [[True] * 3, [True, False, False]]
    assert (features.values[0, 0] == features.values[0, 2]).all()
    assert (features.values[0, 0] != features.values[0, 1]).any()


def test_tokens_end_after_256_words_and_vectors_do_not():
    text = "word " * 256
    tokens = builtin("ngrams?output=tokens&width=64").encode([text + "last"])
    assert tokens.values.shape == (1, 256, 64)
    one, other = builtin("ngrams").encode([text, text + "last"]).values
    assert (one != other).any()


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b"])
def test_an_empty_text_is_refused(text):
    if text == "\u200b":  # a sign nobody sees is still a sign
        assert builtin("ngrams").encode([text]).values.any()
        return
    with pytest.raises(DataError, match="a text is empty, expected at least one word"):
        builtin("ngrams").encode([text])


def test_a_lone_surrogate_is_hashed_like_any_sign():
    assert builtin("ngrams").encode(["\ud800 x"]).values.any()


def test_another_process_hashes_the_same():
    code = (
        "from modalign.encoders import load_encoder;"
        "print(load_encoder('builtin:ngrams').encode(['a red circle']).values.tobytes().hex())"
    )
    source = Path(__file__).resolve().parent.parent / "src"
    environment = {"PYTHONPATH": str(source), "PYTHONHASHSEED": "123"}
    call = [sys.executable, "-c", code]
    out = subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout
    assert out.strip() == builtin("ngrams").encode(["a red circle"]).values.tobytes().hex()


# --- sounds -------------------------------------------------------------------------------------


def test_each_band_rises_and_falls_between_its_neighbours():
    bands = _mel_bands()
    assert bands.shape == (513, 64)
    assert bands.min() == 0
    assert (np.diff(bands.argmax(axis=0)) >= 1).all()
    # Two neighbours share what lies between their centres.
    inner = bands[bands.argmax(axis=0)[0] : bands.argmax(axis=0)[-1]].sum(axis=1)
    np.testing.assert_allclose(inner, 1, atol=1e-5)
    assert not bands[: int(LOWEST_HZ / (RATE / 1024))].any()


def test_bands_are_evenly_spaced_in_mel():
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (60, 7600))
    for band in (20, 40, 63):
        mel = lowest + (band + 1) * (highest - lowest) / 65
        hz = 700 * (10 ** (mel / 2595) - 1)
        assert abs(_mel_bands()[:, band].argmax() * RATE / 1024 - hz) <= RATE / 1024


def test_silence_is_zero():
    assert not log_mel(np.zeros(8000, np.float32)).any()


def test_frames_follow_each_other_every_ten_milliseconds():
    for samples, frames in ((1, 1), (160, 1), (161, 2), (16_000, 100)):
        assert log_mel(np.ones(samples, np.float32)).shape == (frames, 64)


def test_a_long_sound_is_computed_in_blocks_without_a_seam():
    sound = np.random.default_rng(2).uniform(-1, 1, 160 * 4200).astype(np.float32)
    tail = log_mel(sound[160 * 4000 :])
    np.testing.assert_allclose(log_mel(sound)[4010:], tail[10:], rtol=1e-3, atol=1e-3)


def test_a_higher_tone_lies_in_a_higher_band():
    loudest = [int(log_mel(tone(hz)).mean(axis=0).argmax()) for hz in (200, 400, 800, 1600, 3200)]
    assert loudest == sorted(set(loudest))
    centre = _mel_bands()[:, loudest[2]].argmax() * RATE / 1024
    assert abs(centre - 800) < 40


def test_ten_times_the_amplitude_is_ln_100_louder():
    quiet, loud = (log_mel(tone(800, level=level))[20:30].max() for level in (0.05, 0.5))
    assert loud - quiet == pytest.approx(np.log(100), rel=0.01)


def test_slices_average_and_short_clips_repeat_frames():
    frames = np.arange(6, dtype=np.float32)[:, None]
    assert _slices(frames, 3)[:, 0].tolist() == [0.5, 2.5, 4.5]
    assert _slices(frames[:2], 4)[:, 0].tolist() == [0, 0, 1, 1]
    assert _slices(frames[:5], 2)[:, 0].tolist() == [0.5, 3]


def test_a_vector_tells_pitch_number_rhythm_and_order_of_beeps(tmp_path):
    pause = np.zeros(2000, np.float32)
    low, high = tone(400, 0.125), tone(1200, 0.125)
    sounds = [
        [low, pause, low, pause, pause, pause],
        [high, pause, high, pause, pause, pause],
        [low, pause, low, pause, low, pause],
        [low, pause, pause, pause, low, pause],
        [low, pause, high, pause, pause, pause],
        [high, pause, low, pause, pause, pause],
    ]
    paths = [
        write_sound(tmp_path / f"{number}.wav", np.concatenate(parts), rate=RATE)
        for number, parts in enumerate(sounds)
    ]
    values = builtin("logmel").encode(paths).values
    distances = np.linalg.norm(values[:, None] - values, axis=2)
    assert (distances + 9 * np.eye(6)).min() > 0.3


def test_the_last_number_of_a_sound_is_the_logarithm_of_its_seconds(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(300, 2.0), rate=RATE)
    assert builtin("logmel").encode([path]).values[0, -1] == pytest.approx(np.log(2))


# --- clips --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "course"), [((0, 4), 0), ((4, 0), 2), ((0, -4), 4), ((-4, 0), 6)])
def test_movement_shows_its_direction_in_its_paint(step, course):
    places = [(24 + step[1] * moment, 24 + step[0] * moment) for moment in range(4)]
    pictures = [Picture.of(square(left, top), side=64) for left, top in places]
    _, by_paint = _flow(pictures)
    assert by_paint.shape == (8, 8)
    assert by_paint[0].argmax() == course
    assert by_paint[0, course] > 1.5 * by_paint[0, (course + 4) % 8]
    assert not by_paint[2].any()


def test_what_stands_still_has_no_flow():
    for part in _flow([Picture.of(square(24), side=64)] * 3):
        assert not part.any()


def test_flow_lies_where_something_moves():
    places, _ = _flow([Picture.of(square(left, 0), side=64) for left in (0, 3)])
    assert places.shape == (16, 8)
    moving = np.flatnonzero(places.sum(axis=1))
    assert set(moving) <= {0, 1, 4, 5}


def test_a_clip_played_backwards_is_another_clip(tmp_path):
    frames = [Image.fromarray(square(4 + 5 * moment)) for moment in range(8)]
    for name, order in (("forwards", frames), ("backwards", frames[::-1])):
        path = tmp_path / f"{name}.gif"
        order[0].save(path, save_all=True, append_images=order[1:], duration=100)
    paths = [str(tmp_path / f"{name}.gif") for name in ("forwards", "backwards")]
    vectors = builtin("frames").encode(paths).values
    assert np.linalg.norm(vectors[0] - vectors[1]) > 1
    # The last numbers: where each paint was in each frame, from where it was on average.
    ways = vectors[:, -128:].reshape(2, 8, 8, 2)
    assert (np.diff(ways[0, :, 0, 1]) > 0).all()
    np.testing.assert_allclose(ways[0], ways[1, ::-1], atol=1e-4)
    np.testing.assert_allclose(ways.mean(axis=1), 0, atol=1e-5)
    tokens = builtin("frames?output=tokens").encode(paths).values
    # The frames are the same in the other order; only the last numbers, the change, differ.
    np.testing.assert_allclose(tokens[0, ::-1, :368], tokens[1, :, :368], atol=1e-5)
    assert not tokens[:, -1, 368:].any()
