"""What is compared: variants of recipes, and the studies that have a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from modalign.connectors.mixture import named_direction
from modalign.errors import UsageError, check_known
from modalign.recipes import (
    ALTERNATIONS,
    SCORES,
    AltMoERecipe,
    Recipe,
    flag_fields,
    named_recipe,
    read_value,
)


@dataclass(frozen=True)
class Variant:
    """A recipe with some fields changed.

    Attributes:
        name: What tables call it.
        recipe_name: See `modalign.recipes.RECIPES`.
        changes: Fields of the recipe.
    """

    name: str
    recipe_name: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take NAME=RECIPE[,FIELD=VALUE,...] apart; a value may be a list with commas.

        Raises:
            UsageError: It is not of that form, or the recipe or a field is unknown.
        """
        name, _, rest = text.partition("=")
        recipe_name, *parts = rest.split(",")
        if not name or not recipe_name or (parts and "=" not in parts[0]):
            raise UsageError(
                f"variant {text!r}: expected NAME=RECIPE[,FIELD=VALUE,...], as in "
                "wide=oneencoder,width=1024"
            )
        given: dict[str, str] = {}
        for part in parts:
            field_name, equals, value = part.partition("=")
            if equals and field_name in given:
                raise UsageError(f"variant {text!r}: {field_name} is given twice")
            if equals:
                given[field_name] = value
            else:
                given[next(reversed(given))] += f",{part}"
        recipe = named_recipe(recipe_name)
        return cls(name, recipe_name, {n: field_value(recipe, n, v) for n, v in given.items()})

    @property
    def recipe(self) -> Recipe:
        """The recipe with its changes.

        Raises:
            UsageError: A field is unknown or its value out of range.
        """
        return named_recipe(self.recipe_name).changed(self.changes)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return the variant with further changes, which win."""
        return replace(self, changes={**self.changes, **changes})


def field_value(recipe: Recipe, name: str, text: str) -> Any:
    """Return what is typed for a recipe's field as a value of the field's type.

    Raises:
        UsageError: The field is unknown or the text of another type.
    """
    known = {item.name: item.metadata["read"] for item in flag_fields(type(recipe))}
    check_known(name, known, what=f"{recipe.family} recipe field")
    return read_value(name, known[name], text)


def with_settings(variants: Sequence[Variant], settings: Mapping[str, str]) -> tuple[Variant, ...]:
    """Change fields of every variant whose recipe has them; what a variant says itself wins.

    Raises:
        UsageError: No variant has a field, or a value is of another type.
    """
    known = {item.name for v in variants for item in flag_fields(type(v.recipe))}
    for name in settings:
        check_known(name, known, what="recipe field")
    found = []
    for variant in variants:
        values = {
            name: field_value(variant.recipe, name, text)
            for name, text in settings.items()
            if hasattr(variant.recipe, name)
        }
        found.append(replace(variant, changes={**values, **variant.changes}))
    return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        variants: The first one is what the others are held against.
        seeds: Each variant is trained once from each.
        scores: Of directed maps: what to compare by, a row each; none: what the recipe says. A
            variant is measured by those it has trained, all with the same weights: those that
            were best by the recipe's own score.
        split: Rows it is measured on, or "all".
        equal_to: A variant: the width of all others is chosen so that their trainable
            parameters come closest to its own.
        equal_passes: A joint step takes a batch of every direction: let joint variants take, at
            least and between validations, that much fewer steps than alternating ones.
    """

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    scores: tuple[str, ...] = ()
    split: str = "validation"
    equal_to: str | None = None
    equal_passes: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            UsageError: No or twice the same variant, or an unknown name of any kind.
        """
        if not self.variants or not self.seeds:
            what = "variants" if not self.variants else "seeds"
            raise UsageError(f"compare: there are no {what}, expected one at least")
        names = [variant.name for variant in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"variant {name} is named twice; give one another name", name=name)
        if self.equal_to is not None:
            check_known(self.equal_to, names, what="equal parameters: variant")
        for score in self.scores:
            check_known(score, SCORES, what="score")
        for variant in self.variants:
            self.scores_of(variant)

    def scores_of(self, variant: Variant) -> list[str | None]:
        """Return what a variant is compared by; None where it has one kind of vector.

        Raises:
            UsageError: It has trained none of the scores.
        """
        recipe, possible = variant.recipe, possible_scores(variant.recipe)
        if not isinstance(recipe, AltMoERecipe):
            return possible
        wanted = list(dict.fromkeys(self.scores)) or [recipe.score]
        found: list[str | None] = [score for score in wanted if score in possible]
        if not found:
            raise UsageError(
                f"variant {variant.name}: cannot be measured by {', '.join(wanted)}, it trains "
                f"{', '.join(map(str, possible))}; ask for one of them with --score"
            )
        return found


def possible_scores(recipe: Recipe) -> list[str | None]:
    """Return what a recipe's vectors can be compared by: what it gives a weight.

    Fused takes the contrast vectors of both directions.
    """
    if not isinstance(recipe, AltMoERecipe):
        return [None]
    found: list[str | None] = [score for score in SCORES if recipe.task_weights.get(score)]
    if recipe.contrast_weight and both_ways(recipe.directions):
        found.append("fused")
    return found


def both_ways(directions: str) -> bool:
    """Return whether a recipe's directions hold the way back of each."""
    if directions == "all":
        return True
    ways = [named_direction(name.strip()) for name in directions.split(",")]
    return all((target, source) in ways for source, target in ways)


# Studies ----------------------------------------------------------------------------------


def _by_field(name: str, values: Sequence[str]) -> tuple[Variant, ...]:
    return tuple(Variant(value, "alt-moe", {name: value}) for value in values)


# Name -> the comparison and what it asks. Sources: arXiv:2409.05929, tables 4 and 5, for the
# first three; the others are ours.
STUDIES: dict[str, tuple[Comparison, str]] = {
    "moe-or-mlp": (
        Comparison((Variant("moe", "alt-moe"), Variant("mlp", "alt-moe", {"router": "mlp"}))),
        "experts, or one dense network of as many parameters",
    ),
    "alternation": (
        Comparison(_by_field("alternation", ALTERNATIONS), equal_passes=True),
        "one direction a step (in turn, drawn, adaptive), or all in every step",
    ),
    "losses": (
        Comparison(
            (
                Variant("both", "alt-moe"),
                Variant("contrast-only", "alt-moe", {"prediction_weight": 0.0}),
                Variant(
                    "prediction-only", "alt-moe", {"contrast_weight": 0.0, "score": "prediction"}
                ),
            ),
            scores=SCORES,
        ),
        "prediction, contrast, or both, and what to search by",
    ),
    "families": (
        Comparison(
            (Variant("oneencoder", "oneencoder"), Variant("alt-moe", "alt-moe")),
            scores=("contrast", "fused"),
            equal_to="oneencoder",
        ),
        "one shared space, or directed maps with as many parameters",
    ),
    "routers": (
        Comparison(
            _by_field("router", ("learned", "dense", "fixed-modality", "fixed-skill", "grouped"))
        ),
        "how rows find their experts",
    ),
    "balance": (
        Comparison(
            tuple(
                Variant(f"balance-{weight:g}", "alt-moe", {"balance_weight": weight})
                for weight in (0.0, 0.01, 0.1)
            )
        ),
        "what the loss that balances the experts' load changes",
    ),
    "objectives": (
        Comparison(
            (
                Variant("info-nce", "mlp"),
                Variant("sigmoid", "mlp", {"loss": "sigmoid"}),
                Variant("distribution", "mlp", {"loss": "distribution"}),
                Variant("mixup", "mlp", {"mixup": 1.0}),
                Variant("neighbourhood", "mlp", {"neighbourhood_weight": 1.0}),
                Variant("uniformity", "mlp", {"uniformity_weight": 0.1}),
                Variant("alignment", "mlp", {"alignment_weight": 1.0}),
                Variant("feature-dropout", "mlp", {"feature_dropout": 0.5}),
                Variant("residual", "combined", {"members": "residual", "scoring": "none"}),
                Variant("closed-form", "closed-form"),
            )
        ),
        "what else networks may be trained by, and from a closed form on",
    ),
    "closed-forms": (
        Comparison(
            (
                Variant("cca", "closed-form"),
                *(Variant(name, name) for name in ("ridge", "procrustes", "subspace")),
                Variant("cca-and-ridge", "closed-form", {"members": "cca,ridge"}),
            )
        ),
        "which formula finds most",
    ),
}


def named_study(name: str) -> Comparison:
    """Return a study by name.

    Raises:
        UsageError: The name is unknown; the message lists the known.
    """
    check_known(name, STUDIES, what="study")
    return STUDIES[name][0]


def planned(
    study: str | None, texts: Sequence[str], *, settings: Mapping[str, str], **chosen: Any
) -> Comparison:
    """Make a comparison of what a call says.

    Args:
        study: The name of one to begin with.
        texts: Further variants, see `Variant.parse`.
        settings: Fields changed in all variants that have them, see `with_settings`.
        chosen: Further fields of `Comparison`; None or empty leaves them as they are.

    Raises:
        UsageError: See `Comparison`.
    """
    base = {} if study is None else dict(vars(named_study(study)))
    variants = (*base.get("variants", ()), *(Variant.parse(text) for text in texts))
    if variants:
        variants = with_settings(variants, settings)
    return Comparison(**{**base, **{n: v for n, v in chosen.items() if v}, "variants": variants})
