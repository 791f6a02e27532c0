"""One shared space of members: closed forms and small networks that err differently.

Gallery and query go through the same members; see `modalign.space.joining` for what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from modalign.connectors.members import (
    CombinedConnectors,
    Entrance,
    ModalityMembers,
    new_member,
)
from modalign.recipes import CombinedRecipe
from modalign.space.families import EmbeddingFamily, Growth, StageObjective, Way
from modalign.space.joining import FirstMembers, LaterMembers, MembersObjective
from modalign.space.paired import PairedTables, RowTables, feature_figures
from modalign.space.stages import path_sha256
from modalign.space.tuples import NWayMembers, composed_vectors


class CombinedSpace(EmbeddingFamily):
    """All modalities in one space, gallery and query by the same members."""

    name = "combined"
    model: CombinedConnectors

    @classmethod
    def first_count(cls, recipe: CombinedRecipe) -> int | None:
        """Return two; by the n-way loss two or more."""
        return None if recipe.loss == "n-way" else 2

    def grow(self, recipe: CombinedRecipe, growth: Growth) -> nn.Module:
        """Build the members of the stage's modalities."""
        first = growth.anchor is None
        widths = member_widths(recipe, list(growth.widths.values())) if first else self.model.widths
        entrance = Entrance(
            {
                name: ModalityMembers(width, new_members(recipe, width, widths, later=not first))
                for name, width in growth.widths.items()
            }
        ).to(self.device)
        if not first:
            self.model.entrances.append(entrance)
            return entrance
        self.model = CombinedConnectors(widths, entrance).to(self.device)
        return self.model

    def objective(
        self,
        recipe: CombinedRecipe,
        growth: Growth,
        *,
        train: Sequence[PairedTables],
        validation: Sequence[PairedTables],
        seed: int,
        rows: Callable[[str], RowTables] | None = None,
    ) -> StageObjective:
        """Fit the closed forms; return the job of training the networks."""
        by_rows = rows is not None and recipe.loss == "n-way" and growth.anchor is None
        whole = rows("train") if rows is not None and by_rows else None
        tables = train[0].tables if whole is None else whole.tables
        for name in growth.widths if recipe.standardize else ():
            self.model.of(name).standardization.fit(*feature_figures(tables[name]))
        if rows is not None and whole is not None:
            held = rows("validation")
            return NWayMembers(
                self, train=whole, held=held, validation=validation, recipe=recipe, seed=seed
            )
        job: type[MembersObjective] = LaterMembers if growth.anchor else FirstMembers
        return job(self, train=train[0], validation=validation[0], recipe=recipe, seed=seed)

    def composed(self, vectors: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        """Join a query's parts: by their product where the n-way loss trained them so."""
        if self.recipe.loss != "n-way":
            return super().composed(vectors, weights)
        return composed_vectors(self.model, vectors, weights)

    def width_of(self, way: Way) -> int:
        """Return D of the space: the members' widths together."""
        return sum(self.model.widths)

    def way_sha256(self, way: Way, fingerprint: str) -> str:
        """Return the hash of the encoder, the modality's members and the shares."""
        _, modality = way
        shape = {"members": self.recipe.members}
        return path_sha256(self.model.path(modality), shape, fingerprint)


def member_widths(recipe: CombinedRecipe, widths: Sequence[int]) -> list[int]:
    """Return D of each member.

    A closed form has no more directions than the narrower side; a ridge regression maps into the
    second side itself; a residual has those of what it starts from.
    """
    least = min(recipe.width, *widths)
    own = {"mlp": recipe.width, "ridge": widths[1]}
    own["residual"] = own.get(recipe.start, least)
    return [own.get(kind, least) for kind in recipe.member_names]


def new_members(
    recipe: CombinedRecipe, feature_width: int, widths: Sequence[int], *, later: bool
) -> list[nn.Module]:
    """Return a modality's members, untrained.

    Args:
        recipe: Which.
        feature_width: D_m.
        widths: D of each member.
        later: The modality joins a space that is there: its networks have something to start
            from, the anchor's vectors.
    """
    return [
        new_member(
            "residual" if later and kind == "mlp" else kind,
            feature_width,
            width,
            hidden=recipe.hidden,
            dropout=recipe.dropout,
            feature_dropout=recipe.feature_dropout,
        )
        for kind, width in zip(recipe.member_names, widths, strict=True)
    ]
