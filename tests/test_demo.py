"""The demo: the whole story in a small world, gone on with where it was interrupted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modalign import UsageError, load_encoder, load_space
from modalign.demo import Demo, DemoResult, commands, run_demo
from modalign.recipes import AltMoERecipe, OneEncoderRecipe
from modalign.worlds import WorldSizes, open_world
from vector_spaces import contents

SIZES = WorldSizes(pictures=300, sounds=200, clips=120, test=40)
RECIPE = OneEncoderRecipe(
    width=64, heads=2, feedforward=64, batch_size=128, min_steps=200, learning_rate=3e-3
)

STORED_FILES = ("stored/space/stages/", "stored/store/")
STORED = AltMoERecipe(width=64, experts=4, batch_size=64, min_steps=80, epochs=1)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    """A demo in a folder, run once."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, run_demo(Demo(folder, recipe=RECIPE, stored_recipe=STORED, sizes=SIZES))


def test_it_writes_a_page_and_the_figures(told: tuple[Path, DemoResult]):
    folder, result = told
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") + page.count("<audio") + page.count("<video") >= 12
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert len(report["directions"]) == 12
    beside = report["closed_form"]["directions"]
    assert {frozenset((line["from"], line["to"])) for line in beside} == {
        frozenset((other, "text")) for other in ("image", "audio", "video")
    }
    assert len(beside) == 6
    assert report["closed_form"]["left_out"] == []
    assert "Closed form: regularised canonical correlation" in page
    shown = result.as_json()
    assert shown.keys() >= {
        "space", "stage", "trainable_parameters", "encoded", "seconds", "validation",
        "directions", "verify",
    }  # fmt: skip
    json.dumps(shown, allow_nan=False)


def test_nothing_stored_moved(told: tuple[Path, DemoResult]):
    folder, result = told
    assert result.verify["ok"]
    assert result.verify["first_gallery_unchanged"]
    assert result.verify["embedded_again_to_the_same_bits"]
    galleries = [folder / "galleries" / name for name in ("image", "text", "audio", "video")]
    assert load_space(folder / "space").verify(galleries)["ok"]


def test_stored_vectors_are_searched_as_they_are(told: tuple[Path, DemoResult]):
    folder, result = told
    found = result.stored
    assert found["unchanged"]
    assert found["verify"]
    assert (found["spec"], found["files"]) == ("stored/store/captions.npy", 2)
    assert [line["from"] for line in found["directions"]] == ["image", "audio", "video"]
    for line in found["directions"]:
        assert line["gallery"] > 1000
        # Four captions a scene: chance is below .04.
        assert line["recall_at_10"] > 0.2, line
    assert {row["direction"] for row in result.routing if row["direction"]} == {
        "image>text",
        "audio>text",
        "video>text",
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "A store searched as it is" in page
    assert "Experts" in page
    assert "experts of its own" not in page  # all directions share them


def test_the_pairs_of_ids_are_split_the_same_in_any_folder(
    told: tuple[Path, DemoResult], tmp_path: Path
):
    folder, _ = told
    held = []
    for root in (folder, tmp_path / "elsewhere"):
        if root != folder:
            shutil.copytree(folder / "world", root / "world")
            shutil.copytree(folder / "features", root / "features")
        story = Demo(root, sizes=SIZES).stored
        world = open_world(root / "world")
        story.write_store(world, load_encoder("builtin:ngrams"))
        held.append(story.pairs(world.pictures, "image").held_out().tolist())
    assert held[0] == held[1]


def test_all_twelve_directions_are_well_above_chance(told: tuple[Path, DemoResult]):
    _, result = told
    paired = {(d.source, d.target): "text" in (d.source, d.target) for d in result.directions}
    assert len(paired) == 12
    assert sum(paired.values()) == 6
    # Chance is 1 of 40 scenes.
    for direction in result.directions:
        assert direction.recall_at_1 > 0.3, direction
    assert sum(d.recall_at_1 for d in result.directions) / 12 > 0.6


def test_every_direction_has_searches_with_some_right_answers(told: tuple[Path, DemoResult]):
    _, result = told
    assert len(result.searches) == 36
    assert all(len(example.hits) == 3 for example in result.searches)
    assert any(hit.right for example in result.searches for hit in example.hits)


def test_a_second_call_makes_nothing_again(told: tuple[Path, DemoResult]):
    folder, first = told
    before = contents(folder)
    again = run_demo(Demo(folder, recipe=RECIPE, stored_recipe=STORED, sizes=SIZES))
    after = contents(folder)
    kept = [
        name for name in before
        if name.startswith(
            ("world/", "space/stages/", "features/", "galleries/image/", *STORED_FILES)
        )
        and not name.endswith(".lock")
    ]  # fmt: skip
    assert len(kept) > 600
    assert all(after[name] == before[name] for name in kept)
    assert [d.as_json() for d in again.directions] == [d.as_json() for d in first.directions]


def test_a_demo_that_lost_its_last_steps_goes_on(told: tuple[Path, DemoResult], tmp_path: Path):
    folder, _ = told
    shutil.copytree(folder, tmp_path / "demo")
    for name in ("galleries/video", "galleries/audio"):
        shutil.rmtree(tmp_path / "demo" / name)
    (tmp_path / "demo" / "report.html").unlink()
    again = run_demo(Demo(tmp_path / "demo", recipe=RECIPE, stored_recipe=STORED, sizes=SIZES))
    assert (tmp_path / "demo" / "report.html").exists()
    assert again.verify["ok"]
    for name in ("audio", "video"):
        files = [root / "galleries" / name / "vectors.npy" for root in (folder, tmp_path / "demo")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_folder_of_other_settings_or_other_files_is_refused(
    told: tuple[Path, DemoResult], tmp_path: Path
):
    folder, _ = told
    before = contents(folder)
    demo = Demo(folder, recipe=RECIPE, stored_recipe=STORED, sizes=SIZES)
    others = [{"seed": 1}, {"sizes": replace(SIZES, test=39)}, {"recipe": Demo.recipe}]
    for other in (replace(demo, **changes) for changes in others):
        with pytest.raises(UsageError, match=r"holds a demo of other settings \(demo.json\)"):
            run_demo(other)
    assert contents(folder) == before
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is not empty and holds no demo; choose another --out"):
        run_demo(Demo(tmp_path, recipe=RECIPE, stored_recipe=STORED, sizes=SIZES))


def test_what_to_try_next_names_files_that_are_there(told: tuple[Path, DemoResult]):
    folder, _ = told
    demo = Demo(folder)
    first_sound = demo.sizes.pictures
    lines = commands(str(folder / "space"), str(folder))
    assert any(f"sounds/{first_sound:04d}.wav" in line for line in lines)
    assert any(f"{folder}/galleries/image" in line for line in lines)
    (line,) = [line for line in lines if "npy:" in line]
    parts = line.replace("npy:", "").split()
    assert all(Path(part).exists() for part in parts if part.startswith("/")), line
