"""What the contract does for every adapter, seen on encoders small enough to compute by head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalign.encoders.contract import (
    Encoder,
    Failure,
    Features,
    batched,
    canonical_json,
    length_bucket,
    shortened,
    stack_features,
)
from modalign.errors import DataError, MissingExtraError


class Lengths(Encoder):
    """A text's feature is its length and that times a factor; it notes how it was called."""

    modality, spec, reads, output, width = "text", "lengths:2", "text", "vectors", 2
    batch_size, lookahead = 2, 5

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor
        self.calls: list[tuple[list[str], int, int]] = []

    def describe(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def prepare(self, value: str) -> str:
        if value == "broken":
            raise DataError("broken: is broken", value=value)
        if value == "extra":
            raise MissingExtraError("reader is not installed; run: pip install reader")
        return value

    def length_of(self, prepared: str) -> int:
        return len(prepared)

    def compute(self, inputs: Sequence[str], *, rows: int, length: int) -> Features:
        self.calls.append((list(inputs), rows, length))
        numbers = [[len(text), self.factor * len(text)] for text in inputs]
        return Features(np.array(numbers, np.float32))


class Given(Lengths):
    """A text's feature is the number it says, twice."""

    def compute(self, inputs: Sequence[str], *, rows: int, length: int) -> Features:
        return Features(np.array([[float(text)] * 2 for text in inputs], np.float32))


def tokens(*lengths: int) -> Features:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return Features(mask[:, :, None].astype(np.float32), mask)


def test_results_come_in_the_order_of_the_items():
    texts = ["aaaa", "a", "aaa", "aa", "a", "aaaaa", "aaa"]
    for exact in (False, True):
        values = Lengths().encode(texts, exact=exact).values
        assert values[:, 0].tolist() == [4, 1, 3, 2, 1, 5, 3]


def test_exact_batches_have_the_full_number_of_rows_and_a_bucket_length():
    encoder = Lengths()
    encoder.encode(["a", "aaaaaa", "aaa"], exact=True)
    assert encoder.calls == [(["a", "aaa"], 2, 4), (["aaaaaa"], 2, 8)]


def test_other_batches_hold_items_of_like_length_and_nothing_more():
    encoder = Lengths()
    encoder.encode(["aaaa", "a", "aaa"])
    assert encoder.calls == [(["a", "aaa"], 2, 3), (["aaaa"], 1, 4)]


def test_failures_are_counted_over_all_windows():
    results = list(Lengths().encode_stream(["a"] * 6 + ["broken"] + ["a"] * 2, exact=False))
    failures = [result for result in results if isinstance(result, Failure)]
    assert [failure.index for failure in failures] == [6]
    assert results.index(failures[0]) == 6


def test_a_missing_package_is_no_fault_of_an_item():
    with pytest.raises(MissingExtraError, match="pip install reader"):
        list(Lengths().encode_stream(["a", "extra"], exact=False))


@pytest.mark.parametrize(
    ("number", "what"), [("nan", "NaN or infinite"), ("-inf", "NaN or infinite"), ("7e4", "7e+04")]
)
def test_a_feature_that_cannot_be_stored_is_a_failure_that_names_the_item(number, what):
    good, bad = Given().encode_stream(["65504", number], exact=False)
    assert good.values.tolist() == [[65504, 65504]]
    assert bad.index == 1
    assert str(bad.error).startswith(f"{number}: encoder lengths:2 gave a feature")
    assert what in str(bad.error)


def test_the_fingerprint_is_the_hash_of_the_description():
    assert len(Lengths().fingerprint) == 64
    assert Lengths().fingerprint == Lengths().fingerprint
    assert Lengths(2.5).fingerprint != Lengths().fingerprint


def test_a_text_is_its_own_content_and_a_file_its_bytes(tmp_path):
    encoder = Lengths()
    assert encoder.content("ä") == "ä".encode()
    encoder.reads = "file"
    (tmp_path / "a.bin").write_bytes(b"\x00\xff")
    assert encoder.content(str(tmp_path / "a.bin")) == b"\x00\xff"


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    encoder = Lengths()
    encoder.reads = "file"
    with pytest.raises(DataError, match=r"absent\.bin: cannot be read \(No such file"):
        encoder.content(str(tmp_path / "absent.bin"))
    with pytest.raises(DataError, match=f"{Path(tmp_path).name}: cannot be read"):
        encoder.content(str(tmp_path))


def test_an_integer_selects_a_row_and_keeps_the_axis():
    features = tokens(1, 3, 2)
    assert features[1].values.shape == (1, 3, 1)
    assert features[np.int64(-1)].mask.tolist() == [[True, True, False]]
    assert features[1:].mask.tolist() == features.mask[1:].tolist()
    assert features[[2, 0]].mask.tolist() == features.mask[[2, 0]].tolist()


def test_features_can_be_walked_through_and_end():
    assert [len(row) for row in tokens(1, 3, 2)] == [1, 1, 1]
    with pytest.raises(IndexError, match="out of range"):
        tokens(1, 3)[2]


def test_blocks_of_tokens_are_padded_to_the_longest():
    joined = stack_features([tokens(1, 2), tokens(3)], width=1, output="tokens")
    assert joined.mask.tolist() == [[True, False, False], [True, True, False], [True] * 3]
    assert joined.values[:, :, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("length", "bucket"),
    [(0, 0), (1, 4), (4, 4), (5, 8), (32, 32), (33, 48), (129, 192), (513, 768)],
)
def test_lengths_are_padded_to_steps_that_grow(length, bucket):
    assert length_bucket(length) == bucket


def test_batches_are_full_but_the_last():
    assert list(batched("abcde", 2)) == [("a", "b"), ("c", "d"), ("e",)]


def test_equal_values_have_equal_json():
    assert canonical_json({"b": 1, "a": [0.5]}) == canonical_json(json.loads('{"a":[0.5],"b":1}'))
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_long_texts_are_shortened_for_messages():
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"
