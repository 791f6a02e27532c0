"""The contract, over every adapter: what holds for each, whatever it encodes."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from encoder_cases import CASES, Case
from modalign.encoders import Encoder, Failure, Features
from modalign.errors import DataError


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param.startswith("onnx"):
        pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    return CASES[request.param](tmp_path)


@pytest.fixture
def encoder(case: Case) -> Encoder:
    return case.load()


def valid(features: Features, row: int) -> np.ndarray:
    """One row's feature without its padding."""
    if features.mask is None:
        return features.values[row]
    return features.values[row][features.mask[row]]


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def test_an_encoder_says_what_it_is(case, encoder):
    said = encoder.modality, encoder.reads, encoder.output, encoder.width
    assert said == (case.modality, case.reads, case.output, case.width)


def test_features_are_finite_float32_of_the_declared_width(case, encoder):
    features = encoder.encode(case.values)
    assert features.values.dtype == np.float32
    assert features.values.shape[0] == len(case.values)
    assert features.values.shape[-1] == case.width
    assert features.values.ndim == (2 if case.output == "vectors" else 3)
    assert np.isfinite(features.values).all()


def test_different_items_have_different_features(case, encoder):
    features = encoder.encode(case.values)
    rows = {valid(features, row).tobytes() for row in range(len(case.values))}
    assert len(rows) == len(case.values)


def test_only_tokens_have_a_mask_and_their_padding_is_zero(case, encoder):
    features = encoder.encode(case.values)
    if case.output == "vectors":
        assert features.mask is None
        return
    assert features.mask.dtype == bool
    assert features.mask.shape == features.values.shape[:2]
    assert features.mask[:, 0].all()
    # Valid positions come first: nothing valid follows a padded one.
    assert (np.diff(features.mask.astype(int), axis=1) <= 0).all()
    assert not features.values[~features.mask].any()


def test_exact_features_have_the_same_bits_alone_in_company_and_in_any_order(case, encoder):
    together = encoder.encode(case.values, exact=True)
    backwards = encoder.encode(case.values[::-1], exact=True)
    for row, value in enumerate(case.values):
        alone = encoder.encode([value], exact=True)
        assert_same_bits(valid(alone, 0), valid(together, row))
        assert_same_bits(valid(backwards, len(case.values) - 1 - row), valid(together, row))


def test_exact_features_have_the_same_bits_beside_many_others(case, encoder):
    many = [*case.values, *case.values[::-1]] * 6
    among = encoder.encode(many, exact=True)
    together = encoder.encode(case.values, exact=True)
    for row in range(len(case.values)):
        assert_same_bits(valid(among, row), valid(together, row))


def test_features_without_exact_agree_within_1e_5(case, encoder):
    exact = encoder.encode(case.values, exact=True)
    loose = encoder.encode(case.values)
    for row, value in enumerate(case.values):
        expected = valid(exact, row)
        tolerance = 1e-5 * np.abs(expected).max()
        for feature in (valid(loose, row), valid(encoder.encode([value]), 0)):
            np.testing.assert_allclose(feature, expected, rtol=0, atol=tolerance)


def test_two_loads_give_the_same_fingerprint_and_the_same_bits(case, encoder):
    again = case.load()
    assert again.fingerprint == encoder.fingerprint
    assert again.spec == encoder.spec
    one = encoder.encode(case.values, exact=True)
    other = again.encode(case.values, exact=True)
    assert_same_bits(one.values, other.values)


def test_other_options_and_files_have_other_fingerprints(case, encoder):
    others = [other().fingerprint for other in case.others]
    assert len({encoder.fingerprint, *others}) == 1 + len(case.others)


def test_the_description_is_json_without_a_path_of_this_machine(case, encoder, tmp_path):
    text = json.dumps(encoder.describe(), allow_nan=False)
    assert json.loads(text) == json.loads(json.dumps(encoder.describe()))
    assert str(tmp_path) not in text
    assert '"/' not in text


def test_no_items_give_no_rows(case, encoder):
    features = encoder.encode([])
    if case.output == "vectors":
        assert features.values.shape == (0, case.width)
    else:
        assert features.values.shape == (0, 0, case.width)
        assert features.mask.shape == (0, 0)


@pytest.mark.parametrize("exact", [False, True])
def test_a_broken_item_is_a_failure_at_its_place_and_spares_the_others(case, encoder, exact):
    good = encoder.encode(case.values, exact=exact)
    for broken in case.broken:
        mixed = [*case.values[:2], broken, *case.values[2:]]
        results = list(encoder.encode_stream(mixed, exact=exact))
        assert [type(result) for result in results].count(Failure) == 1
        failure = results.pop(2)
        assert failure.index == 2
        assert isinstance(failure.error, DataError)
        for row, result in enumerate(results):
            expected = valid(good, row)
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(valid(result, 0), expected, rtol=0, atol=tolerance)


def test_encode_raises_the_error_of_a_broken_item(case, encoder):
    for broken in case.broken:
        name = Path(broken).name if case.reads == "file" else broken.strip()
        name = re.escape(name if name.isprintable() else ascii(name).strip("'"))
        # What is empty cannot be quoted, only called empty or unknown.
        with pytest.raises(DataError, match=name or "empty|no vector has this id"):
            encoder.encode([case.values[0], broken])


def test_items_prepared_in_four_threads_give_the_same_features(case, encoder):
    values = list(case.values) * 4
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(encoder.prepare, values))
    length = max(encoder.length_of(item) for item in prepared)
    expected = encoder.encode(values)
    for row, item in enumerate(prepared):
        feature = encoder.compute([item], rows=1, length=length)
        tolerance = 1e-5 * np.abs(valid(expected, row)).max()
        np.testing.assert_allclose(valid(feature, 0), valid(expected, row), rtol=0, atol=tolerance)


def test_equal_items_have_equal_content_and_different_ones_do_not(case, encoder):
    contents = [encoder.content(value) for value in case.values]
    assert contents == [case.load().content(value) for value in case.values]
    assert len(set(contents)) == len(contents)


def test_an_encoder_accepts_a_generator(case, encoder):
    stream = encoder.encode(value for value in case.values)
    np.testing.assert_array_equal(stream.values, encoder.encode(list(case.values)).values)
