"""What a space asks of its connectors, whichever family they are of.

    shared space (OneEncoder)    gallery_b = embed_b(z_b)            query_{a->b} = embed_a(z_a)
    directed maps (Alt-MoE)      gallery_b = z_b as encoded          query_{a->b} = map_{a->b}(z_a)

Search, evaluation and verification know the two sides and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from modalign.connectors.blocks import map_in_blocks
from modalign.connectors.mixture import Direction as ModalityDirection
from modalign.encoders import Features
from modalign.errors import UsageError
from modalign.evaluation import Direction, evaluate_direction, every_direction
from modalign.features import FeatureRows
from modalign.recipes import Recipe
from modalign.scoring import Bank, Calibration, Compared, Correction
from modalign.space.paired import PairedTables, RowTables, chunks
from modalign.training import Objective

# How features become vectors, as ("embed", "image"), ("raw", "text"), ("map", "image", "text").
Way = tuple[str, ...]


class StageObjective(Objective):
    """The job of one stage.

    Attributes:
        temperature: What the stage records: one figure, or one for each direction.
    """

    @property
    @abstractmethod
    def temperature(self) -> float | dict[str, float]:
        """The divisor of similarity as it is now."""

    def settle(self) -> dict[str, Any]:
        """Choose on validation what is chosen when training is over; return what was.

        Nothing, as a rule. What is returned goes into the stage's record.
        """
        return {}


@dataclass(frozen=True)
class Growth:
    """What a stage brings.

    Attributes:
        widths: D_m of the new modalities' encoders.
        anchor: The modality that was there, None in a first stage.
        directions: (source, target) each, that are trained and measured.
    """

    widths: Mapping[str, int]
    anchor: str | None
    directions: tuple[ModalityDirection, ...]


@dataclass(frozen=True)
class Scoring:
    """How similarities of a direction are scored.

    Attributes:
        correction: Of hubs.
        calibration: Of what it gives.
        bank: What the correction is worked out from.
    """

    correction: Correction
    calibration: Calibration
    bank: Bank

    @property
    def corrects(self) -> bool:
        """Whether a similarity is other than the cosine."""
        return len(self.bank) > 0

    def applied(self, queries: np.ndarray, gallery: np.ndarray) -> Compared:
        """Return what is compared of queries [Q, D] and stored vectors [G, D]."""
        return self.correction.applied(queries, gallery, self.bank)

    def as_json(self) -> dict[str, Any]:
        """Return all but the bank."""
        return {
            "correction": self.correction.as_json(),
            "calibration": self.calibration.as_json(),
            "bank": len(self.bank),
        }


class Family(ABC):
    """Fitted connectors, stage by stage.

    Attributes:
        name: As a stage records it.
        recipe: The first stage's.
        device: Where it computes.
        model: All connectors.
        score: What evaluation goes by unless told otherwise.
        scoring: Of the directions that were trained, by (source, target).
    """

    name: ClassVar[str]
    model: nn.Module

    def __init__(self, recipe: Recipe, *, device: str = "cpu") -> None:
        self.recipe: Any = recipe
        self.device = device
        self.score = ""
        self.scoring: dict[ModalityDirection, Scoring] = {}

    # Training

    @classmethod
    @abstractmethod
    def first_count(cls, recipe: Any) -> int | None:
        """Return how many modalities a first stage joins; None: two or more."""

    @abstractmethod
    def growth(self, recipe: Any, widths: Mapping[str, int], *, anchor: str | None) -> Growth:
        """Plan a stage.

        Raises:
            UsageError: The recipe cannot be used for these modalities.
        """

    @abstractmethod
    def grow(self, recipe: Any, growth: Growth) -> nn.Module:
        """Add what a stage trains, untrained; its state is what the stage keeps."""

    @abstractmethod
    def remember(self, temperature: Any) -> None:
        """Take the temperature that the newest stage recorded."""

    @abstractmethod
    def objective(
        self,
        recipe: Any,
        growth: Growth,
        *,
        train: Sequence[PairedTables],
        validation: Sequence[PairedTables],
        seed: int,
        rows: Callable[[str], RowTables] | None = None,
    ) -> StageObjective:
        """Return the job of training what `grow` added last.

        Args:
            recipe: Of the stage.
            growth: What it brings.
            train: Features and pairs for every two modalities a direction joins.
            validation: The same of the validation rows.
            seed: Of all that is drawn.
            rows: Gives whole rows of a split, for losses of more than two modalities.
        """

    # The two sides of retrieval

    @abstractmethod
    def gallery_way(self, modality: str) -> Way:
        """Return what is stored of a modality."""

    @abstractmethod
    def query_way(self, source: str, target: str, *, score: str = "") -> Way:
        """Return what is asked of a target's gallery.

        Args:
            source: The queries' modality.
            target: The gallery's.
            score: Of directed maps, the kind of vector; by default `score`.

        Raises:
            UsageError: No way leads there, or the family has no such kind.
        """

    def composed(self, vectors: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        """Join the vectors of a query that is given in several parts.

        Args:
            vectors: Of each part, float32 [N, D].
            weights: Of each part, > 0, float32 [parts].

        Returns:
            float32 [N, D]: the weighted mean of the unit vectors, as nothing joins them in
            training.
        """
        joined: np.ndarray = np.average([unit_rows(side) for side in vectors], 0, weights)
        return joined

    def asks_as_stored(self, source: str, target: str) -> bool:
        """Return whether what is asked of a target is what is stored of the source."""
        return self.query_way(source, target) == self.gallery_way(source)

    def leads(self, source: str, target: str) -> bool:
        """Return whether a way leads from source to target: in a shared space always."""
        return True

    @abstractmethod
    def temperature_of(self, source: str, target: str) -> float:
        """Return the divisor of similarity between two modalities."""

    @abstractmethod
    def send(self, way: Way, features: Features) -> np.ndarray:
        """Send checked features some way: vectors float32 [N, D] of any length but 0.

        A row's bits do not depend on the rows it comes with, nor on the number of threads.
        """

    @abstractmethod
    def width_of(self, way: Way) -> int:
        """Return D."""

    @abstractmethod
    def way_sha256(self, way: Way, fingerprint: str) -> str:
        """Return the hash of all that features of an encoder pass through on a way."""

    def ways_of(self, growth: Growth) -> dict[str, Way]:
        """Return the query ways a stage brings beside its galleries', by what they are called."""
        return {}


class EmbeddingFamily(Family):
    """One shared space: every modality has one way into it, for the gallery and for queries.

    A first stage joins two modalities, a later one adds one; the space has one temperature.
    """

    temperature: float

    @classmethod
    def first_count(cls, recipe: Any) -> int | None:
        """Return two."""
        return 2

    def growth(self, recipe: Any, widths: Mapping[str, int], *, anchor: str | None) -> Growth:
        """Plan a stage: all directions between its modalities."""
        joined = [*widths, anchor] if anchor else widths
        return Growth(widths, anchor, tuple(every_direction(joined)))

    def remember(self, temperature: Any) -> None:
        """Take the first stage's temperature; the later ones train with it."""
        self.temperature = temperature

    def gallery_way(self, modality: str) -> Way:
        """Return the modality's way into the space."""
        return ("embed", modality)

    def query_way(self, source: str, target: str, *, score: str = "") -> Way:
        """Return the source's way into the space: it is the same for all targets."""
        if score:
            raise UsageError(
                f"score {score}: a shared space has one kind of vector, only directed maps "
                "(alt-moe) have others; leave it out"
            )
        return ("embed", source)

    def temperature_of(self, source: str, target: str) -> float:
        """Return the space's."""
        return self.temperature

    def send(self, way: Way, features: Features) -> np.ndarray:
        """Embed features: unit vectors, float32 [N, D]."""
        _, modality = way
        return map_in_blocks(
            self.model,
            features,
            way=lambda values, mask: self.model(modality, values, mask),
            device=self.device,
        )


def send_table(family: Family, way: Way, table: FeatureRows) -> np.ndarray:
    """Send every row of a table, a chunk at a time, float32 [N, D]."""
    if not len(table):
        return np.zeros((0, family.width_of(way)), np.float32)
    return np.concatenate([family.send(way, features) for features in chunks(table)])


class Sides:
    """Both sides of retrieval between tables of features, each sent once a way.

    Args:
        family: The connectors.
        tables: Features by modality.
    """

    def __init__(self, family: Family, tables: Mapping[str, FeatureRows]) -> None:
        self.family = family
        self.tables = tables
        self._sent: dict[Way, np.ndarray] = {}

    def between(
        self, source: str, target: str, *, score: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return queries [Q, D] and gallery [G, D], of any length.

        Args:
            source: The queries' modality.
            target: The gallery's.
            score: Of directed maps: what to compare by; see `Space.evaluate`.
        """
        score = score or self.family.score
        if score == "fused":
            self.family.query_way(source, target, score=score)  # a shared space has no such kind
            return self._fused(source, target)
        query = self.family.query_way(source, target, score=score)
        return self._side(source, query), self._side(target, self.family.gallery_way(target))

    def compared(self, source: str, target: str, *, score: str | None = None) -> Compared:
        """Return both sides as search compares them: corrected, where that was chosen.

        Args:
            source: The queries' modality.
            target: The gallery's.
            score: See `between`; another one than the family's own was never corrected.
        """
        queries, gallery = self.between(source, target, score=score)
        scoring = self.family.scoring.get((source, target))
        if scoring is None or not scoring.corrects or (score or "") not in ("", self.family.score):
            return Compared(queries, gallery, np.zeros(len(gallery), np.float32))
        return scoring.applied(queries, gallery)

    def _fused(self, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors whose product is the sum of both directions' similarities.

        Each similarity is divided by its direction's temperature, as in training.
        """
        family = self.family
        queries, gallery = [], []
        for a, b in ((source, target), (target, source)):
            mapped = self._side(a, family.query_way(a, b, score="contrast"))
            raw = unit_rows(self._side(b, family.gallery_way(b)))
            share = family.temperature_of(a, b) ** -0.5
            queries.append(share * (mapped if a == source else raw))
            gallery.append(share * (raw if a == source else mapped))
        return np.concatenate(queries, axis=1), np.concatenate(gallery, axis=1)

    def _side(self, modality: str, way: Way) -> np.ndarray:
        if way not in self._sent:
            self._sent[way] = send_table(self.family, way, self.tables[modality])
        return self._sent[way]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1; one of zeros stays."""
    unit: np.ndarray = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12)
    )
    return unit


def measure(
    family: Family, paired: PairedTables, directions: Sequence[ModalityDirection], *, seed: int = 0
) -> list[Direction]:
    """Evaluate some directions of a split."""
    sides = Sides(family, paired.tables)
    found = []
    for source, target in directions:
        compared = sides.compared(source, target)
        found.append(
            evaluate_direction(
                compared.queries,
                compared.gallery,
                paired.oriented(source),
                source=source,
                target=target,
                seed=seed,
                bias=compared.bias,
            )
        )
    return found


def measure_all(
    family: Family, paired: Sequence[PairedTables], directions: Sequence[ModalityDirection]
) -> list[Direction]:
    """Evaluate a stage's directions, each on the tables that join its modalities."""
    return [
        measured
        for tables in paired
        for measured in measure(family, tables, tables.among(directions))
    ]


def mean_figures(measured: Sequence[Direction]) -> dict[str, float]:
    """Return what training decides by: means over directions, and each direction's recall@1."""
    count = len(measured)
    return {
        "recall": sum(d.recall_at_1 for d in measured) / count,
        "mean_reciprocal_rank": sum(d.mean_reciprocal_rank for d in measured) / count,
        **{f"{d.source}->{d.target}": d.recall_at_1 for d in measured},
    }
