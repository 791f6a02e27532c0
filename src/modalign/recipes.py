"""Recipes: every default of a run, in one frozen place.

A recipe is saved whole with the stage it made, so that a run can be repeated from what it
wrote, and the command line makes its flags from the fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modalign.errors import UsageError, check_known

# Seconds between the checkpoints of a run: what a kill can cost. No part of a recipe, for it
# changes nothing of the result.
CHECKPOINT_SECONDS = 30.0


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise a UsageError unless value >= least."""
    if value < least:
        raise UsageError(f"{name} is {value}, expected {least} or more")


@dataclass(frozen=True)
class OneEncoderRecipe:
    """OneEncoder's sizes, loss and optimisation.

    Source: arXiv:2409.11059 and its public code. Differs: see `RECIPES`.
    """

    width: int = _option(512, "D of the space")
    depth: int = _option(1, "transformer layers of the universal projection")
    heads: int = _option(4, "attention heads; width is a multiple")
    feedforward: int = _option(512, "width of the feed-forward")
    fusion: str = _option(
        "addition",
        "how token and features are joined: addition, multiplication, concatenation, "
        "scaled_dot, additive, general",
    )
    token: Literal["mlp", "direct"] = _option("mlp", "form of the modality token: mlp, direct")
    standardize: bool = _option(True, "standardise features with the training split's figures")
    dropout: float = _option(0.1, "share dropped inside the connector")
    feature_dropout: float = _option(0.5, "share of the features dropped")
    temperature: float = _option(0.05, "divisor of similarity in the loss, > 0")
    learn_temperature: bool = _option(True, "let the first stage train the temperature")
    batch_size: int = _option(256, "pairs a step")
    epochs: int = _option(4, "passes over the pairs, at most")
    min_steps: int = _option(200, "steps at least, where a pass over the pairs is short")
    learning_rate: float = _option(1e-3, "largest learning rate of AdamW")
    weight_decay: float = _option(0.05, "decoupled weight decay of AdamW")
    schedule: Literal["one-cycle", "plateau"] = _option(
        "one-cycle", "learning rate: one-cycle, or plateau (x 0.8 where recall does not rise)"
    )
    patience: int = _option(10, "validations without a gain before stopping")
    validate_steps: int = _option(25, "steps between validations")
    validation_items: int = _option(2000, "rows of the validation split used while training")
    precision: Literal["float32", "bfloat16"] = _option(
        "float32", "arithmetic of a training step: float32, bfloat16"
    )

    def __post_init__(self) -> None:
        """Refuse values no run could use.

        Raises:
            UsageError: A value is out of range; the message names the field.
        """
        for name in ("width", "depth", "heads", "feedforward", "batch_size", "epochs"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("min_steps", "patience", "validate_steps", "validation_items"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 <= {name} < 1")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected more than 0, finite")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay is {self.weight_decay}, expected 0 or more, finite")
        if self.width % self.heads:
            raise UsageError(
                f"width is {self.width}, expected a multiple of heads, {self.heads}; change one"
            )
        check_known(self.schedule, ["one-cycle", "plateau"], what="schedule")
        check_known(self.precision, ["float32", "bfloat16"], what="precision")
        check_known(self.token, ["mlp", "direct"], what="token form")
        check_known(self.fusion, FUSION_NAMES, what="fusion")

    def as_json(self) -> dict[str, Any]:
        """Return every field, as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> OneEncoderRecipe:
        """Make a recipe from what `as_json` gave.

        Raises:
            UsageError: A field is unknown.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        for name in values:
            check_known(name, known, what="recipe field")
        return cls(**values)

    def changed(self, changes: Mapping[str, Any]) -> OneEncoderRecipe:
        """Return a copy with some fields changed.

        Raises:
            UsageError: A field is unknown or its value out of range.
        """
        return self.from_json({**self.as_json(), **changes})


FUSION_NAMES = (
    "addition",
    "multiplication",
    "concatenation",
    "scaled_dot",
    "additive",
    "general",
)

# What a later stage cannot change: it passes through the first stage's projection.
SHARED_FIELDS = ("width", "depth", "heads", "feedforward", "fusion", "temperature")

RECIPES = {
    "oneencoder": (
        OneEncoderRecipe(),
        "OneEncoder for a few thousand pairs: wider with a slimmer feed-forward, feature dropout, "
        "a learned temperature, one cycle",
    ),
    "oneencoder-paper": (
        OneEncoderRecipe(
            width=256,
            feedforward=2048,
            standardize=False,
            dropout=0.1,
            feature_dropout=0.0,
            temperature=0.082085,
            learn_temperature=False,
            batch_size=512,
            epochs=100,
            min_steps=1,
            weight_decay=1e-3,
            schedule="plateau",
        ),
        "OneEncoder with the settings of its public code",
    ),
}


def named_recipe(name: str) -> OneEncoderRecipe:
    """Return a recipe by name.

    Raises:
        UsageError: The name is unknown; the message lists the known.
    """
    check_known(name, RECIPES, what="recipe")
    return RECIPES[name][0]
