"""The two jobs of OneEncoder: the first stage joins two modalities, a later one adds one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modalign.connectors.blocks import as_tensors, embed_in_blocks
from modalign.connectors.universal_projection import ModalityEntrance, OneEncoder
from modalign.encoders import Features
from modalign.evaluation import Direction, evaluate_direction
from modalign.features import FeatureTable
from modalign.losses import bank_info_nce, directed_info_nce, info_nce
from modalign.recipes import OneEncoderRecipe
from modalign.training import Objective, PairBatches

# Rows embedded or read at a time where the whole would not fit.
CHUNK_ROWS = 16384


@dataclass(frozen=True)
class PairedTables:
    """Features of two modalities and which rows belong together, of one split.

    Attributes:
        first: Modality of the first column of `pairs`.
        second: Modality of the second.
        tables: Features by modality.
        pairs: (row of the first table, row of the second), int64 [P, 2].
    """

    first: str
    second: str
    tables: dict[str, FeatureTable]
    pairs: np.ndarray


class _OneEncoderObjective(Objective):
    """What both stages share: reading features, embedding, validation."""

    def __init__(
        self,
        model: OneEncoder,
        *,
        entrance: ModalityEntrance,
        train: PairedTables,
        validation: PairedTables,
        recipe: OneEncoderRecipe,
        seed: int,
        device: str,
    ) -> None:
        self.model = model
        self.entrance = entrance
        self.train = train
        self.validation = first_rows(validation, recipe.validation_items)
        self.batches = PairBatches(train.pairs, batch_size=recipe.batch_size, seed=seed)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.device = device

    def embed(self, modality: str, rows: np.ndarray) -> Tensor:
        """Embed training features with the weights as they are."""
        values, mask = as_tensors(self.train.tables[modality].take(rows), self.device)
        vectors: Tensor = self.model(modality, values, mask)
        return vectors

    def validate(self) -> dict[str, float]:
        """Return the mean over both directions of recall@1 and of the reciprocal rank."""
        there, back = measure(self.model, self.validation, device=self.device)
        return {
            "recall": (there.recall_at_1 + back.recall_at_1) / 2,
            "mean_reciprocal_rank": (there.mean_reciprocal_rank + back.mean_reciprocal_rank) / 2,
            f"{there.source}->{there.target}": there.recall_at_1,
            f"{back.source}->{back.target}": back.recall_at_1,
        }


class JointObjective(_OneEncoderObjective):
    """The first stage: two entrances, the fusion and the projection, by symmetric InfoNCE.

    Source: arXiv:2409.11059, step 1.
    """

    def __init__(
        self,
        model: OneEncoder,
        *,
        train: PairedTables,
        validation: PairedTables,
        recipe: OneEncoderRecipe,
        seed: int,
        device: str,
    ) -> None:
        entrance = model.entrances[0]
        assert isinstance(entrance, ModalityEntrance)
        super().__init__(
            model,
            entrance=entrance,
            train=train,
            validation=validation,
            recipe=recipe,
            seed=seed,
            device=device,
        )
        log_temperature = torch.tensor(math.log(recipe.temperature), device=device)
        self.log_temperature = nn.Parameter(log_temperature, recipe.learn_temperature)
        self.parameters = dict(model.named_parameters())
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

    def __init__(
        self,
        model: OneEncoder,
        *,
        train: PairedTables,
        validation: PairedTables,
        recipe: OneEncoderRecipe,
        seed: int,
        device: str,
    ) -> None:
        entrance = model.entrance_of(train.first)
        super().__init__(
            model,
            entrance=entrance,
            train=train,
            validation=validation,
            recipe=recipe,
            seed=seed,
            device=device,
        )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in entrance.parameters():
            parameter.requires_grad_(True)
        self.parameters = dict(entrance.named_parameters())
        self.temperature = recipe.temperature
        bank = embed_table(model, train.second, train.tables[train.second], device=device)
        self.bank = torch.from_numpy(bank).to(device)

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


def embed_table(
    model: OneEncoder, modality: str, table: FeatureTable, *, device: str
) -> np.ndarray:
    """Embed every row of a table, float32 [N, D], a chunk at a time."""
    parts = [
        embed_in_blocks(model, modality, features, device=device) for features in chunks(table)
    ]
    return np.concatenate(parts)


def chunks(table: FeatureTable) -> Iterator[Features]:
    """Return the rows of a table in order, some thousand at a time."""
    starts = range(0, len(table), CHUNK_ROWS)
    return (table.take(np.arange(s, min(s + CHUNK_ROWS, len(table)))) for s in starts)


def measure(
    model: OneEncoder, paired: PairedTables, *, device: str, seed: int = 0
) -> tuple[Direction, Direction]:
    """Evaluate both directions of a split."""
    first, second = (
        embed_table(model, name, paired.tables[name], device=device)
        for name in (paired.first, paired.second)
    )
    there = evaluate_direction(
        first, second, paired.pairs, source=paired.first, target=paired.second, seed=seed
    )
    back = evaluate_direction(
        second, first, paired.pairs[:, ::-1], source=paired.second, target=paired.first, seed=seed
    )
    return there, back


def first_rows(paired: PairedTables, limit: int) -> PairedTables:
    """Keep the pairs of the first `limit` items of the first modality, and those items."""
    chosen = np.unique(paired.pairs[:, 0])[:limit]
    pairs = paired.pairs[np.isin(paired.pairs[:, 0], chosen)]
    first, first_index = np.unique(pairs[:, 0], return_inverse=True)
    second, second_index = np.unique(pairs[:, 1], return_inverse=True)
    return PairedTables(
        paired.first,
        paired.second,
        {
            paired.first: paired.tables[paired.first].subset(first),
            paired.second: paired.tables[paired.second].subset(second),
        },
        np.stack([first_index, second_index], axis=1),
    )


def fit_standardization(entrance: ModalityEntrance, modality: str, table: FeatureTable) -> None:
    """Set what a modality's features are standardised with: the table's mean and deviation."""
    total = np.zeros(table.width)
    squares = np.zeros(table.width)
    count = 0
    for features in chunks(table):
        valid = features.values if features.mask is None else features.values[features.mask]
        flat = valid.astype(np.float64)
        total += flat.sum(0)
        squares += np.square(flat).sum(0)
        count += len(flat)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    aligner = entrance.aligners[modality]
    aligner.fit_standardization(  # type: ignore[operator]
        torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
    )
