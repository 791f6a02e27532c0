"""What a report tells of a space: its stages, what finds what, its experts, the proof."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from modalign.evaluation import Direction
from modalign.features.encoding import Progress, no_progress
from modalign.report.contents import Report, StageSummary
from modalign.report.formulas import closed_forms_of, forecast_of
from modalign.space import Space
from modalign.space.directed import DirectedMaps
from modalign.space.encoded import EncodedPairs
from modalign.space.routing import RoutingRow, routing_table
from modalign.space.space import chosen_split
from modalign.space.stages import versions
from modalign.storage import read_json_lines


def stage_summary(space: Space, name: str) -> StageSummary:
    """Return a stage as the report shows it."""
    stage = next(stage for stage in space.stages if stage.name == name)
    return StageSummary(
        name=name,
        kind=stage.record["kind"],
        modalities=tuple(stage.modalities),
        anchor=stage.record.get("anchor"),
        trainable_parameters=stage.trainable_parameters,
        encoded=stage.run["encoded"],
        seconds=stage.run["seconds"],
        steps=stage.record["steps"],
        best_step=stage.record["best_step"],
        directions=tuple(stage.record["validation"]["directions"]),
        log=tuple(read_json_lines(space.folder / "stages" / name / "log.jsonl")),
        chosen=stage.record.get("chosen", {}),
        scoring=stage.record.get("scoring", {}),
        recipe_name=stage.record["recipe_name"],
    )


def machine() -> dict[str, Any]:
    """Return what computes here."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(),
    }


@dataclass(frozen=True)
class Measured:
    """What was found of a space on some pairs.

    Attributes:
        space: The space.
        directions: Retrieval, each direction.
        split: The rows measured; None: all.
        source: Name of the pairs' file.
        verify: What `Space.verify` gives.
        routing: How rows use the experts; empty for a shared space.
        closed_form: What a formula finds on the same rows, see `closed_forms_of`.
        forecast: What more pairs would bring; empty where nobody asked.
    """

    space: Space
    directions: Sequence[Direction]
    split: str | None
    source: str
    verify: Mapping[str, Any]
    routing: Sequence[RoutingRow] = ()
    closed_form: Mapping[str, Any] = field(default_factory=dict)
    forecast: Mapping[str, Any] = field(default_factory=dict)

    def report(self) -> Report:
        """Return the report's contents."""
        stages = tuple(stage_summary(self.space, stage.name) for stage in self.space.stages)
        return Report(
            title=f"Space {self.space.folder.resolve().name}",
            summary=self._summary(),
            # That of the making; it was noted then.
            seconds=round(sum(sum(stage.seconds.values()) for stage in stages), 1),
            machine=machine(),
            stages=stages,
            directions=tuple(shown_directions(self.space, self.directions)),
            measured_on=self._rows(),
            routing=tuple(row.as_json() for row in self.routing),
            closed_form=self.closed_form,
            forecast=self.forecast,
            verify=self.verify,
        )

    def _rows(self) -> str:
        if self.split is None:
            return f"all rows of {self.source}, those of training among them where it was used"
        return f"the {self.split} rows of {self.source}"

    def _summary(self) -> str:
        recalls = [direction.recall_at_1 for direction in self.directions]
        experts = next((len(row.load) for row in reversed(self.routing)), 0)
        proof = "nothing in it changed" if self.verify["ok"] else "SOMETHING IN IT CHANGED"
        mixture = f" It maps through {experts} experts." if experts > 1 else ""
        return (
            f"A space of {', '.join(self.space.modalities)}, made in {len(self.space.stages)} "
            f"{'stage' if len(self.space.stages) == 1 else 'stages'}. On {self._rows()}, "
            f"recall@1 is {min(recalls):.3f} to {max(recalls):.3f} over {len(recalls)} "
            f"{'direction' if len(recalls) == 1 else 'directions'}.{mixture} Its stages were "
            f"hashed again: {proof}."
        )


def measure(
    space: Space,
    encoded: EncodedPairs,
    *,
    split: str | None = None,
    directions: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
    closed_form: bool = True,
    forecast: bool = False,
    progress: Progress = no_progress,
) -> Measured:
    """Evaluate and verify a space, and see how its rows use the experts where it has some.

    Args:
        space: Shared or directed.
        encoded: Pairs of some of its modalities.
        split: Which rows, or "all"; by default test where there are any, else validation.
        directions: (source, target) each; by default all that there is a way for.
        seed: Of the bootstrap intervals.
        closed_form: Measure what a formula finds beside it, where the pairs are those it was
            trained on.
        forecast: Say what more pairs of the first two modalities would bring, where there are
            enough to say it from.
        progress: Told of long work.
    """
    routed = isinstance(space.family, DirectedMaps)
    rows = chosen_split(encoded.pairs, split)
    found = space.evaluate_encoded(encoded, split=split, directions=directions, seed=seed)
    closed = {}
    if closed_form:
        closed = closed_forms_of(
            space, encoded, found, split=rows, trained_on=[encoded], seed=seed, progress=progress
        )
    return Measured(
        space,
        found,
        rows,
        encoded.pairs.source.name,
        space.verify(),
        routing_table(space, encoded, split=split) if routed else (),
        closed,
        forecast_of(space, encoded, seed=seed, progress=progress) if forecast else {},
    )


def shown_directions(space: Space, directions: Sequence[Direction]) -> list[dict[str, Any]]:
    """Return directions, with whether their two modalities were trained together."""
    trained = {frozenset(pair) for stage in space.stages for pair in stage.record["directions"]}
    return [
        {**found.as_json(), "paired": frozenset((found.source, found.target)) in trained}
        for found in directions
    ]
