"""Scoring: hub corrections against slow twins, and probabilities that can be trusted."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from modalign.errors import DataError, ShapeError, UsageError
from modalign.evaluation import retrieval_ranks
from modalign.scoring import (
    CANDIDATES,
    USUAL,
    Bank,
    Calibration,
    Centring,
    Compared,
    Correction,
    Csls,
    InverseConvolution,
    InvertedSoftmax,
    NoCorrection,
    best_candidate,
    choose_correction,
    correction_from_json,
    cross_fitted,
    expected_calibration_error,
    fit_calibration,
    kept_precision,
    reliability,
    result_matches,
    threshold,
)
from modalign.scoring.hubs import best_results


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def vectors(rows: int, *, seed: int, width: int = 8) -> np.ndarray:
    """Rows of uneven length."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, width)) * rng.uniform(0.1, 9, (rows, 1))).astype(np.float32)


# Hub corrections


def test_csls_takes_off_half_the_mean_of_the_closest_queries():
    gallery, bank = vectors(6, seed=0), vectors(9, seed=1)
    slow = [np.mean(sorted(cosine(g, q) for q in bank)[-4:]) / 2 for g in gallery]
    np.testing.assert_allclose(Csls(k=4).bias(gallery, bank), slow, atol=1e-6)


def test_inverted_softmax_takes_off_a_log_of_shares():
    gallery, bank = vectors(6, seed=0), vectors(9, seed=1)
    slow = [0.2 * math.log(np.mean([math.exp(cosine(g, q) / 0.2) for q in bank])) for g in gallery]
    np.testing.assert_allclose(
        InvertedSoftmax(temperature=0.2).bias(gallery, bank), slow, atol=1e-6
    )


def test_a_temperature_near_nothing_takes_off_the_closest_query_and_does_not_overflow():
    gallery, bank = vectors(6, seed=0), vectors(9, seed=1)
    closest = [max(cosine(g, q) for q in bank) for g in gallery]
    np.testing.assert_allclose(
        InvertedSoftmax(temperature=1e-4).bias(gallery, bank), closest, atol=1e-3
    )


def test_inverse_convolution_moves_an_item_away_from_its_closest_queries():
    gallery, asked = vectors(6, seed=0), vectors(9, seed=1)
    found = InverseConvolution(k=4, share=0.3).applied(vectors(2, seed=2), gallery, Bank(asked))
    for g, moved in zip(gallery, found.gallery, strict=True):
        closest = sorted(asked, key=lambda q: cosine(g, q))[-4:]
        weights = np.maximum([cosine(g, q) for q in closest], 0)
        mean = sum(w * q / np.linalg.norm(q) for w, q in zip(weights, closest, strict=True))
        slow = g / np.linalg.norm(g) - 0.3 * mean / max(weights.sum(), 1e-12)
        np.testing.assert_allclose(moved, slow, atol=1e-5)
    assert not found.bias.any()


def test_centring_takes_the_mean_of_its_side_off():
    queries, gallery, asked = (vectors(5, seed=seed) for seed in range(3))
    center = vectors(1, seed=3)[0] / 50
    found = Centring().applied(queries, gallery, Bank(asked, center))
    middle = np.mean([q / np.linalg.norm(q) for q in asked], axis=0)
    for i, q in enumerate(queries):
        for j, g in enumerate(gallery):
            slow = cosine(q / np.linalg.norm(q) - middle, g / np.linalg.norm(g) - center)
            assert found.similarity()[i, j] == pytest.approx(slow, abs=1e-5)


def test_a_centred_correction_takes_its_bias_from_centred_sides():
    queries, gallery, asked = (vectors(5, seed=seed) for seed in range(3))
    bank = Bank(asked, vectors(1, seed=3)[0] / 50)
    found = InvertedSoftmax(temperature=0.2, centred=True).applied(queries, gallery, bank)
    centred = Centring().applied(queries, gallery, bank)
    middle = np.mean([q / np.linalg.norm(q) for q in asked], axis=0)
    shifted = np.stack([q / np.linalg.norm(q) - middle for q in asked])
    slow = InvertedSoftmax(temperature=0.2).bias(centred.gallery, shifted)
    np.testing.assert_allclose(found.bias, slow, atol=1e-6)


def test_centring_without_a_center_is_refused():
    with pytest.raises(UsageError, match="centring: the bank has no center"):
        Centring().applied(*(vectors(2, seed=0),) * 2, Bank(vectors(3, seed=1)))


@pytest.mark.parametrize("correction", CANDIDATES)
def test_what_an_item_is_compared_by_depends_on_no_other_item(correction: Correction, monkeypatch):
    monkeypatch.setattr("modalign.scoring.hubs.BLOCK", 40)
    queries, gallery = vectors(3, seed=2), vectors(30, seed=0)
    before = gallery.tobytes()
    bank = Bank(vectors(12, seed=1), vectors(1, seed=3)[0] / 50)
    whole = correction.applied(queries, gallery, bank).similarity()
    for row in range(30):
        alone = correction.applied(queries, gallery[row : row + 1], bank).similarity()
        np.testing.assert_allclose(whole[:, row : row + 1], alone, atol=1e-6)
    assert gallery.tobytes() == before


@pytest.mark.parametrize("correction", CANDIDATES)
def test_without_a_bank_both_sides_stay(correction: Correction):
    queries, gallery = vectors(3, seed=1), vectors(4, seed=0)
    found = correction.applied(queries, gallery, Bank.empty(8))
    assert found.queries is queries
    assert found.gallery is gallery
    assert found.bias.tolist() == [0, 0, 0, 0]


def test_a_bank_smaller_than_k_is_taken_whole():
    gallery, bank = vectors(5, seed=0), vectors(3, seed=1)
    np.testing.assert_allclose(Csls(k=10).bias(gallery, bank), Csls(k=3).bias(gallery, bank))


def test_a_bank_of_another_width_is_refused():
    with pytest.raises(ShapeError, match=r"gallery \(2, 8\) and bank \(2, 5\)"):
        Csls().bias(vectors(2, seed=0), np.ones((2, 5)))


@pytest.mark.parametrize("correction", [*CANDIDATES, Csls(k=3)])
def test_a_correction_comes_back_from_json(correction: Correction):
    assert correction_from_json(correction.as_json()) == correction


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="csls: k is 0, expected 1 or more"):
        Csls(k=0)
    with pytest.raises(UsageError, match=r"temperature is 0\.0, expected more than 0"):
        InvertedSoftmax(temperature=0.0)
    with pytest.raises(UsageError, match="k is 5 and share 0, expected"):
        InverseConvolution(k=5, share=0)
    with pytest.raises(UsageError, match="hub correction"):
        correction_from_json({"name": "magic"})


def hubs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bank]:
    """Queries, gallery, pairs and bank: the gallery's last ten items are close to every query."""
    rng = np.random.default_rng(seed)
    shared = 2.0 * np.ones(16)
    items = rng.standard_normal((100, 16))
    gallery = np.concatenate([items, shared + 0.3 * rng.standard_normal((10, 16))])
    queries = items + 0.9 * rng.standard_normal((100, 16)) + shared / 2
    asked = rng.standard_normal((300, 16)) + shared / 2
    bank = Bank(asked, np.zeros(16, np.float32))
    return queries, gallery, np.stack([np.arange(100)] * 2, axis=1), bank


def test_correction_takes_hubs_out_of_the_way():
    queries, gallery, pairs, bank = hubs(0)
    before = np.mean(retrieval_ranks(queries, gallery, pairs) == 1)
    chosen, tried = choose_correction(queries, gallery, pairs, bank)
    sides = chosen.applied(queries, gallery, bank)
    after = np.mean(retrieval_ranks(sides.queries, sides.gallery, pairs, bias=sides.bias) == 1)
    assert type(chosen) is not NoCorrection
    assert after > before + 0.2
    assert [entry["name"] for entry in tried] == [c.name for c in CANDIDATES]
    assert max(entry["recall_at_1"] for entry in tried) == pytest.approx(after)


def test_where_nothing_helps_nothing_is_chosen():
    # Every query is its item: all corrections leave recall at 1.
    items = np.eye(12)
    bank = Bank(items[:5], np.zeros(12, np.float32))
    chosen, _ = choose_correction(items, items, np.stack([np.arange(12)] * 2, 1), bank)
    assert chosen == NoCorrection()


@pytest.mark.parametrize("k", [1, 4, 30, 31, 99])
def test_best_results_by_blocks_are_those_of_sorting_the_whole_matrix(monkeypatch, k):
    rng = np.random.default_rng(2)
    queries, gallery = rng.normal(size=(23, 6)), rng.normal(size=(30, 6))
    # Two items in one place, and one in three.
    gallery[7], gallery[[11, 29]] = gallery[3], gallery[2]
    compared = Compared(queries, gallery, rng.normal(size=30).astype(np.float32) / 10)
    compared.bias[7], compared.bias[[11, 29]] = compared.bias[3], compared.bias[2]
    whole = compared.similarity()
    slow = np.argsort(-whole, axis=1, kind="stable")[:, :k]
    monkeypatch.setattr("modalign.scoring.hubs.BLOCK", 4 * len(gallery))
    similarity, rows = compared.best_results(k)
    assert rows.shape == (23, min(k, 30))
    np.testing.assert_allclose(similarity, np.take_along_axis(whole, slow, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(whole, rows, axis=1), similarity, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in rows.tolist())


@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_of_items_as_similar_the_first_come_first_and_alone_where_not_all_are_returned(k):
    similarity = np.random.default_rng(k).integers(0, 3, (40, 12)) / np.float32(4)
    slow = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    found, rows = best_results(similarity, k)
    np.testing.assert_array_equal(rows, slow)
    np.testing.assert_array_equal(found, np.take_along_axis(similarity, slow, axis=1))


def test_best_results_hold_no_matrix_of_all_queries_and_items(monkeypatch):
    monkeypatch.setattr("modalign.scoring.hubs.BLOCK", 20 * 2000)
    queries = vectors(2000, seed=0)
    compared = Compared(queries, queries, np.zeros(2000, np.float32))
    tracemalloc.start()
    compared.best_results(10)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A quarter of the matrix.
    assert held < 2000 * 2000


def test_few_queries_leave_the_usual_correction():
    ranks = np.full((len(CANDIDATES), 12), 2)
    ranks[CANDIDATES.index(USUAL), :5] = [3, 2, 1, 1, 1]
    # Better by a hair: one query more, another less.
    ranks[-1, :5] = [1, 2, 1, 1, 2]
    assert CANDIDATES[best_candidate(ranks, CANDIDATES)] == USUAL
    # Where it is not among them the plainest stays.
    others = [number for number, each in enumerate(CANDIDATES) if each != USUAL]
    few = [CANDIDATES[number] for number in others]
    assert few[best_candidate(ranks[others], few)] == NoCorrection()
    # Where it moves nothing too.
    ranks[:, :5] = 2
    assert CANDIDATES[best_candidate(ranks, CANDIDATES)] == NoCorrection()
    # Many say otherwise.
    ranks[CANDIDATES.index(USUAL)] = 3
    assert CANDIDATES[best_candidate(ranks, CANDIDATES)] == NoCorrection()


# Probabilities


def results(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Results whose odds of a match rise with similarity."""
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(0, 1, count)
    return similarity, rng.random(count) < 1 / (1 + np.exp(-(14 * similarity - 8)))


def test_probabilities_are_the_shares_of_matches_on_other_results():
    found = fit_calibration(*results(4000, seed=0), gallery=500)
    similarity, matched = results(4000, seed=1)
    probability = found.probability(similarity)
    assert expected_calibration_error(probability, matched) < 0.03
    assert (found.slope, found.intercept) == (
        pytest.approx(14, rel=0.1),
        pytest.approx(-8, rel=0.1),
    )
    assert (np.diff(found.probability(np.linspace(-1, 1, 50))) > 0).all()


@pytest.mark.parametrize("precision", [0.5, 0.7, 0.9])
def test_a_threshold_keeps_the_precision_on_other_results(precision):
    least = threshold(*results(6000, seed=2), precision=precision)
    similarity, matched = results(6000, seed=3)
    assert matched[similarity >= least].mean() == pytest.approx(precision, abs=0.05)


def test_a_threshold_that_nothing_reaches_is_none():
    similarity, _ = results(200, seed=0)
    assert threshold(similarity, np.zeros(200, bool), precision=0.5) is None
    # Two lucky results at the top are no ground for a threshold.
    lucky = np.zeros(200, bool)
    lucky[np.argsort(-similarity)[:2]] = True
    assert threshold(similarity, lucky, precision=0.9) is None


def test_equal_similarities_are_above_a_threshold_together():
    similarity = np.array([0.9] * 20 + [0.5] * 40)
    matched = np.array([True] * 20 + [True] * 10 + [False] * 30)
    assert threshold(similarity, matched, precision=0.5) == 0.5
    assert threshold(similarity, matched, precision=0.6) is None  # 20 are too few


def test_what_says_nothing_gives_the_share_of_matches():
    constant = fit_calibration(np.full(50, 0.3), np.arange(50) < 20, gallery=9)
    assert constant.slope == 0
    assert constant.probability(np.array([0.9]))[0] == pytest.approx(0.4, abs=0.02)
    # Similarity that falls with matches is not turned round.
    falling = fit_calibration(np.linspace(0, 1, 50), np.arange(50) < 20, gallery=9)
    assert falling.slope == 0


@pytest.mark.parametrize("matched", [np.ones(3, bool), np.zeros(3, bool)])
def test_three_results_of_one_kind_give_a_probability_inside(matched):
    found = fit_calibration(np.array([0.1, 0.5, 0.4]), matched, gallery=3)
    probability = found.probability(np.array([-1.0, 0.0, 1.0]))
    assert np.isfinite(probability).all()
    assert ((probability > 0) & (probability < 1)).all()


def test_a_clean_cut_does_not_run_away():
    similarity = np.concatenate([np.linspace(0, 0.4, 40), np.linspace(0.6, 1, 40)])
    found = fit_calibration(similarity, similarity > 0.5, gallery=80)
    assert np.isfinite([found.slope, found.intercept]).all()
    assert found.probability(np.array([0.1, 0.9])) == pytest.approx([0, 1], abs=0.05)


def test_cross_fitted_probabilities_come_from_other_queries():
    similarity, matched = (side.reshape(-1, 4) for side in results(400, seed=8))
    found = cross_fitted(similarity, matched, gallery=9)
    even, odd = (
        fit_calibration(similarity[half::2].ravel(), matched[half::2].ravel(), gallery=9)
        for half in (0, 1)
    )
    np.testing.assert_allclose(found[0::2], odd.probability(similarity[0::2]))
    np.testing.assert_allclose(found[1::2], even.probability(similarity[1::2]))
    assert np.isfinite(cross_fitted(similarity[:1], matched[:1], gallery=9)).all()


def saturated(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Results of which, however similar, at most two in five are a match."""
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(0, 1, count)
    return similarity, rng.random(count) < 0.4 / (1 + np.exp(-(14 * similarity - 8)))


def test_probabilities_stop_where_matches_do_and_no_threshold_promises_more():
    found = fit_calibration(*saturated(8000, seed=0), gallery=500)
    assert found.ceiling == pytest.approx(0.4, abs=0.1)
    similarity, matched = saturated(8000, seed=1)
    probability = found.probability(similarity)
    assert expected_calibration_error(probability, matched) < 0.02
    top = similarity > 0.9
    assert probability[top].mean() == pytest.approx(matched[top].mean(), abs=0.04)
    assert found.thresholds["0.3"] is not None
    assert found.thresholds["0.7"] is None


def test_thresholds_keep_their_precision_on_the_other_half_of_the_queries():
    similarity, matched = (values.reshape(800, 10) for values in results(8000, seed=0))
    kept = kept_precision(similarity, matched, gallery=500)
    assert kept["0.9"]["results"] > 500
    for wanted, found in kept.items():
        assert found["precision"] >= float(wanted) - 0.03
    # Written out for one of them.
    hits, count = 0, 0
    for half in (0, 1):
        theirs = fit_calibration(
            similarity[1 - half :: 2].ravel(), matched[1 - half :: 2].ravel(), gallery=500
        )
        above = similarity[half::2] >= theirs.thresholds["0.7"]
        hits, count = hits + matched[half::2][above].sum(), count + above.sum()
    assert kept["0.7"] == {"precision": hits / count, "results": count}


def test_of_one_query_no_precision_is_said():
    similarity, matched = (values[None, :10] for values in results(10, seed=0))
    assert kept_precision(similarity, matched, gallery=50) == {}


def test_in_a_larger_gallery_matches_are_rarer():
    rng = np.random.default_rng(0)

    def searched(gallery: int) -> tuple[np.ndarray, np.ndarray]:
        """The ten best of a gallery with one match, for each of 4,000 queries."""
        match = 0.5 + 0.15 * rng.standard_normal(4000)
        strangers = 0.15 * rng.standard_normal((4000, gallery - 1))
        both = np.concatenate([match[:, None], np.sort(strangers, axis=1)[:, -10:]], axis=1)
        order = np.argsort(-both, axis=1)[:, :10]
        return np.take_along_axis(both, order, 1).ravel(), (order == 0).ravel()

    fitted = fit_calibration(*searched(100), gallery=100)
    similarity, matched = searched(1600)
    shifted = fitted.probability(similarity, gallery=1600)
    as_it_was = fitted.probability(similarity)
    assert expected_calibration_error(shifted, matched) < 0.04
    assert expected_calibration_error(as_it_was, matched) > 0.2


def test_a_calibration_comes_back_from_json():
    found = fit_calibration(*results(300, seed=0), gallery=500)
    assert Calibration.from_json(found.as_json()) == found


def test_bad_results_are_refused():
    with pytest.raises(DataError, match="there are no results, expected one at least"):
        fit_calibration(np.zeros(0), np.zeros(0, bool), gallery=0)
    with pytest.raises(DataError, match="similarity 1 is not finite"):
        fit_calibration(np.array([0, np.nan]), np.zeros(2, bool), gallery=2)
    with pytest.raises(ShapeError, match=r"similarity \(2,\) and matched \(3,\)"):
        fit_calibration(np.zeros(2), np.zeros(3, bool), gallery=2)
    with pytest.raises(UsageError, match="precision is 0, expected above 0"):
        threshold(np.zeros(2), np.zeros(2, bool), precision=0)


def test_calibration_error_is_that_of_a_slow_twin():
    rng = np.random.default_rng(5)
    probability, matched = rng.random(103), rng.random(103) < 0.4
    ranked = sorted(zip(probability, matched, strict=True))
    bins = np.array_split(np.array(ranked, float), 10)
    slow = sum(len(b) * abs(b[:, 0].mean() - b[:, 1].mean()) for b in bins) / 103
    assert expected_calibration_error(probability, matched, bins=10) == pytest.approx(slow)
    assert sum(b.count for b in reliability(probability, matched, bins=10)) == 103


def test_matches_among_results_are_those_of_a_slow_twin():
    rng = np.random.default_rng(6)
    pairs = np.unique(rng.integers(0, 8, (20, 2)), axis=0)
    rows = np.stack([rng.permutation(8)[:3] for _ in range(8)])
    known = {tuple(pair) for pair in pairs.tolist()}
    slow = [[(query, int(row)) in known for row in rows[query]] for query in range(8)]
    assert result_matches(rows, pairs, gallery=8).tolist() == slow


def test_results_of_two_modalities_are_ranked_by_one_scale():
    # Sounds' similarities are low for matches too: raw cosine puts every photo first.
    rng = np.random.default_rng(7)
    photo, sound = rng.uniform(0.5, 1, 2000), rng.uniform(0.0, 0.5, 2000)
    right_photo = rng.random(2000) < (photo - 0.5) * 2
    right_sound = rng.random(2000) < sound * 2
    scales = [
        fit_calibration(photo, right_photo, gallery=100),
        fit_calibration(sound, right_sound, gallery=100),
    ]
    mixed = np.concatenate([scales[0].probability(photo), scales[1].probability(sound)])
    first = np.argsort(-mixed)[:500]
    right = np.concatenate([right_photo, right_sound])[first].mean()
    raw = np.argsort(-np.concatenate([photo, sound]))[:500]
    assert 0.35 < np.mean(first >= 2000) < 0.65
    assert np.mean(raw >= 2000) == 0
    assert right > 0.75


@pytest.mark.parametrize("slope", [0.0, 12.0])
def test_where_there_is_no_result_there_is_no_probability_either(slope):
    calibration = Calibration(slope, -1.0, gallery=10, results=10, thresholds={})
    found = calibration.probability(np.array([0.4, -np.inf]), gallery=20)
    assert 0 < found[0] < 1
    assert found[1] == 0
