"""Vectors into stores as any team would: LanceDB, Qdrant's local mode, FAISS. No modalign here.

    python bench/write_stores.py vectors.npy ids.txt --out FOLDER

Writes FOLDER/lancedb (table `captions`, its index says cosine), FOLDER/qdrant (collection
`captions`, Cosine; the ids in the payload's field `id`) and FOLDER/captions.index, a flat index of
products over unit vectors, with its ids in captions.ids.txt. Prints one JSON object: the
rows, the width, and the seconds each took.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import faiss
import lancedb
import numpy as np
import pyarrow
from qdrant_client import QdrantClient, models

NAME = "captions"
POINTS_AT_ONCE = 2000


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("vectors", type=Path, help=".npy, float [rows, width]")
    options.add_argument("ids", type=Path, help="a text file, one id a line")
    options.add_argument("--out", type=Path, required=True, help="a folder, made where missing")
    chosen = options.parse_args()
    vectors = np.load(chosen.vectors).astype(np.float32)
    ids = chosen.ids.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if vectors.ndim != 2 or len(ids) != len(vectors):
        options.error(f"{len(ids)} ids for vectors of shape {vectors.shape}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for write in (write_lancedb, write_qdrant, write_faiss):
        begin = time.perf_counter()
        write(chosen.out, ids, vectors)
        seconds[write.__name__.removeprefix("write_")] = round(time.perf_counter() - begin, 2)
    print(json.dumps({"rows": len(vectors), "width": vectors.shape[1], "seconds": seconds}))


def write_lancedb(out: Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    rows = pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    table = lancedb.connect(str(out / "lancedb")).create_table(
        NAME, pyarrow.table({"id": ids, "vector": rows}), mode="overwrite"
    )
    # One list, so that the search is exact; the index keeps the metric, a bare table has none.
    config = lancedb.index.IvfFlat(distance_type="cosine", num_partitions=1)
    table.create_index("vector", config=config)


def write_qdrant(out: Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    client = QdrantClient(path=str(out / "qdrant"))
    if client.collection_exists(NAME):
        client.delete_collection(NAME)
    size = vectors.shape[1]
    client.create_collection(
        NAME, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE)
    )
    # The client waits for the disk after every point, minutes in all; this folder is a rebuildable
    # artefact, and its database is closed in order below.
    database = client._client.collections[NAME].storage.storage
    database.execute("PRAGMA synchronous = OFF")
    with warnings.catch_warnings():
        # Above 20,000 points the client advises a server.
        warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
        for start in range(0, len(ids), POINTS_AT_ONCE):
            rows = range(start, min(start + POINTS_AT_ONCE, len(ids)))
            points = [
                models.PointStruct(id=row, vector=vectors[row].tolist(), payload={"id": ids[row]})
                for row in rows
            ]
            client.upsert(NAME, points)
    client.close()


def write_faiss(out: Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    faiss.write_index(index, str(out / f"{NAME}.index"))
    lines = "".join(f"{name}\n" for name in ids)
    (out / f"{NAME}.ids.txt").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
