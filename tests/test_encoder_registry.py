"""Specs taken apart, adapters found, options checked."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from modalign.encoders import known_encoders, load_encoder
from modalign.encoders.registry import (
    GROUP,
    OWN_ADAPTERS,
    Spec,
    check_options,
    choice_option,
    chosen_modality,
    count_option,
)
from modalign.errors import UsageError


def entry_point(name: str, value: str = "modalign.encoders.builtin:load") -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_a_spec_is_a_name_a_target_and_options():
    assert Spec.parse("hub:org/model@v1?pooling=cls&layer=-1") == Spec(
        "hub", "org/model@v1", {"pooling": "cls", "layer": "-1"}
    )


def test_a_target_may_hold_colons():
    assert Spec.parse("onnx:C:/models/a.onnx").target == "C:/models/a.onnx"


def test_a_plus_is_a_plus_and_percent_signs_are_undone():
    options = Spec.parse("onnx:a.onnx?pool=mean+delta&id=a%26b%20c").options
    assert options == {"pool": "mean+delta", "id": "a&b c"}


@pytest.mark.parametrize(
    "text", ["builtin:pixels", "onnx:a.onnx?pool=mean+delta", "vectors:a.npz?column=a%26b%3Dc"]
)
def test_a_spec_is_written_as_it_was_read(text):
    assert str(Spec.parse(text)) == text


@pytest.mark.parametrize("text", ["pixels", ":pixels", "builtin:", "builtin", "?a=b", ""])
def test_a_spec_without_name_and_target_is_refused(text):
    with pytest.raises(UsageError, match="expected NAME:TARGET"):
        Spec.parse(text)


@pytest.mark.parametrize("query", ["cells", "cells=", "=4", "cells=4&", "&"])
def test_an_option_without_name_or_value_is_refused(query):
    with pytest.raises(UsageError, match="is not name=value"):
        Spec.parse(f"builtin:pixels?{query}")


def test_an_option_given_twice_is_refused():
    with pytest.raises(UsageError, match="option 'cells' is given twice"):
        Spec.parse("builtin:pixels?cells=4&cells=8")


@pytest.mark.parametrize("name", ["device", "modality"])
def test_what_has_a_flag_of_its_own_is_no_option(name):
    with pytest.raises(UsageError, match=f"option '{name}' has its own flag"):
        load_encoder(f"builtin:pixels?{name}=cpu")


def test_our_own_adapters_are_known():
    known = {"builtin", "hub", "onnx", "store", "vectors"}
    assert set(known_encoders([])) == known == set(OWN_ADAPTERS)


@pytest.mark.parametrize("name", sorted(OWN_ADAPTERS))
def test_each_of_our_adapters_can_be_imported(name):
    assert callable(known_encoders([])[name].loader())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UsageError, match="'hug' is unknown; known: builtin, hub, onnx, store, vectors"
    ):
        load_encoder("hug:bert", plugins=[])


def test_a_plugin_is_an_encoder_like_any_other():
    encoder = load_encoder("drawn:pixels?cells=4", plugins=[entry_point("drawn")])
    assert encoder.modality == "image"
    assert encoder.spec == "drawn:pixels?cells=4"


def test_a_plugin_with_a_taken_name_is_refused():
    with pytest.raises(UsageError, match=r"'hub' is taken by modalign, and our\.hub:load"):
        known_encoders([entry_point("hub", "our.hub:load")])


def test_two_plugins_with_one_name_are_refused():
    with pytest.raises(UsageError, match="'x' is taken by a:load, and b:load brings it again"):
        known_encoders([entry_point("x", "a:load"), entry_point("x", "b:load")])


def test_a_modality_reaches_the_adapter():
    assert load_encoder("builtin:pixels", modality="sketch").modality == "sketch"


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UsageError, match="option 'c' is unknown; known: a, b"):
        check_options({"c": "1"}, ["b", "a"], spec="x:y")


def test_a_choice_is_its_first_word_unless_given():
    assert choice_option({}, "output", ("vectors", "tokens"), spec="x:y") == "vectors"
    assert choice_option({"output": "tokens"}, "output", ("vectors", "tokens"), spec="") == "tokens"
    with pytest.raises(UsageError, match="x:y: output 'rows' is unknown; known: tokens, vectors"):
        choice_option({"output": "rows"}, "output", ("vectors", "tokens"), spec="x:y")


def test_a_count_lies_in_its_range():
    assert count_option({}, "n", 3, allowed=range(1, 5), spec="x:y") == 3
    assert count_option({"n": "4"}, "n", 3, allowed=range(1, 5), spec="x:y") == 4


@pytest.mark.parametrize("text", ["5", "0", "-1", "2.0", "two", "²"])
def test_a_count_out_of_range_is_refused(text):
    with pytest.raises(UsageError, match=f"x:y: n={text}, expected a whole number from 1 to 4"):
        count_option({"n": text}, "n", 3, allowed=range(1, 5), spec="x:y")


def test_a_modality_may_have_a_name_of_ones_own_but_no_other_usual_one():
    assert chosen_modality(None, "image", spec="x:y") == "image"
    assert chosen_modality("image", "image", spec="x:y") == "image"
    assert chosen_modality("sketch", "image", spec="x:y") == "sketch"
    with pytest.raises(UsageError, match="x:y: encodes image, expected text; name it image=x:y"):
        chosen_modality("text", "image", spec="x:y")
