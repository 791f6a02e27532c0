"""Probe and forecast: agreement measures against slow twins, curves, and their coverage."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from modalign.cli import cli
from modalign.errors import DataError, ShapeError, UsageError
from modalign.probing.agreement import linear_cka, mutual_nearest_neighbours
from modalign.probing.forecasting import coverage, fit_curves
from vector_spaces import spec, write_world


def views(rows: int = 60, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((rows, 4))
    return tuple(
        state @ rng.standard_normal((4, width)) + 0.3 * rng.standard_normal((rows, width))
        for width in (9, 6)
    )


# Agreement


def test_mutual_neighbours_are_those_of_a_slow_twin():
    x, y = views(30)

    def nearest(side: np.ndarray, row: int) -> set[int]:
        cosine = [
            -2.0 if other == row else float(a @ side[row] / np.linalg.norm(a))
            for other, a in enumerate(side)
        ]
        return set(np.argsort(cosine)[-5:].tolist())

    slow = np.mean([len(nearest(x, row) & nearest(y, row)) / 5 for row in range(30)])
    assert mutual_nearest_neighbours(x, y, k=5) == pytest.approx(slow)


def test_agreement_is_one_for_a_rotation_and_small_for_strangers():
    x, _ = views(300)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((9, 9)))[0]
    assert mutual_nearest_neighbours(x, x @ turn * 7, k=10) == pytest.approx(1, abs=1e-3)
    assert linear_cka(x, x @ turn * 7 + 5) == pytest.approx(1)
    stranger = np.random.default_rng(2).standard_normal((300, 200))
    assert abs(linear_cka(x, stranger)) < 0.05
    assert mutual_nearest_neighbours(x, stranger, k=10) < 0.1


def test_cka_is_the_unbiased_estimate_written_out():
    x, y = views(12)

    def criterion(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        total = sum(a[i, j] * b[i, j] for i in range(n) for j in range(n) if i != j)
        sums = sum(a[i, j] for i in range(n) for j in range(n) if i != j) * sum(
            b[i, j] for i in range(n) for j in range(n) if i != j
        )
        rows = sum(
            sum(a[i, j] for j in range(n) if j != i) * sum(b[i, j] for j in range(n) if j != i)
            for i in range(n)
        )
        return (total + sums / (n - 1) / (n - 2) - 2 * rows / (n - 2)) / n / (n - 3)

    k, m = ((side - side.mean(0)) @ (side - side.mean(0)).T for side in (x, y))
    slow = criterion(k, m) / np.sqrt(criterion(k, k) * criterion(m, m))
    assert linear_cka(x, y) == pytest.approx(slow)


def test_a_side_that_does_not_vary_agrees_with_nothing():
    x, _ = views(20)
    assert linear_cka(x, np.ones((20, 3))) == 0.0


def test_agreement_of_rows_that_do_not_fit_is_refused():
    x, y = views(20)
    with pytest.raises(ShapeError, match=r"rows \(20, 9\) and \(19, 6\), expected \[N, D\] each"):
        linear_cka(x, y[:19])
    with pytest.raises(ShapeError, match="3 rows, expected 4 or more"):
        linear_cka(x[:3], y[:3])
    with pytest.raises(UsageError, match="k is 20, expected 1 to 19"):
        mutual_nearest_neighbours(x, y, k=20)


# Curves

SIZES = [250, 500, 1000, 2000, 4000]


def recalls(
    *, top: float, gain: float, bend: float, queries: int, seed: int, sizes: list[int] = SIZES
) -> np.ndarray:
    """Recall that rises along a known curve, as measured with so many queries, [sizes, 3]."""
    rng = np.random.default_rng(seed)
    steps = np.arange(len(sizes))
    odds = top + gain * np.cumsum(np.r_[0, bend ** steps[1:]])
    share = 1 / (1 + np.exp(-odds))
    return rng.binomial(queries, share[:, None], (len(sizes), 3)) / queries


def test_curves_go_through_what_was_measured_and_rise():
    measured = recalls(top=-2.5, gain=0.5, bend=0.9, queries=5000, seed=0)
    curves = fit_curves(SIZES, measured, queries=5000)
    now = curves.at(4000)
    assert now.recall == pytest.approx(measured[-1].mean(), abs=0.03)
    ahead = [curves.at(4000 * times) for times in (1, 2, 4, 10)]
    assert all(a.recall < b.recall for a, b in pairwise(ahead))
    widths = [found.interval_80[1] - found.interval_80[0] for found in ahead]
    assert widths[0] < widths[1] < widths[2]
    for found in ahead:
        assert 0 <= found.interval_80[0] <= found.recall <= found.interval_80[1] <= 1


def test_intervals_hold_the_sizes_that_were_left_out():
    inside = []
    rng = np.random.default_rng(0)
    for case in range(60):
        measured = recalls(
            top=rng.uniform(-4, -1),
            gain=rng.uniform(0.2, 0.8),
            bend=rng.uniform(0.7, 1.0),
            queries=500,
            seed=case,
        )
        inside += [
            found.interval_80[0] <= recall <= found.interval_80[1]
            for _, recall, found in coverage(SIZES, measured, queries=500, seed=case)
        ]
    assert np.mean(inside) > 0.7


def test_pairs_for_a_recall_are_where_the_curve_reaches_it():
    curves = fit_curves(
        SIZES, recalls(top=-2, gain=0.5, bend=0.9, queries=5000, seed=1), queries=5000
    )
    wanted = curves.at(9000).recall
    middle, best, worst = curves.pairs_for(wanted)
    assert middle == pytest.approx(9000, rel=0.02)
    assert best is not None
    assert best < middle
    assert worst is None or worst > middle
    # What is reached already needs fewer than there are.
    fewer, _, _ = curves.pairs_for(curves.at(1000).recall)
    assert fewer == pytest.approx(1000, rel=0.05)


def test_no_fewer_pairs_are_said_than_were_seen_to_fall_short():
    measured = recalls(top=-2, gain=0.5, bend=0.9, queries=100, seed=1)
    curves = fit_curves(SIZES, measured, queries=100)
    wanted = float(measured[-1].mean()) + 0.002
    assert curves.at(SIZES[-1]).interval_80[1] > wanted  # the interval alone would say fewer
    middle, best, worst = curves.pairs_for(wanted)
    assert best == pytest.approx(SIZES[-1], abs=1)
    assert middle is not None
    assert middle >= best
    assert worst is None or worst >= middle


def test_a_recall_that_nothing_reaches_needs_no_number():
    flat = np.full((5, 2), 0.2)
    middle, _, worst = fit_curves(SIZES, flat, queries=100_000).pairs_for(0.9)
    assert middle is None
    assert worst is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_recall_of_nothing_or_all_gives_numbers(value):
    curves = fit_curves(SIZES, np.full((5, 3), value), queries=50)
    found = curves.at(8000)
    assert np.isfinite([found.recall, *found.interval_80]).all()
    assert abs(found.recall - value) < 0.2


def test_what_cannot_be_forecast_is_refused():
    with pytest.raises(DataError, match=r"recall at 2 sizes \(100, 200\), expected 3 or more"):
        fit_curves([100, 200], np.zeros((2, 1)), queries=9)
    with pytest.raises(DataError, match="that rise; give more pairs"):
        fit_curves([100, 300, 200], np.zeros((3, 1)), queries=9)
    with pytest.raises(UsageError, match=r"recall \(2, 1\), expected a finite one"):
        fit_curves([100, 200, 300], np.zeros((2, 1)), queries=9)
    curves = fit_curves(SIZES, np.full((5, 1), 0.5), queries=9)
    with pytest.raises(UsageError, match=r"recall 1\.5 is wanted, expected between 0 and 1"):
        curves.pairs_for(1.5)
    with pytest.raises(UsageError, match="pairs is 0, expected 1 or more"):
        curves.at(0)


# Commands


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), rows=300)


def run(world: Path, command: str, *more: str, code: int = 0) -> str:
    call = [command, str(world / "pairs.csv"), "--cache", str(world / "features"), *more]
    result = CliRunner().invoke(cli, call, standalone_mode=False)
    if code:
        assert result.exception is not None
        return str(result.exception)
    assert result.exception is None, result.exception
    return result.stdout


def test_probe_ranks_encoders_of_one_modality(world, tmp_path):
    noise = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)
    stranger = tmp_path / "image.npz"
    np.savez(stranger, vectors=noise, ids=np.array([f"i{row}" for row in range(300)]))
    encoders = ["--encoder", f"image=vectors:{stranger}"]
    encoders += ["--encoder", f"image={spec(world, 'image')}"]
    encoders += ["--encoder", f"text={spec(world, 'text')}"]
    ranked = json.loads(run(world, "probe", *encoders, "--json"))["ranked"]
    assert [entry["encoders"]["image"] for entry in ranked] == [
        spec(world, "image"),
        f"vectors:{stranger}",
    ]
    good, bad = ranked
    assert good["mutual_neighbours"] > 0.25 > 2 * bad["chance_neighbours"]
    assert good["cka"] > 0.3 > abs(bad["cka"])
    assert min(way["recall_at_1"] for way in good["directions"]) > 0.7
    assert max(way["recall_at_1"] for way in bad["directions"]) < 0.3
    shown = run(world, "probe", *encoders[2:])
    assert "mutual neighbours" in shown
    assert "ridge image -> text: R@1" in shown


def test_forecast_says_what_more_pairs_would_bring(world):
    encoders = [f"--encoder={name}={spec(world, name)}" for name in ("image", "text")]
    shown = json.loads(
        run(world, "forecast", *encoders, "--seeds", "2", "--wanted", ".99", "--json")
    )
    assert shown["model"] == "closed-form"
    for way in shown["directions"]:
        items = [entry["items"] for entry in way["measured"]]
        assert items == [17, 34, 68, 135, 270]
        assert [entry["items"] for entry in way["forecast"]] == [270, 540, 2700]
        assert len(way["left_out"]) == 3
        assert set(way["wanted"]) == {"recall_at_1", "items", "at_best", "at_worst"}
    assert "in four cases of five" in run(world, "forecast", *encoders, "--seeds", "1")


def test_a_wrong_call_is_refused_before_anything_is_encoded(world):
    one = [f"--encoder=image={spec(world, 'image')}"]
    assert "one --encoder is given (image)" in run(world, "probe", *one, code=2)
    three = [f"--encoder={name}={spec(world, name)}" for name in ("image", "text", "audio")]
    assert "3 modalities are given" in run(world, "forecast", *three, code=2)
    assert "no --encoder is given" in run(world, "probe", code=2)
    assert "expected MODALITY=SPEC" in run(world, "probe", "--encoder", "image", code=2)


def test_too_few_pairs_to_forecast_from_are_told(world, tmp_path):
    lines = (world / "pairs.csv").read_text(encoding="utf-8").splitlines()[:40]
    few = tmp_path / "few.csv"
    few.write_text("\n".join(lines), encoding="utf-8")
    encoders = [f"--encoder={name}={spec(world, name)}" for name in ("image", "text")]
    call = ["forecast", str(few), "--cache", str(tmp_path / "f"), *encoders]
    result = CliRunner().invoke(cli, call, standalone_mode=False)
    assert isinstance(result.exception, DataError)
    assert "training items, expected 64 or more; give more pairs" in str(result.exception)
