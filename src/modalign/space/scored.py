"""What a stage keeps of scoring: a hub correction and a calibration for each of its directions.

The bank of a way, training queries as they are sent, lies beside the stage's weights and is
read when a correction asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalign.gallery import Gallery, Hits, Searchable
from modalign.recipes import Recipe
from modalign.scoring import (
    CANDIDATES,
    Calibration,
    Correction,
    NoCorrection,
    choose_correction,
    correction_from_json,
    cross_fitted,
    expected_calibration_error,
    fit_calibration,
    reliability,
    rerank,
    result_matches,
)
from modalign.scoring.calibration import HITS
from modalign.scoring.hubs import unit
from modalign.space.families import Family, Growth, Scoring, Sides
from modalign.space.paired import PairedTables

# Results of an index that a correction sorts anew, at least.
RERANKED = 200
# How a bank's tensor is called among a stage's weights.
BANK = "bank."


@dataclass(frozen=True)
class FittedScoring:
    """What was fitted for a stage.

    Attributes:
        by_direction: As ("text", "image").
        banks: Training queries by the name of their way, float16 [B, D].
        record: What the stage's record holds.
    """

    by_direction: dict[tuple[str, str], Scoring]
    banks: dict[str, np.ndarray]
    record: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The banks as a stage stores them."""
        return {f"{BANK}{name}": torch.from_numpy(bank) for name, bank in self.banks.items()}


def fit_scoring(
    family: Family,
    recipe: Recipe,
    growth: Growth,
    *,
    train: Sequence[PairedTables],
    validation: Sequence[PairedTables],
    seed: int,
) -> FittedScoring:
    """Choose a correction for each direction on validation rows, and calibrate it there.

    Args:
        family: The connectors, trained.
        recipe: Its `scoring` says what may be chosen; families without one are calibrated only.
        growth: What the stage brought.
        train: Where banks are drawn from.
        validation: What is chosen and calibrated on.
        seed: Of the banks.
    """
    fitted = FittedScoring({}, {}, {})
    for paired, held in zip(train, validation, strict=True):
        sides = Sides(family, held.tables)
        for source, target in held.among(growth.directions):
            way = family.query_way(source, target)
            name = bank_name(way)
            if name not in fitted.banks and kind_of(recipe) != "none":
                fitted.banks[name] = drawn_bank(family, way, paired.tables[source], recipe, seed)
            bank = fitted.banks.get(name, np.zeros((0, family.width_of(way)), np.float16))
            scoring, notes = _direction(sides, (source, target), held, bank, recipe)
            fitted.by_direction[source, target] = scoring
            fitted.record[f"{source}->{target}"] = {**scoring.as_json(), **notes}
    used = {
        bank_name(family.query_way(*direction))
        for direction, scoring in fitted.by_direction.items()
        if not isinstance(scoring.correction, NoCorrection)
    }
    for name in set(fitted.banks) - used:
        del fitted.banks[name]
    return fitted


def kind_of(recipe: Recipe) -> str:
    """Return the recipe's hub correction; families of the papers have none."""
    return str(getattr(recipe, "scoring", "none"))


def candidates_of(recipe: Recipe) -> list[Correction]:
    """Return the corrections a recipe lets be tried; what is not named is none."""
    kind = kind_of(recipe)
    return [c for c in CANDIDATES if kind in ("chosen", c.name)]


def bank_name(way: Sequence[str]) -> str:
    """Return what a way's bank is called."""
    return ".".join(way)


def drawn_bank(
    family: Family, way: tuple[str, ...], table: Any, recipe: Recipe, seed: int
) -> np.ndarray:
    """Send training queries their way, as many as the recipe keeps, float16 [B, D]."""
    limit = int(getattr(recipe, "bank_items", 0))
    rows = np.arange(len(table))
    if len(rows) > limit:
        chosen = np.random.default_rng([seed, 13]).choice(len(rows), limit, replace=False)
        rows = np.sort(chosen)
    return family.send(way, table.take(rows)).astype(np.float16)


def _direction(
    sides: Sides,
    direction: tuple[str, str],
    held: PairedTables,
    bank: np.ndarray,
    recipe: Recipe,
) -> tuple[Scoring, dict[str, Any]]:
    # Search of directed maps goes by contrast vectors where evaluation fuses both directions.
    score = "contrast" if sides.family.score == "fused" else None
    queries, gallery = sides.between(*direction, score=score)
    positives = held.oriented(direction[0])
    correction, tried = choose_correction(
        queries, gallery, positives, bank, candidates=candidates_of(recipe)
    )
    bias = correction.bias(gallery, bank)
    similarity, rows = best_results(queries, gallery, bias, HITS)
    matched = result_matches(rows, positives, gallery=len(gallery))
    calibration = fit_calibration(similarity.ravel(), matched.ravel(), gallery=len(gallery))
    # Of queries it was not fitted on.
    probability = cross_fitted(similarity, matched, gallery=len(gallery)).ravel()
    notes = {
        "tried": tried,
        "calibration_error": round(expected_calibration_error(probability, matched.ravel()), 6),
        "reliability": [vars(found) for found in reliability(probability, matched.ravel())],
    }
    return Scoring(correction, calibration, bank), notes


def best_results(
    queries: np.ndarray, gallery: np.ndarray, bias: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best corrected similarities of each query and their rows, [Q, k] both."""
    similarity = unit(queries) @ unit(gallery).T - bias
    k = min(k, len(gallery))
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, rows, axis=1), rows


def scored_hits(hits: Hits, gallery: Searchable, scoring: Scoring, k: int) -> Hits:
    """Correct the results of a gallery's own search, and say how probable each is.

    Args:
        hits: More than k of each query where a correction may move them.
        gallery: Where they are from.
        scoring: Of the direction.
        k: Results kept.

    Returns:
        The k best by corrected similarity; their `similarity` is the cosine as it was.
    """
    if not (scoring.corrects and isinstance(gallery, Gallery)):
        probability = scoring.calibration.probability(hits.similarity)
        return replace(hits, probability=probability.astype(np.float32))
    used, places = np.unique(hits.rows, return_inverse=True)
    bias = scoring.bias(gallery.vectors[used])[places.reshape(hits.rows.shape)]
    order, corrected = rerank(hits.similarity, bias, k)
    return Hits(
        [[ids[place] for place in row] for ids, row in zip(hits.ids, order, strict=True)],
        np.take_along_axis(hits.rows, order, axis=1),
        np.take_along_axis(hits.similarity, order, axis=1),
        scoring.calibration.probability(corrected).astype(np.float32),
    )


def read_scoring(
    record: Mapping[str, Any], banks: Mapping[str, np.ndarray], family: Family
) -> dict[tuple[str, str], Scoring]:
    """Return what a stage's record and its banks say."""
    found: dict[tuple[str, str], Scoring] = {}
    for name, entry in record.items():
        source, _, target = name.partition("->")
        correction = correction_from_json(entry["correction"])
        way = family.query_way(source, target)
        empty = np.zeros((0, family.width_of(way)), np.float16)
        found[source, target] = Scoring(
            correction,
            Calibration.from_json(entry["calibration"]),
            banks.get(bank_name(way), empty),
        )
    return found
