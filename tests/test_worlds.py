from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modalign.errors import UsageError
from modalign.media import read_audio, read_frames, read_image
from modalign.pairs import read_pairs
from modalign.worlds import (
    ATTRIBUTES,
    Scene,
    World,
    WorldSizes,
    captions,
    draw_clip,
    draw_picture,
    draw_scenes,
    draw_vectors,
    synthesise_sound,
    write_world,
)
from modalign.worlds.pictures import CLIP_SIDE, FRAMES, PALETTE, PICTURE_SIDE
from modalign.worlds.scenes import STATES
from modalign.worlds.sentences import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    MOTIONS,
    POSITIONS,
    SHAPES,
)
from modalign.worlds.sounds import PITCHES_HZ, SAMPLE_RATE_HZ, SAMPLES

SIZES = WorldSizes(pictures=20, sounds=10, clips=10, test=6)
STAR = Scene("star", "red", 1, "centre", "still", "light")
TABLES = {"pictures": "image", "sounds": "audio", "clips": "video"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shape_pixels(picture: np.ndarray) -> np.ndarray:
    """Return where the shapes are, bool [H, W]: they are far more colourful than all else."""
    where: np.ndarray = np.ptp(picture.astype(int), axis=2) > 90
    return where


def centroid(picture: np.ndarray) -> np.ndarray:
    """Return the middle of the shapes, across and down, in shares of the side."""
    down, across = np.nonzero(shape_pixels(picture))
    return np.array([across.mean(), down.mean()]) / len(picture)


def phrases_of(scene: Scene) -> Iterator[tuple[str, ...]]:
    """Yield, for each part of the state that is always said, the words of which one must occur."""
    yield tuple(name[0] for name in SHAPES[scene.shape])
    yield COLOURS[scene.colour]
    yield (*COUNTS[scene.count], "an ")
    yield POSITIONS[scene.position]
    yield BACKGROUNDS[scene.background]
    if scene.motion != "still":
        yield MOTIONS[scene.motion]


def loudness(sound: np.ndarray) -> np.ndarray:
    """Return the loudest moment of each 5 ms."""
    loudest: np.ndarray = np.abs(sound).reshape(-1, 80).max(axis=1)
    return loudest


def table_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("worlds") / "world", scenes=SIZES, seed=3)


# --- scenes ---------------------------------------------------------------------------------


def test_scenes_are_all_different_until_every_state_was_drawn_once() -> None:
    scenes = draw_scenes(STATES + 5, seed=1)
    assert len(set(scenes[:STATES])) == STATES == 20_736
    assert scenes[STATES:] == scenes[:5]


def test_the_first_scenes_do_not_depend_on_how_many_are_drawn() -> None:
    assert draw_scenes(3, seed=1) == draw_scenes(50, seed=1)[:3]
    assert draw_scenes(3, seed=1) != draw_scenes(3, seed=2)


def test_every_value_of_every_attribute_is_drawn_about_equally_often() -> None:
    scenes = draw_scenes(2000, seed=0)
    for name, values in ATTRIBUTES.items():
        counts = Counter(getattr(scene, name) for scene in scenes)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.7 * 2000 / len(values)


def test_a_negative_number_of_scenes_is_refused() -> None:
    with pytest.raises(UsageError, match="count is -1, expected 0 or more"):
        draw_scenes(-1, seed=0)


def test_an_unknown_value_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="scene: motion 'sideways' is unknown; known: down, gro"):
        replace(STAR, motion="sideways")


# --- captions -------------------------------------------------------------------------------


def test_every_caption_says_every_part_of_the_state() -> None:
    for scene in draw_scenes(200, seed=2):
        for sentence in captions(scene, 8, rng()):
            for words in phrases_of(scene):
                assert any(word in sentence.lower() for word in words), (sentence, words)


def test_no_words_stand_for_two_values_of_one_attribute() -> None:
    for table in (SHAPES, COLOURS, COUNTS, POSITIONS, MOTIONS, BACKGROUNDS):
        words = [word for phrases in table.values() for word in phrases]
        assert len(set(words)) == len(words)


def test_what_stands_still_does_not_do_so_slowly() -> None:
    assert not any("slowly" in sentence for sentence in captions(STAR, 8, rng()))


def test_captions_of_one_scene_come_from_different_templates() -> None:
    for seed in range(5):
        sentences = captions(replace(STAR, motion="left"), 8, rng(seed))
        for sign in ("There is ", "A scene with ", "slowly"):
            assert sum(sign in sentence for sentence in sentences) == 1


def test_the_article_fits_the_colour() -> None:
    scene = replace(STAR, colour="orange")
    sentences = [s for seed in range(30) for s in captions(scene, 8, rng(seed))]
    assert any("an orange" in s.lower() for s in sentences)
    assert not any(" a orange" in f" {s.lower()}" for s in sentences)


@pytest.mark.parametrize("count", [0, 9])
def test_more_captions_than_templates_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"count is {count}, expected 1 to 8"):
        captions(STAR, count, rng())


# --- pictures and clips ---------------------------------------------------------------------


def test_a_picture_shows_the_colour() -> None:
    for colour, shade in PALETTE.items():
        picture = draw_picture(replace(STAR, colour=colour), rng())
        seen = picture[shape_pixels(picture)].mean(axis=0)
        distances = {name: np.abs(seen - other).sum() for name, other in PALETTE.items()}
        assert min(distances, key=distances.__getitem__) == colour, shade


def test_a_picture_shows_the_position() -> None:
    for position in ATTRIBUTES["position"]:
        scene = replace(STAR, position=str(position))
        across, down = centroid(draw_picture(scene, rng())) - 0.5
        assert [round(across / 0.24), round(down / 0.24)] == [scene.column, scene.row]


def test_more_shapes_cover_more_of_a_picture() -> None:
    pictures = [draw_picture(replace(STAR, count=count), rng()) for count in (1, 2, 3, 4)]
    covered = [shape_pixels(picture).sum() for picture in pictures]
    assert [round(pixels / covered[0]) for pixels in covered] == [1, 2, 3, 4]


def test_the_background_is_dark_or_light() -> None:
    corners = {
        ground: draw_picture(replace(STAR, background=ground), rng())[:5, :5].mean()
        for ground in ("dark", "light")
    }
    assert corners["dark"] < 80 < 200 < corners["light"]


def test_the_trail_of_a_picture_lies_where_the_shapes_come_from() -> None:
    still = draw_picture(STAR, rng()).astype(int)
    moving = draw_picture(replace(STAR, motion="left"), rng()).astype(int)
    changed = np.nonzero(np.abs(moving - still).sum(axis=2) > 20)
    assert changed[1].mean() > PICTURE_SIDE * 0.55


@pytest.mark.parametrize(
    ("motion", "direction"),
    [("still", (0, 0)), ("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))],
)
def test_a_clip_moves_as_the_scene_says(motion: str, direction: tuple[int, int]) -> None:
    clip = draw_clip(replace(STAR, motion=motion), rng())
    moved = centroid(clip[-1]) - centroid(clip[0])
    np.testing.assert_allclose(moved, 0.18 * np.array(direction), atol=0.01)


def test_shapes_grow_in_a_growing_clip() -> None:
    clip = draw_clip(replace(STAR, motion="growing"), rng())
    covered = [int(shape_pixels(frame).sum()) for frame in clip]
    assert covered == sorted(covered)
    assert covered[-1] > 3 * covered[0]


def test_pictures_and_clips_have_their_sizes() -> None:
    assert draw_picture(STAR, rng()).shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert draw_clip(STAR, rng()).shape == (FRAMES, CLIP_SIDE, CLIP_SIDE, 3)


def test_every_scene_can_be_drawn() -> None:
    for scene in draw_scenes(60, seed=5):
        assert shape_pixels(draw_picture(scene, rng(1))).any()
        assert draw_clip(scene, rng(1)).dtype == np.uint8


# --- sounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_a_sound_has_a_beep_for_each_shape(count: int, shape: str) -> None:
    sound = synthesise_sound(replace(STAR, count=count, shape=shape), rng())
    on = loudness(sound) > 0.15
    assert int(np.sum(np.diff(on.astype(int)) == 1)) == count


def test_the_pitch_of_a_sound_is_the_colour() -> None:
    for colour, pitch_hz in zip(ATTRIBUTES["colour"], PITCHES_HZ, strict=True):
        sound = synthesise_sound(replace(STAR, shape="circle", colour=str(colour)), rng())
        loudest = int(np.argmax(np.abs(np.fft.rfft(sound)))) * SAMPLE_RATE_HZ / SAMPLES
        assert loudest == pytest.approx(pitch_hz, rel=0.02)


def test_what_is_further_right_is_heard_later() -> None:
    for column, start_s in {"left": 0.04, "centre": 0.23, "right": 0.42}.items():
        sound = synthesise_sound(replace(STAR, position=column), rng())
        first = int(np.argmax(loudness(sound) > 0.15)) * 0.005
        assert first == pytest.approx(start_s, abs=0.03)


def test_what_moves_to_the_right_swells() -> None:
    for motion, rises in {"right": True, "left": False}.items():
        heard = loudness(synthesise_sound(replace(STAR, motion=motion), rng()))[50:186]
        assert bool(heard[-40:].mean() > 1.5 * heard[:40].mean()) is rises


def test_sounds_stay_below_full_scale_and_have_one_length() -> None:
    for scene in draw_scenes(40, seed=6):
        sound = synthesise_sound(scene, rng(2))
        assert sound.shape == (SAMPLES,)
        assert sound.dtype == np.float32
        assert 0.2 < np.abs(sound).max() <= 1
        assert np.mean(np.abs(sound) == 1) < 0.001


def test_no_two_items_of_one_state_are_equal() -> None:
    for draw in (draw_picture, draw_clip, synthesise_sound):
        assert not np.array_equal(draw(STAR, rng(0)), draw(STAR, rng(1)))
        assert np.array_equal(draw(STAR, rng(0)), draw(STAR, rng(0)))


# --- worlds on disk -------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes(world: World, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", scenes=SIZES, seed=3)
    files = sorted(p.relative_to(world.folder) for p in world.folder.rglob("*") if p.is_file())
    assert len(files) == 26 + 16 + 16 + 5
    for file in files:
        assert (world.folder / file).read_bytes() == (again.folder / file).read_bytes(), file


def test_another_seed_writes_another_world(world: World, tmp_path: Path) -> None:
    other = write_world(tmp_path / "other", scenes=SIZES, seed=4)
    assert other.states.read_bytes() != world.states.read_bytes()


def test_no_scene_is_in_two_tables(world: World) -> None:
    states = {}
    for line in table_lines(world.states):
        number = str(line.pop("id"))
        states[number] = tuple(line.values())
    assert len(set(states.values())) == len(states) == SIZES.total
    tables = (world.pictures, world.sounds, world.clips, world.scenes)
    ids = [str(line["id"]) for table in tables for line in table_lines(table)]
    assert sorted(ids) == sorted(states)


def test_the_tables_are_pairs(world: World) -> None:
    for table, modality in TABLES.items():
        pairs = read_pairs(getattr(world, table), [modality, "text"])
        count = getattr(SIZES, table)
        assert pairs.split_sizes() == {"train": count - count // 10, "validation": count // 10}
        assert len(pairs.members("text")) > 3 * count


def test_the_held_out_scenes_have_all_four_modalities(world: World) -> None:
    pairs = read_pairs(world.scenes, ["image", "text", "audio", "video"], validation=0)
    assert pairs.split_sizes() == {"test": SIZES.test}
    assert len(pairs.positives("audio", "video")) == SIZES.test


def test_media_read_back_as_they_were_drawn(world: World) -> None:
    line = table_lines(world.scenes)[0]
    state = table_lines(world.states)[-SIZES.test]
    assert state.pop("id") == line["id"]
    scene = Scene(**state)  # type: ignore[arg-type]
    number = int(str(line["id"]))
    picture = read_image(world.folder / str(line["image"]))
    np.testing.assert_array_equal(
        picture, draw_picture(scene, np.random.default_rng([3, number, 0]))
    )
    sound = read_audio(world.folder / str(line["audio"]), sample_rate_hz=SAMPLE_RATE_HZ)
    drawn = synthesise_sound(scene, np.random.default_rng([3, number, 1]))
    np.testing.assert_allclose(sound, drawn, atol=1e-4)
    frames = read_frames(world.folder / str(line["video"]), count=FRAMES)
    clip = draw_clip(scene, np.random.default_rng([3, number, 2]))
    assert np.abs(frames.astype(int) - clip).mean() < 4


def test_progress_counts_every_scene(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sizes = WorldSizes(pictures=2, sounds=1, clips=0, test=1)
    write_world(tmp_path / "w", scenes=sizes, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="expected a new or empty folder"):
        write_world(tmp_path, scenes=SIZES)


def test_an_interrupted_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "w", scenes=SIZES, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="sounds is -1, expected 0 or more"):
        WorldSizes(sounds=-1)


# --- vectors --------------------------------------------------------------------------------


def test_rows_of_two_views_belong_together() -> None:
    views = draw_vectors(600, widths={"a": 24, "b": 10}, seed=0)
    a, b = views["a"], views["b"]
    assert (a.shape, b.shape) == ((600, 24), (600, 10))
    assert a.dtype == np.float32
    weights = np.linalg.lstsq(a[:400], b[:400], rcond=None)[0]
    left = np.var(b[400:] - a[400:] @ weights) / np.var(b[400:])
    shuffled = np.var(np.roll(b[400:], 1, axis=0) - a[400:] @ weights) / np.var(b[400:])
    assert left < 0.5 < 1.2 < shuffled


def test_a_further_modality_changes_no_other() -> None:
    alone = draw_vectors(5, widths={"a": 4}, seed=7)["a"]
    np.testing.assert_array_equal(alone, draw_vectors(5, widths={"b": 3, "a": 4}, seed=7)["a"])


def test_views_without_noise_are_a_function_of_the_state() -> None:
    clean = draw_vectors(50, widths={"a": 8}, noise=0.0, seed=1)["a"]
    noisy = draw_vectors(50, widths={"a": 8}, noise=0.3, seed=1)["a"]
    assert np.std(noisy - clean) == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -1}, "count is -1"),
        ({"noise": -0.5}, "noise -0.5"),
        ({"latent": 0}, "width of 'latent' is 0"),
        ({"widths": {"a": 0}}, "width of 'a' is 0"),
    ],
)
def test_sizes_that_make_no_vectors_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"count": 3, "widths": {"a": 2}, "seed": 0, **changes}
    with pytest.raises(UsageError, match=message):
        draw_vectors(arguments.pop("count"), **arguments)  # type: ignore[arg-type]
