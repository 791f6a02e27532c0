"""Metrics by hand, against slow twins, and under what must not change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modalign.errors import ShapeError, UsageError
from modalign.evaluation import (
    Direction,
    beyond_chance,
    bootstrap_interval,
    direction_of,
    evaluate_direction,
    format_table,
    fraction,
    mean_reciprocal_rank,
    median_rank,
    ranks,
    recall_at_k,
    retrieval_ranks,
    seed_table,
)

SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # its positive, 0, is first
        [0.5, 0.4, 0.6, 0.1],  # its positives, 1 and 3: 1 is third
        [0.7, 0.7, 0.7, 0.2],  # its positive, 1, ties with two others: third
    ]
)
POSITIVES = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]], bool)


def slow_ranks(similarity, positives):
    """Rank by sorting each row, positives behind what they tie with."""
    found = []
    for row, answers in zip(similarity.tolist(), positives.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda g: (-row[g], answers[g]))
        others = [g for g in order if not answers[g]]
        best = next(g for g in order if answers[g])
        ahead = [g for g in others if order.index(g) < order.index(best)]
        found.append(1 + len(ahead))
    return np.array(found)


def random_task(*, queries=37, gallery=29, width=5, pairs=60, seed=0):
    """Vectors of any length and many-to-many pairs, one query and more in each."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [
            np.stack([np.arange(queries), rng.integers(0, gallery, queries)], axis=1),
            np.stack([rng.integers(0, queries, pairs), rng.integers(0, gallery, pairs)], axis=1),
        ]
    )
    vectors = [
        rng.normal(size=(n, width)) * rng.uniform(0.1, 9, (n, 1)) for n in (queries, gallery)
    ]
    return vectors[0], vectors[1], rng.permutation(chosen)


def dense(queries, gallery, pairs):
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, gallery)]
    positives = np.zeros((len(queries), len(gallery)), bool)
    positives[pairs[:, 0], pairs[:, 1]] = True
    return unit[0] @ unit[1].T, positives


# By hand


def test_ranks_by_hand():
    assert ranks(SIMILARITY, POSITIVES).tolist() == [1, 3, 3]


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 3), (2, 1 / 3), (3, 1.0), (4, 1.0)])
def test_recall_by_hand(k, expected):
    assert recall_at_k(SIMILARITY, POSITIVES, k=k) == expected


def test_median_and_reciprocal_rank_by_hand():
    assert median_rank(SIMILARITY, POSITIVES) == 3.0
    assert median_rank(SIMILARITY[:2], POSITIVES[:2]) == 2.0
    assert mean_reciprocal_rank(SIMILARITY, POSITIVES) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)


def test_other_positives_do_not_push_the_best_one_down():
    assert ranks(np.array([[0.9, 0.8, 0.7]]), np.array([[1, 1, 0]], bool)).tolist() == [1]
    assert ranks(np.array([[0.8, 0.8, 0.7]]), np.array([[1, 1, 0]], bool)).tolist() == [1]


def test_a_collapsed_space_scores_zero():
    assert recall_at_k(np.ones((3, 4)), POSITIVES, k=1) == 0.0


@pytest.mark.parametrize("gallery", [5, 100, 1001])
@pytest.mark.parametrize("width", [3, 64, 256])
def test_a_collapsed_space_scores_zero_whatever_rounding_does(gallery, width):
    vector = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    queries = np.random.default_rng(1).normal(size=(gallery, width)).astype(np.float32)
    pairs = np.stack([np.arange(gallery)] * 2, axis=1)
    found = retrieval_ranks(queries, np.repeat(vector, gallery, axis=0), pairs)
    assert found.tolist() == [gallery] * gallery


def test_a_vector_of_zeros_ties_with_all():
    pairs = np.array([[0, 0], [1, 1]])
    assert retrieval_ranks(np.zeros((2, 3)), np.eye(3), pairs).tolist() == [3, 3]
    assert retrieval_ranks(np.eye(3)[:2], np.zeros((4, 3)), pairs).tolist() == [4, 4]


# Slow twins


@pytest.mark.parametrize("seed", range(5))
def test_ranks_agree_with_sorting_each_row(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 6, (17, 11)) / 6
    positives = rng.random((17, 11)) < 0.2
    positives[np.arange(17), rng.integers(0, 11, 17)] = True
    np.testing.assert_array_equal(ranks(similarity, positives), slow_ranks(similarity, positives))


@pytest.mark.parametrize("block", [None, 1, 7, 36, 37, 100])
def test_blocks_give_the_ranks_of_the_whole_matrix(block):
    task = random_task()
    found = retrieval_ranks(*task, block=block)
    assert found.dtype == np.int64
    assert len(set(found.tolist())) > 5
    np.testing.assert_array_equal(found, slow_ranks(*dense(*task)))


def test_a_pair_said_twice_counts_once():
    queries, gallery, pairs = random_task()
    np.testing.assert_array_equal(
        retrieval_ranks(queries, gallery, np.concatenate([pairs, pairs])),
        retrieval_ranks(queries, gallery, pairs),
    )


# What must not change a figure


def test_the_order_of_the_gallery_does_not_count():
    queries, gallery, pairs = random_task()
    order = np.random.default_rng(1).permutation(len(gallery))
    moved = np.stack([pairs[:, 0], np.argsort(order)[pairs[:, 1]]], axis=1)
    np.testing.assert_array_equal(
        retrieval_ranks(queries, gallery[order], moved), retrieval_ranks(queries, gallery, pairs)
    )


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_the_length_of_a_vector_does_not_count(factor):
    queries, gallery, pairs = random_task()
    np.testing.assert_array_equal(
        retrieval_ranks(queries * factor, gallery / factor, pairs),
        retrieval_ranks(queries, gallery, pairs),
    )


def test_a_distractor_pushes_down_whom_it_is_closer_to():
    gallery, pairs = np.eye(3), np.array([[0, 0], [1, 1]])
    queries = np.array([[1.0, 0, 0], [0, 1.0, 0.1]])
    assert retrieval_ranks(queries, gallery, pairs).tolist() == [1, 1]
    with_distractor = np.concatenate([gallery, queries[1:]])
    assert retrieval_ranks(queries, with_distractor, pairs).tolist() == [1, 2]


def test_vectors_given_are_not_changed():
    task = [np.asarray(values, np.float32) for values in random_task()[:2]]
    copies = [values.copy() for values in task]
    retrieval_ranks(*task, random_task()[2])
    np.testing.assert_array_equal(task[0], copies[0])
    np.testing.assert_array_equal(task[1], copies[1])


# Refusals


def test_the_error_names_the_query_without_a_positive():
    with pytest.raises(UsageError, match=r"1 of 3 queries have none \(first: row 1\)"):
        recall_at_k(SIMILARITY, POSITIVES & [[True], [False], [True]], k=1)
    with pytest.raises(UsageError, match=r"2 of 4 queries have none \(first: row 1\)"):
        retrieval_ranks(np.ones((4, 2)), np.ones((3, 2)), np.array([[0, 1], [3, 2]]))


def test_a_nan_is_refused_with_its_row():
    broken = SIMILARITY.copy()
    broken[2, 3] = np.nan
    with pytest.raises(UsageError, match="similarity: NaN in row 2"):
        ranks(broken, POSITIVES)
    for side, what in enumerate(("queries", "gallery")):
        task = list(random_task())
        task[side][20, 1] = np.nan
        with pytest.raises(UsageError, match=f"{what}: NaN or infinite in row 20"):
            retrieval_ranks(*task, block=7)


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(UsageError, match=f"k is {k}, expected 1 to 4"):
        recall_at_k(SIMILARITY, POSITIVES, k=k)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"\(3, 4\) and positives \(3, 3\)"):
        ranks(SIMILARITY, POSITIVES[:, :3])
    with pytest.raises(ShapeError, match=r"queries \(2, 3\) and gallery \(4, 5\)"):
        retrieval_ranks(np.ones((2, 3)), np.ones((4, 5)), np.array([[0, 0], [1, 0]]))
    with pytest.raises(ShapeError, match=r"positives \(2,\): expected pairs"):
        retrieval_ranks(np.ones((2, 3)), np.ones((4, 3)), np.array([0, 1]))


@pytest.mark.parametrize(
    ("pair", "what"), [([1, 4], "gallery item 4"), ([2, 0], "query 2"), ([-1, 0], "query -1")]
)
def test_a_pair_out_of_range_is_named(pair, what):
    with pytest.raises(UsageError, match=f"positives, row 1: {what} is out of range"):
        retrieval_ranks(np.ones((2, 3)), np.ones((4, 3)), np.array([[0, 0], pair]))


def test_no_queries_have_no_ranks_and_no_recall():
    none = np.zeros((0, 4))
    assert ranks(none, none.astype(bool)).tolist() == []
    assert retrieval_ranks(none, np.ones((3, 4)), np.zeros((0, 2), np.int64)).tolist() == []
    with pytest.raises(UsageError, match="there are no queries"):
        recall_at_k(none, none.astype(bool), k=1)


# Intervals


def slow_interval(hits, *, seed, resamples):
    rng = np.random.default_rng(seed)
    means = [np.mean(rng.choice(hits, len(hits))) for _ in range(resamples)]
    return np.quantile(means, (0.025, 0.975))


@pytest.mark.parametrize("hits", [[1] * 60 + [0] * 140, [1.0] * 40 + [0.5] * 60 + [0.1] * 100])
def test_the_interval_agrees_with_drawing_query_by_query(hits):
    found = bootstrap_interval(np.array(hits), seed=0, resamples=4000)
    expected = slow_interval(np.array(hits), seed=1, resamples=4000)
    np.testing.assert_allclose(found, expected, atol=0.008)


def test_the_interval_is_near_the_normal_one():
    hits = np.arange(25_000) % 5 == 0
    half = 1.96 * np.sqrt(0.2 * 0.8 / 25_000)
    np.testing.assert_allclose(
        bootstrap_interval(hits, seed=0), (0.2 - half, 0.2 + half), atol=0.0008
    )


def test_a_seed_repeats_its_interval_and_a_lower_level_narrows_it():
    hits = np.arange(1000) % 3 == 0
    low, high = bootstrap_interval(hits, seed=3)
    assert (low, high) == bootstrap_interval(hits, seed=3)
    assert (low, high) != bootstrap_interval(hits, seed=4)
    inner = bootstrap_interval(hits, seed=3, level=0.5)
    assert low < inner[0] < inner[1] < high


def test_equal_hits_have_an_interval_without_width():
    assert bootstrap_interval(np.ones(10), seed=0) == (1.0, 1.0)
    assert bootstrap_interval(np.zeros(10), seed=0) == (0.0, 0.0)


@pytest.mark.parametrize(("count", "level"), [(1, 0.95), (10, 0.95), (500, 0.8)])
def test_hits_that_are_all_equal_have_the_exact_interval(count, level):
    low, high = bootstrap_interval(np.ones(count, bool), seed=0, level=level)
    assert high == 1.0
    # At the bound, all hits have the probability of the tail.
    assert low**count == pytest.approx((1 - level) / 2)
    assert bootstrap_interval(np.zeros(count, bool), seed=0, level=level) == pytest.approx(
        (0.0, 1 - low)
    )


def gaining(mean: float, *, queries: int = 400) -> np.ndarray:
    """Return gains of that mean, with a standard error of 1 over 20."""
    return np.where(np.arange(queries) % 2, mean + 1.0, mean - 1.0)


@pytest.mark.parametrize(
    ("tried", "errors"), [(1, 1.959964), (8, 2.734369), (14, 2.911280), (1000, 4.055627)]
)
def test_the_best_of_many_has_to_gain_more_than_that_of_few(tried, errors):
    assert beyond_chance([gaining(1.01 * errors / 20)], tried=tried)
    assert not beyond_chance([gaining(0.99 * errors / 20)], tried=tried)


def test_both_directions_of_the_same_pairs_say_no_more_than_one():
    gains = gaining(1.9 / 20)
    assert not beyond_chance([gains])
    assert not beyond_chance([gains, gains])
    assert beyond_chance([gains, gaining(2.1 / 20)])
    assert not beyond_chance([gains, -gains])


def test_the_best_of_many_that_are_alike_is_taken_for_better_once_in_forty_calls():
    rng = np.random.default_rng(0)
    calls, queries, ways = 2000, 200, 10
    said = 0
    for _ in range(calls):
        gains = rng.normal(size=(ways, queries))
        said += beyond_chance([gains[gains.mean(axis=1).argmax()]], tried=ways)
    # By two standard errors whatever was tried it would be one in five.
    assert said / calls == pytest.approx(0.025, abs=0.012)


def test_a_level_out_of_range_is_refused():
    with pytest.raises(UsageError, match="level is 95, expected between 0 and 1"):
        bootstrap_interval(np.ones(3), seed=0, level=95)


# The protocol


def test_a_direction_by_hand():
    gallery = np.eye(3)
    queries = np.array([[1, 0.1, 0], [0.1, 1, 0], [0.2, 1, 0.1], [0, 1, 0.5]])
    pairs = np.array([[0, 0], [1, 1], [2, 1], [3, 0]])
    found = evaluate_direction(queries, gallery, pairs, source="text", target="image", seed=0)
    assert found.as_json() == {
        "from": "text",
        "to": "image",
        "queries": 4,
        "gallery": 3,
        "recall_at_1": 0.75,
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "median_rank": 1.0,
        "mean_reciprocal_rank": pytest.approx((3 + 1 / 3) / 4),
        "interval_95": list(bootstrap_interval(np.array([1, 1, 1, 0]), seed=0)),
    }
    assert list(found.as_json()) == (
        "from to queries gallery recall_at_1 recall_at_5 recall_at_10 median_rank "
        "mean_reciprocal_rank interval_95".split()
    )


def test_any_caption_of_a_photo_counts_in_its_direction():
    photos, captions = np.eye(2), np.array([[0, 1.0], [1, 0.2], [0.1, 1]])
    pairs = np.array([[0, 0], [0, 1], [1, 2]])
    back = evaluate_direction(photos, captions, pairs, source="image", target="text", seed=0)
    assert (back.queries, back.gallery, back.recall_at_1) == (2, 3, 0.5)


def test_no_queries_are_no_measurement():
    none = np.zeros((0, 2), np.int64)
    with pytest.raises(UsageError, match="there are no queries"):
        evaluate_direction(none, np.ones((3, 2)), none, source="a", target="b", seed=0)


# Tables

FIRST = Direction("text", "image", 5000, 1000, 0.2, 0.4, 0.5, 9.0, 0.3, (0.19, 0.21))


def test_seeds_are_summed_up():
    runs = [[replace(FIRST, recall_at_1=value)] for value in (0.2, 0.26, 0.2)]
    (row,) = seed_table(runs)
    assert (row.source, row.target, row.gallery, row.seeds) == ("text", "image", 1000, 3)
    recall = row.metrics["recall_at_1"]
    assert (recall.mean, recall.lowest, recall.highest) == (pytest.approx(0.22), 0.2, 0.26)
    assert row.metrics["median_rank"].mean == 9.0


def test_a_direction_is_read_back_from_its_json():
    assert Direction.from_json(FIRST.as_json() | {"added": "later"}) == FIRST


def test_runs_of_other_galleries_are_not_summed_up():
    with pytest.raises(UsageError, match=r"seed_table, run 1: measured .* 999\)\]"):
        seed_table([[FIRST], [replace(FIRST, gallery=999)]])
    with pytest.raises(UsageError, match="there are no runs"):
        seed_table([])


def test_the_table_is_in_columns():
    other = direction_of(np.array([1, 2]), source="audio", target="text", gallery=2, seed=0)
    table = format_table([FIRST, other])
    assert table.splitlines()[:2] == [
        "direction      queries  gallery   R@1        95 %    R@5   R@10  median   MRR",
        "text -> image    5,000    1,000  .200   .190-.210   .400   .500       9  .300",
    ]
    assert table.splitlines()[2].split()[:6] == ["audio", "->", "text", "2", "2", ".500"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.2371, ".237"), (1.0, "1.000"), (0.0, ".000"), (0.9996, "1.000")]
)
def test_fractions_are_short(value, text):
    assert fraction(value) == text
