"""A combined space of three modalities and more, trained on whole rows.

What no two modalities tell alone can be told by all: each modality is contrasted with the product
of the others. Every second step hides one modality, so that queries of fewer find something too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalign.connectors.blocks import as_tensors
from modalign.connectors.members import CombinedConnectors
from modalign.errors import DataError
from modalign.evaluation import Direction, evaluate_direction
from modalign.losses import n_way_info_nce, product_of
from modalign.recipes import CombinedRecipe
from modalign.space.families import (
    EmbeddingFamily,
    StageObjective,
    mean_figures,
    measure_all,
    send_table,
)
from modalign.space.paired import PairedTables, RowTables
from modalign.training import PairBatches


class NWayMembers(StageObjective):
    """The first stage of several modalities, by the n-way objective.

    Args:
        family: Its members are networks.
        train: Whole rows.
        held: Whole validation rows.
        validation: The same in pairs, which are measured too.
        recipe: Of the stage.
        seed: Of the batches and of what is hidden.

    Raises:
        DataError: No row has three modalities: pairs are what every other loss is for.
    """

    def __init__(
        self,
        family: EmbeddingFamily,
        *,
        train: RowTables,
        held: RowTables,
        validation: Sequence[PairedTables],
        recipe: CombinedRecipe,
        seed: int,
    ) -> None:
        assert isinstance(family.model, CombinedConnectors)
        self.family = family
        self.model = family.model
        self.recipe = recipe
        self.train = train
        self.held = first_held(held, recipe.validation_items)
        self.validation = validation
        self.device = family.device
        self.seed = seed
        if not (train.present.sum(1) > 2).any():
            raise DataError(
                "n-way: no training row has three modalities or more, expected some; give rows "
                "that join them, or train by another --loss"
            )
        numbers = np.arange(len(train.rows))
        self.batches = PairBatches(
            np.stack([numbers, numbers], axis=1), batch_size=recipe.batch_size, seed=seed
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.log_temperatures = nn.ParameterList(
            nn.Parameter(torch.tensor(math.log(recipe.temperature)), recipe.learn_temperature)
            for _ in self.model.widths
        )
        self.log_temperatures.to(self.device)
        self.parameters = dict(self.model.entrances[-1].named_parameters())
        if recipe.learn_temperature:
            for number, parameter in enumerate(self.log_temperatures):
                self.parameters[f"log_temperature.{number}"] = parameter

    @property
    def temperature(self) -> float:
        """The divisor of similarity: the mean of the networks'."""
        return float(torch.stack([p.detach() for p in self.log_temperatures]).mean().exp())

    def train_mode(self) -> None:
        """All of the stage trains."""
        self.model.train()

    def loss(self, step: int) -> Tensor:
        """Return the sum of the networks' losses on the step's rows."""
        rows = self.train.rows[self.batches.batch(step).first]
        present = torch.from_numpy(self._shown(rows >= 0, step)).to(self.device)
        # What a row lacks is read as any item; it is not looked at.
        features = [
            self._standardized(modality, np.maximum(rows[:, place], 0))
            for place, modality in enumerate(self.train.tables)
        ]
        items = torch.from_numpy(rows).to(self.device)
        return torch.stack(
            [
                n_way_info_nce(
                    [
                        self.model.of(modality).member(number, values)
                        for modality, values in zip(self.train.tables, features, strict=True)
                    ],
                    present,
                    temperature.exp(),
                    items=items,
                )
                for number, temperature in enumerate(self.log_temperatures)
            ]
        ).sum()

    def _shown(self, present: np.ndarray, step: int) -> np.ndarray:
        """Hide a modality of each row that has three, every second step."""
        if step % 2 == 0:
            return present
        rng = np.random.default_rng([self.seed, step, 37])
        drawn = np.where(present, rng.random(present.shape), -1.0).argmax(1)
        shown = present.copy()
        rows = np.flatnonzero(present.sum(1) > 2)
        shown[rows, drawn[rows]] = False
        return shown

    def _standardized(self, modality: str, rows: np.ndarray) -> Tensor:
        values, mask = as_tensors(self.train.tables[modality].take(rows), self.device)
        return self.model.of(modality).standardized(values, mask)

    def validate(self) -> dict[str, float]:
        """Return the means over all others together, and over each direction of two."""
        self.model.eval()
        return mean_figures([*self.composed(), *self._directions()])

    def _directions(self) -> list[Direction]:
        wanted = [d for p in self.validation for d in ((p.first, p.second), (p.second, p.first))]
        return measure_all(self.family, self.validation, wanted)

    def composed(self) -> list[Direction]:
        """Measure each modality as it is found by all others of its row together."""
        vectors = {
            m: send_table(self.family, self.family.gallery_way(m), table)
            for m, table in self.held.tables.items()
        }
        found = []
        for place, target in enumerate(self.held.tables):
            others = [m for m in self.held.tables if m != target]
            whole = self.held.rows[self.held.present.all(1)]
            if not len(whole):
                continue
            columns = [number for number in range(whole.shape[1]) if number != place]
            asked = whole[:, columns]
            queries = self.family.composed(
                [vectors[m][asked[:, n]] for n, m in enumerate(others)],
                np.ones(len(others), np.float32),
            )
            positives = np.stack([np.arange(len(whole)), whole[:, place]], axis=1)
            found.append(
                evaluate_direction(
                    queries,
                    vectors[target],
                    positives,
                    source="+".join(others),
                    target=target,
                    seed=0,
                )
            )
        return found

    def settle(self) -> dict[str, Any]:
        """Return what all others together find; shares stay equal."""
        return {"composed": [direction.as_json() for direction in self.composed()]}


def first_held(held: RowTables, limit: int) -> RowTables:
    """Keep the first rows; galleries stay whole."""
    return RowTables(held.tables, held.rows[:limit])


def composed_vectors(
    model: CombinedConnectors, vectors: Sequence[np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """Join the vectors of a query's parts by their product, member by member.

    Args:
        model: Its members' widths and shares.
        vectors: Of each part, float32 [N, D].
        weights: Of each part, > 0, float32 [parts]. The heaviest parts multiply as they are; a
            lighter one is drawn to the vector of equal numbers, which changes no product.

    Returns:
        float32 [N, D], of length 1.

    Source: Saporta et al. 2024, arXiv:2411.01053; see `modalign.losses.product_of`. Differs: the
    weights.
    """
    present = torch.ones(len(vectors[0]), len(vectors), dtype=torch.bool)
    ends = np.cumsum(model.widths)[:-1]
    parts = zip(*(np.split(side, ends, axis=1) for side in vectors), strict=True)
    pulls = (weights / weights.max()).tolist()
    joined = []
    for share, part in zip(model.shares.tolist(), parts, strict=True):
        sides = [nn.functional.normalize(torch.from_numpy(side), dim=-1) for side in part]
        equal = sides[0].shape[1] ** -0.5
        drawn = [pull * side + (1 - pull) * equal for pull, side in zip(pulls, sides, strict=True)]
        joined.append(share * product_of(drawn, present).numpy())
    return np.concatenate(joined, axis=1).astype(np.float32)
