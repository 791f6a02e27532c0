"""Directed maps: Alt-MoE's jobs, and what is stored and asked of raw features.

A direction maps one modality's features into another's own feature space; what is searched are
that modality's features as its encoder gave them.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalign.connectors.blocks import BLOCK_ROWS, as_tensors, check_features, map_in_blocks
from modalign.connectors.mixture import (
    TASKS,
    AltMoE,
    Direction,
    MixtureShape,
    MixtureStage,
    Routing,
    Task,
    balance_loss,
    direction_name,
    named_direction,
)
from modalign.encoders import Features
from modalign.encoders.contract import canonical_json
from modalign.errors import UsageError, check_known
from modalign.evaluation import every_direction
from modalign.features import FeatureRows
from modalign.losses import info_nce, prediction_loss
from modalign.recipes import SCORES, AltMoERecipe
from modalign.space.families import (
    Family,
    Growth,
    StageObjective,
    Way,
    mean_figures,
    measure_all,
    unit_rows,
)
from modalign.space.paired import PairedTables, RowTables, feature_figures, first_rows
from modalign.space.stages import path_sha256
from modalign.training import PairBatches
from modalign.training.alternation import Alternation

# Rows of a block: of one query's block all are computed, by weights that are read for a few rows
# about as fast as for one.
MAP_ROWS = 8
# Of few rows and so narrow a product MKL, on AMD's processors with AVX-512, rounds by how many
# threads share it; of 24 rows and more it does not.
NARROW = range(9, 24)
# Rows whose way through the experts is looked at together.
ROUTED_ROWS = 1024


class DirectedMaps(Family):
    """Alt-MoE: a map for each direction, raw features as the gallery.

    A target that no map leads to directly is reached over others: each hop predicts features,
    the last one gives what is searched by.

    Attributes:
        score: What search and evaluation go by: "contrast", "prediction", or "fused", which for
            search is "contrast".
        widths: D_m of each modality's encoder.
        temperatures: Divisor of similarity by direction.

    Source: arXiv:2409.05929. Differs: ways of several hops.
    """

    name = "alt-moe"
    model: AltMoE

    def __init__(self, recipe: AltMoERecipe, *, device: str = "cpu") -> None:
        super().__init__(recipe, device=device)
        self.model = AltMoE([])
        self.score = recipe.score
        self.widths: dict[str, int] = {}
        self.temperatures: dict[str, float] = {}
        self._rows: dict[Direction, int] = {}

    @classmethod
    def first_count(cls, recipe: AltMoERecipe) -> int | None:
        """Return None: two or more."""
        return None

    def growth(
        self, recipe: AltMoERecipe, widths: Mapping[str, int], *, anchor: str | None
    ) -> Growth:
        """Plan a stage: the recipe's directions, or all between its modalities.

        Raises:
            UsageError: A direction is not one of these modalities', or leaves one out.
        """
        possible = list(every_direction([*widths, anchor] if anchor else widths))
        directions = chosen_directions(recipe.directions, possible)
        return Growth(widths, anchor, tuple(directions))

    def grow(self, recipe: AltMoERecipe, growth: Growth) -> nn.Module:
        """Build the stage's maps, and its experts where it has its own."""
        self.widths |= growth.widths
        stage = MixtureStage(
            self.widths,
            growth.directions,
            mixture_shape(recipe, added=growth.anchor is not None),
            earlier=list(self.model.stages),  # type: ignore[arg-type]
            grown=recipe.added_experts > 0,
        )
        self.model.stages.append(stage.to(self.device))
        return stage

    def remember(self, temperature: Mapping[str, float]) -> None:
        """Take the temperatures of a stage's directions."""
        self.temperatures |= temperature

    def objective(
        self,
        recipe: AltMoERecipe,
        growth: Growth,
        *,
        train: Sequence[PairedTables],
        validation: Sequence[PairedTables],
        seed: int,
        rows: Callable[[str], RowTables] | None = None,
    ) -> StageObjective:
        """Return the job of training a stage's maps in alternation."""
        if recipe.standardize:
            standardize(self.model, growth.directions, train)
        return DirectedObjective(
            self, growth, train=train, validation=validation, recipe=recipe, seed=seed
        )

    def gallery_way(self, modality: str) -> Way:
        """Return the way of features that stay as they are."""
        return ("raw", modality)

    def query_way(self, source: str, target: str, *, score: str = "") -> Way:
        """Return the shortest way over maps, and the kind of vector at its end.

        Raises:
            UsageError: No maps lead there; the message lists those there are.
        """
        hops = shortest_way(self.model.directions, source, target)
        if hops is None:
            known = ", ".join(direction_name(*d) for d in self.model.directions)
            raise UsageError(
                f"no map leads from {source} to {target}, the maps are {known}; align or add "
                "with pairs that lead there"
            )
        check_known(score or self.score, SCORES, what="score")
        # Stored vectors are raw: fused is for evaluation, which has both sides' features.
        kind = (score or self.score).replace("fused", "contrast")
        return ("map", kind, *hops)

    def leads(self, source: str, target: str) -> bool:
        """Return whether maps lead from source to target."""
        return shortest_way(self.model.directions, source, target) is not None

    def temperature_of(self, source: str, target: str) -> float:
        """Return that of the last map on the way."""
        *_, middle, end = self.query_way(source, target)
        return self.temperatures[direction_name(middle, end)]

    def send(self, way: Way, features: Features) -> np.ndarray:
        """Return raw features, float32 [N, D_m], or unit vectors mapped along the way."""
        if way[0] == "raw":
            check_features(features)
            return raw_vectors(features)
        _, score, *hops = way
        for source, middle in pairwise(hops[:-1]):
            features = Features(self._map((source, middle), "prediction", features))
        vectors = self._map((hops[-2], hops[-1]), score, features)  # type: ignore[arg-type]
        return unit_rows(vectors)

    def _map(self, direction: Direction, task: Task, features: Features) -> np.ndarray:
        return map_in_blocks(
            self.model,
            features,
            way=lambda values, mask: self.model(direction, values, mask, tasks=[task])[task],
            device=self.device,
            rows=self._block_rows(direction),
        )

    def _block_rows(self, direction: Direction) -> int:
        if direction not in self._rows:
            weights = [each for each in self.model.path(direction).values() if each.ndim == 2]
            narrow = any(len(weight) in NARROW for weight in weights)
            self._rows[direction] = BLOCK_ROWS if narrow else MAP_ROWS
        return self._rows[direction]

    def routing(self, direction: Direction, features: Features, *, task: Task) -> Routing:
        """Return where features go in a direction's mixture; see `AltMoE.with_routing`."""
        self.model.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(features), ROUTED_ROWS):
                values, mask = as_tensors(features[start : start + ROUTED_ROWS], self.device)
                parts.append(self.model.with_routing(direction, values, mask, tasks=[task])[1])
        return Routing(
            torch.cat([part.shares for part in parts]), torch.cat([part.chosen for part in parts])
        )

    def width_of(self, way: Way) -> int:
        """Return D_m of the modality at the way's end."""
        return self.widths[way[-1]]

    def way_sha256(self, way: Way, fingerprint: str) -> str:
        """Return the hash of the encoder, and of the maps on the way."""
        if way[0] == "raw":
            return hashlib.sha256(canonical_json({"raw": fingerprint})).hexdigest()
        _, score, *hops = way
        tensors: dict[str, Tensor] = {}
        shapes = []
        for hop, direction in enumerate(pairwise(hops)):
            path = self.model.path(direction)
            tensors |= {f"{hop}.{name}": tensor for name, tensor in path.items()}
            shapes.append(self.model.shape(direction))
        return path_sha256(tensors, {"score": score, "hops": shapes}, fingerprint)

    def ways_of(self, growth: Growth) -> dict[str, Way]:
        """Return the directions a stage brings."""
        return {direction_name(*d): self.query_way(*d) for d in growth.directions}


def mixture_shape(recipe: AltMoERecipe, *, added: bool) -> MixtureShape:
    """Return the sizes of a stage's mixture."""
    return MixtureShape(
        width=recipe.width,
        experts=recipe.added_experts if added and recipe.added_experts else recipe.experts,
        top_k=recipe.top_k,
        router=recipe.router,
        renormalise=recipe.renormalise,
        noise=recipe.noise,
        dropout=recipe.dropout,
        feature_dropout=recipe.feature_dropout,
        modality_embedding=recipe.modality_embedding,
        share_experts=recipe.share_experts,
        per_token=recipe.granularity == "tokens",
    )


def chosen_directions(text: str, possible: Sequence[Direction]) -> list[Direction]:
    """Return the directions that a recipe names.

    Raises:
        UsageError: One is unknown or named twice, or a modality is in none.
    """
    if text == "all":
        return list(possible)
    names = [name.strip() for name in text.split(",")]
    known = [direction_name(*direction) for direction in possible]
    for name in names:
        named_direction(name)
        check_known(name, known, what="direction")
    if len(set(names)) < len(names):
        raise UsageError(f"directions {text}: one is named twice, expected each once")
    unused = {m for d in possible for m in d} - {m for name in names for m in named_direction(name)}
    if unused:
        raise UsageError(
            f"directions {text}: {', '.join(sorted(unused))} is in none of them, expected each "
            "modality in one at least; name one, or leave its encoder out"
        )
    return [named_direction(name) for name in names]


def shortest_way(
    directions: Sequence[Direction], source: str, target: str
) -> tuple[str, ...] | None:
    """Return the modalities on the way from source to target with the fewest maps."""
    ways: deque[tuple[str, ...]] = deque([(source,)])
    seen = {source}
    while ways:
        way = ways.popleft()
        for a, b in directions:
            if a == way[-1] and b == target:
                return (*way, target)
            if a == way[-1] and b not in seen:
                seen.add(b)
                ways.append((*way, b))
    return None


def raw_vectors(features: Features) -> np.ndarray:
    """Return features as they are, or their means over valid positions, float32 [N, D_m]."""
    values = features.values.astype(np.float32)
    if features.mask is None:
        return values
    weights = features.mask[:, :, None]
    means: np.ndarray = (values * weights).sum(1) / weights.sum(1)
    return means


def standardize(
    model: AltMoE, directions: Sequence[Direction], train: Sequence[PairedTables]
) -> None:
    """Fit what each direction standardises its source's features with."""
    for direction in directions:
        table = of_direction(train, direction).tables[direction[0]]
        model.map_of(direction).standardization.fit(*feature_figures(table))


def of_direction(paired: Sequence[PairedTables], direction: Direction) -> PairedTables:
    """Return the tables that join a direction's two modalities.

    Raises:
        UsageError: None does.
    """
    for tables in paired:
        if {tables.first, tables.second} == set(direction):
            return tables
    raise UsageError(
        f"direction {direction_name(*direction)}: there are no pairs of its modalities; leave it "
        "out of directions"
    )


class DirectedObjective(StageObjective):
    """Train maps in alternation: in a step only the active direction and the experts move.

    A direction's loss is the weighted sum of predicting the target's raw features and of a
    symmetric InfoNCE between the contrast vectors and those features, over the batch.

    Source: arXiv:2409.05929, algorithm 1 and equations 9 to 12. Differs: many positives; the
    temperature may be learned, one for each direction.
    """

    def __init__(
        self,
        family: DirectedMaps,
        growth: Growth,
        *,
        train: Sequence[PairedTables],
        validation: Sequence[PairedTables],
        recipe: AltMoERecipe,
        seed: int,
    ) -> None:
        self.family = family
        self.model = family.model
        self.recipe = recipe
        self.directions = growth.directions
        self.train = {d: of_direction(train, d) for d in growth.directions}
        self.validation = [first_rows(tables, recipe.validation_items) for tables in validation]
        self.batches = {
            d: PairBatches(
                np.ascontiguousarray(self.train[d].oriented(d[0])),
                batch_size=recipe.batch_size,
                seed=seed * len(growth.directions) + place,
            )
            for place, d in enumerate(growth.directions)
        }
        self.alternation = Alternation(recipe.alternation, len(growth.directions), seed=seed)
        passes = [batches.steps_per_epoch for batches in self.batches.values()]
        self.steps_per_epoch = max(passes) if recipe.alternation == "joint" else sum(passes)
        self._choose_parameters()

    def _choose_parameters(self) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        stage = self.model.stages[-1]
        for parameter in stage.parameters():
            parameter.requires_grad_(True)
        start = math.log(self.recipe.temperature)
        self.log_temperatures = {
            d: nn.Parameter(
                torch.tensor(start, device=self.family.device), self.recipe.learn_temperature
            )
            for d in self.directions
        }
        idle = {task for task, weight in self.recipe.task_weights.items() if not weight}
        self.parameters = {
            name: parameter
            for name, parameter in stage.named_parameters()
            if not idle & set(name.split("."))
        }
        if self.recipe.learn_temperature and self.recipe.contrast_weight:
            for direction, parameter in self.log_temperatures.items():
                self.parameters[f"log_temperature.{direction_name(*direction)}"] = parameter

    @property
    def temperature(self) -> dict[str, float]:
        """The divisor of similarity of each direction."""
        return {
            direction_name(*d): float(value.detach().exp())
            for d, value in self.log_temperatures.items()
        }

    def train_mode(self) -> None:
        """Only the newest stage trains; what is frozen has no dropout."""
        self.model.eval()
        self.model.stages[-1].train()

    def loss(self, step: int) -> Tensor:
        """Return the loss of the step's direction, or the sum over all in joint training."""
        losses = []
        for place, turn in self.alternation.turns(step):
            loss = self.direction_loss(self.directions[place], turn)
            self.alternation.note(place, float(loss.detach()))
            losses.append(loss)
        return torch.stack(losses).sum()

    def direction_loss(self, direction: Direction, turn: int) -> Tensor:
        """Return the loss of one direction on its batch of that number."""
        recipe, tables = self.recipe, self.train[direction]
        batch = self.batches[direction].batch(turn)
        values, mask = as_tensors(tables.tables[direction[0]].take(batch.first), self.family.device)
        wanted = self._target(tables.tables[direction[1]], batch.second)
        tasks = [task for task in TASKS if recipe.task_weights[task]]
        vectors, routing = self.model.with_routing(direction, values, mask, tasks=tasks)
        loss = torch.zeros((), device=self.family.device)
        if "prediction" in vectors:
            loss = loss + recipe.prediction_weight * prediction_loss(
                vectors["prediction"], wanted, kind=recipe.prediction, reduction=recipe.reduction
            )
        if "contrast" in vectors:
            loss = loss + recipe.contrast_weight * info_nce(
                F.normalize(vectors["contrast"].float(), dim=-1),
                F.normalize(wanted, dim=-1),
                torch.from_numpy(batch.positives).to(self.family.device),
                self.log_temperatures[direction].exp(),
            )
        if recipe.balance_weight:
            loss = loss + recipe.balance_weight * balance_loss(routing)
        return loss

    def _target(self, table: FeatureRows, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(raw_vectors(table.take(rows))).to(self.family.device)

    def validate(self) -> dict[str, float]:
        """Return means over the stage's directions; see `mean_figures`."""
        # Fused vectors are weighed by the temperatures as they are now.
        self.family.remember(self.temperature)
        return mean_figures(measure_all(self.family, self.validation, self.directions))

    def state(self) -> dict[str, Any]:
        """Return what the schedule remembers of earlier steps."""
        return self.alternation.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what an interrupted run remembered."""
        self.alternation.restore(state)
