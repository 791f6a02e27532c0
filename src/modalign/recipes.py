"""Recipes: every default of a run, in one frozen place.

A recipe is saved whole with the stage it made, so that a run can be repeated from what it
wrote, and the command line makes its flags from the fields. Each family of connectors has its
own recipe; what the training loop needs is the same for all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from modalign.errors import UsageError, check_known

# Seconds between the checkpoints of a run: what a kill can cost. No part of a recipe, for it
# changes nothing of the result.
CHECKPOINT_SECONDS = 30.0


CORRECTIONS = (
    "chosen",
    "none",
    "centring",
    "csls",
    "inverted-softmax",
    "inverse-convolution",
)


def _option(
    default: Any,
    text: str,
    choices: Sequence[str] = (),
    *,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """Make a field that is a flag; `read` takes what is typed, by default the default's type."""
    metadata = {"help": text, "choices": tuple(choices), "read": read or type(default)}
    return field(default=default, metadata=metadata)


def seconds(text: str) -> float:
    """Read a time as it is typed: 90, 90s, 1.5m or 1h, in seconds.

    Raises:
        ValueError: It is none.
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([smh]?)", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no time")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


# What is asked for where what was typed cannot be read.
EXPECTED: Mapping[Callable[[str], Any], str] = {
    int: "a whole number",
    float: "a number",
    bool: "on or off",
    str: "a text",
    seconds: "a time: seconds, or as in 60s, 2m, 1h",
}


def read_value(name: str, read: Callable[[str], Any], text: str) -> Any:
    """Read what was typed for a field.

    Raises:
        UsageError: The text is of another form; the message names the field.
    """
    words = {"on": True, "true": True, "off": False, "false": False}
    try:
        return words[text] if read is bool else read(text)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{name} is {text!r}, expected {EXPECTED[read]}", field=name) from error


def check_at_least(name: str, value: float, least: float) -> None:
    """Raise a UsageError unless value >= least and finite."""
    if not least <= value < math.inf:
        finite = "" if math.isfinite(value) else ", finite"
        raise UsageError(f"{name} is {value}, expected {least} or more{finite}")


@dataclass(frozen=True)
class Recipe:
    """What every family's recipe holds: the width, dropout, temperature, and the loop's settings.

    Attributes:
        family: Of connectors, as a stage records it.
        shared_fields: What a later stage cannot change: it passes through the first stage.
        later_defaults: What a later stage does not take over from the first.
    """

    family: ClassVar[str]
    shared_fields: ClassVar[tuple[str, ...]]
    later_defaults: ClassVar[Mapping[str, Any]] = {}

    width: int = _option(
        512,
        "Numbers in a vector of the shared space (alt-moe: inside an expert); more may find more "
        "and takes longer",
    )
    standardize: bool = _option(
        True, "Bring each number of a feature to mean 0 and deviation 1 over the training rows"
    )
    dropout: float = _option(0.1, "Share of the connector's inner values set to 0 in training")
    feature_dropout: float = _option(0.5, "Share of a feature's numbers set to 0 in training")
    temperature: float = _option(
        0.05, "Divisor of similarity in the loss, above 0; a smaller one stresses near misses"
    )
    learn_temperature: bool = _option(True, "Let the first stage train the temperature")
    batch_size: int = _option(256, "Pairs in a training step")
    epochs: int = _option(4, "Passes over the pairs, at most")
    min_steps: int = _option(
        160, "Training steps to make even where the epochs are over before; for few pairs"
    )
    learning_rate: float = _option(1e-3, "Largest learning rate of AdamW")
    weight_decay: float = _option(0.05, "Decoupled weight decay of AdamW")
    schedule: Literal["one-cycle", "plateau"] = _option(
        "one-cycle",
        "How the learning rate moves: up and down once, or x 0.8 where recall does not rise",
        ("one-cycle", "plateau"),
    )
    patience: int = _option(10, "Validations without a gain before stopping")
    validate_steps: int = _option(25, "Steps between validations")
    validation_items: int = _option(2000, "Rows of the validation split used while training")
    precision: Literal["float32", "bfloat16"] = _option(
        "float32", "Arithmetic of a training step", ("float32", "bfloat16")
    )
    scoring: str = _option(
        "none", "Hub correction of similarities; chosen: on validation rows", CORRECTIONS
    )
    bank_items: int = _option(1024, "Training queries kept for hub correction, at most")

    def __post_init__(self) -> None:
        """Refuse values no run could use.

        Raises:
            UsageError: A value is out of range; the message names the field.
        """
        for name in ("width", "batch_size", "epochs", "min_steps", "patience", "validate_steps"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("validation_items", self.validation_items, 1)
        check_at_least("bank_items", self.bank_items, 1)
        check_known(self.scoring, CORRECTIONS, what="scoring")
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 <= {name} < 1")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected more than 0, finite")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay is {self.weight_decay}, expected 0 or more, finite")
        check_known(self.schedule, ["one-cycle", "plateau"], what="schedule")
        check_known(self.precision, ["float32", "bfloat16"], what="precision")

    def as_json(self) -> dict[str, Any]:
        """Return every field, as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make a recipe from what `as_json` gave.

        Raises:
            UsageError: A field is unknown.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        for name in values:
            check_known(name, known, what=f"{cls.family} recipe field")
        return cls(**values)

    def changed(self, changes: Mapping[str, Any]) -> Self:
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


@dataclass(frozen=True)
class OneEncoderRecipe(Recipe):
    """OneEncoder's sizes, loss and optimisation.

    Source: arXiv:2409.11059 and its public code. Differs: see `RECIPES`.
    """

    family: ClassVar[str] = "oneencoder"
    shared_fields: ClassVar[tuple[str, ...]] = (
        "width",
        "depth",
        "heads",
        "feedforward",
        "fusion",
        "temperature",
    )

    depth: int = _option(1, "Transformer layers of the universal projection")
    heads: int = _option(4, "Attention heads of a layer; --width must be a multiple of it")
    feedforward: int = _option(512, "Inner width of a layer's feed-forward network")
    fusion: str = _option(
        "addition", "How features are joined with their modality's token", FUSION_NAMES
    )
    token: Literal["mlp", "direct"] = _option(
        "mlp",
        "How a modality's token is made: by a small network, or trained as it is",
        ("mlp", "direct"),
    )

    def __post_init__(self) -> None:
        """Refuse values no run could use; see `Recipe`."""
        super().__post_init__()
        for name in ("depth", "heads", "feedforward"):
            check_at_least(name, getattr(self, name), 1)
        if self.width % self.heads:
            raise UsageError(
                f"width is {self.width}, expected a multiple of heads, {self.heads}; change one"
            )
        check_known(self.token, ["mlp", "direct"], what="token form")
        check_known(self.fusion, FUSION_NAMES, what="fusion")


ROUTER_NAMES = ("learned", "fixed-modality", "fixed-skill", "grouped", "dense", "mlp")
PREDICTION_LOSSES = ("l2", "smooth-l1", "cosine")
ALTERNATIONS = ("round-robin", "random", "adaptive", "joint")
SCORES = ("contrast", "prediction", "fused")


@dataclass(frozen=True)
class AltMoERecipe(Recipe):
    """Alt-MoE's sizes, losses and alternation.

    Source: arXiv:2409.05929; where it is ambiguous the reading is an option.
    """

    family: ClassVar[str] = "alt-moe"
    shared_fields: ClassVar[tuple[str, ...]] = (
        "width",
        "router",
        "renormalise",
        "share_experts",
        "modality_embedding",
        "granularity",
    )
    # The first stage's directions are of its own modalities.
    later_defaults: ClassVar[Mapping[str, Any]] = {"directions": "all"}

    # Each direction gets its share of them.
    min_steps: int = _option(
        400, "Training steps to make even where the epochs are over before; for few pairs"
    )
    experts: int = _option(8, "Experts of the mixture")
    top_k: int = _option(2, "Experts a row passes through")
    router: str = _option("learned", "How rows find experts", ROUTER_NAMES)
    renormalise: bool = _option(False, "Let the chosen experts' weights sum to 1")
    noise: float = _option(0.0, "Deviation of what is added to the gate's logits in training")
    balance_weight: float = _option(0.0, "Weight of the loss that balances the experts' load")
    share_experts: bool = _option(True, "One mixture for all directions, else one each")
    added_experts: int = _option(
        0, "Experts of its own for an added modality; 0: it passes through the frozen ones"
    )
    modality_embedding: Literal["input", "common", "both"] = _option(
        "input", "Where the modality embedding is added", ("input", "common", "both")
    )
    granularity: Literal["vectors", "tokens"] = _option(
        "vectors",
        "What of a token sequence is mapped: its mean vector, or each of the tokens",
        ("vectors", "tokens"),
    )
    prediction: str = _option("smooth-l1", "Prediction loss", PREDICTION_LOSSES)
    reduction: Literal["mean", "sum"] = _option(
        "mean", "Over the target's width in the prediction loss", ("mean", "sum")
    )
    prediction_weight: float = _option(0.5, "Weight of the prediction loss")
    contrast_weight: float = _option(0.5, "Weight of the contrastive loss")
    alternation: str = _option("round-robin", "Which direction trains in a step", ALTERNATIONS)
    directions: str = _option(
        "all", "Directions trained: all, or a list as in image>text,text>image"
    )
    score: str = _option(
        "contrast", "Vectors that search goes by; fused is for evaluation alone", SCORES
    )

    def __post_init__(self) -> None:
        """Refuse values no run could use; see `Recipe`."""
        super().__post_init__()
        for name in ("experts", "top_k"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("added_experts", "noise", "balance_weight"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("prediction_weight", "contrast_weight"):
            check_at_least(name, getattr(self, name), 0)
        if self.top_k > self.experts:
            raise UsageError(
                f"top_k is {self.top_k}, expected at most the number of experts, {self.experts}; "
                "change one"
            )
        check_known(self.router, ROUTER_NAMES, what="router")
        check_known(self.modality_embedding, ["input", "common", "both"], what="modality_embedding")
        check_known(self.granularity, ["vectors", "tokens"], what="granularity")
        check_known(self.prediction, PREDICTION_LOSSES, what="prediction loss")
        check_known(self.reduction, ["mean", "sum"], what="reduction")
        check_known(self.alternation, ALTERNATIONS, what="alternation")
        check_known(self.score, SCORES, what="score")
        self._check_weights()

    @property
    def task_weights(self) -> dict[str, float]:
        """The weight of each task's loss; one of 0 trains nothing."""
        return {"prediction": self.prediction_weight, "contrast": self.contrast_weight}

    def _check_weights(self) -> None:
        weights = self.task_weights
        if not any(weights.values()):
            raise UsageError("prediction_weight and contrast_weight are 0, expected one above")
        if self.score in weights and not weights[self.score]:
            raise UsageError(
                f"score is {self.score} and {self.score}_weight is 0: nothing trains what "
                "search would go by; change one"
            )


CLOSED_FORM_NAMES = ("cca", "ridge", "procrustes", "subspace")
MEMBER_NAMES = (*CLOSED_FORM_NAMES, "residual", "mlp")
PAIR_LOSSES = ("info-nce", "sigmoid", "distribution", "n-way")


@dataclass(frozen=True)
class Settled:
    """What rows held out of the training rows settled: validation rows do not settle it again.

    Attributes:
        closed_forms: By name their "regularisation" and "power".
        step: Training step whose weights are kept; it ends there. None: the best one's.
        shares: Of the members, their squares sum to 1. None: they are chosen.
        corrections: Of each direction, as "text->image", the hub correction as it is recorded.
    """

    closed_forms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    step: int | None = None
    shares: Sequence[float] | None = None
    corrections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CombinedRecipe(Recipe):
    """One shared space of closed forms and small networks, joined into one vector.

    Source: ours; the parts name theirs in `modalign.connectors` and `modalign.losses`.
    """

    family: ClassVar[str] = "combined"
    shared_fields: ClassVar[tuple[str, ...]] = ("width", "members", "hidden")
    # A later stage's modality goes through the members that were chosen.
    later_defaults: ClassVar[Mapping[str, Any]] = {"choose": False, "settled": Settled()}

    batch_size: int = _option(512, "Pairs in a training step")
    min_steps: int = _option(
        300, "Training steps to make even where the epochs are over before; for few pairs"
    )
    validate_steps: int = _option(50, "Steps between validations")
    members: str = _option(
        "cca,residual,mlp",
        "Connectors joined into one vector, a list: closed forms (cca, ridge, procrustes, "
        "subspace), residual (a closed form and what a network adds to it), mlp",
    )
    start: str = _option("cca", "Closed form that a residual adds to", CLOSED_FORM_NAMES)
    regularisation: float = _option(
        0.0, "Of closed forms, in mean variances of the features; 0: chosen on validation rows"
    )
    power: float = _option(
        0.0, "Canonical directions count by their correlation to this; 0: chosen likewise"
    )
    hidden: int = _option(1024, "Inner width of a network")
    loss: str = _option(
        "info-nce",
        "Of networks: a softmax over the batch, a sigmoid for each pair, matching the "
        "distribution of a row's similarities, or (of three modalities and more) each against all "
        "others together",
        PAIR_LOSSES,
    )
    mixup: float = _option(
        0.0, "Mix the features of two pairs, by a share drawn from Beta(this, this); 0: do not"
    )
    neighbourhood_weight: float = _option(
        0.0, "Weight of the loss of features' neighbourhoods among the vectors"
    )
    uniformity_weight: float = _option(
        0.0, "Weight of the term that spreads vectors out, in a modality and across"
    )
    alignment_weight: float = _option(
        0.0, "Weight of the squared distance of vectors that belong together"
    )
    choose: bool = _option(
        False, "Choose members by rows held out of the training rows, within --budget; recipe auto"
    )
    budget: float = _option(
        150.0,
        "Time that training may take where --choose is on: seconds, or as in 60s, 2m",
        read=seconds,
    )
    # No flag: only recipe auto fills it in.
    settled: Settled = Settled()

    def __post_init__(self) -> None:
        """Refuse values no run could use; see `Recipe`."""
        super().__post_init__()
        check_at_least("hidden", self.hidden, 1)
        for name in (
            "regularisation",
            "power",
            "budget",
            "mixup",
            "neighbourhood_weight",
            "uniformity_weight",
            "alignment_weight",
        ):
            check_at_least(name, getattr(self, name), 0)
        if not self.member_names:
            raise UsageError(f"members is {self.members!r}, expected one at least")
        for name in self.member_names:
            check_known(name, MEMBER_NAMES, what="member")
        check_known(self.start, CLOSED_FORM_NAMES, what="closed form")
        check_known(self.loss, PAIR_LOSSES, what="loss")
        if self.loss == "n-way" and (self.choose or set(self.member_names) != {"mlp"}):
            raise UsageError(
                f"loss n-way trains members mlp alone, the members are {self.members!r}; give "
                "--members mlp with recipe combined"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make a recipe from what `as_json` gave; see `Recipe.from_json`."""
        settled = values.get("settled")
        if isinstance(settled, Mapping):
            values = {**values, "settled": Settled(**settled)}
        return super().from_json(values)

    @property
    def member_names(self) -> list[str]:
        """The members, in order."""
        return [name.strip() for name in self.members.split(",") if name.strip()]


RECIPES: dict[str, tuple[Recipe, str]] = {
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
    "alt-moe": (
        AltMoERecipe(),
        "Alt-MoE for a few thousand pairs: raw stored vectors are the gallery; 8 experts, top 2",
    ),
    "alt-moe-paper": (
        AltMoERecipe(
            width=2048,
            experts=12,
            top_k=4,
            standardize=False,
            feature_dropout=0.0,
            temperature=0.03,
            learn_temperature=False,
            batch_size=512,
            epochs=20,
            min_steps=1,
            learning_rate=1e-4,
            weight_decay=1e-2,
        ),
        "Alt-MoE with the sizes of its paper: 12 experts of width 2048, top 4",
    ),
    "closed-form": (
        CombinedRecipe(members="cca"),
        "Regularised canonical correlation: no training, some seconds",
    ),
    "ridge": (
        CombinedRecipe(members="ridge"),
        "Ridge regression into the second modality's features: no training, some seconds",
    ),
    "procrustes": (
        CombinedRecipe(members="procrustes"),
        "A rotation between both sides' main directions (orthogonal Procrustes): likewise",
    ),
    "subspace": (
        CombinedRecipe(members="subspace"),
        "An affine map between low-dimensional subspaces of both sides: likewise",
    ),
    "mlp": (
        CombinedRecipe(members="mlp", feature_dropout=0.0),
        "Two plain networks of two layers by InfoNCE: what others begin with, for comparison",
    ),
    "combined": (
        CombinedRecipe(scoring="chosen"),
        "A closed form and two networks in one vector, with hub correction",
    ),
    "auto": (
        # Networks train twice; of few pairs, 300 steps are no better than 200.
        CombinedRecipe(scoring="chosen", choose=True, min_steps=200),
        "As combined, with all that is left open settled on rows held out of training, within "
        "--budget",
    ),
}

RECIPE_CLASSES: tuple[type[Recipe], ...] = (OneEncoderRecipe, AltMoERecipe, CombinedRecipe)


def flag_fields(recipe: type[Recipe]) -> list[dataclasses.Field[Any]]:
    """Return the fields that a user sets."""
    return [item for item in dataclasses.fields(recipe) if item.metadata]


def named_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        UsageError: The name is unknown; the message lists the known.
    """
    check_known(name, RECIPES, what="recipe")
    return RECIPES[name][0]


def recipe_from_json(family: str, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a stage recorded.

    Raises:
        UsageError: The family or a field is unknown.
    """
    classes = {recipe.family: recipe for recipe in RECIPE_CLASSES}
    check_known(family, classes, what="family of connectors")
    return classes[family].from_json(values)
