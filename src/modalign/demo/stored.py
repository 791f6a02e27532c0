"""The demo's second family: caption vectors that are there already, searched as they are.

A store is written as a team without modalign would have it: a matrix and a list of ids. Then
pictures are attached to it, sounds and clips join, and no byte of it changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modalign.encoders import Encoder
from modalign.features import encode_items
from modalign.features.encoding import Progress, no_progress
from modalign.pairs import Pairs, read_items, read_pairs
from modalign.recipes import AltMoERecipe
from modalign.space import Space, load_space
from modalign.space.attaching import (
    PROOF_FILE,
    AttachedStore,
    attach,
    open_attached,
    recall_among,
    right_values,
)
from modalign.space.routing import RoutingRow, means, routing_table
from modalign.space.stages import SPACE_FILE
from modalign.storage import building, read_json, read_json_lines, write_json_lines
from modalign.stores import open_store
from modalign.worlds import World

# As many steps as tell the story within the demo's time.
RECIPE = AltMoERecipe(
    width=128, experts=4, batch_size=128, min_steps=100, epochs=1, feature_dropout=0.3
)
JOINED = ("audio", "video")
ANSWERS = 10


@dataclass(frozen=True)
class StoredStory:
    """Where the second family lies, and what it is made with.

    Attributes:
        folder: Of the store, the pairs of ids and the space.
        cache: The feature stores.
        recipe: Of the maps.
        seed: Of training.
        progress: Told of long work.
    """

    folder: Path
    cache: Path
    recipe: AltMoERecipe = RECIPE
    seed: int = 0
    progress: Progress = no_progress

    @property
    def spec(self) -> str:
        """The store's."""
        return f"npy:{self.folder / 'store' / 'captions.npy'}"

    @property
    def captions(self) -> Path:
        """What the stored vectors are of, a line each; no part of the store."""
        return self.folder / "captions.jsonl"

    def write_store(self, world: World, encoder: Encoder) -> None:
        """Write every caption's vector, unless that was done."""
        store = self.folder / "store"
        if store.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tables = (world.pictures, world.sounds, world.clips, world.scenes)
        texts = [text for table in tables for text in read_items(table, "text").values]
        write_json_lines(self.captions, [{"text": text} for text in dict.fromkeys(texts)])
        items = read_items(self.captions, "text")
        table = encode_items(items, encoder, cache=self.cache, progress=self.progress).table
        vectors = table.take(np.arange(len(table))).values.astype(np.float32)
        with building(store) as work:
            np.save(work / "captions.npy", vectors)
            ids = "".join(f"{caption_id(row)}\n" for row in range(len(vectors)))
            (work / "captions.ids.txt").write_text(ids, encoding="utf-8")

    def pairs(self, table: Path, modality: str) -> Pairs:
        """Return a table of the world with the ids of its captions for the captions."""
        row_of = {line["text"]: row for row, line in enumerate(read_json_lines(self.captions))}
        read = read_pairs(table, [modality, "text"], validation=0.0)
        captions: dict[int, list[str]] = {}
        for item, text in read.positives(modality, "text"):
            row = row_of[read.items["text"].values[int(text)]]
            captions.setdefault(int(item), []).append(caption_id(row))
        file = self.folder / f"{table.stem}-{modality}.jsonl"
        values = read.items[modality].values
        # As paths lie from here: by whole ones the rows held out would be others in each folder.
        rows = [
            {modality: os.path.relpath(values[item], self.folder), "text": ids}
            for item, ids in captions.items()
        ]
        write_json_lines(file, rows)
        reads = {modality: read.items[modality].reads, "text": "key"}
        return read_pairs(
            file, [modality, "text"], reads=reads, seed=self.seed, validation=self._held(table)
        )

    def _held(self, table: Path) -> float:
        return 0.0 if table.stem == "scenes" else 0.1

    def attach(self, world: World, encoder: Encoder) -> Space:
        """Train the map from pictures, or load it where that was done."""
        folder = self.folder / "space"
        if (folder / SPACE_FILE).exists():
            return load_space(folder)
        space, _ = attach(
            self.spec,
            self.pairs(world.pictures, "image"),
            encoder,
            out=folder,
            recipe=self.recipe,
            seed=self.seed,
            cache=self.cache,
            progress=self.progress,
        )
        return space

    def join(self, space: Space, world: World, encoders: Mapping[str, Encoder]) -> None:
        """Train the maps from sounds and from clips, each by captions of its own scenes."""
        for table, modality in zip((world.sounds, world.clips), JOINED, strict=True):
            if modality not in space.modalities:
                space.add(
                    self.pairs(table, modality),
                    encoders[modality],
                    changes={"directions": f"{modality}>text"},
                    seed=self.seed,
                    cache=self.cache,
                    progress=self.progress,
                )


def caption_id(row: int) -> str:
    """Return the id a caption has in the store."""
    return f"caption-{row:05d}"


def search_store(story: StoredStory, space: Space, world: World) -> list[dict[str, Any]]:
    """Search the whole store by the held-out pictures, sounds and clips."""
    store = open_attached(space, story.spec)
    modalities = [modality for modality in space.modalities if modality != "text"]
    return [searched(store, space, story.pairs(world.scenes, name), name) for name in modalities]


def searched(store: AttachedStore, space: Space, pairs: Pairs, modality: str) -> dict[str, Any]:
    """Return how often a right caption is the first, and among the first ten, of all stored."""
    items = pairs.items[modality].values
    hits = space.search(store, items, modality=modality, k=ANSWERS)
    right = right_values(pairs, modality, "text")
    return {
        "from": modality,
        "to": "text",
        "queries": len(items),
        "gallery": store.store.count,
        **recall_among(hits.ids, [right[item] for item in range(len(items))], ks=(1, ANSWERS)),
    }


def prove_store(story: StoredStory) -> dict[str, Any]:
    """Compare the store's files with what they were before the first map was trained."""
    proof = read_json(story.folder / "space" / PROOF_FILE)
    with open_store(story.spec) as store:
        now = store.checksums()
    return {
        "spec": proof["store"]["spec"],
        "files": len(now),
        "unchanged": now == proof["checksums"]["before"],
    }


def routed(story: StoredStory, space: Space, world: World) -> Sequence[dict[str, Any]]:
    """Return how the held-out items use the experts, as the report shows it."""
    rows: list[RoutingRow] = []
    for modality in space.modalities:
        if modality != "text":
            encoded = space.encode_pairs(story.pairs(world.scenes, modality), cache=story.cache)
            table = routing_table(space, encoded, split="all")
            rows += [row for row in table if row.direction is not None]
    return [row.as_json() for row in (*rows, *means(rows))]
