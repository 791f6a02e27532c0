"""One shared space: OneEncoder's two jobs, and what is stored and asked of it.

The first stage joins two modalities; a later one adds one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalign.connectors.blocks import as_tensors
from modalign.connectors.universal_projection import (
    Fusion,
    ModalityEntrance,
    OneEncoder,
    UniversalProjection,
)
from modalign.losses import bank_info_nce, directed_info_nce, info_nce
from modalign.recipes import OneEncoderRecipe
from modalign.space.families import (
    EmbeddingFamily,
    Growth,
    StageObjective,
    Way,
    mean_figures,
    measure_all,
    send_table,
)
from modalign.space.paired import PairedTables, RowTables, feature_figures, first_rows
from modalign.space.stages import path_sha256
from modalign.training import PairBatches


class SharedSpace(EmbeddingFamily):
    """OneEncoder: all modalities in one space, gallery and query by the same map.

    Source: arXiv:2409.11059.
    """

    name = "oneencoder"
    model: OneEncoder

    def grow(self, recipe: OneEncoderRecipe, growth: Growth) -> nn.Module:
        """Build the projection with the first two modalities, or a later one's entrance."""
        if growth.anchor is None:
            self.model = build_model(growth.widths, recipe).to(self.device)
            return self.model
        entrance = build_entrance(growth.widths, recipe)
        self.model.entrances.append(entrance.to(self.device))
        return entrance

    def objective(
        self,
        recipe: OneEncoderRecipe,
        growth: Growth,
        *,
        train: Sequence[PairedTables],
        validation: Sequence[PairedTables],
        seed: int,
        rows: Callable[[str], RowTables] | None = None,
    ) -> StageObjective:
        """Return the job of the first stage, or of one that adds a modality."""
        entrance = self.model.entrances[-1]
        assert isinstance(entrance, ModalityEntrance)
        if recipe.standardize:
            for name in growth.widths:
                entrance.standardize(name, *feature_figures(train[0].tables[name]))
        job: type[_OneEncoderObjective] = AddedObjective if growth.anchor else JointObjective
        return job(self, train=train[0], validation=validation[0], recipe=recipe, seed=seed)

    def width_of(self, way: Way) -> int:
        """Return D of the space."""
        return int(self.recipe.width)

    def way_sha256(self, way: Way, fingerprint: str) -> str:
        """Return the hash of the encoder, the modality's entrance and the projection."""
        _, modality = way
        return path_sha256(self.model.path(modality), path_shape(self.recipe), fingerprint)


def build_model(feature_widths: Mapping[str, int], recipe: OneEncoderRecipe) -> OneEncoder:
    """Return an untrained first stage."""
    projection = UniversalProjection(
        recipe.width,
        depth=recipe.depth,
        heads=recipe.heads,
        feedforward=recipe.feedforward,
        dropout=recipe.dropout,
    )
    fusion = Fusion(recipe.width, kind=recipe.fusion)  # type: ignore[arg-type]
    return OneEncoder(projection, fusion, build_entrance(feature_widths, recipe))


def build_entrance(feature_widths: Mapping[str, int], recipe: OneEncoderRecipe) -> ModalityEntrance:
    """Return an untrained entrance for some modalities."""
    return ModalityEntrance(
        feature_widths,
        recipe.width,
        token=recipe.token,
        dropout=recipe.dropout,
        feature_dropout=recipe.feature_dropout,
    )


def path_shape(recipe: OneEncoderRecipe) -> dict[str, Any]:
    """Return what the tensors of a path do not tell of it."""
    return {"heads": recipe.heads, "fusion": recipe.fusion, "token": recipe.token}


class _OneEncoderObjective(StageObjective):
    """What both stages share: reading features, embedding, validation."""

    def __init__(
        self,
        family: SharedSpace,
        *,
        train: PairedTables,
        validation: PairedTables,
        recipe: OneEncoderRecipe,
        seed: int,
    ) -> None:
        self.family = family
        self.model = family.model
        entrance = family.model.entrances[-1]
        assert isinstance(entrance, ModalityEntrance)
        self.entrance = entrance
        self.train = train
        self.validation = first_rows(validation, recipe.validation_items)
        self.batches = PairBatches(train.pairs, batch_size=recipe.batch_size, seed=seed)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.device = family.device
        self._prepare(recipe)

    def _prepare(self, recipe: OneEncoderRecipe) -> None:
        """Choose what trains."""

    def embed(self, modality: str, rows: np.ndarray) -> Tensor:
        """Embed training features with the weights as they are."""
        values, mask = as_tensors(self.train.tables[modality].take(rows), self.device)
        vectors: Tensor = self.model(modality, values, mask)
        return vectors

    def validate(self) -> dict[str, float]:
        """Return the mean over both directions of recall@1 and of the reciprocal rank."""
        first, second = self.validation.first, self.validation.second
        both = [(first, second), (second, first)]
        return mean_figures(measure_all(self.family, [self.validation], both))


class JointObjective(_OneEncoderObjective):
    """The first stage: two entrances, the fusion and the projection, by symmetric InfoNCE.

    Source: arXiv:2409.11059, step 1.
    """

    def _prepare(self, recipe: OneEncoderRecipe) -> None:
        log_temperature = torch.tensor(math.log(recipe.temperature), device=self.device)
        self.log_temperature = nn.Parameter(log_temperature, recipe.learn_temperature)
        self.parameters = dict(self.model.named_parameters())
        if recipe.learn_temperature:
            self.parameters["log_temperature"] = self.log_temperature

    def train_mode(self) -> None:
        """Everything of the first stage trains."""
        self.model.train()

    def loss(self, step: int) -> Tensor:
        """Return the symmetric loss of the step's batch."""
        batch = self.batches.batch(step)
        u = self.embed(self.train.first, batch.first)
        v = self.embed(self.train.second, batch.second)
        positives = torch.from_numpy(batch.positives).to(self.device)
        return info_nce(u, v, positives, self.log_temperature.exp())

    @property
    def temperature(self) -> float:
        """The divisor of similarity as it is now."""
        return float(self.log_temperature.detach().exp())


class AddedObjective(_OneEncoderObjective):
    """A later stage: one new entrance against the frozen embeddings of an anchor.

    The new modality's items are contrasted with every item of the anchor: its bank is frozen,
    so these negatives are exact. The other direction is contrasted within the batch.

    Source: arXiv:2409.11059, step 2. Differs: the whole bank, all positives, and frozen parts
    in eval mode.
    """

    def _prepare(self, recipe: OneEncoderRecipe) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.entrance.parameters():
            parameter.requires_grad_(True)
        self.parameters = dict(self.entrance.named_parameters())
        anchor = self.train.second
        bank = send_table(self.family, ("embed", anchor), self.train.tables[anchor])
        self.bank = torch.from_numpy(bank).to(self.device)

    @property
    def temperature(self) -> float:
        """The first stage's."""
        return self.family.temperature

    def train_mode(self) -> None:
        """Only the new entrance trains; what is frozen has no dropout."""
        self.model.eval()
        self.entrance.train()

    def loss(self, step: int) -> Tensor:
        """Return the loss of the step's batch against the bank, and of the bank's rows back."""
        batch = self.batches.batch(step)
        u = self.embed(self.train.first, batch.first)
        rows, columns = self.batches.partners.of(batch.first)
        there = bank_info_nce(
            u,
            self.bank,
            torch.from_numpy(rows).to(self.device),
            torch.from_numpy(columns).to(self.device),
            temperature=self.temperature,
        )
        positives = torch.from_numpy(batch.positives.T.copy()).to(self.device)
        anchors = self.bank[torch.from_numpy(batch.second).to(self.device)]
        back = directed_info_nce(anchors, u, positives, self.temperature)
        return (there + back) / 2
