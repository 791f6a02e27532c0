"""The jobs of a combined space's stages: closed forms are fitted, networks trained, shares chosen.

Each network trains by a loss of its own; what they share is the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

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
    ResidualMlp,
)
from modalign.losses import bank_info_nce, directed_info_nce
from modalign.recipes import CombinedRecipe
from modalign.space.families import (
    EmbeddingFamily,
    Family,
    StageObjective,
    mean_figures,
    measure_all,
    send_table,
)
from modalign.space.pair_losses import (
    PairStep,
    gap_terms,
    mixed,
    pair_loss,
    pair_step,
    side_terms,
)
from modalign.space.paired import PairedTables, first_rows
from modalign.space.shares import chosen_shares, mean_reciprocal_rank_both, usual_weights
from modalign.training import PairBatches
from modalign.training.batches import Batch

# What is tried where the recipe leaves it open.
REGULARISATIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
POWERS = (0.25, 0.5, 1.0)
# From one strength half way to the next.
HALF = 1.8
# Pairs whose features are read at a time.
PAIR_ROWS = 8192


class Settings(NamedTuple):
    """What a closed form is fitted with; see `CombinedRecipe`."""

    regularisation: float
    power: float = 1.0


def best_settings(options: Sequence[Settings], score: Callable[[Settings], float]) -> Settings:
    """Return the settings that score highest, of some and of those half way to the next strength.

    Args:
        options: What is tried first; one alone is taken, and a strength alone stays.
        score: Returns how good settings are.
    """
    if len(options) == 1:
        return options[0]
    best = max(options, key=score)
    if len({option.regularisation for option in options}) == 1:
        return best
    between = [best._replace(regularisation=best.regularisation * f) for f in (1 / HALF, HALF)]
    return max([best, *between], key=score)


class MembersObjective(StageObjective):
    """What both stages share: closed forms, steps, validation, shares."""

    def __init__(
        self,
        family: EmbeddingFamily,
        *,
        train: PairedTables,
        validation: PairedTables,
        recipe: CombinedRecipe,
        seed: int,
    ) -> None:
        self.family = family
        self.recipe = recipe
        assert isinstance(family.model, CombinedConnectors)
        self.model = family.model
        self.entrance = family.model.entrances[-1]
        self.train = train
        self.validation = first_rows(validation, recipe.validation_items)
        self.batches = PairBatches(train.pairs, batch_size=recipe.batch_size, seed=seed)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.device = family.device
        self.seed = seed
        self.notes: dict[str, Any] = {}
        # Of closed forms, the mean reciprocal rank by what they were fitted with.
        self.ranked: dict[str, dict[Settings, float]] = {}
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
        # Of a batch of strangers one pair in B is a match.
        self.biases = nn.ParameterList(
            nn.Parameter(torch.tensor(-math.log(self.batches.batch_size)))
            for _ in (self.trained if recipe.loss == "sigmoid" else ())
        )
        self.log_temperatures.to(self.device)
        self.biases.to(self.device)
        self.parameters = self._parameters()
        self.kept_step = recipe.settled.step
        if recipe.settled.shares is not None:
            self.model.shares.copy_(torch.tensor(list(recipe.settled.shares)))

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
        return found | self._bias_parameters()

    def _bias_parameters(self) -> dict[str, nn.Parameter]:
        return {f"bias.{number}": parameter for number, parameter in enumerate(self.biases)}

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

    def bias(self, place: int) -> Tensor | float:
        """Return the log odds of a match at similarity 0 of a network; of the sigmoid loss."""
        return self.biases[place] if len(self.biases) else 0.0

    def validate(self) -> dict[str, float]:
        """Return the mean over both directions of recall@1 and of the reciprocal rank."""
        first, second = self.validation.first, self.validation.second
        both = [(first, second), (second, first)]
        return mean_figures(measure_all(self.family, [self.validation], both))

    def member_vectors(self, paired: PairedTables) -> list[dict[str, np.ndarray]]:
        """Return every member's unit vectors of both sides of some pairs."""
        widths = np.cumsum([0, *self.model.widths])
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


class FirstMembers(MembersObjective):
    """The first stage: both modalities' members, each by the loss of the recipe.

    Attributes:
        forms: What closed forms are fitted from; none any more once networks train.
    """

    forms: ClosedForms | None = None

    def train_mode(self) -> None:
        """See `MembersObjective`; statistics as wide as the features squared are given back."""
        self.forms = None
        super().train_mode()

    def _fit_closed_forms(self) -> None:
        kinds = self.recipe.member_names
        wanted = {kind for kind in kinds if kind in CLOSED_FORMS}
        wanted |= {self.recipe.start} if "residual" in kinds else set()
        if not wanted:
            return
        first, second = self.train.first, self.train.second
        tables = self.train.tables
        moments = PairMoments(tables[first].width, tables[second].width, names=(first, second))
        for block in self._pair_blocks():
            moments.add(*block)
        self.forms = ClosedForms(moments)
        self.begin_with({method: self._chosen(method) for method in sorted(wanted)})

    def begin_with(self, chosen: Mapping[str, Settings]) -> None:
        """Set members to closed forms, those of the given methods."""
        fitted = {method: self._fit(method, settings) for method, settings in chosen.items()}
        modalities = (self.train.first, self.train.second)
        for number, kind in enumerate(self.recipe.member_names):
            method = self.recipe.start if kind == "residual" else kind
            if method in fitted:
                for modality, side in zip(modalities, sides_of(fitted[method]), strict=True):
                    begin(self.model.of(modality).members[number], side)

    def _chosen(self, method: str) -> Settings:
        """Return the settings of a closed form that rank best on validation rows."""
        best = best_settings(self.settings(method), lambda tried: self.score(method, tried))
        self.notes[method] = {
            "regularisation": best.regularisation,
            "power": best.power,
            "mean_reciprocal_rank": round(self.score(method, best), 6),
            "tried": len(self.ranked[method]),
        }
        return best

    def settings(self, method: str) -> list[Settings]:
        """Return what is tried of a closed form."""
        recipe, settled = self.recipe, self.recipe.settled.closed_forms
        if method in settled:
            return [Settings(settled[method]["regularisation"], settled[method]["power"])]
        regularisations = [recipe.regularisation] if recipe.regularisation else REGULARISATIONS
        powers = ([recipe.power] if recipe.power else POWERS) if method == "cca" else [1.0]
        found = [Settings(r, p) for r, p in product(regularisations, powers)]
        return found[:1] if method == "procrustes" else found

    def score(self, method: str, settings: Settings) -> float:
        """Return the mean reciprocal rank that a closed form has on validation rows."""
        known = self.ranked.setdefault(method, {})
        if settings not in known:
            known[settings] = self._reciprocal_rank(self._fit(method, settings))
        return known[settings]

    def _fit(self, method: str, settings: Settings) -> LinearMaps:
        assert self.forms is not None
        width = min(self.recipe.width, *self.forms.widths)
        regularisation, power = settings
        return self.forms.fit(method, regularisation=regularisation, width=width, power=power)

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
        pairs = pair_step(
            batch,
            self.standardized(self.train.first, batch.first),
            self.standardized(self.train.second, batch.second),
        )
        pairs = mixed(pairs, self.recipe, seed=self.seed, number=step)
        return torch.stack(
            [self._member_loss(number, place, pairs) for place, number in enumerate(self.trained)]
        ).sum()

    def _member_loss(self, number: int, place: int, pairs: PairStep) -> Tensor:
        recipe = self.recipe
        u = self.model.of(self.train.first).member(number, pairs.first)
        v = self.model.of(self.train.second).member(number, pairs.second)
        temperature = self.log_temperatures[place].exp()
        return (
            pair_loss(recipe, u, v, pairs.positives, temperature=temperature, bias=self.bias(place))
            + side_terms(recipe, pairs.first, u, pairs.same_first)
            + side_terms(recipe, pairs.second, v, pairs.same_second)
            + gap_terms(recipe, u, v, pairs.positives)
        )

    def settle(self) -> dict[str, Any]:
        """Choose the members' shares on validation rows, unless they are settled."""
        names = self.recipe.member_names
        if self.recipe.settled.shares is not None:
            shares = list(self.recipe.settled.shares)
            tried: list[dict[str, Any]] = []
        else:
            vectors = self.member_vectors(self.validation)
            usual = usual_weights(names)
            shares, tried = chosen_shares(vectors, self.validation, usual=usual)
        self.model.shares.copy_(torch.tensor(shares))
        shown = {
            f"{n} {name}": round(s, 4)
            for n, (name, s) in enumerate(zip(names, shares, strict=True))
        }
        return {"members": {**self.notes, "shares": shown, "tried": tried}}


class LaterMembers(MembersObjective):
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
        ends = np.cumsum(self.model.widths)[:-1]
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

        def into(settings: Settings) -> AffineMap:
            """Map into the anchor's vectors themselves, their mean among them."""
            maps = forms.fit("ridge", regularisation=settings.regularisation, width=0, power=1.0)
            return AffineMap(maps.first.matrix, maps.first.offset + moments.mean_y)

        @cache
        def score(settings: Settings) -> float:
            mapped = into(settings).apply(standard)
            return mean_reciprocal_rank_both(mapped, gallery, paired.pairs)

        options = [Settings(r) for r in ([chosen] if chosen else REGULARISATIONS)]
        best = best_settings(options, score)
        self.notes[f"ridge {number}"] = {
            "regularisation": best.regularisation,
            "mean_reciprocal_rank": round(score(best), 6),
        }
        return into(best)

    def loss(self, step: int) -> Tensor:
        """Return the sum of the networks' losses against what is frozen."""
        batch = self.batches.batch(step)
        anchor = self.standardized(self.train.second, batch.second) if self.recipe.mixup else None
        features = self.standardized(self.train.first, batch.first)
        pairs = pair_step(batch, features, features if anchor is None else anchor)
        pairs = mixed(pairs, self.recipe, seed=self.seed, number=step)
        return torch.stack(
            [
                self._member_loss(number, place, pairs, batch)
                for place, number in enumerate(self.trained)
            ]
        ).sum()

    def _member_loss(self, number: int, place: int, pairs: PairStep, batch: Batch) -> Tensor:
        recipe, temperature = self.recipe, self.family.temperature
        u = self.model.of(self.train.first).member(number, pairs.first)
        if recipe.mixup:
            # What is mixed is in no bank.
            with torch.no_grad():
                v = self.model.of(self.train.second).member(number, pairs.second)
        else:
            v = self.banks[number][torch.from_numpy(batch.second).to(self.device)]
        # Of two modalities the n-way loss is InfoNCE.
        if recipe.loss in ("info-nce", "n-way") and not recipe.mixup:
            main = self._bank_loss(number, u, v, pairs.positives, batch)
        else:
            main = pair_loss(
                recipe, u, v, pairs.positives, temperature=temperature, bias=self.bias(place)
            )
        return (
            main
            + side_terms(recipe, pairs.first, u, pairs.same_first)
            + gap_terms(recipe, u, v, pairs.positives)
        )

    def _bank_loss(
        self, number: int, u: Tensor, v: Tensor, positives: Tensor, batch: Batch
    ) -> Tensor:
        """Contrast the batch with the whole bank, and the bank's rows of the batch with it."""
        rows, columns = (
            torch.from_numpy(side).to(self.device) for side in self.batches.partners.of(batch.first)
        )
        temperature = self.family.temperature
        there = bank_info_nce(u, self.banks[number], rows, columns, temperature=temperature)
        return (there + directed_info_nce(v, u, positives.T, temperature)) / 2

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
        } | self._bias_parameters()

    def settle(self) -> dict[str, Any]:
        """Return what the ridges were fitted with; shares are the first stage's."""
        return {"members": self.notes}


def begin(member: nn.Module, fitted: AffineMap) -> None:
    """Set what a member is made from; an mlp starts as it was drawn."""
    if isinstance(member, ClosedForm | ResidualMlp):
        member.start(fitted)


def sides_of(maps: LinearMaps) -> tuple[AffineMap, AffineMap]:
    """Return both sides' maps."""
    return maps.first, maps.second
