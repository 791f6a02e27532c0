"""Spaces: whatever is added, nothing stored moves, and a vector never depends on its company."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hub_checkpoints import WORDS, save_checkpoint
from modalign import (
    CorruptError,
    DataError,
    Gallery,
    MismatchError,
    Space,
    UsageError,
    align,
    load_encoder,
    load_space,
    read_items,
    read_pairs,
)
from modalign.encoders import Encoder, Features
from modalign.pairs import Pairs
from vector_spaces import RECIPE, WIDTHS, contents, flip_bit, key, spec, write_vectors, write_world

ADDED = (("audio", "text"), ("video", "audio"), ("sensor", "image"))
STAGES = ("0-image+text", "1-audio", "2-video", "3-sensor")
STAGE_FILES = ("stage.json", "weights.safetensors", "log.jsonl", "run.json")


def encoder_of(world: Path, modality: str) -> Encoder:
    return load_encoder(spec(world, modality), modality=modality)


def pairs_of(world: Path, *modalities: str) -> Pairs:
    return read_pairs(world / "pairs.csv", modalities, reads=dict.fromkeys(modalities, "key"))


def aligned(world: Path, out: Path, *, cache: Path, **options: Any) -> Space:
    encoders = {modality: encoder_of(world, modality) for modality in ("image", "text")}
    options = {"recipe": RECIPE, **options}
    return align(pairs_of(world, "image", "text"), encoders, out=out, cache=cache, **options)


def extend(space: Space, world: Path, modality: str, anchor: str, *, cache: Path) -> None:
    space.add(
        pairs_of(world, modality, anchor), encoder_of(world, modality), anchor=anchor, cache=cache
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def grown(world: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A space of five modalities, and what lay on the disk before each was added."""
    root = tmp_path_factory.mktemp("grown")
    space = aligned(world, root / "space", cache=cache)
    images = read_items(world / "pairs.csv", "image", reads="key")
    space.embed_items(images, out=root / "gallery", cache=cache)
    before = []
    for modality, anchor in ADDED:
        before.append(contents(root))
        extend(space, world, modality, anchor, cache=cache)
    return {"root": root, "before": before, "space": space}


@pytest.fixture(scope="module")
def space(grown: dict[str, Any]) -> Space:
    loaded: Space = grown["space"]
    return loaded


@pytest.fixture
def copied(space: Space, tmp_path: Path) -> Path:
    """A copy of the space that a test may harm."""
    shutil.copytree(space.folder, tmp_path / "space")
    return tmp_path / "space"


def features_of(world: Path, modality: str) -> np.ndarray:
    values: np.ndarray = np.load(world / f"{modality}.npz")["vectors"].astype(np.float16)
    return values


# The split of training --------------------------------------------------------------------


def test_what_is_measured_was_held_out_whatever_the_pairs_were_read_with(
    world: Path, cache: Path, tmp_path: Path
):
    def read(*modalities: str, **options: Any) -> Pairs:
        reads = dict.fromkeys(modalities, "key")
        return read_pairs(world / "pairs.csv", modalities, reads=reads, **options)

    encoders = {modality: encoder_of(world, modality) for modality in ("image", "text")}
    trained = read("image", "text", seed=4, validation=0.3)
    space = align(trained, encoders, out=tmp_path / "space", cache=cache, recipe=RECIPE, seed=4)
    added = read("audio", "text", seed=5)
    space.add(added, encoder_of(world, "audio"), anchor="text", cache=cache)
    kept = trained.held_out().tolist()
    assert added.held_out().tolist() != kept
    for pairs in (read("text", "image"), added, read("image", "audio", validation=0)):
        assert space.as_trained(pairs).held_out().tolist() == kept
    (direction, _) = space.evaluate(read("text", "image"), cache=cache)
    assert direction.queries == len(kept) == 48
    (direction, _) = space.evaluate(read("text", "image"), split="all", cache=cache)
    assert direction.queries == 160


# Adding -----------------------------------------------------------------------------------


def test_a_modality_joins_any_other_and_the_order_is_kept(space: Space):
    assert space.modalities == ["image", "text", "audio", "video", "sensor"]
    assert [stage.name for stage in space.stages] == list(STAGES)
    assert [stage.record.get("anchor") for stage in space.stages[1:]] == ["text", "audio", "image"]


def test_adding_changes_no_earlier_file_but_space_json(grown: dict[str, Any]):
    now = contents(grown["root"])
    for before in grown["before"]:
        for name, state in before.items():
            if name not in ("space/space.json", "space/.modalign.lock"):
                assert now[name] == state, name


def test_a_gallery_made_before_is_searched_after(grown: dict[str, Any], space: Space):
    gallery = Gallery.load(grown["root"] / "gallery")
    hits = space.search(gallery, [key("sensor", row) for row in range(20)], modality="sensor", k=10)
    found = [key("image", row) in hits.ids[row] for row in range(20)]
    assert np.mean(found) > 0.5


def test_a_gallery_embedded_again_after_adding_has_the_same_bits(
    grown: dict[str, Any], world: Path, cache: Path, tmp_path: Path
):
    images = read_items(world / "pairs.csv", "image", reads="key")
    load_space(str(grown["root"] / "space")).embed_items(
        images, out=str(tmp_path / "again"), cache=cache
    )
    for name in ("vectors.npy", "gallery.json", "ids.jsonl", "values.jsonl"):
        first, again = (root / name for root in (grown["root"] / "gallery", tmp_path / "again"))
        assert first.read_bytes() == again.read_bytes(), name


def test_the_modality_of_a_space_is_not_added_twice(space: Space, world: Path, cache: Path):
    with pytest.raises(
        UsageError, match=r"modality 'audio' is in this space already \(image, text"
    ):
        extend(space, world, "audio", "text", cache=cache)


def test_an_anchor_that_is_not_there_is_refused_with_those_that_are(
    space: Space, world: Path, cache: Path
):
    pairs = read_pairs(
        world / "pairs.csv",
        {"smell": "audio", "touch": "text"},
        reads={"smell": "key", "touch": "key"},
    )
    smell = load_encoder(spec(world, "audio"), modality="smell")
    with pytest.raises(UsageError, match="anchor 'touch' is unknown; known: audio, image, sensor"):
        space.add(pairs, smell, anchor="touch", cache=cache)


@pytest.mark.parametrize(("field", "value"), [("width", 64), ("depth", 2), ("fusion", "general")])
def test_what_the_first_stage_decided_cannot_be_changed_by_a_later_one(
    space: Space, world: Path, cache: Path, field: str, value: Any
):
    pairs = read_pairs(
        world / "pairs.csv",
        {"smell": "audio", "text": "text"},
        reads={"smell": "key", "text": "key"},
    )
    smell = load_encoder(spec(world, "audio"), modality="smell")
    with pytest.raises(UsageError, match=f"{field} is {value}, this space's first stage has"):
        space.add(pairs, smell, changes={field: value}, cache=cache)


def test_two_spaces_that_forgot_each_other_do_not_add_one_modality_twice(
    world: Path, cache: Path, tmp_path: Path
):
    first = aligned(world, tmp_path / "space", cache=cache)
    second = load_space(tmp_path / "space")
    extend(first, world, "audio", "text", cache=cache)
    with pytest.raises(UsageError, match="modality 'audio' is in this space already"):
        extend(second, world, "audio", "text", cache=cache)
    assert load_space(tmp_path / "space").modalities == ["image", "text", "audio"]


def test_a_stage_folder_that_no_header_names_gives_way_to_the_next_add(
    world: Path, cache: Path, tmp_path: Path
):
    space = aligned(world, tmp_path / "space", cache=cache)
    left = tmp_path / "space" / "stages" / "1-audio"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    extend(space, world, "audio", "text", cache=cache)
    assert space.verify()["ok"]
    assert sorted(path.name for path in left.iterdir()) == sorted(STAGE_FILES)


def test_align_refuses_a_folder_with_other_files_in_it_and_touches_none(
    world: Path, cache: Path, tmp_path: Path
):
    (tmp_path / "mine" / "work").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds other files \(notes.txt\)"):
        aligned(world, tmp_path / "mine", cache=cache)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["notes.txt", "work"]


def test_align_refuses_a_folder_that_is_a_space(space: Space, world: Path, cache: Path):
    before = contents(space.folder)
    with pytest.raises(UsageError, match="a space is there already"):
        aligned(world, space.folder, cache=cache)
    assert contents(space.folder) == before


# Vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", list(WIDTHS))
def test_a_feature_alone_among_others_or_with_more_threads_has_the_same_bits(
    space: Space, world: Path, modality: str
):
    features = features_of(world, modality)
    together = space.embed_features(modality, features)
    alone = np.concatenate([space.embed_features(modality, row[None]) for row in features[:8]])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        other = space.embed_features(modality, features[5:])
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(alone, together[:8])
    assert np.array_equal(other, together[5:])


def test_vectors_have_unit_length_so_that_class_vectors_do_too(space: Space):
    vectors = space.embed("text", [key("text", row) for row in range(9)])
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_items_embedded_exactly_have_the_bits_of_the_gallery(grown: dict[str, Any], space: Space):
    items = [key("image", row) for row in range(12)]
    exact = space.embed("image", items, exact=True)
    assert np.array_equal(exact[3:4], space.embed("image", items[3:4], exact=True))
    stored = Gallery.load(grown["root"] / "gallery").vectors[:12]
    assert np.array_equal(exact.astype(np.float16), stored)


def test_texts_embedded_alone_or_in_company_agree_and_exactly_to_the_bit(
    world: Path, cache: Path, tmp_path: Path
):
    checkpoint = save_checkpoint("bert", tmp_path / "bert")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(100)]
    (tmp_path / "texts.jsonl").write_text(
        "".join(
            json.dumps({"image": key("image", row % 160), "text": text}) + "\n"
            for row, text in enumerate(texts)
        ),
        encoding="utf-8",
    )
    pairs = read_pairs(tmp_path / "texts.jsonl", ["image", "text"], reads={"image": "key"})
    encoders = {
        "image": encoder_of(world, "image"),
        "text": load_encoder(f"hub:{checkpoint}", modality="text"),
    }
    space = align(
        pairs, encoders, out=tmp_path / "space", recipe=replace(RECIPE, min_steps=20), cache=cache
    )
    exact = space.embed("text", texts, exact=True)
    default = space.embed("text", texts)
    for row in range(100):
        assert np.array_equal(space.embed("text", [texts[row]], exact=True)[0], exact[row])
        assert np.abs(space.embed("text", [texts[row]])[0] - default[row]).max() <= 1e-5
    # A gallery's features are float16, which hardly turns a vector.
    assert (default * exact).sum(axis=1).min() > 1 - 1e-4
    # Rounding would make drift in the last bit, which company decides, a hundred times as large.
    features = space.encoder("text").encode(texts)
    assert np.array_equal(default, space.embed_features("text", features))


def test_no_items_give_no_vectors(space: Space):
    assert space.embed("text", []).shape == (0, space.gallery_width("text"))
    assert space.embed_features("text", np.zeros((0, 16), np.float32)).shape == (
        0,
        space.gallery_width("text"),
    )


def test_features_of_another_width_are_refused(space: Space):
    with pytest.raises(MismatchError, match=r"features of text have width 24.*gives 16"):
        space.embed_features("text", np.zeros((2, 24), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_with_their_row(space: Space, bad: float):
    features = np.zeros((5, 16), np.float32)
    features[3, 2] = bad
    with pytest.raises(
        DataError, match=r"1 of 5 rows hold NaN or infinite values \(first: row 3\)"
    ):
        space.embed_features("text", features)


def test_a_gallery_and_a_query_of_a_shared_space_are_both_embeddings(space: Space, world: Path):
    features = features_of(world, "audio")[:4]
    embedded = space.embed_features("audio", features)
    assert np.array_equal(space.gallery("audio", features), embedded)
    assert np.array_equal(space.query(features, source="audio", target="video"), embedded)
    with pytest.raises(UsageError, match="modality 'smell' is unknown; known: audio"):
        space.query(features, source="audio", target="smell")


# Search, encoders, evaluation --------------------------------------------------------------


def test_search_finds_the_item_that_belongs_to_the_query(grown: dict[str, Any], space: Space):
    gallery = Gallery.load(grown["root"] / "gallery")
    hits = space.search(gallery, [key("text", row) for row in range(40)], modality="text", k=5)
    found = [key("image", row) in hits.ids[row] for row in range(40)]
    assert np.mean(found) > 0.8
    assert (np.diff(hits.similarity, axis=1) <= 0).all()


def test_search_refuses_the_gallery_of_another_space(
    grown: dict[str, Any], world: Path, cache: Path, tmp_path: Path
):
    other = aligned(world, tmp_path / "other", cache=cache, seed=1)
    gallery = Gallery.load(grown["root"] / "gallery")
    with pytest.raises(MismatchError, match="image vectors were made with other weights"):
        other.search(gallery, [key("text", 0)], modality="text")


def test_a_changed_encoder_is_refused_by_what_differs(copied: Path, world: Path, tmp_path: Path):
    values = np.load(world / "text.npz")["vectors"]
    write_vectors(tmp_path / "text.npz", values + 1, [key("text", row) for row in range(160)])
    with pytest.raises(
        MismatchError, match=r"encoder text=.*not the one this space was made with.*differs: \w+"
    ):
        load_space(copied).use_encoder("text", encoder_of(tmp_path, "text"))


def test_an_encoder_whose_file_has_moved_is_given_anew(world: Path, cache: Path, tmp_path: Path):
    shutil.copytree(world, tmp_path / "here")
    aligned(tmp_path / "here", tmp_path / "space", cache=cache)
    (tmp_path / "here").rename(tmp_path / "there")
    space = load_space(tmp_path / "space")
    with pytest.raises(DataError, match=r"its text encoder cannot be loaded.*--encoder text=SPEC"):
        space.embed("text", [key("text", 0)])
    space.use_encoder("text", encoder_of(tmp_path / "there", "text"))
    assert space.embed("text", [key("text", 0)]).shape == (1, space.gallery_width("text"))


def test_all_directions_are_measured_the_never_paired_too(space: Space, world: Path, cache: Path):
    results = space.evaluate(pairs_of(world, *WIDTHS), split="validation", cache=cache)
    assert len(results) == 20
    never_paired = {(d.source, d.target): d for d in results}["video", "image"]
    assert never_paired.gallery == 16
    assert never_paired.recall_at_5 > 0.6  # chance is 0.31
    mean = np.mean([d.recall_at_5 for d in results])
    assert mean > 0.75


def test_directions_and_split_are_chosen(space: Space, world: Path, cache: Path):
    (only,) = space.evaluate(
        pairs_of(world, "image", "text"), split="all", directions=[("text", "image")], cache=cache
    )
    assert (only.source, only.target, only.queries) == ("text", "image", 160)
    with pytest.raises(UsageError, match="split test has no rows; there are 144 train"):
        space.evaluate(pairs_of(world, "image", "text"), split="test", cache=cache)


# Files ------------------------------------------------------------------------------------


def test_an_untouched_space_is_proved(grown: dict[str, Any], space: Space):
    report = space.verify([str(grown["root"] / "gallery")])
    assert report["ok"]
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)


@pytest.mark.parametrize("stage", [STAGES[0], STAGES[2]])
@pytest.mark.parametrize("name", STAGE_FILES)
@pytest.mark.parametrize("place", [0, None, -2])
def test_a_flipped_bit_of_a_stage_is_found(copied: Path, stage: str, name: str, place: int | None):
    path = copied / "stages" / stage / name
    flip_bit(path, place)
    report = load_report(copied)
    assert not report["ok"]
    (broken,) = [entry for entry in report["stages"] if not entry["ok"]]
    assert broken["name"] == stage
    assert str(path) in broken["problems"][0]


def load_report(folder: Path) -> dict[str, Any]:
    from modalign.space.space import verify_space

    return verify_space(folder)


@pytest.mark.parametrize("name", ["stage.json", "weights.safetensors", "run.json"])
def test_a_stage_with_a_flipped_bit_is_not_loaded(copied: Path, name: str):
    flip_bit(copied / "stages" / STAGES[1] / name)
    with pytest.raises(CorruptError, match=rf"1-audio/{name}"):
        load_space(copied)


@pytest.mark.parametrize("name", ["vectors.npy", "gallery.json", "ids.jsonl", "values.jsonl"])
def test_a_flipped_bit_of_a_gallery_is_found(grown: dict[str, Any], tmp_path: Path, name: str):
    shutil.copytree(grown["root"] / "gallery", tmp_path / "gallery")
    flip_bit(tmp_path / "gallery" / name)
    report = load_space(grown["root"] / "space").verify([tmp_path / "gallery"])
    assert not report["ok"]
    assert all(stage["ok"] for stage in report["stages"])
    assert str(tmp_path / "gallery" / name) in report["galleries"][0]["problems"][0]


def test_an_intact_gallery_is_not_blamed_for_a_broken_stage(grown: dict[str, Any], copied: Path):
    flip_bit(copied / "stages" / STAGES[3] / "weights.safetensors")
    from modalign.space.space import verify_space

    report = verify_space(copied, [grown["root"] / "gallery"])
    assert not report["ok"]
    assert report["galleries"][0]["ok"]


def test_the_gallery_of_another_space_is_found_by_verify(
    grown: dict[str, Any], world: Path, cache: Path, tmp_path: Path
):
    other = aligned(world, tmp_path / "other", cache=cache, seed=1)
    report = other.verify([grown["root"] / "gallery"])
    assert not report["ok"]
    assert "other weights" in report["galleries"][0]["problems"][0]


@pytest.mark.parametrize("name", STAGE_FILES)
def test_a_missing_stage_file_is_named(copied: Path, name: str):
    (copied / "stages" / STAGES[1] / name).unlink()
    assert f"{STAGES[1]}/{name}: missing" in load_report(copied)["stages"][1]["problems"][0]
    if name != "log.jsonl":  # not needed for embedding
        with pytest.raises(CorruptError, match=rf"1-audio/{name}: is missing, stage 1-audio"):
            load_space(copied)


def test_a_space_of_a_newer_format_is_refused(copied: Path):
    header = json.loads((copied / "space.json").read_text(encoding="utf-8"))
    (copied / "space.json").write_text(json.dumps({**header, "format": 2}), encoding="utf-8")
    with pytest.raises(DataError, match=r"space.json: format 2, this modalign reads 1; upgrade"):
        load_space(copied)


@pytest.mark.parametrize(
    "header", ['{"format": 1}', '{"format": 1, "stages": [{}]}', "[]", '{"format": "1"}']
)
def test_a_header_that_was_never_written_is_refused(copied: Path, header: str):
    (copied / "space.json").write_text(header, encoding="utf-8")
    with pytest.raises(CorruptError, match=r"space.json: is not what was written"):
        load_space(copied)


def test_a_folder_that_is_no_space_is_told_from_one_that_is_missing_and_from_a_gallery(
    grown: dict[str, Any], tmp_path: Path
):
    with pytest.raises(UsageError, match=r"no space here \(there is no space.json\)"):
        load_space(tmp_path)
    with pytest.raises(UsageError, match="there is no such folder"):
        load_space(tmp_path / "none")
    with pytest.raises(UsageError, match="is a gallery, expected the space"):
        load_space(grown["root"] / "gallery")


def test_a_saved_copy_gives_the_same_vectors_and_is_proved(space: Space, tmp_path: Path):
    items = [key("sensor", row) for row in range(5)]
    copy = space.save(str(tmp_path / "copy"))
    assert np.array_equal(copy.embed("sensor", items), space.embed("sensor", items))
    assert copy.verify()["ok"]
    with pytest.raises(UsageError, match="copy: is there already"):
        space.save(tmp_path / "copy")


def test_a_stage_holds_what_was_trained_and_nothing_of_an_encoder(space: Space):
    for stage in space.stages:
        weights = load_file(space.folder / "stages" / stage.name / "weights.safetensors")
        trained = {name: tensor.numel() for name, tensor in weights.items()}
        standardisation = {name for name in trained if name.endswith((".mean", ".deviation"))}
        listed = {name for name in stage.record["trainable"] if name != "log_temperature"}
        assert set(trained) - standardisation == listed
        assert {name: trained[name] for name in listed} == {
            name: stage.record["trainable"][name] for name in listed
        }
        size = (space.folder / "stages" / stage.name / "weights.safetensors").stat().st_size
        figures = sum(trained[name] for name in standardisation)
        bytes_of_numbers = 4 * (sum(trained[name] for name in listed) + figures)
        assert bytes_of_numbers < size < bytes_of_numbers + 120 * (len(trained) + 2)


def test_an_added_stage_trains_its_own_entrance_alone(space: Space):
    assert all(
        name.startswith(("aligners.audio.", "tokens."))
        for name in space.stages[1].record["trainable"]
    )


# Runs -------------------------------------------------------------------------------------


def test_no_image_of_the_training_split_is_validated_with(world: Path, tmp_path: Path):
    (tmp_path / "captions.jsonl").write_text(
        "".join(
            json.dumps({"image": key("image", row % 40), "text": f"caption {row}"}) + "\n"
            for row in range(160)
        ),
        encoding="utf-8",
    )
    pairs = read_pairs(tmp_path / "captions.jsonl", ["image", "text"], reads={"image": "key"})
    train, held_out = (
        set(pairs.members("image", split=split).tolist()) for split in ("train", "validation")
    )
    assert held_out
    assert not train & held_out


def weights_of(space: Space) -> bytes:
    return (space.folder / "stages" / STAGES[0] / "weights.safetensors").read_bytes()


def test_the_same_seed_trains_the_same_bits_and_another_seed_others(
    world: Path, cache: Path, tmp_path: Path
):
    recipe = replace(RECIPE, dropout=0.2, feature_dropout=0.2)
    first, again, other = (
        aligned(world, tmp_path / name, cache=cache, recipe=recipe, seed=seed)
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert weights_of(first) == weights_of(again)
    assert weights_of(first) != weights_of(other)
    assert first.stages[0].record == again.stages[0].record
    assert (first.folder / "space.json").read_bytes() == (again.folder / "space.json").read_bytes()


def test_training_leaves_the_random_numbers_of_the_caller_alone(
    world: Path, cache: Path, tmp_path: Path
):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    aligned(world, tmp_path / "space", cache=cache)
    assert torch.equal(torch.rand(3), expected)


def test_tokens_of_different_length_are_aligned_and_padding_changes_nothing(
    world: Path, cache: Path, tmp_path: Path
):
    rng = np.random.default_rng(0)
    values = np.repeat(np.load(world / "text.npz")["vectors"][:, None], 5, axis=1)
    values = values + 0.05 * rng.standard_normal(values.shape)
    mask = np.arange(5) < rng.integers(1, 6, len(values))[:, None]
    ids = np.array([key("text", row) for row in range(160)])
    np.savez(tmp_path / "text.npz", vectors=values.astype(np.float32), mask=mask, ids=ids)
    encoders = {"image": encoder_of(world, "image"), "text": encoder_of(tmp_path, "text")}
    space = align(
        pairs_of(world, "image", "text"),
        encoders,
        out=tmp_path / "space",
        recipe=replace(RECIPE, min_steps=20),
        cache=cache,
    )
    features = Features(values.astype(np.float16), mask)
    together = space.embed_features("text", features)
    alone = space.embed_features(
        "text", Features(features.values[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])
    )
    assert np.array_equal(alone[0], together[0])
