"""Space: embed any modality, search any by any other, add a modality, prove nothing moved."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modalign.encoders import Encoder, Features, load_encoder
from modalign.errors import CorruptError, DataError, MismatchError, UsageError, check_known
from modalign.evaluation import Direction, evaluate_direction, every_direction
from modalign.features import EncodedItems, FeatureRows, cache_folder, encode_items
from modalign.features.encoding import Progress, no_progress
from modalign.gallery import Gallery, Hits, Searchable
from modalign.index import is_index, load_index
from modalign.pairs import Items, Pairs
from modalign.recipes import Recipe, named_recipe, recipe_from_json
from modalign.scoring import Compared
from modalign.space import aligning
from modalign.space.aligning import Job
from modalign.space.encoded import (
    EncodedPairs,
    encode_pairs,
    places_of_pairs,
    split_as_trained,
)
from modalign.space.families import Family, Growth, Sides, Way, unit_rows
from modalign.space.scored import BANK, read_scoring
from modalign.space.searching import Found, QueryPart, search_parts, search_queries
from modalign.space.stages import (
    Stage,
    read_header,
    read_stage,
    read_weights,
    stage_problems,
)
from modalign.storage import check_free, locked


class Space:
    """Fitted connectors of several modalities, read from a folder.

    Attributes:
        folder: Where it is stored.
        stages: Its immutable steps, in order.
        family: The connectors: what is stored of a modality, and what is asked of it.
        device: Where it computes, a torch device name.
    """

    def __init__(self, folder: Path, stages: Sequence[Stage], family: Family) -> None:
        """Use `load_space` or `align`."""
        self.folder = folder
        self.stages = tuple(stages)
        self.family = family
        self._encoders: dict[str, Encoder] = {}
        self.device = family.device

    @property
    def modalities(self) -> list[str]:
        """Names, in the order they joined."""
        return [modality for stage in self.stages for modality in stage.modalities]

    @property
    def recipe(self) -> Recipe:
        """The first stage's recipe: the sizes every later stage shares."""
        recipe: Recipe = self.family.recipe
        return recipe

    def gallery_width(self, modality: str) -> int:
        """Return the width of what is stored of a modality."""
        self.stage_of(modality)
        return self.family.width_of(self.family.gallery_way(modality))

    def stage_of(self, modality: str) -> Stage:
        """Return the stage that brought a modality.

        Raises:
            UsageError: The space does not know it; the message lists those it does.
        """
        check_known(modality, self.modalities, what=f"space {self.folder}: modality")
        return next(stage for stage in self.stages if modality in stage.modalities)

    def embedding_sha256(self, modality: str) -> str:
        """Return the hash of all that a modality's vectors pass through."""
        return str(self.stage_of(modality).record["embeddings"][modality])

    def encoder(self, modality: str) -> Encoder:
        """Return a modality's encoder, loaded from its spec when first asked for.

        Raises:
            MismatchError: What the spec loads today is not what the space was made with.
            DataError: Its file is gone or broken.
        """
        if modality not in self._encoders:
            self.use_encoder(modality, self._load_encoder(modality))
        return self._encoders[modality]

    def _load_encoder(self, modality: str) -> Encoder:
        spec = self.stage_of(modality).record["encoders"][modality]["spec"]
        try:
            return load_encoder(spec, modality=modality, device=self.device)
        except (DataError, UsageError) as error:
            raise type(error)(
                f"space {self.folder}: its {modality} encoder cannot be loaded: {error}; if it "
                f"has moved, give --encoder {modality}=SPEC",
                **error.details,
            ) from error

    def use_encoder(self, modality: str, encoder: Encoder) -> None:
        """Use an encoder that is loaded already, or whose files have moved.

        Raises:
            MismatchError: It is not the one the space was made with.
        """
        record = self.stage_of(modality).record
        aligning.check_same_encoder(encoder, record, modality=modality)
        self._encoders[modality] = encoder

    def embed_features(self, modality: str, features: Features | np.ndarray) -> np.ndarray:
        """Return what is stored of features of a modality's encoder.

        A row's bits do not depend on the rows it comes with, nor on the number of threads.

        Args:
            modality: One of `modalities`.
            features: [N, D_m], or token `Features`.

        Returns:
            float32 [N, D]: unit vectors of a shared space; of directed maps the features
            themselves, or their means over valid positions.

        Raises:
            MismatchError: The width is not the encoder's.
            DataError: A row is not finite.
        """
        return self._send(self.family.gallery_way(modality), modality, features)

    def _send(self, way: Way, modality: str, features: Features | np.ndarray) -> np.ndarray:
        if not isinstance(features, Features):
            features = Features(np.asarray(features))
        known = self.stage_of(modality).record["encoders"][modality]
        if features.width != known["width"]:
            raise MismatchError(
                f"features of {modality} have width {features.width}, encoder {known['spec']} "
                f"gives {known['width']}; embed features of that encoder",
                found=features.width,
                expected=known["width"],
            )
        if not len(features):
            return np.zeros((0, self.family.width_of(way)), np.float32)
        return self.family.send(way, features)

    def embed(self, modality: str, items: Iterable[str], *, exact: bool = False) -> np.ndarray:
        """Encode items and return what is stored of them, without a cache.

        Args:
            modality: One of `modalities`.
            items: Texts, paths or keys, as its encoder reads.
            exact: Same bits in any company, those of a gallery but for its float16; else within
                1e-5 in any company, and faster for a single query.

        Returns:
            float32 [N, D]; see `embed_features`.
        """
        return self.embed_features(modality, self._encode(modality, items, exact=exact))

    def _encode(self, modality: str, items: Iterable[str], *, exact: bool) -> Features:
        features = self.encoder(modality).encode(items, exact=exact)
        if not exact:
            return features
        # Stored features are float16. Else nothing is rounded: it would make of the last bit,
        # which company decides, one that shows.
        return Features(features.values.astype(np.float16), features.mask)

    def gallery(self, modality: str, features: Features | np.ndarray) -> np.ndarray:
        """Return what is stored of a modality: `embed_features`."""
        return self.embed_features(modality, features)

    def query(self, features: Features | np.ndarray, *, source: str, target: str) -> np.ndarray:
        """Return what is asked of a target's gallery, unit vectors float32 [N, D of the target].

        Args:
            features: Of the source, as in `embed_features`.
            source: The queries' modality.
            target: The gallery's; of the source's own modality what is stored is asked too.

        Raises:
            UsageError: A modality is unknown, or no map leads from source to target.
        """
        self.stage_of(source)
        self.stage_of(target)
        if source == target:
            return unit_rows(self.embed_features(source, features))
        return self._send(self.family.query_way(source, target), source, features)

    def embed_items(
        self,
        items: Items,
        *,
        out: Path | str,
        cache: Path | None = None,
        skip_errors: bool = False,
        replace: bool = False,
        progress: Progress = no_progress,
    ) -> tuple[Gallery, EncodedItems]:
        """Embed items into a gallery folder; what the feature cache holds is not encoded again.

        Args:
            items: Of one of `modalities`.
            out: The gallery's folder; it must not exist yet, unless `replace`.
            cache: Folder of the feature stores.
            skip_errors: Leave broken items out.
            replace: Take the place of a gallery that is there.
            progress: Told of long work.

        Returns:
            The gallery, and what encoding gave: how many items were encoded, and failures.
        """
        modality = items.modality
        encoder = self.encoder(modality)
        out = Path(out)
        # Said before the work, not after it.
        check_free(out, replace=replace)
        out.parent.mkdir(parents=True, exist_ok=True)
        result = encode_items(
            items,
            encoder,
            cache=cache or cache_folder(),
            skip_errors=skip_errors,
            progress=progress,
        )
        kept = items.select(result.kept)
        gallery = Gallery.write(
            out,
            modality=modality,
            width=self.gallery_width(modality),
            embedding=self.embedding_sha256(modality),
            encoder=encoder.fingerprint,
            ids=kept.ids,
            values=kept.values,
            vectors=self._blocks(modality, result.table, progress),
            replace=replace,
        )
        return gallery, result

    def _blocks(
        self, modality: str, table: FeatureRows, progress: Progress
    ) -> Iterable[np.ndarray]:
        size = 4096
        for start in range(0, len(table), size):
            rows = np.arange(start, min(start + size, len(table)))
            yield self.embed_features(modality, table.take(rows))
            progress(f"embed {modality}", int(rows[-1]) + 1, len(table), "")

    def check_gallery(self, gallery: Searchable) -> None:
        """Raise a MismatchError unless a gallery was made by this space, as it is now."""
        expected = self.embedding_sha256(gallery.modality)
        if gallery.embedding != expected:
            raise MismatchError(
                f"{gallery.where}: its {gallery.modality} vectors were made with other "
                f"weights ({gallery.embedding[:12]}) than this space's ({expected[:12]}); search "
                "it with its own space, or embed the items again",
                found=gallery.embedding,
                expected=expected,
            )

    def search(
        self, gallery: Searchable, items: Iterable[str], *, modality: str, k: int = 10
    ) -> Hits:
        """Find the items of a gallery most similar to items of any modality.

        Args:
            gallery: Vectors of any of `modalities`, made by this space, or a store that it was
                attached to (`open_attached`).
            items: Queries: texts, paths or keys.
            modality: The queries' modality.
            k: Items returned a query.

        Raises:
            MismatchError: The gallery is of another space.
        """
        self.check_gallery(gallery)
        features = self._encode(modality, items, exact=False)
        return self.search_features(gallery, features, modality=modality, k=k)

    def search_parts(
        self, galleries: Sequence[Searchable], parts: Sequence[QueryPart], *, k: int = 10
    ) -> Found:
        """Find what fits a query of one part, or of several at once as a picture and words.

        Where the n-way loss trained the space a query of several is the product of its parts,
        else their mean. Its similarities are neither corrected nor calibrated: no pairs tell how.

        Args:
            galleries: Of any of `modalities`, searched as one: ranked by how probably each result
                is a match, where that is known of all; else the best of each come first.
            parts: What is searched by, with the features of each, or a vector that is stored.
            k: Items returned.

        Raises:
            MismatchError: A gallery is of another space.
            UsageError: No way leads from a part to a gallery, or there is none of either.
        """
        return search_parts(self, galleries, parts, k=k)

    def query_part(self, modality: str, item: str, *, weight: float = 1.0) -> QueryPart:
        """Encode an item to search by; see `search_parts`."""
        return QueryPart(modality, self._encode(modality, [item], exact=False), weight=weight)

    def search_features(
        self, gallery: Searchable, features: Features, *, modality: str, k: int = 10
    ) -> Hits:
        """Search by features that are encoded already; see `search`."""
        self.check_gallery(gallery)
        queries = self.query(features, source=modality, target=gallery.modality)
        return search_queries(self, gallery, queries, source=modality, k=k)

    def add(
        self,
        pairs: Pairs,
        encoder: Encoder,
        *,
        anchor: str | None = None,
        changes: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Space:
        """Add a modality: train its alignment layer against one that is there.

        Only a new stage folder and space.json are written; every earlier file, and every
        vector already embedded, stays as it is.

        Args:
            pairs: Of the new modality and the anchor.
            encoder: The new modality's.
            anchor: A modality of the space; by default the pairs' other one.
            changes: Recipe fields to change; sizes that pass through the first stage cannot.
            options: Fields of `Job`: seed, cache, skip_errors, progress, checkpoint_seconds.

        Returns:
            This space, with the new stage.

        Raises:
            UsageError: The modality is there already, or the anchor is not.
        """
        pairs = self.as_trained(pairs)
        anchor = anchor or next((m for m in pairs.modalities if m in self.modalities), "")
        aligning.check_anchor(anchor, pairs, self.modalities)
        recipe = self._later_recipe(changes or {})
        job = Job(recipe, self.stages[0].record["recipe_name"], device=self.device, **options)
        encoders = {anchor: self.encoder(anchor), encoder.modality: encoder}
        # The stage is trained on connectors of its own: an error leaves these as they were.
        family = load_space(self.folder, device=self.device).family
        aligning.add_modality(self.folder, family, pairs, encoders, anchor=anchor, job=job)
        grown = load_space(self.folder, device=self.device)
        self.stages, self.family = grown.stages, grown.family
        self._encoders[encoder.modality] = encoder
        return self

    def _later_recipe(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the first stage's recipe with some fields changed, where a later stage may."""
        recipe = self.recipe.changed({**self.recipe.later_defaults, **changes})
        for name in self.recipe.shared_fields:
            ours, theirs = getattr(self.recipe, name), getattr(recipe, name)
            if ours != theirs:
                raise UsageError(
                    f"{name} is {theirs}, this space's first stage has {ours} and a later stage "
                    "passes through it; leave it out",
                    field=name,
                )
        return recipe

    def as_trained(self, pairs: Pairs) -> Pairs:
        """Return pairs split as this space was trained; see `split_as_trained`."""
        return split_as_trained(pairs, [stage.record["pairs"] for stage in self.stages])

    def evaluate(
        self,
        pairs: Pairs,
        *,
        split: str | None = None,
        directions: Sequence[tuple[str, str]] | None = None,
        score: str | None = None,
        cache: Path | None = None,
        skip_errors: bool = False,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> list[Direction]:
        """Measure retrieval between the pairs' modalities.

        Args:
            pairs: Of two or more of `modalities`; those never paired in training too. Where a
                stage held rows of the same file out, these are validation, whatever was drawn
                on reading it.
            split: Which rows, or "all"; by default test where there are any, else validation.
            directions: (source, target) each; by default all that there is a way for.
            score: Of directed maps, what to compare: "contrast" or "prediction" vectors, or
                "fused", both directions' maps together; by default the recipe's.
            cache: Folder of the feature stores.
            skip_errors: Leave broken items out.
            seed: Of the bootstrap intervals.
            progress: Told of long work.

        Raises:
            UsageError: A modality is unknown, or the split has no rows.

        Source: the protocol of Karpathy & Fei-Fei 2015, arXiv:1412.2306: split by item, every
        caption a query, any caption counts; ties count against the query.
        """
        pairs = pairs if split == "all" else self.as_trained(pairs)
        chosen_split(pairs, split)
        encoded = self.encode_pairs(pairs, cache=cache, skip_errors=skip_errors, progress=progress)
        return self.evaluate_encoded(
            encoded, split=split, directions=directions, score=score, seed=seed
        )

    def encode_pairs(
        self,
        pairs: Pairs,
        *,
        cache: Path | None = None,
        skip_errors: bool = False,
        progress: Progress = no_progress,
    ) -> EncodedPairs:
        """Encode what the cache lacks of pairs; see `evaluate` for the arguments.

        Returns:
            The features, and the pairs without what was left out, listed in `pairs.skipped`.
        """
        return encode_pairs(
            pairs,
            {modality: self.encoder(modality) for modality in pairs.modalities},
            cache=cache or cache_folder(),
            skip_errors=skip_errors,
            progress=progress,
        )

    def evaluate_encoded(
        self,
        encoded: EncodedPairs,
        *,
        split: str | None = None,
        directions: Sequence[tuple[str, str]] | None = None,
        score: str | None = None,
        seed: int = 0,
    ) -> list[Direction]:
        """Measure retrieval on pairs that are encoded; see `evaluate`."""
        rows = SplitSides(self.family, encoded, split)
        found = []
        for source, target in directions or self.directions(encoded.pairs.modalities):
            compared, positives = rows.compared(source, target, score=score)
            found.append(
                evaluate_direction(
                    compared.queries,
                    compared.gallery,
                    positives,
                    source=source,
                    target=target,
                    seed=seed,
                    bias=compared.bias,
                )
            )
        return found

    def directions(self, modalities: Iterable[str] | None = None) -> list[tuple[str, str]]:
        """Return every (source, target) among some modalities that a query can be asked in."""
        possible = every_direction(self.modalities if modalities is None else modalities)
        return [(a, b) for a, b in possible if self.family.leads(a, b)]

    def verify(self, galleries: Iterable[Path | str] = ()) -> dict[str, Any]:
        """Prove that nothing has moved: re-hash every stage, every gallery, every path.

        Args:
            galleries: Folders of galleries and indexes to check against this space too.

        Returns:
            {"ok": bool, "stages": [{"name", "ok", "problems"}], "galleries": [...]}.
        """
        return verify_space(self.folder, galleries)

    def save(self, folder: Path | str) -> Space:
        """Copy the space to another folder, which must not exist yet, and return the copy."""
        folder = Path(folder)
        if folder.exists():
            raise UsageError(f"{folder}: is there already; choose another folder", folder=folder)
        temporary = folder.with_name(f"{folder.name}.copying")
        shutil.rmtree(temporary, ignore_errors=True)
        with locked(self.folder):
            shutil.copytree(self.folder, temporary, ignore=shutil.ignore_patterns("work", "*.lock"))
        temporary.rename(folder)
        return load_space(folder, device=self.device)


def align(
    pairs: Pairs,
    encoders: Mapping[str, Encoder],
    *,
    out: Path | str,
    recipe: str | Recipe = "oneencoder",
    **options: Any,
) -> Space:
    """Join two encoders into a new space.

    Args:
        pairs: Of two modalities.
        encoders: One for each.
        out: Folder of the space; an interrupted call there is gone on with.
        recipe: A recipe or its name.
        options: Further fields of `Job`: seed, device, cache, skip_errors, progress.

    Returns:
        The space, loaded.

    Raises:
        UsageError: `out` is a space already, or there are not two modalities.
        DataError: Too few rows, or a broken item.

    Source: OneEncoder, arXiv:2409.11059, step 1.
    """
    name = recipe if isinstance(recipe, str) else "custom"
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    job = Job(chosen, name, **options)
    aligning.align(pairs, encoders, out=Path(out), job=job)
    space = load_space(out, device=job.device)
    space._encoders.update(encoders)
    return space


def load_space(folder: Path | str, *, device: str = "cpu") -> Space:
    """Read a space.

    Raises:
        UsageError: The folder is no space.
        CorruptError: A stage is not what was written; the message names it.
    """
    folder = Path(folder)
    stages = [read_stage(folder, entry) for entry in read_header(folder)["stages"]]
    return Space(folder, stages, load_family(folder, stages, device=device))


def load_family(folder: Path, stages: Sequence[Stage], *, device: str) -> Family:
    """Build the connectors of some stages and fill them with their weights."""
    if not stages:
        raise UsageError(f"{folder}: a space without stages; align again into another folder")
    family = aligning.new_family(recipe_of(stages[0]), device=device)
    for stage in stages:
        # Untrained weights are drawn before they are filled: not from the caller's numbers.
        with torch.random.fork_rng(devices=[]):
            part = family.grow(recipe_of(stage), growth_of(stage))
        tensors = read_weights(folder, stage)
        banks = {n.removeprefix(BANK): tensors.pop(n) for n in list(tensors) if n.startswith(BANK)}
        part.load_state_dict(tensors)
        family.remember(stage.record["temperature"])
        arrays = {name: bank.numpy() for name, bank in banks.items()}
        family.scoring |= read_scoring(stage.record.get("scoring", {}), arrays, family)
    for parameter in family.model.parameters():
        parameter.requires_grad_(False)
    family.model.eval().to(device)
    return family


def recipe_of(stage: Stage) -> Recipe:
    """Return the recipe that a stage recorded."""
    return recipe_from_json(stage.record["family"], stage.record["recipe"])


def growth_of(stage: Stage) -> Growth:
    """Return what a stage brought."""
    widths = {name: known["width"] for name, known in stage.record["encoders"].items()}
    directions = tuple((a, b) for a, b in stage.record["directions"])
    return Growth(widths, stage.record.get("anchor"), directions)


def verify_space(folder: Path, galleries: Iterable[Path | str] = ()) -> dict[str, Any]:
    """Re-hash what a space and some galleries hold; see `Space.verify`."""
    problems = stage_problems(folder, read_header(folder))
    # Where a stage is broken, of the galleries only the files can be proved.
    paths: dict[str, str] | None = None
    if not any(problems.values()):
        paths = rehashed_paths(load_space(folder), problems)
    # Where a path is not what it was, nothing is said of whose vectors they are.
    sound = not any(problems.values())
    checked = [gallery_report(Path(path), paths, sound=sound) for path in galleries]
    stages = [{"name": n, "ok": not found, "problems": found} for n, found in problems.items()]
    ok = all(entry["ok"] for entry in [*stages, *checked])
    return {"ok": ok, "stages": stages, "galleries": checked}


def rehashed_paths(space: Space, problems: dict[str, list[str]]) -> dict[str, str]:
    """Hash again what each modality passes through; add to `problems` where it differs.

    Returns:
        The hash of what is stored of each modality.
    """
    known = {
        name: encoder["fingerprint"]
        for stage in space.stages
        for name, encoder in stage.record["encoders"].items()
    }
    paths: dict[str, str] = {}
    for stage in space.stages:
        found = aligning.ways_record(space.family, growth_of(stage), known)
        paths |= found["embeddings"]
        for kind, hashes in found.items():
            problems[stage.name] += [
                f"{name}: passes through other weights than before"
                for name, sha256 in hashes.items()
                if sha256 != stage.record[kind][name]
            ]
    return paths


def gallery_report(path: Path, paths: Mapping[str, str] | None, *, sound: bool) -> dict[str, Any]:
    """Check the files of a gallery or an index, and that its vectors are those of the space.

    Args:
        path: The gallery or the index.
        paths: Hash of what is stored of each modality; None where a stage is broken.
        sound: Whether the space itself is as it was written.
    """
    report: dict[str, Any] = {"name": str(path)}
    try:
        gallery = load_index(path, read_only=True) if is_index(path) else Gallery.load(path)
    except CorruptError as error:
        broken = {"ok": False, "problems": [str(error)], "rows": None}
        return {**report, **broken, "of_another_space": False}
    problems = gallery.verify()
    foreign = paths is not None and paths.get(gallery.modality) != gallery.embedding
    another = foreign and sound and not problems
    if foreign:
        problems.append(f"{path}: its vectors were made with other weights than this space's")
    found = {"ok": not problems, "problems": problems, "rows": len(gallery)}
    return {**report, **found, "of_another_space": another}


def chosen_split(pairs: Pairs, split: str | None) -> str | None:
    """Return the split to measure on, None for all rows.

    Raises:
        UsageError: It has no rows.
    """
    sizes = pairs.split_sizes()
    if split == "all":
        return None
    chosen = split or ("test" if sizes.get("test") else "validation")
    if not sizes.get(chosen):
        raise UsageError(
            f"{pairs.source.name}: split {chosen} has no rows; there are "
            f"{', '.join(f'{count} {name}' for name, count in sizes.items())}; choose one of "
            "them, or all, with --split",
            split=chosen,
        )
    return chosen


class SplitSides:
    """Both sides of retrieval between the items of a split.

    Args:
        family: The connectors.
        encoded: Pairs with their features.
        split: Which rows, or "all"; by default test where there are any, else validation.

    Attributes:
        members: Of each modality, which of its items are of the split, ascending, int64.
        tables: Their features.

    Raises:
        UsageError: The split has no rows.
    """

    def __init__(self, family: Family, encoded: EncodedPairs, split: str | None) -> None:
        pairs = encoded.pairs
        self._pairs = pairs
        self._split = chosen_split(pairs, split)
        self.family = family
        self.members = {m: pairs.members(m, split=self._split) for m in pairs.modalities}
        self.tables = {m: encoded.tables[m].subset(kept) for m, kept in self.members.items()}
        self._sides = Sides(family, self.tables)

    def compared(
        self, source: str, target: str, *, score: str | None = None
    ) -> tuple[Compared, np.ndarray]:
        """Return both sides as search compares them, and which belong together, int64 [P, 2]."""
        positives = places_of_pairs(self._pairs, self.members, source, target, split=self._split)
        return self._sides.compared(source, target, score=score), positives


def summary(space: Space) -> dict[str, Any]:
    """Return what `align` and `add` print of the newest stage."""
    stage = space.stages[-1]
    return {
        "space": str(space.folder),
        "stage": stage.name,
        "trainable_parameters": stage.trainable_parameters,
        "encoded": stage.run["encoded"],
        "skipped": stage.run["skipped"],
        "seconds": stage.run["seconds"],
        "steps": stage.record["steps"],
        "validation": stage.record["validation"],
        "chosen": stage.record.get("chosen"),
        "scoring": {
            name: {"correction": entry["correction"], "error": entry["calibration_error"]}
            for name, entry in stage.record.get("scoring", {}).items()
        },
    }
