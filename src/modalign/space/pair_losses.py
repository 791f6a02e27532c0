"""What a network of a combined space is trained by: the recipe's loss, mixing, and terms beside."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from modalign.losses import (
    alignment,
    distribution_matching,
    info_nce,
    latent_mixup,
    neighbourhood_loss,
    sigmoid_loss,
    uniformity,
)
from modalign.recipes import CombinedRecipe
from modalign.training.batches import Batch

# Of the walks whose divergence `neighbourhood_loss` measures.
NEIGHBOUR_TEMPERATURE = 0.05
NEIGHBOUR_LEVELS = 1


@dataclass(frozen=True)
class PairStep:
    """The pairs of a step, as networks see them.

    Attributes:
        first: Standardised features of the first modality, a row a pair, float [B, D_1].
        second: Of the second, float [B, D_2].
        positives: Which rows belong together, bool [B, B].
        same_first: Which rows are of one item of the first modality, bool [B, B].
        same_second: Of the second, bool [B, B].
    """

    first: Tensor
    second: Tensor
    positives: Tensor
    same_first: Tensor
    same_second: Tensor


def pair_step(batch: Batch, first: Tensor, second: Tensor) -> PairStep:
    """Return a step's pairs.

    Args:
        batch: Which they are.
        first: Their features, float [B, D_1].
        second: float [B, D_2].
    """
    device = first.device
    return PairStep(
        first,
        second,
        torch.from_numpy(batch.positives).to(device),
        torch.from_numpy(batch.first[:, None] == batch.first).to(device),
        torch.from_numpy(batch.second[:, None] == batch.second).to(device),
    )


def mixed(step: PairStep, recipe: CombinedRecipe, *, seed: int, number: int) -> PairStep:
    """Mix a step's pairs where the recipe asks for it; drawn from (seed, number of the step)."""
    if not recipe.mixup:
        return step
    rng = np.random.default_rng([seed, number, 29])
    share = float(rng.beta(recipe.mixup, recipe.mixup))
    partner = torch.from_numpy(rng.permutation(len(step.first))).to(step.first.device)
    first, second, positives = latent_mixup(
        step.first, step.second, step.positives, partner=partner, share=share
    )
    return replace(
        step,
        first=first,
        second=second,
        positives=positives,
        same_first=step.same_first & step.same_first[partner][:, partner],
        same_second=step.same_second & step.same_second[partner][:, partner],
    )


def pair_loss(
    recipe: CombinedRecipe,
    u: Tensor,
    v: Tensor,
    positives: Tensor,
    *,
    temperature: Tensor | float,
    bias: Tensor | float,
) -> Tensor:
    """Return the recipe's loss of a network's vectors.

    Args:
        recipe: Its `loss`.
        u: Unit vectors of the first modality, float [B, D].
        v: Of the second, float [B, D].
        positives: bool [B, B].
        temperature: Divisor of similarity.
        bias: Log odds of a match at similarity 0; of the sigmoid loss alone.
    """
    if recipe.loss == "sigmoid":
        return sigmoid_loss(u, v, positives, temperature, bias)
    loss = distribution_matching if recipe.loss == "distribution" else info_nce
    return loss(u, v, positives, temperature)


def side_terms(recipe: CombinedRecipe, features: Tensor, vectors: Tensor, same: Tensor) -> Tensor:
    """Return what one side's vectors cost beside the loss: lost neighbours, crowding.

    Args:
        recipe: Its weights.
        features: Standardised, float [B, D_m].
        vectors: Of the same rows, float [B, D].
        same: Which rows are of one item, bool [B, B].
    """
    total = vectors.new_zeros(())
    if recipe.neighbourhood_weight:
        lost = neighbourhood_loss(
            features, vectors, temperature=NEIGHBOUR_TEMPERATURE, levels=NEIGHBOUR_LEVELS
        )
        total = total + recipe.neighbourhood_weight * lost
    if recipe.uniformity_weight:
        total = total + recipe.uniformity_weight * uniformity(vectors, vectors, ~same)
    return total


def gap_terms(recipe: CombinedRecipe, u: Tensor, v: Tensor, positives: Tensor) -> Tensor:
    """Return what the way between both sides costs: crowding across it, and its length.

    Args: as of `pair_loss`.
    """
    total = u.new_zeros(())
    if recipe.uniformity_weight:
        total = total + recipe.uniformity_weight * uniformity(u, v, ~positives)
    if recipe.alignment_weight:
        total = total + recipe.alignment_weight * alignment(u, v, positives)
    return total
