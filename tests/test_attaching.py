"""attach: somebody else's vectors searched by another modality, and not one byte of them moved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalign import DataError, MismatchError, UsageError, load_encoder, load_space, read_pairs
from modalign.cli import main
from modalign.recipes import OneEncoderRecipe
from modalign.space.attaching import AttachedStore, attach, open_attached
from vector_spaces import DIRECTED as RECIPE
from vector_spaces import DIRECTED_SIZES as SIZES
from vector_spaces import key, spec, write_table, write_world

ROWS = 160


def write_store(folder: Path, *, name: str = "stored", scale: float = 1.0) -> str:
    """Write the world's text vectors as somebody's npy store, ids t0, t1, ...; return its spec."""
    with np.load(folder / "text.npz") as file:
        vectors = file["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / f"{name}.npy", scale * vectors)
    ids = "".join(f"{key('text', row)}\n" for row in range(ROWS))
    (folder / f"{name}.ids.txt").write_text(ids, encoding="utf-8")
    return f"npy:{folder / f'{name}.npy'}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"), rows=ROWS)
    write_store(folder)
    return folder


@pytest.fixture(scope="module")
def attached(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A space attached by the command line, and what the command printed."""
    root = tmp_path_factory.mktemp("attached")
    store = f"npy:{world / 'stored.npy'}"
    call = ["attach", store, world / "pairs.csv", "--encoder", f"image={spec(world, 'image')}"]
    rest = ["--out", root / "space", "--cache", root / "cache", *SIZES]
    assert main([str(argument) for argument in [*call, *rest]]) == 0
    return {"root": root, "store": store, "space": root / "space", "cache": root / "cache"}


def attaching(world: Path, out: Path, **changes: Any) -> Any:
    """Attach the world's store from Python."""
    pairs = read_pairs(
        world / "pairs.csv", ["image", "text"], reads={"image": "key", "text": "key"}
    )
    options = {"recipe": RECIPE, "cache": out.parent / "cache", "spec": None} | changes
    store = options.pop("spec") or f"npy:{world / 'stored.npy'}"
    encoder = load_encoder(spec(world, "image"), modality="image")
    return attach(store, options.pop("pairs", pairs), encoder, out=out, **options)


# What is proved ----------------------------------------------------------------------------


def test_the_store_is_searched_by_pictures_and_none_of_its_files_changes(attached):
    proof = json.loads((attached["space"] / "attached.json").read_text(encoding="utf-8"))
    assert proof["unchanged"]
    assert proof["changed"] == []
    assert proof["checksums"]["before"] == proof["checksums"]["after"]
    assert sorted(proof["checksums"]["after"]) == ["stored.ids.txt", "stored.npy"]
    found = proof["through_store"]
    assert (found["from"], found["to"], found["gallery"]) == ("image", "text", ROWS)
    assert found["recall_at_1"] > 0.5 > 20 / ROWS
    assert found["recall_at_1"] <= found["recall_at_5"] <= found["recall_at_10"]


def test_the_engine_finds_what_an_exact_search_of_the_raw_vectors_finds(world, attached):
    space = load_space(attached["space"])
    store = open_attached(space, attached["store"])
    hits = space.search(store, [key("image", 5), key("image", 9)], modality="image", k=4)
    image = load_encoder(spec(world, "image"), modality="image").encode(["i5", "i9"])
    queries = space.query(image, source="image", target="text")
    similarity = queries @ np.load(world / "stored.npy").T
    assert hits.ids == [[key("text", row) for row in np.argsort(-s)[:4]] for s in similarity]


def test_by_any_metric_a_result_has_its_cosine_and_the_same_probability(world, tmp_path):
    faiss = pytest.importorskip("faiss", reason="the extra [faiss] is not installed")
    vectors = np.load(world / "stored.npy")
    found = {}
    for metric, kind in (("dot", faiss.IndexFlatIP), ("l2", faiss.IndexFlatL2)):
        index = kind(vectors.shape[1])
        index.add(vectors)
        store = f"faiss:{tmp_path / metric}.index?ids={world / 'stored.ids.txt'}"
        faiss.write_index(index, str(tmp_path / f"{metric}.index"))
        space, _ = attaching(world, tmp_path / metric, spec=store)
        found[metric] = space.search(open_attached(space, store), ["i5"], modality="image", k=7)
    assert found["dot"].ids == found["l2"].ids
    np.testing.assert_allclose(found["dot"].similarity, found["l2"].similarity, atol=1e-5)
    np.testing.assert_allclose(found["dot"].probability, found["l2"].probability, atol=1e-4)
    assert found["dot"].probability[0, 0] > 0.05


def test_a_store_whose_other_rows_are_longer_is_refused(world, tmp_path):
    faiss = pytest.importorskip("faiss", reason="the extra [faiss] is not installed")
    vectors = np.load(world / "stored.npy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.concatenate([vectors, 50 * vectors]))
    faiss.write_index(index, str(tmp_path / "half.index"))
    ids = [key("text", row) for row in range(2 * ROWS)]
    (tmp_path / "half.ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    with pytest.raises(MismatchError, match=r"gave a similarity of \d+.*expected at most 1"):
        attaching(world, tmp_path / "space", spec=f"faiss:{tmp_path / 'half.index'}")
    assert not (tmp_path / "space").exists()


def test_ids_may_lie_in_another_folder_and_be_named_from_here(world, tmp_path, monkeypatch):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    np.save(elsewhere / "v.npy", np.load(world / "stored.npy"))
    monkeypatch.chdir(world)
    store = f"npy:{elsewhere / 'v.npy'}?ids=stored.ids.txt"
    space, proof = attaching(world, tmp_path / "space", spec=store)
    assert len(proof["checksums"]["after"]) == 2
    monkeypatch.chdir(tmp_path)
    again = open_attached(space, space.stages[0].record["encoders"]["text"]["spec"][6:])
    assert space.search(again, ["i5"], modality="image").ids[0][0] == "t5"


def test_the_recall_through_the_engine_is_that_of_a_slow_count(world, attached):
    proof = json.loads((attached["space"] / "attached.json").read_text(encoding="utf-8"))
    space = load_space(attached["space"])
    pairs = read_pairs(
        world / "pairs.csv", ["image", "text"], reads={"image": "key", "text": "key"}
    )
    first = 0
    held = [row for row, split in enumerate(pairs.splits) if split == 1]
    images = [pairs.items["image"].values[pairs.links["image"].items[row]] for row in held]
    hits = space.search(open_attached(space, attached["store"]), images, modality="image", k=1)
    for name, found in zip(images, hits.ids, strict=True):
        first += found == [name.replace("i", "t")]
    assert proof["through_store"]["queries"] == len(held)
    assert proof["through_store"]["recall_at_1"] == pytest.approx(first / len(held))


def test_a_stores_results_are_sorted_anew_where_hubs_are_corrected(world, tmp_path):
    space, _ = attaching(world, tmp_path / "s", recipe=RECIPE.changed({"scoring": "csls"}))
    scoring = space.family.scoring["image", "text"]
    assert scoring.corrects
    with open_attached(space, f"npy:{world / 'stored.npy'}").store as store:
        gallery = AttachedStore(store, "text", space.embedding_sha256("text"))
        hits = space.search(gallery, ["i5", "i9"], modality="image", k=4)
    image = load_encoder(spec(world, "image"), modality="image").encode(["i5", "i9"])
    queries = space.query(image, source="image", target="text")
    stored = np.load(world / "stored.npy")
    # The store has fewer rows than are looked at: sorting them anew is the full correction.
    corrected = scoring.applied(queries, stored).similarity()
    assert hits.ids == [[key("text", row) for row in np.argsort(-c)[:4]] for c in corrected]
    proof = json.loads((tmp_path / "s" / "attached.json").read_text(encoding="utf-8"))
    assert proof["unchanged"]


def test_search_by_the_command_line_prints_ids_of_the_store(attached, capsys):
    call = ["search", attached["space"], attached["store"], "--image", "i7", "-k", "5", "--json"]
    assert main([str(argument) for argument in call]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["from"], printed["to"]) == ("image", "text")
    assert "t7" in [hit["id"] for hit in printed["hits"]]


def test_only_the_map_into_the_store_is_trained(attached):
    space = load_space(attached["space"])
    assert space.directions() == [("image", "text")]
    assert space.verify()["ok"]
    assert space.stages[0].record["encoders"]["text"]["spec"].startswith("store:npy:/")


def test_a_later_modality_joins_by_the_stored_vectors(world, attached, tmp_path):
    space = load_space(attached["space"]).save(tmp_path / "copy")
    before = space.query(np.ones((3, 24), np.float32), source="image", target="text")
    pairs = read_pairs(
        world / "pairs.csv", ["audio", "text"], reads={"audio": "key", "text": "key"}
    )
    space.add(pairs, load_encoder(spec(world, "audio"), modality="audio"), cache=tmp_path / "c")
    after = space.query(np.ones((3, 24), np.float32), source="image", target="text")
    assert np.array_equal(before, after)
    store = open_attached(space, attached["store"])
    assert space.search(store, ["a5"], modality="audio", k=ROWS).ids[0].index("t5") < ROWS / 10


def test_what_the_store_gains_later_is_found(world, tmp_path):
    """The store is not part of the space: rows may come, and they are searched too."""
    folder = write_world(tmp_path / "w", rows=ROWS)
    store = write_store(folder)
    space, _ = attaching(folder, tmp_path / "space")
    vectors = np.load(folder / "stored.npy")
    query = space.query(
        load_encoder(spec(folder, "image"), modality="image").encode(["i3"]),
        source="image",
        target="text",
    )
    np.save(folder / "stored.npy", np.concatenate([vectors, query]))
    with (folder / "stored.ids.txt").open("a", encoding="utf-8") as file:
        file.write("new\n")
    found = space.search(open_attached(space, store), ["i3"], modality="image", k=1)
    assert found.ids == [["new"]]


# What is refused ---------------------------------------------------------------------------


def test_ids_that_match_no_pair_are_an_error_that_shows_both(world, tmp_path):
    rows = [[key("image", row), f"caption-{row}"] for row in range(ROWS)]
    table = write_table(tmp_path / "pairs.csv", ["image", "text"], rows)
    pairs = read_pairs(table, ["image", "text"], reads={"image": "key", "text": "key"})
    with pytest.raises(DataError, match=r"none of its 160 text ids .*'caption-0'.* store 't0'"):
        attaching(world, tmp_path / "space", pairs=pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv"]


def test_an_id_that_is_not_in_the_store_is_named_or_left_out(world, tmp_path):
    rows = [[key("image", row), key("text", row) if row else "gone"] for row in range(ROWS)]
    table = write_table(tmp_path / "pairs.csv", ["image", "text"], rows)
    pairs = read_pairs(table, ["image", "text"], reads={"image": "key", "text": "key"})
    with pytest.raises(DataError, match=r"gone: store .* has no such id, expected one of its 160"):
        attaching(world, tmp_path / "space", pairs=pairs)
    space, _ = attaching(world, tmp_path / "space", pairs=pairs, skip_errors=True)
    assert [entry["value"] for entry in space.stages[0].run["skipped"]] == ["gone"]


def test_a_metric_that_is_not_the_cosine_is_refused(world, tmp_path):
    faiss = pytest.importorskip("faiss", reason="needs the extra faiss")
    vectors = np.load(world / "stored.npy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.linspace(0.5, 2.0, ROWS, dtype=np.float32)[:, None] * vectors)
    faiss.write_index(index, str(tmp_path / "stored.index"))
    ids = (world / "stored.ids.txt").read_text(encoding="utf-8")
    (tmp_path / "stored.ids.txt").write_text(ids, encoding="utf-8")
    store = f"faiss:{tmp_path / 'stored.index'}?ids={tmp_path / 'stored.ids.txt'}"
    with pytest.raises(MismatchError, match=r"its metric is dot and its vectors have lengths 0\.5"):
        attaching(world, tmp_path / "space", spec=store)


def test_a_zero_vector_is_named(tmp_path):
    folder = write_world(tmp_path / "w", rows=ROWS)
    write_store(folder)
    vectors = np.load(folder / "stored.npy")
    vectors[3] = 0.0
    np.save(folder / "stored.npy", vectors)
    with pytest.raises(DataError, match="the vector of id 't3' is zero"):
        attaching(folder, tmp_path / "space")


def test_a_shared_space_cannot_be_attached(world, tmp_path):
    with pytest.raises(UsageError, match="recipe oneencoder: makes a shared space"):
        attaching(world, tmp_path / "space", recipe="oneencoder")
    with pytest.raises(UsageError, match="makes a shared space"):
        attaching(world, tmp_path / "space", recipe=OneEncoderRecipe())


def test_directions_that_do_not_lead_into_the_store_are_refused(world, tmp_path):
    recipe = RECIPE.changed({"directions": "text>image"})
    with pytest.raises(UsageError, match="image>text is not among them"):
        attaching(world, tmp_path / "space", recipe=recipe)


def test_a_store_of_another_width_is_refused_for_searching(world, attached, tmp_path):
    np.save(tmp_path / "other.npy", np.eye(7, dtype=np.float32))
    with pytest.raises(MismatchError, match=r"width 7, metric cosine, is not what space"):
        open_attached(load_space(attached["space"]), f"npy:{tmp_path / 'other.npy'}")


def test_a_folder_that_is_there_is_left_alone(world, attached):
    with pytest.raises(UsageError, match="space"):
        attaching(world, attached["space"])
    assert load_space(attached["space"]).verify()["ok"]


@pytest.mark.parametrize("ended", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_attach_leaves_no_space_and_the_store_as_it_was(world, tmp_path, ended):
    files = {path.name: path.read_bytes() for path in world.iterdir() if path.is_file()}
    store = f"npy:{world / 'stored.npy'}"
    out = tmp_path / "place" / "space"
    call = ["attach", store, world / "pairs.csv", "--encoder", f"image={spec(world, 'image')}"]
    rest = ["--out", out, "--cache", tmp_path / "cache", *SIZES, "--min-steps", "100000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "modalign", *map(str, [*call, *rest, "--checkpoint-seconds", "0"])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    )
    wait_for(lambda: any(out.parent.rglob("checkpoint.safetensors")), child)
    child.send_signal(ended)
    child.wait(timeout=60)
    assert not out.exists()
    assert {path.name: path.read_bytes() for path in world.iterdir() if path.is_file()} == files
    if ended == signal.SIGKILL:
        # What could not be taken away then is taken away by the next attach.
        attaching(world, out)
        assert [path.name for path in out.parent.iterdir() if path.name != "cache"] == ["space"]
    else:
        assert list(out.parent.iterdir()) == []


def wait_for(moment: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not moment() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert moment()
