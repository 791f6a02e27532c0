"""The demo: a drawn world joined, extended, searched and proved, step by step.

Every step leaves an artefact and is passed over where that artefact is there, so a demo that
was interrupted goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modalign.demo import stored
from modalign.demo.stored import StoredStory
from modalign.encoders import Encoder, load_encoder
from modalign.errors import UsageError
from modalign.evaluation import Direction, every_direction
from modalign.features.encoding import Progress, no_progress
from modalign.gallery import Gallery
from modalign.pairs import Pairs, read_pairs
from modalign.recipes import AltMoERecipe, Recipe, named_recipe
from modalign.report import Hit, Report, SearchExample, Shown, write_report
from modalign.report.formulas import closed_forms_of
from modalign.report.spaces import machine, shown_directions, stage_summary
from modalign.space import Space, align, load_space
from modalign.space.encoded import EncodedPairs
from modalign.space.space import summary
from modalign.space.stages import SPACE_FILE
from modalign.storage import read_json, write_json
from modalign.worlds import World, WorldSizes, open_world, write_world

ENCODERS = {
    "image": "builtin:pixels",
    "text": "builtin:ngrams",
    "audio": "builtin:logmel",
    "video": "builtin:frames",
}
# The story: pictures meet captions, then sounds and clips join by captions of other scenes.
ADDED = (("sounds", "audio"), ("clips", "video"))
EXAMPLES = 3
ANSWERS = 3
SETTINGS_FILE = "demo.json"
# As many scenes and steps as tell the story within 90 seconds on two cores.
RECIPE = named_recipe("oneencoder").changed({"min_steps": 180, "width": 256})
SIZES = WorldSizes(pictures=1000, sounds=500, clips=500, test=120)


@dataclass
class Demo:
    """A demo in a folder, and what its steps have made so far.

    Attributes:
        folder: Where everything lies.
        sizes: Scenes in each table.
        seed: Of the world and of training.
        recipe: Of training.
        stored_recipe: Of the maps into the stored captions.
        progress: Told of long work.
        seconds: Wall time of each step of this run.
    """

    folder: Path
    sizes: WorldSizes = SIZES
    seed: int = 0
    recipe: Recipe = RECIPE
    stored_recipe: AltMoERecipe = stored.RECIPE
    progress: Progress = no_progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note what a step takes."""
        begin = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - begin, 3)

    @property
    def cache(self) -> Path:
        """The feature stores of this demo."""
        return self.folder / "features"

    def draw(self) -> World:
        """Write the world, or open the one that is there."""
        if (self.folder / "world").exists():
            return open_world(self.folder / "world")
        return write_world(
            self.folder / "world",
            scenes=self.sizes,
            seed=self.seed,
            progress=lambda done, total: self.progress("draw the world", done, total, ""),
        )

    def join(self, world: World, encoders: Mapping[str, Encoder]) -> Space:
        """Align pictures and captions."""
        folder = self.folder / "space"
        if (folder / SPACE_FILE).exists():
            return load_space(folder)
        return align(
            read_pairs(world.pictures, ["image", "text"]),
            {name: encoders[name] for name in ("image", "text")},
            out=folder,
            recipe=self.recipe,
            seed=self.seed,
            cache=self.cache,
            progress=self.progress,
        )

    def extend(self, space: Space, world: World, encoders: Mapping[str, Encoder]) -> None:
        """Add sounds and clips by their captions."""
        for table, modality in ADDED:
            if modality not in space.modalities:
                with self.timed(f"add {modality}"):
                    space.add(
                        read_pairs(getattr(world, table), [modality, "text"]),
                        encoders[modality],
                        seed=self.seed,
                        cache=self.cache,
                        progress=self.progress,
                    )

    @property
    def stored(self) -> StoredStory:
        """The second family's part."""
        return StoredStory(
            self.folder / "stored",
            self.cache,
            recipe=self.stored_recipe,
            seed=self.seed,
            progress=self.progress,
        )

    def store(self, space: Space, scenes: Pairs, modality: str) -> Gallery:
        """Embed the held-out items of a modality into a gallery, or open the one there is."""
        folder = self.folder / "galleries" / modality
        if folder.exists():
            return Gallery.load(folder)
        folder.parent.mkdir(exist_ok=True)
        items = scenes.items[modality]
        return space.embed_items(items, out=folder, cache=self.cache, progress=self.progress)[0]


@dataclass(frozen=True)
class DemoResult:
    """What a demo shows.

    Attributes:
        space: Four modalities.
        directions: All twelve on the held-out scenes.
        closed_form: What a formula finds in those that were trained together.
        verify: What was proved: every stage and gallery, the first gallery among them.
        searches: Queries and their answers, by direction.
        stored: What was found in the store of caption vectors, and that it did not change.
        routing: How the held-out items use the experts on their way there.
        seconds: Wall time by step.
    """

    space: Space
    directions: list[Direction]
    closed_form: dict[str, Any]
    verify: dict[str, Any]
    searches: list[SearchExample]
    stored: dict[str, Any]
    routing: Sequence[dict[str, Any]]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the keys of `align` and `add` for the newest stage, and the rest."""
        return {
            **summary(self.space),
            "seconds": self.seconds,
            "stages": [
                stage_summary(self.space, stage.name).as_json() for stage in self.space.stages
            ],
            "directions": shown_directions(self.space, self.directions),
            "verify": self.verify,
            "stored": self.stored,
        }


def run_demo(demo: Demo) -> DemoResult:
    """Draw, align, add, search and prove; write report.html and report.json.

    Raises:
        UsageError: The folder holds something else, or a demo of other settings.
    """
    check_settings(demo)
    encoders = {
        modality: load_encoder(spec, modality=modality) for modality, spec in ENCODERS.items()
    }
    with demo.timed("draw the world"):
        world = demo.draw()
    with demo.timed("align image and text"):
        space = demo.join(world, encoders)
    for modality in space.modalities:
        space.use_encoder(modality, encoders[modality])
    scenes = read_pairs(world.scenes, list(ENCODERS), validation=0.0)
    with demo.timed("embed"):
        first = demo.store(space, scenes, "image")
        before = first.header.sha256
    demo.extend(space, world, encoders)
    with demo.timed("embed all"):
        galleries = {modality: demo.store(space, scenes, modality) for modality in ENCODERS}
    with demo.timed("evaluate"):
        encoded = space.encode_pairs(scenes, cache=demo.cache)
        directions = space.evaluate_encoded(encoded, split="test")
    with demo.timed("closed forms"):
        closed = beside(demo, space, world, encoded, directions)
    with demo.timed("verify"):
        verify = prove(space, galleries, scenes, demo)
        verify["first_gallery_unchanged"] = (
            Gallery.load(demo.folder / "galleries" / "image").header.sha256 == before
        )
        verify["ok"] = verify["ok"] and verify["first_gallery_unchanged"]
    with demo.timed("search"):
        searches = [
            example
            for source, target in every_direction(ENCODERS)
            for example in examples(scenes, galleries, source=source, target=target)
        ]
    found, routing = tell_stored(demo, world, encoders)
    verify["ok"] = verify["ok"] and found["unchanged"] and found["verify"]
    result = DemoResult(space, directions, closed, verify, searches, found, routing, demo.seconds)
    write_report(demo.folder, demo_report(result, demo))
    return result


def beside(
    demo: Demo, space: Space, world: World, scenes: EncodedPairs, directions: Sequence[Direction]
) -> dict[str, Any]:
    """Return what a closed form of each stage's pairs finds among the held-out scenes."""
    tables = (("pictures", "image"), *ADDED)
    trained_on = [
        space.encode_pairs(read_pairs(getattr(world, table), [modality, "text"]), cache=demo.cache)
        for table, modality in tables
    ]
    return closed_forms_of(
        space,
        scenes,
        directions,
        split="test",
        trained_on=trained_on,
        seed=demo.seed,
        progress=demo.progress,
    )


def tell_stored(
    demo: Demo, world: World, encoders: Mapping[str, Encoder]
) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """Search stored caption vectors by picture, sound and clip; return what was found."""
    story = demo.stored
    with demo.timed("write the store"):
        story.write_store(world, encoders["text"])
    with demo.timed("attach pictures to it"):
        space = story.attach(world, encoders["image"])
    for modality in space.modalities:
        if modality != "text":
            space.use_encoder(modality, encoders[modality])
    with demo.timed("join sounds and clips to it"):
        story.join(space, world, encoders)
    with demo.timed("search the store"):
        found = stored.search_store(story, space, world)
        routing = stored.routed(story, space, world)
        proof = stored.prove_store(story)
    return {
        **proof,
        "spec": os.path.relpath(proof["spec"].partition(":")[2], demo.folder),
        "verify": space.verify()["ok"],
        "directions": found,
    }, routing


def check_settings(demo: Demo) -> None:
    """Note what the demo is made with; refuse a folder made with something else."""
    settings = {
        "seed": demo.seed,
        "scenes": vars(demo.sizes),
        "recipe": demo.recipe.as_json(),
        "stored_recipe": demo.stored_recipe.as_json(),
        "encoders": ENCODERS,
    }
    path = demo.folder / SETTINGS_FILE
    if path.exists():
        if read_json(path) != settings:
            raise UsageError(
                f"{demo.folder}: holds a demo of other settings ({path.name}); choose another "
                "--out, or delete the folder",
                folder=demo.folder,
            )
        return
    if demo.folder.exists() and any(demo.folder.iterdir()):
        raise UsageError(
            f"{demo.folder}: is not empty and holds no demo; choose another --out",
            folder=demo.folder,
        )
    demo.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def prove(
    space: Space, galleries: Mapping[str, Gallery], scenes: Pairs, demo: Demo
) -> dict[str, Any]:
    """Re-hash all, and embed the first gallery's items again: the same bits must come out."""
    report = space.verify([demo.folder / "galleries" / modality for modality in galleries])
    for entry in report["galleries"]:
        entry["name"] = os.path.relpath(entry["name"], demo.folder)
    # Not among the galleries: those are served together.
    again = demo.folder / "image-again"
    items = scenes.items["image"]
    gallery, _ = space.embed_items(items, out=again, cache=demo.cache, replace=True)
    same = np.array_equal(gallery.vectors, galleries["image"].vectors)
    report["embedded_again_to_the_same_bits"] = bool(same)
    report["ok"] = report["ok"] and bool(same)
    return report


def examples(
    scenes: Pairs, galleries: Mapping[str, Gallery], *, source: str, target: str
) -> Iterator[SearchExample]:
    """Search a target's gallery by some items of a source."""
    queries = np.linspace(0, len(scenes.items[source]) - 1, EXAMPLES + 2).astype(int)[1:-1]
    vectors = np.asarray(galleries[source].vectors[queries], np.float32)
    hits = galleries[target].search(vectors, ANSWERS)
    right = {(int(a), int(b)) for a, b in scenes.positives(source, target)}
    for place, query in enumerate(queries):
        yield SearchExample(
            source,
            target,
            shown(scenes, source, int(query)),
            tuple(
                Hit(shown(scenes, target, int(row)), float(value), (int(query), int(row)) in right)
                for row, value in zip(hits.rows[place], hits.similarity[place], strict=True)
            ),
        )


def shown(scenes: Pairs, modality: str, index: int) -> Shown:
    """Return an item as the report shows it."""
    items = scenes.items[modality]
    value = items.values[index]
    return Shown(items.ids[index], modality, value if items.reads == "text" else Path(value))


def demo_report(result: DemoResult, demo: Demo) -> Report:
    """Return the report's contents."""
    total = sum(result.seconds.values())
    directions = shown_directions(result.space, result.directions)
    unpaired = [found["recall_at_1"] for found in directions if not found["paired"]]
    proof = "not one bit of it changed" if result.verify["ok"] else "SOMETHING IN IT CHANGED"
    unchanged = "what they were" if result.stored["unchanged"] else "NOT WHAT THEY WERE"
    space = os.path.relpath(result.space.folder)
    return Report(
        title="modalign demo: four modalities, one search",
        summary=(
            f"Drawn scenes were seen as pictures, captions, sounds and clips. Pictures were "
            f"aligned with captions; sounds, then clips, were added by captions of other scenes. "
            f"On {demo.sizes.test} held-out scenes, modalities that were never "
            f"paired find each other first with recall@1 {min(unpaired):.2f} to "
            f"{max(unpaired):.2f}. The picture gallery was stored before sounds and clips came: "
            f"{proof}. Beside it, vectors of all captions lay in a store that knows nothing of "
            f"this: maps were trained into it, pictures, sounds and clips search it, and its "
            f"files are {unchanged}. The encoders are the simple built-in ones; nothing was "
            f"downloaded."
        ),
        seconds=round(total, 1),
        machine=machine(),
        stages=tuple(stage_summary(result.space, s.name) for s in result.space.stages),
        directions=tuple(directions),
        closed_form=result.closed_form,
        routing=tuple(result.routing),
        stored=result.stored,
        searches=tuple(result.searches),
        verify=result.verify,
        commands=commands(space, os.path.relpath(demo.folder)),
    )


def commands(space: str, folder: str) -> tuple[str, ...]:
    """Return what to try next, as typed."""
    image = f"{folder}/galleries/image"
    return (
        "# search the pictures by words, then by a sound",
        f'modalign search {space} {image} --text "two red stars in the top left" -k 3',
        f"modalign search {space} {image} --audio {folder}/world/sounds/1000.wav -k 3",
        "# search vectors that were stored before any of this, by a picture",
        f"modalign search {folder}/stored/space npy:{folder}/stored/store/captions.npy "
        f"--image {folder}/world/pictures/0000.png -k 3",
        "# prove that nothing stored has changed",
        f"modalign verify {space} --gallery {image}",
        "# open the page on all of it, in a browser",
        f"modalign serve {space} --index {folder}/galleries",
        "# your own pairs",
        "modalign align pairs.csv --encoder image=onnx:FILE --encoder text=hub:NAME --out my-space",
    )
