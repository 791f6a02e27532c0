"""Photos that search stored caption vectors: recall against pairs, through each store's engine.

    python bench/attach.py --data ../shared/data

MiniLM vectors of the captions of all 5,000 photos (25,000; of them 22,500 of training photos) are
written to LanceDB, Qdrant (local) and FAISS by `write_stores.py`, which knows nothing of modalign.
Then 250 to 4,500 photos with the ids of their captions are attached to each store, and the 500
validation photos search it. Beside it: a shared space (OneEncoder) trained on the same pairs, for
which every caption is embedded anew. Validation rows stop the training; chance at recall@10 is
about .002.

Each result is kept in the work folder as it is finished; the same call goes on where it was.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import note
from photo_tables import read_photos, write_rows
from photos import load_encoders

from modalign import align, read_items, read_pairs
from modalign.encoders import Encoder
from modalign.evaluation import fraction
from modalign.features import encode_items
from modalign.gallery import Gallery
from modalign.pairs import Items
from modalign.space import Space
from modalign.space.attaching import attach, recall_among

COUNTS = (250, 500, 1000, 2000, 4500)
STORES = {
    "lancedb": "lancedb:{folder}/lancedb#captions",
    "qdrant": "qdrant:{folder}/qdrant#captions?id=id",
    "faiss": "faiss:{folder}/captions.index?ids={folder}/captions.ids.txt",
}
SHARED = "shared space"


def main() -> None:
    options = measuring.parser(__doc__)
    measuring.add_data(options)
    options.add_argument("--work", type=Path, default=Path("bench/output/attach"))
    options.add_argument("--photos", type=int, nargs="+", default=list(COUNTS))
    options.add_argument("--cache", type=Path, help="feature stores; by default in the work folder")
    chosen = options.parse_args()
    chosen.cache = chosen.cache or chosen.work / "features"
    chosen.work.mkdir(parents=True, exist_ok=True)
    encoders = load_encoders(chosen.data)
    photos = photos_with_ids(chosen.data)
    write_caption_stores(photos, encoders["text"], chosen)
    results = []
    for count in chosen.photos:
        for name in (*STORES, SHARED):
            work = shared_space if name == SHARED else attached
            path = chosen.work / "results" / f"{name}-{count}-{chosen.seed}.json"
            done = kept(path, work, name, count, photos, encoders, chosen)
            note(f"{name}, {count} photos: {done}")
            results.append({"store": name, "photos": count, **done})
    if chosen.json:
        print(json.dumps({"seed": chosen.seed, "results": results}, indent=2))
    else:
        print_table(results, chosen)


def photos_with_ids(data: Path) -> list[dict[str, Any]]:
    """Return photos with captions and the ids of these, photos of the validation split last."""
    photos = read_photos(data)
    for number, photo in enumerate(photos):
        photo["ids"] = [f"{number}-{place}" for place in range(len(photo["captions"]))]
    return sorted(photos, key=lambda photo: photo["split"] != "train")


def write_caption_stores(
    photos: list[dict[str, Any]], encoder: Encoder, options: argparse.Namespace
) -> None:
    """Have every caption's vector written to the three stores, once."""
    folder = options.work / "stores"
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    captions = [text for photo in photos for text in photo["captions"]]
    ids = [name for photo in photos for name in photo["ids"]]
    items = items_of(captions, "text", options)
    place = {text: row for row, text in enumerate(items.values)}
    table = encode_items(items, encoder, cache=options.cache).table
    rows = np.array([place[text] for text in captions])
    np.save(folder / "vectors.npy", table.take(rows).values.astype(np.float32))
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    script = Path(__file__).with_name("write_stores.py")
    paths = [folder / "vectors.npy", folder / "ids.txt", "--out", folder]
    subprocess.run([sys.executable, str(script), *map(str, paths)], check=True)
    (folder / "done").touch()


def items_of(values: list[str], modality: str, options: argparse.Namespace) -> Items:
    """Return different texts or paths as items, in the order of their first appearance."""
    file = options.work / f"{modality}.jsonl"
    write_rows(file, [{modality: value} for value in dict.fromkeys(values)])
    return read_items(file, modality)


def pairs_file(
    name: str, count: int, photos: list[dict[str, Any]], options: argparse.Namespace, *, key: str
) -> Path:
    """Write the pairs of the first `count` training photos in a drawn order, and of validation."""
    train = [photo for photo in photos if photo["split"] == "train"]
    order = np.random.default_rng(options.seed).permutation(len(train))[:count]
    held = [photo for photo in photos if photo["split"] != "train"]
    rows = [
        {"image": photo["image"], "text": photo[key], "split": photo["split"]}
        for photo in [*(train[place] for place in sorted(order)), *held]
    ]
    return write_rows(options.work / f"{name.replace(' ', '-')}-{count}.jsonl", rows)


def attached(
    name: str,
    count: int,
    photos: list[dict[str, Any]],
    encoders: dict[str, Encoder],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Attach photos to a store and search it through its own engine."""
    table = pairs_file(name, count, photos, options, key="ids")
    pairs = read_pairs(table, ["image", "text"], reads={"image": "file", "text": "key"})
    out = options.work / "spaces" / f"{name}-{count}"
    shutil.rmtree(out, ignore_errors=True)
    store = STORES[name].format(folder=options.work / "stores")
    begin = time.perf_counter()
    space, proof = attach(
        store, pairs, encoders["image"], out=out, seed=options.seed, cache=options.cache
    )
    found = proof["through_store"]
    return {
        "recall_at_1": found["recall_at_1"],
        "recall_at_10": found["recall_at_10"],
        "gallery": found["gallery"],
        "validation": space.stages[0].record["validation"]["directions"][0],
        "unchanged": proof["unchanged"],
        "files": len(proof["checksums"]["after"]),
        "train_seconds": space.stages[0].run["seconds"]["train"],
        "seconds": round(time.perf_counter() - begin, 1),
    }


def shared_space(
    name: str,
    count: int,
    photos: list[dict[str, Any]],
    encoders: dict[str, Encoder],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train a shared space on the same pairs, embed every caption anew, and search that."""
    table = pairs_file(name, count, photos, options, key="captions")
    out = options.work / "spaces" / f"shared-{count}"
    for folder in (out, options.work / "gallery"):
        shutil.rmtree(folder, ignore_errors=True)
    both = {modality: encoders[modality] for modality in ("image", "text")}
    begin = time.perf_counter()
    pairs = read_pairs(table, ["image", "text"])
    space = align(pairs, both, out=out, seed=options.seed, cache=options.cache)
    trained = time.perf_counter()
    captions = [text for photo in photos for text in photo["captions"]]
    items = items_of(captions, "text", options)
    gallery, _ = space.embed_items(items, out=options.work / "gallery", cache=options.cache)
    embedded = time.perf_counter()
    return {
        **gallery_recall(space, gallery, photos, options),
        "gallery": len(gallery),
        "validation": space.stages[0].record["validation"]["directions"][0],
        "embed_seconds": round(embedded - trained, 1),
        "train_seconds": space.stages[0].run["seconds"]["train"],
        "seconds": round(embedded - begin, 1),
    }


def gallery_recall(
    space: Space, gallery: Gallery, photos: list[dict[str, Any]], options: argparse.Namespace
) -> dict[str, float]:
    """Return how often a right caption is the first, and among ten answers."""
    held = [photo for photo in photos if photo["split"] != "train"]
    images = items_of([photo["image"] for photo in held], "image", options)
    features = encode_items(images, space.encoder("image"), cache=options.cache).table
    queries = space.query(features.take(np.arange(len(features))), source="image", target="text")
    texts = gallery.shown(gallery.search(queries, 10))
    return recall_among(texts, [set(photo["captions"]) for photo in held], ks=(1, 10))


def kept(path: Path, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the result in a file; call `work` for it where there is none yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(work(*arguments)), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def print_table(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print recall by the number of photos, a column a store."""
    print(f"image -> text, seed {options.seed}: recall@1 / recall@10 of 500 photos in 25,000")
    print(f"{'photos':>7s} " + " ".join(f"{name:>14s}" for name in (*STORES, SHARED)))
    for count in options.photos:
        row = {r["store"]: r for r in results if r["photos"] == count}
        cells = [
            f"{fraction(row[n]['recall_at_1'])} / {fraction(row[n]['recall_at_10'])}" for n in row
        ]
        print(f"{count:7d} " + " ".join(f"{cell:>14s}" for cell in cells))
    stores = [r for r in results if r["store"] != SHARED]
    same = all(r["unchanged"] for r in stores)
    print(f"files of the stores: {'unchanged in every run' if same else 'CHANGED'}")
    embedded = [r["embed_seconds"] for r in results if r["store"] == SHARED]
    print(f"embedding 25,000 captions anew, encoded already: {min(embedded)} s at least")


if __name__ == "__main__":
    main()
