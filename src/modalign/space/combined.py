"""One shared space of members: closed forms and small networks that err differently.

Closed forms are fitted when the job of a stage is made; networks train in the loop, each by its
own loss; then the members' shares are chosen on validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalign.connectors.blocks import as_tensors
from modalign.connectors.linear import AffineMap, ClosedForms, LinearMaps, PairMoments
from modalign.connectors.members import (
    CLOSED_FORMS,
    TRAINED,
    ClosedForm,
    CombinedConnectors,
    Entrance,
    ModalityMembers,
    ResidualMlp,
    new_member,
)
from modalign.evaluation import retrieval_ranks
from modalign.losses import bank_info_nce, directed_info_nce, info_nce
from modalign.recipes import CombinedRecipe
from modalign.space.families import (
    EmbeddingFamily,
    Family,
    Growth,
    StageObjective,
    Way,
    mean_figures,
    measure_all,
    send_table,
)
from modalign.space.paired import PairedTables, feature_figures, first_rows
from modalign.space.stages import path_sha256
from modalign.training import PairBatches

# What is tried where the recipe leaves it open.
REGULARISATIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
POWERS = (0.25, 0.5, 1.0)
# Of a member that joins others, against the first one's 1.
SHARES = (0.5, 1.0, 2.0)
# Pairs whose features are read at a time.
PAIR_ROWS = 8192


class CombinedSpace(EmbeddingFamily):
    """All modalities in one space, gallery and query by the same members."""

    name = "combined"
    model: CombinedConnectors

    def grow(self, recipe: CombinedRecipe, growth: Growth) -> nn.Module:
        """Build the members of the stage's modalities."""
        if growth.anchor is None:
            self.widths = member_widths(recipe, list(growth.widths.values()))
        entrance = Entrance(
            {
                name: ModalityMembers(width, self._members(recipe, width, growth))
                for name, width in growth.widths.items()
            }
        ).to(self.device)
        if growth.anchor is not None:
            self.model.entrances.append(entrance)
            return entrance
        self.model = CombinedConnectors(len(self.widths), entrance).to(self.device)
        return self.model

    def _members(self, recipe: CombinedRecipe, width: int, growth: Growth) -> list[nn.Module]:
        found = []
        for kind, member_width in zip(recipe.member_names, self.widths, strict=True):
            # A later modality has something to start from: the anchor's vectors.
            later = "residual" if growth.anchor and kind == "mlp" else kind
            found.append(
                new_member(
                    later,
                    width,
                    member_width,
                    hidden=recipe.hidden,
                    dropout=recipe.dropout,
                    feature_dropout=recipe.feature_dropout,
                )
            )
        return found

    def objective(
        self,
        recipe: CombinedRecipe,
        growth: Growth,
        *,
        train: Sequence[PairedTables],
        validation: Sequence[PairedTables],
        seed: int,
    ) -> StageObjective:
        """Fit the closed forms; return the job of training the networks."""
        for name in growth.widths if recipe.standardize else ():
            self.model.of(name).standardization.fit(*feature_figures(train[0].tables[name]))
        job: type[_MembersObjective] = LaterMembers if growth.anchor else FirstMembers
        return job(self, train=train[0], validation=validation[0], recipe=recipe, seed=seed)

    def width_of(self, way: Way) -> int:
        """Return D of the space: the members' widths together."""
        return sum(self.widths)

    def way_sha256(self, way: Way, fingerprint: str) -> str:
        """Return the hash of the encoder, the modality's members and the shares."""
        _, modality = way
        shape = {"members": self.recipe.members}
        return path_sha256(self.model.path(modality), shape, fingerprint)


def member_widths(recipe: CombinedRecipe, widths: Sequence[int]) -> list[int]:
    """Return D of each member: a closed form has no more directions than the narrower side."""
    least = min(recipe.width, *widths)
    own = {"mlp": recipe.width, "ridge": widths[1]}
    return [own.get(kind, least) for kind in recipe.member_names]


# The job of a stage -----------------------------------------------------------------------


class _MembersObjective(StageObjective):
    """What both stages share: closed forms, steps, validation, shares."""

    def __init__(
        self,
        family: CombinedSpace,
        *,
        train: PairedTables,
        validation: PairedTables,
        recipe: CombinedRecipe,
        seed: int,
    ) -> None:
        self.family = family
        self.recipe = recipe
        self.model = family.model
        self.entrance = family.model.entrances[-1]
        self.train = train
        self.validation = first_rows(validation, recipe.validation_items)
        self.batches = PairBatches(train.pairs, batch_size=recipe.batch_size, seed=seed)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.device = family.device
        self.seed = seed
        self.notes: dict[str, Any] = {}
        kinds = recipe.member_names
        self.trained = [number for number, kind in enumerate(kinds) if kind in TRAINED]
        self._freeze()
        # On no device parameters are only counted.
        if self.device != "meta":
            self._fit_closed_forms()
        self.log_temperatures = nn.ParameterList(
            nn.Parameter(torch.tensor(math.log(recipe.temperature)), recipe.learn_temperature)
            for _ in self.trained
        )
        self.log_temperatures.to(self.device)
        self.parameters = self._parameters()

    def _freeze(self) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.entrance.parameters():
            parameter.requires_grad_(True)

    def _parameters(self) -> dict[str, nn.Parameter]:
        found = dict(self.entrance.named_parameters())
        if self.trained and self.recipe.learn_temperature:
            for number, parameter in enumerate(self.log_temperatures):
                found[f"log_temperature.{number}"] = parameter
        return found

    @property
    def temperature(self) -> float:
        """The divisor of similarity: the mean of the networks'."""
        if not self.trained:
            return float(self.recipe.temperature)
        return float(torch.stack([p.detach() for p in self.log_temperatures]).mean().exp())

    def train_mode(self) -> None:
        """Only what the stage brings trains."""
        self.model.eval()
        self.entrance.train()

    def standardized(self, modality: str, rows: np.ndarray) -> Tensor:
        """Return what members map, of training rows, float [N, D_m]."""
        values, mask = as_tensors(self.train.tables[modality].take(rows), self.device)
        return self.model.of(modality).standardized(values, mask)

    def _pair_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the standardised features of both sides, pair by pair."""
        pairs = self.train.pairs
        for start in range(0, len(pairs), PAIR_ROWS):
            block = pairs[start : start + PAIR_ROWS]
            with torch.no_grad():
                first = self.standardized(self.train.first, block[:, 0])
                second = self.standardized(self.train.second, block[:, 1])
            yield first.cpu().numpy(), second.cpu().numpy()

    def _fit_closed_forms(self) -> None:
        raise NotImplementedError

    def loss(self, step: int) -> Tensor:
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return the mean over both directions of recall@1 and of the reciprocal rank."""
        first, second = self.validation.first, self.validation.second
        both = [(first, second), (second, first)]
        return mean_figures(measure_all(self.family, [self.validation], both))

    def member_vectors(self, paired: PairedTables) -> list[dict[str, np.ndarray]]:
        """Return every member's unit vectors of both sides of some pairs."""
        widths = np.cumsum([0, *self.family.widths])
        sides = {m: embedded(self.family, m, paired) for m in (paired.first, paired.second)}
        shares = self.model.shares.tolist()
        return [
            {
                m: vectors[:, widths[number] : widths[number + 1]] / (shares[number] or 1.0)
                for m, vectors in sides.items()
            }
            for number in range(len(shares))
        ]


def embedded(family: Family, modality: str, paired: PairedTables) -> np.ndarray:
    """Return a side's vectors."""
    return send_table(family, family.gallery_way(modality), paired.tables[modality])


class FirstMembers(_MembersObjective):
    """The first stage: both modalities' members, each by the loss of the recipe."""

    def _fit_closed_forms(self) -> None:
        kinds = self.recipe.member_names
        wanted = {kind for kind in kinds if kind in CLOSED_FORMS}
        wanted |= {self.recipe.start} if "residual" in kinds else set()
        if not wanted:
            return
        first, second = self.train.first, self.train.second
        moments = PairMoments(self.train.tables[first].width, self.train.tables[second].width)
        for block in self._pair_blocks():
            moments.add(*block)
        forms = ClosedForms(moments)
        fitted = {method: self._chosen(forms, method) for method in sorted(wanted)}
        for number, kind in enumerate(kinds):
            method = self.recipe.start if kind == "residual" else kind
            if method in fitted:
                for modality, side in zip((first, second), sides_of(fitted[method]), strict=True):
                    begin(self.model.of(modality).members[number], side)

    def _chosen(self, forms: ClosedForms, method: str) -> LinearMaps:
        """Return the closed form whose settings rank best on validation rows."""
        recipe = self.recipe
        width = min(recipe.width, *forms.widths)
        regularisations = [recipe.regularisation] if recipe.regularisation else REGULARISATIONS
        powers = ([recipe.power] if recipe.power else POWERS) if method == "cca" else [1.0]
        tried = []
        for regularisation, power in product(regularisations, powers):
            maps = forms.fit(method, regularisation=regularisation, width=width, power=power)
            tried.append((self._reciprocal_rank(maps), regularisation, power, maps))
            if method == "procrustes":
                break
        best = max(tried, key=lambda entry: entry[0])
        self.notes[method] = {
            "regularisation": best[1],
            "power": best[2],
            "mean_reciprocal_rank": round(best[0], 6),
            "tried": len(tried),
        }
        return best[3]

    def _reciprocal_rank(self, maps: LinearMaps) -> float:
        paired = self.validation
        vectors = []
        for modality, side in zip((paired.first, paired.second), sides_of(maps), strict=True):
            table = paired.tables[modality]
            values, mask = as_tensors(table.take(np.arange(len(table))), self.device)
            with torch.no_grad():
                standard = self.model.of(modality).standardized(values, mask)
            vectors.append(side.apply(standard.cpu().numpy()))
        return mean_reciprocal_rank_both(vectors[0], vectors[1], paired.pairs)

    def loss(self, step: int) -> Tensor:
        """Return the sum of the networks' losses on the step's batch."""
        batch = self.batches.batch(step)
        first = self.standardized(self.train.first, batch.first)
        second = self.standardized(self.train.second, batch.second)
        positives = torch.from_numpy(batch.positives).to(self.device)
        return torch.stack(
            [
                self._member_loss(number, place, first, second, positives)
                for place, number in enumerate(self.trained)
            ]
        ).sum()

    def _member_loss(
        self, number: int, place: int, first: Tensor, second: Tensor, positives: Tensor
    ) -> Tensor:
        u = self.model.of(self.train.first).member(number, first)
        v = self.model.of(self.train.second).member(number, second)
        temperature = self.log_temperatures[place].exp()
        return info_nce(u, v, positives, temperature)

    def settle(self) -> dict[str, Any]:
        """Choose the members' shares on validation rows."""
        vectors = self.member_vectors(self.validation)
        paired = self.validation
        names = self.recipe.member_names
        shares, tried = chosen_shares(vectors, paired)
        self.model.shares.copy_(torch.tensor(shares))
        shown = {
            f"{n} {name}": round(s, 4)
            for n, (name, s) in enumerate(zip(names, shares, strict=True))
        }
        return {"members": {**self.notes, "shares": shown, "tried": tried}}


class LaterMembers(_MembersObjective):
    """A later stage: the new modality's members against the anchor's frozen vectors.

    Each begins as the ridge regression from its features to the anchor's vectors; networks are
    contrasted with the whole bank of them, as in `shared.AddedObjective`.
    """

    def _fit_closed_forms(self) -> None:
        anchor = self.train.second
        sent = self.member_vectors_of(anchor)
        self.banks = [torch.from_numpy(vectors).to(self.device) for vectors in sent]
        # A member without a share is in no vector: there is nothing to be close to.
        idle = [number for number, share in enumerate(self.model.shares.tolist()) if not share]
        self.trained = [number for number in self.trained if number not in idle]
        for number, bank in enumerate(sent):
            if number in idle:
                continue
            fitted = self._ridge(number, bank)
            begin(self.model.of(self.train.first).members[number], fitted)

    def member_vectors_of(self, modality: str) -> list[np.ndarray]:
        """Return each member's unit vectors of a training table."""
        vectors = embedded(self.family, modality, self.train)
        ends = np.cumsum(self.family.widths)[:-1]
        shares = self.model.shares.tolist()
        parts = np.split(vectors, ends, axis=1)
        return [
            np.ascontiguousarray(part) / np.float32(share or 1.0)
            for part, share in zip(parts, shares, strict=True)
        ]

    def _ridge(self, number: int, bank: np.ndarray) -> AffineMap:
        """Return the ridge regression into the anchor's vectors that ranks best."""
        moments = PairMoments(self.train.tables[self.train.first].width, bank.shape[1])
        pairs = self.train.pairs
        for start in range(0, len(pairs), PAIR_ROWS):
            block = pairs[start : start + PAIR_ROWS]
            with torch.no_grad():
                features = self.standardized(self.train.first, block[:, 0])
            moments.add(features.cpu().numpy(), bank[block[:, 1]])
        forms = ClosedForms(moments)
        paired = self.validation
        table = paired.tables[paired.first]
        values, mask = as_tensors(table.take(np.arange(len(table))), self.device)
        with torch.no_grad():
            standard = self.model.of(paired.first).standardized(values, mask).cpu().numpy()
        gallery = self.member_vectors(paired)[number][paired.second]
        chosen = self.recipe.regularisation
        tried = []
        for regularisation in [chosen] if chosen else REGULARISATIONS:
            maps = forms.fit("ridge", regularisation=regularisation, width=0, power=1.0)
            # Into the anchor's vectors themselves, their mean among them.
            into = AffineMap(maps.first.matrix, maps.first.offset + moments.mean_y)
            rank = mean_reciprocal_rank_both(into.apply(standard), gallery, paired.pairs)
            tried.append((rank, regularisation, into))
        best = max(tried, key=lambda entry: entry[0])
        self.notes[f"ridge {number}"] = {
            "regularisation": best[1],
            "mean_reciprocal_rank": round(best[0], 6),
        }
        return best[2]

    def loss(self, step: int) -> Tensor:
        """Return the sum of the networks' losses against their banks, and back."""
        batch = self.batches.batch(step)
        features = self.standardized(self.train.first, batch.first)
        rows, columns = (
            torch.from_numpy(side).to(self.device) for side in self.batches.partners.of(batch.first)
        )
        positives = torch.from_numpy(batch.positives.T.copy()).to(self.device)
        second = torch.from_numpy(batch.second).to(self.device)
        temperature = self.family.temperature
        losses = []
        for number in self.trained:
            u = self.model.of(self.train.first).member(number, features)
            bank = self.banks[number]
            there = bank_info_nce(u, bank, rows, columns, temperature=temperature)
            back = directed_info_nce(bank[second], u, positives, temperature)
            losses.append((there + back) / 2)
        return torch.stack(losses).sum()

    @property
    def temperature(self) -> float:
        """The first stage's."""
        return self.family.temperature

    def _parameters(self) -> dict[str, nn.Parameter]:
        members = self.model.of(self.train.first).members
        return {
            f"members.{number}.{name}": parameter
            for number in self.trained
            for name, parameter in members[number].named_parameters()
        }

    def settle(self) -> dict[str, Any]:
        """Return what the ridges were fitted with; shares are the first stage's."""
        return {"members": self.notes}


def begin(member: nn.Module, fitted: AffineMap) -> None:
    """Set what a member starts as; an mlp starts as it was drawn."""
    if isinstance(member, ClosedForm | ResidualMlp):
        member.start(fitted)


def sides_of(maps: LinearMaps) -> tuple[AffineMap, AffineMap]:
    """Return both sides' maps."""
    return maps.first, maps.second


# Choosing on validation rows --------------------------------------------------------------


def mean_reciprocal_rank_both(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> float:
    """Return the mean reciprocal rank, averaged over both directions."""
    there = 1.0 / retrieval_ranks(first, second, pairs)
    back = 1.0 / retrieval_ranks(second, first, pairs[:, ::-1])
    return float(there.mean() + back.mean()) / 2


@dataclass(frozen=True)
class _Joined:
    """Members' vectors of some pairs, joined by shares."""

    vectors: Sequence[Mapping[str, np.ndarray]]
    paired: PairedTables

    def rank(self, weights: Sequence[float]) -> float:
        sides = [
            np.concatenate(
                [w**0.5 * v[m] for w, v in zip(weights, self.vectors, strict=True) if w], axis=1
            )
            for m in (self.paired.first, self.paired.second)
        ]
        return mean_reciprocal_rank_both(sides[0], sides[1], self.paired.pairs)


def chosen_shares(
    vectors: Sequence[Mapping[str, np.ndarray]], paired: PairedTables
) -> tuple[list[float], list[dict[str, Any]]]:
    """Choose how much each member's cosine counts, greedily, by the mean reciprocal rank.

    Args:
        vectors: Of each member, unit vectors by modality.
        paired: Which belong together.

    Returns:
        Shares whose squares sum to 1, and what was tried.
    """
    joined, count = _Joined(vectors, paired), len(vectors)
    tried: list[dict[str, Any]] = []

    def rank(weights: Sequence[float]) -> float:
        found = joined.rank(weights)
        tried.append({"weights": list(weights), "mean_reciprocal_rank": round(found, 6)})
        return found

    alone = [rank([float(m == n) for m in range(count)]) for n in range(count)]
    order = sorted(range(count), key=lambda n: -alone[n])
    best = [float(n == order[0]) for n in range(count)]
    top = alone[order[0]]
    for number in order[1:]:
        options = [[*best[:number], share, *best[number + 1 :]] for share in SHARES]
        ranks = [rank(option) for option in options]
        if max(ranks) > top:
            top, best = max(ranks), options[int(np.argmax(ranks))]
    total = sum(best)
    return [(weight / total) ** 0.5 for weight in best], tried
