"""Probe and forecast: agreement measures against slow twins, curves, and their coverage."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hub_checkpoints import WORDS, save_checkpoint
from modalign import load_encoder
from modalign.cli import cli
from modalign.encoders import Features
from modalign.errors import DataError, ShapeError, UsageError
from modalign.features import FeatureArray
from modalign.probing.agreement import linear_cka, mutual_nearest_neighbours
from modalign.probing.forecasting import Forecast, coverage, fit_curves, holds
from modalign.probing.trials import neighbours_of, nested_parts
from modalign.space.paired import PairedTables
from vector_spaces import spec, write_table, write_vectors, write_world


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


def test_items_that_are_equally_near_share_the_places_that_are_left():
    # Ten of 29 equal items are as good as any other ten of them, on either side.
    assert mutual_nearest_neighbours(np.ones((30, 4)), np.ones((30, 2)), k=10) == pytest.approx(
        10 / 29
    )
    # Row 0 has row 1 as its nearest, rows 2 and 3 are equally near after it; on the other side
    # row 2 is second. The same of row 1; rows 2 and 3 are nearest each other on the first side.
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    y = np.array([[1, 0], [0.9, 0.1], [0.8, 0.3], [0, 1]])
    assert mutual_nearest_neighbours(x, y, k=2) == pytest.approx(
        np.mean([1 + 1 / 2, 1 + 1 / 2, 1 / 2 + 1 / 2, 1 + 1 / 2]) / 2
    )


@pytest.mark.parametrize("kinds", [2, 3, 10])
def test_strangers_that_know_few_kinds_agree_as_often_as_chance(kinds):
    rng = np.random.default_rng(kinds)
    x, y = (rng.standard_normal((kinds, width))[rng.integers(0, kinds, 300)] for width in (64, 32))
    assert mutual_nearest_neighbours(x, y, k=10) == pytest.approx(10 / 299, abs=0.01)


@pytest.mark.parametrize(
    ("rows", "k"), [(4, 1), (8, 1), (10, 2), (20, 4), (40, 9), (41, 10), (1000, 10)]
)
def test_a_quarter_of_the_other_rows_are_neighbours_at_most_where_there_are_some(rows, k):
    assert neighbours_of(rows) == k


def test_agreement_of_few_strangers_may_be_well_below_zero():
    rng = np.random.default_rng(0)
    found = [
        linear_cka(rng.standard_normal((8, 512)), rng.standard_normal((8, 64))) for _ in range(40)
    ]
    assert -1 <= min(found) < -0.3
    assert 0.3 < max(found) <= 1


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


def test_a_forecast_holds_where_what_was_measured_lies_in_it_to_half_a_hit():
    forecast = Forecast(400, 0.99, (0.978, 0.9997))
    assert holds(forecast, 1.0, hits=120)  # all of 120, where .9997 was the end
    assert not holds(forecast, 1.0, hits=12_000)
    assert holds(forecast, 0.975, hits=120)
    assert not holds(forecast, 0.97, hits=120)


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


def test_a_recall_that_is_had_already_needs_a_number_though_curves_go_astray_far_ahead():
    curves = fit_curves(SIZES, np.full((5, 3), 0.5), queries=100_000)
    assert curves.at(SIZES[-1]).interval_80[0] > 0.45
    assert curves.at(SIZES[-1] * 2**20).interval_80[0] < 0.45
    _, _, worst = curves.pairs_for(0.45)
    assert worst is not None
    assert worst <= SIZES[-1]
    assert curves.at(worst).interval_80[0] >= 0.45


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


# Trials


def classes(*, items: int = 90, kinds: int = 9) -> PairedTables:
    """Items of some classes, each item's feature its own number."""
    numbers = np.arange(items)
    tables = {
        "audio": FeatureArray(Features(numbers[:, None].astype(np.float32))),
        "text": FeatureArray(Features(np.arange(kinds)[:, None].astype(np.float32))),
    }
    return PairedTables("audio", "text", tables, np.stack([numbers, numbers % kinds], axis=1))


def items_of(part: PairedTables, modality: str) -> set[float]:
    table = part.tables[modality]
    return set(table.take(np.arange(len(table))).values[:, 0].tolist())


@pytest.mark.parametrize(("counted", "sizes"), [("audio", [10, 20, 45, 90]), ("text", [2, 5, 9])])
def test_smaller_parts_lie_inside_the_larger_ones_of_a_seed(counted, sizes):
    draws = []
    for seed in (3, 4):
        parts = list(nested_parts(classes(), sizes, counted=counted, seed=seed))
        found = [items_of(part, counted) for part in parts]
        assert [len(items) for items in found] == sizes
        assert all(small < large for small, large in pairwise(found))
        for part, items in zip(parts, found, strict=True):
            # Whatever belongs to an item is there with it, under its new number.
            of = classes().oriented(counted)
            assert len(part.pairs) == sum(int(item) in items for item in of[:, 0])
            audio, text = (
                part.tables[name].take(rows).values[:, 0]
                for name, rows in zip(("audio", "text"), part.pairs.T, strict=True)
            )
            np.testing.assert_array_equal(audio % 9, text)
        draws.append(found)
    assert draws[0][0] != draws[1][0]
    again = next(iter(nested_parts(classes(), sizes, counted=counted, seed=3)))
    assert items_of(again, counted) == draws[0][0]


# Commands


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), rows=300)


def run(world: Path, command: str, *more: str, code: int = 0) -> str:
    call = [command, str(world / "pairs.csv"), "--cache", str(world / "features"), *more]
    result = CliRunner().invoke(cli, call, standalone_mode=False)
    if code:
        assert isinstance(result.exception, UsageError)
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


def write_sounds(folder: Path, *, kinds: int = 10, signal: float = 1.0) -> Path:
    """240 sounds of some class words, the last 40 held out."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = rng.standard_normal((kinds, 16))
    of = np.arange(240) % kinds
    sounds = signal * words[of] @ rng.standard_normal((16, 20)) + rng.standard_normal((240, 20))
    for name, values in (("audio", sounds), ("text", words)):
        ids = [f"{name[0]}{row}" for row in range(len(values))]
        write_vectors(folder / f"{name}.npz", values.astype(np.float32), ids)
    table = [
        [f"a{row}", f"t{of[row]}", "train" if row < 200 else "validation"] for row in range(240)
    ]
    write_table(folder / "pairs.csv", ["audio", "text", "split"], table)
    return folder


def encoders_of(folder: Path, *names: str) -> list[str]:
    return [f"--encoder={name}={spec(folder, name)}" for name in names]


def test_few_distinct_partners_are_said_to_say_little(tmp_path):
    sounds = write_sounds(tmp_path, signal=0)
    call = ["probe", *encoders_of(sounds, "audio", "text")]
    (found,) = json.loads(run(sounds, *call, "--json"))["ranked"]
    assert (found["rows"], found["neighbours"]) == (10, 2)
    assert found["chance_neighbours"] == pytest.approx(2 / 9)
    assert found["mutual_neighbours"] < 0.6
    assert found["note"] == (
        "10 training pairs of distinct items on both sides: neighbours and CKA of fewer than 20 "
        "say little"
    )
    shown = run(sounds, *call)
    assert f"  {found['note']}; mutual neighbours " in shown
    assert "10 rows" not in shown


def test_where_agreement_cannot_be_measured_the_regression_is(tmp_path):
    sounds = write_sounds(tmp_path, kinds=3)
    call = ["probe", *encoders_of(sounds, "audio", "text")]
    (found,) = json.loads(run(sounds, *call, "--json"))["ranked"]
    for name in ("neighbours", "mutual_neighbours", "chance_neighbours", "cka"):
        assert found[name] is None
    assert found["note"] == (
        "3 training pairs of distinct items on both sides, expected 4 or more: neighbours and "
        "CKA are left out"
    )
    assert min(way["recall_at_1"] for way in found["directions"]) > 0.8
    shown = run(sounds, *call)
    assert f"  {found['note']}\n  ridge audio -> text: R@1 " in shown


def test_layers_of_one_encoder_are_ranked_where_all_find_everything_by_agreement(tmp_path):
    checkpoint = save_checkpoint("bert", tmp_path / "bert")
    rng = np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(rng.choice(WORDS, 6)) for _ in range(160)))
    layers = [f"hub:{checkpoint}?layer={layer}" for layer in (2, 1)]
    # Images are seen as layer 1 sees their texts.
    seen = load_encoder(layers[1], modality="text").encode(texts).values
    ids = [f"i{row}" for row in range(len(texts))]
    write_vectors(tmp_path / "image.npz", seen, ids)
    table = [list(row) for row in zip(ids, texts, strict=True)]
    write_table(tmp_path / "pairs.csv", ["image", "text"], table)
    call = ["probe", *encoders_of(tmp_path, "image")]
    call += [f"--encoder=text={layer}" for layer in layers]
    worst = []
    for validation in ("0.5", "0.1"):
        more = ["--validation", validation]
        first, second = json.loads(run(tmp_path, *call, *more, "--json"))["ranked"]
        assert [entry["encoders"]["text"] for entry in (first, second)] == layers[::-1]
        assert first["mutual_neighbours"] == pytest.approx(1, abs=1e-3)
        assert first["cka"] == pytest.approx(1)
        assert second["mutual_neighbours"] < 0.8
        assert second["cka"] < 0.9
        assert min(way["recall_at_1"] for way in first["directions"]) == 1
        worst.append(min(way["recall_at_1"] for way in second["directions"]))
        shown = run(tmp_path, *call, *more)
        assert shown.index("?layer=1") < shown.index("?layer=2")
    assert worst[0] < worst[1] == 1


def test_items_left_out_are_listed(world, tmp_path):
    table = (world / "pairs.csv").read_text(encoding="utf-8").replace("\ni7,", "\nunknown,")
    broken = tmp_path / "pairs.csv"
    broken.write_text(table, encoding="utf-8")
    where = ["--cache", str(tmp_path / "f"), "--on-error", "skip", "--seeds", "1"]
    for command, more in (("probe", where[:-2]), ("forecast", where)):
        call = [command, str(broken), *encoders_of(world, "image", "text"), *more]
        result = CliRunner().invoke(cli, [*call, "--json"], standalone_mode=False)
        found = json.loads(result.stdout)
        (skipped,) = (found["ranked"][0] if command == "probe" else found)["skipped"]
        assert skipped["value"] == "unknown"
        result = CliRunner().invoke(cli, call, standalone_mode=False)
        assert "skipped 1 item:" in result.stderr


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
    assert shown["counted"] == "image"
    told = run(world, "forecast", *encoders, "--seeds", "2")
    assert "540 image items" in told
    assert "in four cases of five" in told
    for way in shown["directions"]:
        held = [entry["held"] for entry in way["left_out"]]
        for entry in way["left_out"]:
            low, high = entry["interval_80"]
            # Two draws, 30 rows held out.
            assert entry["held"] == (low - 0.5 / 60 <= entry["measured"] <= high + 0.5 / 60)
        line = f"  checked: {sum(held)} of 3 forecasts of larger numbers left out held\n"
        assert line in told[told.index(f"{way['from']} -> ") :]


def test_a_forecast_counts_the_items_of_the_side_that_has_enough(tmp_path):
    sounds = write_sounds(tmp_path, signal=0.15)
    ways = []
    for names in (("audio", "text"), ("text", "audio")):
        call = ["forecast", *encoders_of(sounds, *names), "--seeds", "2"]
        found = json.loads(run(sounds, *call, "--json"))
        assert found["counted"] == "audio"
        ways.append({(way["from"], way["to"]): way for way in found["directions"]})
        shown = run(sounds, *call)
        assert "400 audio items" in shown
        assert "text items" not in shown
    assert set(ways[0]) == {("audio", "text"), ("text", "audio")}
    for direction, way in ways[0].items():
        other = ways[1][direction]
        assert [e["items"] for e in way["measured"]] == [25, 50, 100, 200]
        for part in ("measured", "forecast"):
            np.testing.assert_allclose(
                [e["recall_at_1"] for e in other[part]],
                [e["recall_at_1"] for e in way[part]],
                atol=0.03,
            )


def test_the_first_side_is_counted_where_both_have_enough(tmp_path):
    sounds = write_sounds(tmp_path, kinds=80)
    for names in (("audio", "text"), ("text", "audio")):
        call = ["forecast", *encoders_of(sounds, *names), "--seeds", "1"]
        assert json.loads(run(sounds, *call, "--json"))["counted"] == names[0]


def test_a_forecast_from_three_sizes_says_that_nothing_was_left_out(world, tmp_path):
    lines = (world / "pairs.csv").read_text(encoding="utf-8").splitlines()[:91]
    (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    shown = run(tmp_path, "forecast", *encoders_of(world, "image", "text"), "--seeds", "1")
    assert "  not checked: of 3 sizes none can be left out\n" in shown


def test_a_forecast_is_of_one_encoder_of_each_modality(world, tmp_path):
    encoders = [f"--encoder=image=vectors:{tmp_path / 'nothing.npz'}"]
    encoders += encoders_of(world, "image", "text")
    told = run(world, "forecast", *encoders, code=2)
    assert "--encoder image is given 2 times" in told
    assert "nothing.npz" in told
    assert "expected one encoder of each modality" in told
    assert "`modalign probe` ranks several" in told


def test_a_wrong_call_is_refused_before_anything_is_encoded(world):
    one = [f"--encoder=image={spec(world, 'image')}"]
    assert "1 modality is given (image), expected two" in run(world, "probe", *one, code=2)
    # Two encoders of it are still one modality.
    assert "1 modality is given (image)" in run(world, "probe", *one, *one, code=2)
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
    assert "35 training items of image and 35 of text" in str(result.exception)
    assert "expected 64 or more of one of them; give more pairs" in str(result.exception)
