"""Recipes: every default of a run in one frozen place, and no value that no run could use."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from modalign import UsageError
from modalign.recipes import (
    RECIPE_CLASSES,
    RECIPES,
    OneEncoderRecipe,
    flag_fields,
    named_recipe,
    recipe_from_json,
)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_the_same_after_json(name: str):
    recipe = named_recipe(name)
    assert recipe_from_json(recipe.family, json.loads(json.dumps(recipe.as_json()))) == recipe


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(UsageError, match="recipe 'best' is unknown; known: alt-moe, "):
        named_recipe("best")


def test_an_unknown_field_lists_the_known():
    with pytest.raises(
        UsageError,
        match="oneencoder recipe field 'depht' is unknown; known: bank_items, batch_size",
    ):
        OneEncoderRecipe().changed({"depht": 2})


def test_a_change_leaves_the_recipe_itself_alone():
    recipe = OneEncoderRecipe()
    assert recipe.changed({"depth": 2}).depth == 2
    assert recipe.depth == 1


@pytest.mark.parametrize("recipe", RECIPE_CLASSES)
def test_every_field_says_what_it_is_and_shared_ones_are_fields(recipe):
    fields = {item.name: item for item in dataclasses.fields(recipe)}
    # All are flags but what recipe auto fills in.
    assert {name for name, item in fields.items() if not item.metadata} <= {"settled"}
    assert all(item.metadata["help"] for item in flag_fields(recipe))
    assert set(recipe.shared_fields) | recipe.later_defaults.keys() <= fields.keys()


def test_the_paper_recipe_has_the_figures_of_the_public_code():
    paper = named_recipe("oneencoder-paper")
    assert (paper.width, paper.depth, paper.heads, paper.feedforward) == (256, 1, 4, 2048)
    assert 1 / paper.temperature == pytest.approx(12.18, abs=0.01)
    assert not paper.learn_temperature
    assert (paper.learning_rate, paper.weight_decay) == (1e-3, 1e-3)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("width", 0, "width is 0, expected 1 or more"),
        ("width", 30, "width is 30, expected a multiple of heads, 4"),
        ("epochs", 0, "epochs is 0, expected 1 or more"),
        ("patience", 0, "patience is 0, expected 1 or more"),
        ("dropout", 1.0, "dropout is 1.0, expected 0 <= dropout < 1"),
        ("feature_dropout", -0.1, "feature_dropout is -0.1, expected 0 <="),
        ("dropout", float("nan"), "dropout is nan"),
        ("temperature", 0.0, "temperature is 0.0, expected more than 0"),
        ("temperature", float("nan"), "temperature is nan, expected more than 0"),
        ("learning_rate", float("inf"), "learning_rate is inf, expected more than 0, finite"),
        ("weight_decay", -1.0, "weight_decay is -1.0, expected 0 or more"),
        ("weight_decay", float("nan"), "weight_decay is nan, expected 0 or more"),
        ("fusion", "glue", "fusion 'glue' is unknown; known: addition"),
        ("token", "none", "token form 'none' is unknown; known: direct, mlp"),
        ("schedule", "cosine", "schedule 'cosine' is unknown; known: one-cycle, plateau"),
        ("precision", "float16", "precision 'float16' is unknown; known: bfloat16, float32"),
    ],
)
def test_values_no_run_could_use_are_refused_by_name(field: str, value: Any, words: str):
    with pytest.raises(UsageError, match=words):
        OneEncoderRecipe().changed({field: value})
