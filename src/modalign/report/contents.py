"""What a report holds; every part may be left empty, and is then left out of the page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shown:
    """An item as a reader sees it.

    Attributes:
        id: The item's id.
        modality: "image", "text", "audio", "video" or any name.
        value: The text itself, or the path of a media file.
    """

    id: str
    modality: str
    value: str | Path

    def as_json(self, relative_to: Path | None = None) -> dict[str, Any]:
        """Return JSON values; a path is given as seen from the folder `relative_to`."""
        value = self.value
        if isinstance(value, Path):
            value = (relative_path(value, relative_to) if relative_to else value).as_posix()
        return {"id": self.id, "modality": self.modality, "value": value}


@dataclass(frozen=True)
class Hit:
    """One answer of a search.

    Attributes:
        shown: The item found.
        similarity: Cosine, -1 to 1.
        right: Whether it belongs to the query.
    """

    shown: Shown
    similarity: float
    right: bool

    def as_json(self, relative_to: Path | None = None) -> dict[str, Any]:
        """Return JSON values: the item's, and how it was found."""
        found = {"similarity": self.similarity, "right": self.right}
        return {**self.shown.as_json(relative_to), **found}


@dataclass(frozen=True)
class SearchExample:
    """One query and its most similar items, the best first."""

    source: str
    target: str
    query: Shown
    hits: tuple[Hit, ...]

    def as_json(self, relative_to: Path | None = None) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "from": self.source,
            "to": self.target,
            "query": self.query.as_json(relative_to),
            "hits": [hit.as_json(relative_to) for hit in self.hits],
        }


@dataclass(frozen=True)
class StageSummary:
    """How one stage of a space was made.

    Attributes:
        name: As in the space's folder, "0-image+text".
        kind: "universal-projection", "alignment-layer", ...
        modalities: What the stage brought into the space.
        anchor: The modality a later stage was trained against; None for the first.
        trainable_parameters: How many numbers were trained.
        encoded: Items encoded by modality; those found in the cache do not count.
        seconds: Wall time by part.
        steps: Training steps taken.
        best_step: Step whose weights were kept.
        directions: Directions of the validation split, as `evaluate --json` prints them.
        log: Lines of the training log: step, recall, loss, and recall@1 by "image->text".
        chosen: What recipe auto tried and kept, see `modalign.space.choosing`; empty without.
        recipe_name: What the user called the recipe.
        scoring: Hub correction and calibration by "image->text", see `modalign.space.scored`.
    """

    name: str
    kind: str
    modalities: tuple[str, ...]
    anchor: str | None
    trainable_parameters: int
    encoded: Mapping[str, int]
    seconds: Mapping[str, float]
    steps: int
    best_step: int
    directions: tuple[Mapping[str, Any], ...] = ()
    log: tuple[Mapping[str, Any], ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    scoring: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe_name: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "modalities": list(self.modalities),
            "anchor": self.anchor,
            "trainable_parameters": self.trainable_parameters,
            "encoded": dict(self.encoded),
            "seconds": dict(self.seconds),
            "steps": self.steps,
            "best_step": self.best_step,
            "validation": {"directions": [dict(line) for line in self.directions]},
            "log": [dict(line) for line in self.log],
            "recipe_name": self.recipe_name,
            "chosen": dict(self.chosen),
            "scoring": {name: dict(found) for name, found in self.scoring.items()},
        }


@dataclass(frozen=True)
class Report:
    """All that a report tells.

    Attributes:
        title: The page's heading.
        summary: What happened, in one paragraph of plain words.
        seconds: Wall time of the whole run.
        machine: Facts of the machine and the versions, by what they are called.
        stages: The space's stages in order.
        directions: Test results as `evaluate --json` prints them, and "paired": whether items of
            the two modalities were ever trained together.
        measured_on: What the directions were measured on, in words.
        closed_form: What a formula finds in the same directions on the same rows, as
            `modalign.report.formulas.closed_forms_of` gives it; empty without.
        routing: How rows use the experts of directed maps: rows of
            `modalign.space.routing.routing_table` as JSON; empty where there are none.
        stored: A store that was searched as it is: "spec", "files", "unchanged" and "directions"
            with "from", "to", "queries", "gallery", "recall_at_1", "recall_at_10"; None without.
        forecast: What more pairs would bring, as `modalign forecast --json` prints it; empty
            without.
        searches: Examples; those of one direction are shown together.
        verify: What `verify --json` prints; None where nothing was verified.
        commands: Lines for a shell that say how to go on; one beginning with # is a remark.
    """

    title: str
    summary: str
    seconds: float
    machine: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageSummary, ...] = ()
    directions: tuple[Mapping[str, Any], ...] = ()
    measured_on: str = "items never seen in training"
    closed_form: Mapping[str, Any] = field(default_factory=dict)
    routing: tuple[Mapping[str, Any], ...] = ()
    stored: Mapping[str, Any] | None = None
    forecast: Mapping[str, Any] = field(default_factory=dict)
    searches: tuple[SearchExample, ...] = ()
    verify: Mapping[str, Any] | None = None
    commands: tuple[str, ...] = ()

    def as_json(self, relative_to: Path | None = None) -> dict[str, Any]:
        """Return JSON values; paths of media are given as seen from `relative_to`."""
        return {
            "title": self.title,
            "summary": self.summary,
            "seconds": self.seconds,
            "machine": dict(self.machine),
            "stages": [stage.as_json() for stage in self.stages],
            "directions": [dict(line) for line in self.directions],
            "measured_on": self.measured_on,
            "closed_form": dict(self.closed_form),
            "routing": [dict(line) for line in self.routing],
            "stored": None if self.stored is None else dict(self.stored),
            "forecast": dict(self.forecast),
            "searches": [example.as_json(relative_to) for example in self.searches],
            "verify": None if self.verify is None else dict(self.verify),
            "commands": list(self.commands),
        }


def relative_path(path: Path, folder: Path) -> Path:
    """Return the way from a folder to a file."""
    return Path(os.path.relpath(path, folder))
