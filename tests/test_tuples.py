"""Three modalities in one stage: the n-way loss, rows that lack some, queries of several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interruptions import Stop, stopping_at
from modalign import align, load_encoder, load_space, read_pairs
from modalign.cli import main
from modalign.errors import DataError, UsageError
from modalign.losses import product_of
from modalign.pairs import Pairs
from modalign.recipes import CombinedRecipe
from modalign.space import Space
from modalign.space.encoded import encode_pairs
from vector_spaces import spec, write_table, write_vectors

BITS = 3
ROWS = 700
NAMES = ("image", "text", "audio")
RECIPE = CombinedRecipe(
    members="mlp",
    loss="n-way",
    width=24,
    hidden=48,
    batch_size=64,
    epochs=1,
    min_steps=400,
    validate_steps=100,
    learning_rate=5e-3,
    dropout=0.0,
    feature_dropout=0.0,
)


def write_xor(folder: Path, *, lacking: int = 0) -> Path:
    """Two drawn codes and their exclusive or; some rows lack one of the three."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, ROWS, BITS))
    codes = dict(zip(NAMES, (first, second, first ^ second), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for name, code in codes.items():
        values = 2.0 * code - 1 + 0.1 * rng.standard_normal(code.shape)
        turn = np.linalg.qr(rng.standard_normal((8, 8)))[0][:BITS]
        ids = [f"{name[0]}{row}" for row in range(ROWS)]
        write_vectors(folder / f"{name}.npz", (values @ turn).astype(np.float32), ids)
    table = [[f"{name[0]}{row}" for name in NAMES] for row in range(ROWS)]
    for row in range(lacking):
        table[row][row % 3] = ""
    # What lacks a modality is trained on; what is measured is whole.
    splits = ["train"] * (ROWS - 60) + ["validation"] * 60
    write_table(
        folder / "pairs.csv",
        [*NAMES, "split"],
        [[*row, split] for row, split in zip(table, splits, strict=True)],
    )
    return folder


def pairs_of(world: Path, **options: object) -> Pairs:
    return read_pairs(world / "pairs.csv", NAMES, reads=dict.fromkeys(NAMES, "key"), **options)


def made(world: Path, out: Path, recipe: CombinedRecipe = RECIPE, **options: object) -> Space:
    pairs = pairs_of(world, may_be_empty=True)
    encoders = {name: load_encoder(spec(world, name), modality=name) for name in NAMES}
    return align(pairs, encoders, out=out, recipe=recipe, cache=out.parent / "f", **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xor(tmp_path_factory.mktemp("xor"), lacking=150)


@pytest.fixture(scope="module")
def space(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Space:
    return made(world, tmp_path_factory.mktemp("space") / "s")


def test_two_modalities_together_find_what_neither_finds_alone(space):
    record = space.stages[0].record
    composed = {(d["from"], d["to"]): d for d in record["composed"]}
    assert set(composed) == {
        ("text+audio", "image"),
        ("image+audio", "text"),
        ("image+text", "audio"),
    }
    # 60 items of 8 codes: about 8 are right by their code, one of them is the row's own.
    for direction in composed.values():
        assert direction["recall_at_10"] > 0.8
    for direction in record["validation"]["directions"]:
        assert direction["recall_at_10"] < 0.4
    assert space.verify()["ok"]


def test_a_query_of_two_modalities_is_the_product_of_its_parts(world, space, tmp_path):
    pairs = pairs_of(world, may_be_empty=True)
    gallery, _ = space.embed_items(pairs.items["audio"], out=tmp_path / "g", cache=tmp_path / "f")
    row = ROWS - 5
    query_parts = [space.query_part("image", f"i{row}"), space.query_part("text", f"t{row}")]
    hits = space.search_parts([gallery], query_parts, k=6).hits[0]
    parts = [
        space.embed_features(name, np.load(world / f"{name}.npz")["vectors"][row : row + 1])
        for name in ("image", "text")
    ]
    query = product_of([torch.from_numpy(p) for p in parts], torch.ones(1, 2, dtype=torch.bool))
    similarity = np.asarray(gallery.vectors, np.float32) @ query.numpy()[0]
    np.testing.assert_array_equal(hits.rows[0], np.argsort(-similarity)[:6])
    code = np.load(world / "audio.npz")["vectors"]
    found = [int(name[1:]) for name in hits.ids[0]]
    near = np.linalg.norm(code[found] - code[row], axis=1)
    assert (near < 1.0).mean() > 0.8


def test_a_broken_off_run_ends_with_the_same_bits(world, tmp_path):
    recipe = RECIPE.changed({"min_steps": 30, "validate_steps": 10})
    whole = made(world, tmp_path / "a", recipe)
    with pytest.raises(Stop):
        made(world, tmp_path / "b", recipe, checkpoint_seconds=0.0, progress=stopping_at(20))
    resumed = made(world, tmp_path / "b", recipe)
    files = [next((s.folder / "stages").rglob("*.safetensors")) for s in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_whole_rows_are_those_of_the_table(world, tmp_path):
    pairs = pairs_of(world, may_be_empty=True)
    encoders = {name: load_encoder(spec(world, name), modality=name) for name in NAMES}
    encoded = encode_pairs(pairs, encoders, cache=tmp_path / "f")
    rows = encoded.joined(NAMES, "train")
    assert rows.rows.shape == (ROWS - 60, 3)
    assert (rows.present.sum(1) == np.where(np.arange(ROWS - 60) < 150, 2, 3)).all()
    for place, name in enumerate(NAMES):
        vectors = np.load(world / f"{name}.npz")["vectors"]
        there = np.flatnonzero(rows.rows[:, place] >= 0)
        found = rows.tables[name].take(rows.rows[there, place]).values
        np.testing.assert_allclose(found, vectors[there], atol=2e-3)


def test_a_list_gives_a_row_for_each_of_its_items_in_turn(tmp_path):
    world = write_xor(tmp_path / "w")
    table = '{"image": "i0", "text": ["t0", "t1"], "audio": ["a0", "a1", "a2"], "split": "train"}\n'
    table += '{"image": "i3", "text": "t3", "audio": "a3", "split": "validation"}\n'
    (world / "lists.jsonl").write_text(table, encoding="utf-8")
    pairs = read_pairs(world / "lists.jsonl", NAMES, reads=dict.fromkeys(NAMES, "key"))
    encoders = {name: load_encoder(spec(world, name), modality=name) for name in NAMES}
    rows = encode_pairs(pairs, encoders, cache=tmp_path / "f").joined(NAMES, "train")
    assert rows.rows.tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 2]]


def test_by_the_command_line_a_space_is_made_and_asked_by_two(world, tmp_path, capsys):
    encoders = [part for name in NAMES for part in ("--encoder", f"{name}={spec(world, name)}")]
    sizes = (
        "--members mlp --loss n-way --width 16 --hidden 16 --min-steps 20 --batch-size 64".split()
    )
    call = ["align", str(world / "pairs.csv"), *encoders, "--recipe", "combined", *sizes]
    out = tmp_path / "s"
    rest = ["--out", str(out), "--cache", str(tmp_path / "f")]
    assert main([*call, *rest]) == 1  # rows lack a modality
    assert "is empty, expected a key" in capsys.readouterr().err
    assert main([*call, *rest, "--allow-empty"]) == 0
    items = tmp_path / "items.csv"
    write_table(items, ["audio"], [[f"a{row}"] for row in range(40)])
    gallery = str(tmp_path / "g")
    assert main(["embed", str(out), str(items), "--modality", "audio", "--out", gallery]) == 0
    capsys.readouterr()
    query = ["--query", "image=i4", "--query", "text=t4", "-k", "3"]
    assert main(["search", str(out), gallery, *query]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["search", str(out), gallery, gallery, *query]) == 0
    assert "the best of each gallery in turn" in capsys.readouterr().out


def test_what_the_n_way_loss_cannot_train_is_refused(world, tmp_path):
    with pytest.raises(UsageError, match="members mlp alone, the members are 'cca,mlp'"):
        RECIPE.changed({"members": "cca,mlp"})
    two = write_xor(tmp_path / "two", lacking=ROWS - 60)
    with pytest.raises(DataError, match="no training row has three modalities"):
        made(two, tmp_path / "s")
    with pytest.raises(UsageError, match="joins two modalities"):
        made(world, tmp_path / "t", RECIPE.changed({"loss": "info-nce"}))


def test_the_space_grows_by_a_modality_like_any_other(world, space, tmp_path):
    copy = space.save(tmp_path / "copy")
    rng = np.random.default_rng(3)
    text = np.load(world / "text.npz")["vectors"]
    values = (text @ rng.standard_normal((8, 6))).astype(np.float32)
    write_vectors(tmp_path / "sensor.npz", values, [f"s{row}" for row in range(ROWS)])
    table = [[f"s{row}", f"t{row}"] for row in range(ROWS)]
    write_table(tmp_path / "pairs.csv", ["sensor", "text"], table)
    pairs = read_pairs(
        tmp_path / "pairs.csv", ["sensor", "text"], reads={"sensor": "key", "text": "key"}
    )
    before = copy.embed_features("text", text)
    encoder = load_encoder(f"vectors:{tmp_path / 'sensor.npz'}", modality="sensor")
    copy.use_encoder("text", load_encoder(spec(world, "text"), modality="text"))
    copy.add(pairs, encoder, cache=tmp_path / "f")
    grown = load_space(copy.folder)
    assert grown.modalities == [*NAMES, "sensor"]
    assert grown.embed_features("text", text).tobytes() == before.tobytes()
    directions = grown.stages[1].record["validation"]["directions"]
    assert min(direction["recall_at_10"] for direction in directions) > 0.5
