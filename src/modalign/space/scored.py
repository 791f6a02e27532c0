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

from modalign.gallery import Hits, Searchable
from modalign.recipes import CombinedRecipe, Recipe
from modalign.scoring import (
    CANDIDATES,
    Bank,
    Calibration,
    Correction,
    NoCorrection,
    candidate_ranks,
    choose_correction,
    correction_from_json,
    cross_fitted,
    expected_calibration_error,
    fit_calibration,
    kept_precision,
    reliability,
    result_matches,
)
from modalign.scoring.calibration import HITS
from modalign.scoring.hubs import best_results, unit
from modalign.space.families import Family, Growth, Scoring, Sides
from modalign.space.paired import PairedTables, pairs_of_rows, spread

# Validation queries that corrections are chosen and calibrated by, at most.
MOST_QUERIES = 10_000
# Results of an index that a correction sorts anew, at least.
RERANKED = 200
# How a bank's tensor is called among a stage's weights.
BANK = "bank."


@dataclass(frozen=True)
class FittedScoring:
    """What was fitted for a stage.

    Attributes:
        by_direction: As ("text", "image").
        banks: Of the ways that are corrected, by name: training queries as they are sent, float16
            [B, D], and the centers of galleries, float32 [D].
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

    What a recipe has settled is not chosen again.

    Args:
        family: The connectors, trained.
        recipe: Its `scoring` says what may be chosen.
        growth: What the stage brought.
        train: Where banks are drawn from.
        validation: What is chosen and calibrated on.
        seed: Of the banks.
    """
    fitted = FittedScoring({}, {}, {})
    drawn = _DrawnBanks(family, recipe, seed)
    for paired, held in zip(train, validation, strict=True):
        sides = Sides(family, held.tables)
        for source, target in held.among(growth.directions):
            bank = drawn.bank(paired, source, target)
            scoring, notes = _direction(sides, (source, target), held, bank, recipe)
            fitted.by_direction[source, target] = scoring
            fitted.record[direction_name((source, target))] = {**scoring.as_json(), **notes}
            if scoring.corrects:
                way, stored = family.query_way(source, target), family.gallery_way(target)
                fitted.banks[bank_name(way)] = bank.queries
                if bank.center is not None:
                    fitted.banks[center_name(stored)] = bank.center
    return fitted


def correction_ranks(
    family: Family,
    recipe: Recipe,
    growth: Growth,
    *,
    train: PairedTables,
    held: PairedTables,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the ranks by every correction that may be chosen, int64 [candidates, Q].

    Args: see `fit_scoring`.

    Returns:
        By direction, as "text->image".
    """
    sides, drawn = Sides(family, held.tables), _DrawnBanks(family, recipe, seed)
    found = {}
    for source, target in held.among(growth.directions):
        name = direction_name((source, target))
        found[name] = candidate_ranks(
            *sides.between(source, target),
            held.oriented(source),
            drawn.bank(train, source, target),
            candidates=candidates_of(recipe, name),
        )
    return found


def candidates_of(recipe: Recipe, direction: str) -> list[Correction]:
    """Return the corrections a recipe lets be tried; what is not named is none.

    Args:
        recipe: Its `scoring` says which.
        direction: One that a recipe may have settled.
    """
    settled = settled_correction(recipe, direction)
    if settled is not None:
        # The plain cosine is measured beside it, for comparison.
        plain = CANDIDATES[0]
        return [plain] if settled == plain else [plain, settled]
    return [c for c in CANDIDATES if recipe.scoring in ("chosen", c.name)]


def settled_correction(recipe: Recipe, direction: str) -> Correction | None:
    """Return the correction that a recipe has settled for a direction; None where it is open."""
    settled = recipe.settled.corrections if isinstance(recipe, CombinedRecipe) else {}
    return correction_from_json(dict(settled[direction])) if direction in settled else None


def direction_name(direction: tuple[str, str]) -> str:
    """Return what a stage's record calls a direction."""
    return f"{direction[0]}->{direction[1]}"


def bank_name(way: Sequence[str]) -> str:
    """Return what a way's bank is called."""
    return ".".join(way)


def center_name(way: Sequence[str]) -> str:
    """Return what the center of a way's vectors is called."""
    return f"center.{bank_name(way)}"


class _DrawnBanks:
    """Training rows sent their ways, each way once."""

    def __init__(self, family: Family, recipe: Recipe, seed: int) -> None:
        self.family = family
        self.limit = 0 if recipe.scoring == "none" else recipe.bank_items
        self.seed = seed
        self._sent: dict[tuple[str, ...], np.ndarray] = {}

    def bank(self, paired: PairedTables, source: str, target: str) -> Bank:
        """Return a direction's bank; an empty one where the recipe corrects nothing."""
        way, stored = self.family.query_way(source, target), self.family.gallery_way(target)
        if not self.limit:
            return Bank.empty(self.family.width_of(way))
        return Bank(
            self._rows(way, paired.tables[source]),
            unit(self._rows(stored, paired.tables[target])).mean(0),
        )

    def _rows(self, way: tuple[str, ...], table: Any) -> np.ndarray:
        if way not in self._sent:
            rows = np.arange(len(table))
            if len(rows) > self.limit:
                rng = np.random.default_rng([self.seed, 13])
                rows = np.sort(rng.choice(len(rows), self.limit, replace=False))
            self._sent[way] = self.family.send(way, table.take(rows)).astype(np.float16)
        return self._sent[way]


def _direction(
    sides: Sides,
    direction: tuple[str, str],
    held: PairedTables,
    bank: Bank,
    recipe: Recipe,
) -> tuple[Scoring, dict[str, Any]]:
    # Search of directed maps goes by contrast vectors where evaluation fuses both directions.
    score = "contrast" if sides.family.score == "fused" else None
    queries, gallery = sides.between(*direction, score=score)
    queries, positives = some_queries(queries, held.oriented(direction[0]))
    correction, tried = choose_correction(
        queries,
        gallery,
        positives,
        bank,
        candidates=candidates_of(recipe, direction_name(direction)),
    )
    correction = settled_correction(recipe, direction_name(direction)) or correction
    similarity, rows = correction.applied(queries, gallery, bank).best_results(HITS)
    matched = result_matches(rows, positives, gallery=len(gallery))
    calibration = fit_calibration(similarity.ravel(), matched.ravel(), gallery=len(gallery))
    # Of queries it was not fitted on.
    probability = cross_fitted(similarity, matched, gallery=len(gallery)).ravel()
    notes = {
        "tried": tried,
        "calibration_error": round(expected_calibration_error(probability, matched.ravel()), 6),
        "kept_precision": kept_precision(similarity, matched, gallery=len(gallery)),
        "reliability": [vars(found) for found in reliability(probability, matched.ravel())],
    }
    # What is compared as it is needs no bank.
    kept = Bank.empty(queries.shape[1]) if type(correction) is NoCorrection else bank
    return Scoring(correction, calibration, kept), notes


def some_queries(queries: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return as many queries as it takes, evenly spread, and their positives.

    Each is compared with the whole gallery, by every correction that may be chosen.

    Args:
        queries: float [Q, D].
        positives: (query, item), int64 [P, 2].
    """
    if len(queries) <= MOST_QUERIES:
        return queries, positives
    rows = spread(np.arange(len(queries)), MOST_QUERIES)
    return queries[rows], pairs_of_rows(positives, rows)


def scored_hits(
    hits: Hits, queries: np.ndarray, gallery: Searchable, scoring: Scoring, k: int
) -> Hits:
    """Correct the results of a gallery's own search, and say how probable each is.

    Args:
        hits: More than k of each query where a correction may move them.
        queries: That were searched by, float [Q, D].
        gallery: Where they are from.
        scoring: Of the direction.
        k: Results kept.

    Returns:
        The k best by corrected similarity; their `similarity` is the cosine as it was.
    """
    if not scoring.corrects:
        probability = scoring.calibration.probability(hits.similarity, gallery=len(gallery))
        return replace(hits, probability=probability.astype(np.float32))
    corrected = np.stack(
        [
            _corrected(scoring, queries[row : row + 1], gallery, hits, row)
            for row in range(len(hits.ids))
        ]
    )
    best, order = best_results(corrected, k)
    return Hits(
        [[ids[place] for place in row] for ids, row in zip(hits.ids, order, strict=True)],
        np.take_along_axis(hits.rows, order, axis=1),
        np.take_along_axis(hits.similarity, order, axis=1),
        scoring.calibration.probability(best, gallery=len(gallery)).astype(np.float32),
    )


def _corrected(
    scoring: Scoring, query: np.ndarray, gallery: Searchable, hits: Hits, row: int
) -> np.ndarray:
    """Return the corrected similarities of a query's results; -inf where there is none."""
    found = np.full(len(hits.ids[row]), -np.inf, np.float32)
    # An approximate index may find fewer than it was asked for: what is missing comes last.
    count = sum(1 for hit_id in hits.ids[row] if hit_id)
    if count:
        vectors = gallery.result_vectors(hits, row)[:count]
        found[:count] = scoring.applied(query, vectors).similarity()[0]
    return found


def read_scoring(
    record: Mapping[str, Any], banks: Mapping[str, np.ndarray], family: Family
) -> dict[tuple[str, str], Scoring]:
    """Return what a stage's record and its banks say."""
    found: dict[tuple[str, str], Scoring] = {}
    for name, entry in record.items():
        source, _, target = name.partition("->")
        correction = correction_from_json(entry["correction"])
        way, stored = family.query_way(source, target), family.gallery_way(target)
        queries = banks.get(bank_name(way))
        found[source, target] = Scoring(
            correction,
            Calibration.from_json(entry["calibration"]),
            Bank.empty(family.width_of(way))
            if queries is None
            else Bank(queries, banks.get(center_name(stored))),
        )
    return found
