"""The command line as scripts meet it: what it prints, where, and how it exits."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modalign.cli import COMMANDS, main
from modalign.recipes import RECIPE_CLASSES, RECIPES, OneEncoderRecipe, flag_fields
from vector_spaces import SIZES, STEPS, contents, flip_bit, spec, write_table, write_world

Run = Callable[..., tuple[int, str, str]]
DIRECTION_KEYS = {
    "from", "to", "queries", "gallery", "recall_at_1", "recall_at_5", "recall_at_10",
    "median_rank", "mean_reciprocal_rank", "interval_95",
}  # fmt: skip
STAGE_KEYS = {"space", "stage", "trainable_parameters", "encoded", "seconds", "validation"}
ALIGN = ["align", "pairs.csv", "--out", "nothing-there"]
BUILTIN = ["--encoder", "image=builtin:pixels", "--encoder", "text=builtin:ngrams"]
FIELDS = {item.name: item for item in dataclasses.fields(OneEncoderRecipe)}


HIT_KEYS = {"id", "modality", "gallery", "similarity", "probability", "value"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process; return its status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def printed(run: Run) -> Callable[..., dict[str, Any]]:
    """Call a command with --json, which must succeed; return the one object on stdout."""

    def call(*arguments: object) -> dict[str, Any]:
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        value: dict[str, Any] = json.loads(out)
        return value

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A world, a space of image, text and audio, and a gallery of images, by command line."""
    root = tmp_path_factory.mktemp("made")
    world = write_world(root / "world")
    space, gallery = root / "space", root / "gallery"
    cache = ["--cache", root / "cache"]
    calls = [
        ["align", world / "pairs.csv", *named(world, "image", "text"), "--out", space, *SIZES],
        ["add", space, world / "pairs.csv", *named(world, "audio"), "--anchor", "text", *STEPS],
        ["embed", space, world / "pairs.csv", "--modality", "image", "--out", gallery],
    ]
    for call in calls:
        assert main([str(argument) for argument in [*call, *cache]]) == 0
    return {"root": root, "world": world, "space": space, "gallery": gallery, "cache": cache}


def named(world: Path, *modalities: str) -> list[str]:
    """Return --encoder options for some modalities."""
    specs = [f"{modality}={spec(world, modality)}" for modality in modalities]
    return [text for value in specs for text in ("--encoder", value)]


def in_a_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modalign", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
        timeout=120,
        **options,
    )


# Help -------------------------------------------------------------------------------------


def test_help_lists_every_command_and_keeps_the_lines_of_the_example(run: Run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {name} " in out for name in COMMANDS)
    assert "\n  modalign embed space photos/ --modality image --out gallery\n" in out
    assert "\\b" not in out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_says_what_it_does(run: Run, command: str):
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: modalign {command} [OPTIONS]")
    first_line = out.split("\n")[2].strip()
    assert len(first_line) >= 20
    assert COMMANDS[command][1].startswith(first_line[:20])
    assert "--json" in out


def test_every_recipe_field_is_a_flag_whose_help_says_the_default(run: Run):
    _, out, _ = run("align", "--help")
    # Without spaces: a line may break at any of them, and after a hyphen.
    text = "".join(out.split())
    for recipe in RECIPE_CLASSES:
        for item in flag_fields(recipe):
            assert f"--{item.name.replace('_', '-')}" in text
            shown = item.default
            if isinstance(shown, bool):
                shown = "on" if shown else "off"
            only = sum(hasattr(other, item.name) for other in RECIPE_CLASSES) == 1
            names = [name for name, (made, _) in RECIPES.items() if type(made) is recipe]
            whose = f" ({', '.join(names)} only)" if only else ""
            words = re.escape("".join(f"{item.metadata['help']}{whose}.[default:".split()))
            own = f"(({recipe.family})?|[^]]*;{recipe.family}|{recipe.family}(?=[^]]*;))"
            assert re.search(rf"{words}{own}{re.escape(str(shown))}[;\]]", text), item.name


def test_recipe_help_starts_with_a_capital_and_lists_what_may_be_chosen(run: Run):
    _, out, _ = run("align", "--help")
    text = "".join(out.split())
    for recipe in RECIPE_CLASSES:
        for item in flag_fields(recipe):
            assert item.metadata["help"][0].isupper(), item.name
            if choices := item.metadata["choices"]:
                assert f"--{item.name.replace('_', '-')}[{'|'.join(choices)}]" in text
    assert {name for name, item in FIELDS.items() if item.metadata["choices"]} == {
        "schedule", "precision", "fusion", "token", "scoring",
    }  # fmt: skip


def test_help_says_what_holds_where_no_encoder_is_given(run: Run):
    for command in COMMANDS:
        text = " ".join(run(command, "--help")[1].split())
        if command in ("embed", "search", "evaluate"):
            assert "lists the adapters. [default: the space's own]" in text
        elif command in ("align", "add", "encode"):
            assert "lists the adapters. [required]" in text


def test_a_seed_is_shown_where_something_is_drawn_and_taken_everywhere(
    made: dict[str, Any], run: Run
):
    shown = {name for name in COMMANDS if "--seed" in run(name, "--help")[1]}
    assert {"demo", "align", "add", "evaluate"} <= shown
    assert not shown & {"encode", "embed", "search"}
    call = ["search", made["space"], made["gallery"], "--text", "t1", "--seed"]
    assert run(*call, "3")[0] == 0
    assert run(*call, "-3")[0] == 2


def test_recipes_prints_flags_as_they_are_typed(run: Run):
    _, out, _ = run("recipes")
    own, paper = out.split("oneencoder-paper:")
    assert "    --standardize\n" in own
    assert "    --no-standardize\n" in paper.split("alt-moe:")[0]
    assert "    --width 512\n" in own
    assert "True" not in out


def test_add_offers_only_what_a_later_stage_can_change(run: Run):
    _, out, _ = run("add", "--help")
    names = {item.name for recipe in RECIPE_CLASSES for item in flag_fields(recipe)}
    for name in names:
        having = [recipe for recipe in RECIPE_CLASSES if hasattr(recipe, name)]
        shown = re.search(rf"--{name.replace('_', '-')}[ /]", out) is not None
        assert shown == (not all(name in recipe.shared_fields for recipe in having)), name


def test_version_and_module_say_the_same_in_a_process():
    done = in_a_process("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("modalign, version ")


# What --json prints -----------------------------------------------------------------------


def test_align_prints_the_new_stage(made: dict[str, Any], printed: Any, tmp_path: Path):
    shown = printed(
        "align", made["world"] / "pairs.csv", *named(made["world"], "image", "text"),
        "--out", tmp_path / "deep" / "space", "--cache", tmp_path / "cache", *SIZES,
    )  # fmt: skip
    assert shown.keys() >= STAGE_KEYS
    assert shown["encoded"] == {"image": 160, "text": 160}
    assert {"encode image", "encode text", "train"} <= shown["seconds"].keys()
    assert all(entry.keys() >= DIRECTION_KEYS for entry in shown["validation"]["directions"])


def test_add_prints_the_new_stage_and_encodes_only_what_is_new(
    made: dict[str, Any], printed: Any, tmp_path: Path
):
    space = tmp_path / "space"
    in_space = ["--out", space, *made["cache"]]
    pairs = made["world"] / "pairs.csv"
    printed("align", pairs, *named(made["world"], "image", "text"), *SIZES, *in_space)
    shown = printed(
        "add", space, pairs, *named(made["world"], "sensor"), "--anchor", "image", *STEPS,
        *made["cache"],
    )  # fmt: skip
    assert shown.keys() >= STAGE_KEYS
    assert (shown["stage"], shown["encoded"]) == ("1-sensor", {"sensor": 160, "image": 0})
    # Any name is a modality, and is asked for by --query.
    printed("embed", space, pairs, "--modality", "image", "--out", tmp_path / "g", *made["cache"])
    hits = printed("search", space, tmp_path / "g", "--query", "sensor=s7", "-k", "5")["hits"]
    assert "i7" in [hit["id"] for hit in hits]


def test_embed_prints_the_gallery(made: dict[str, Any], printed: Any, tmp_path: Path):
    shown = printed(
        "embed", made["space"], made["world"] / "pairs.csv", "--modality", "audio",
        "--out", tmp_path / "not" / "there" / "yet", *made["cache"],
    )  # fmt: skip
    assert shown == {
        "gallery": str(tmp_path / "not" / "there" / "yet"),
        "modality": "audio",
        "rows": 160,
        "width": 32,
        "encoded": {"audio": 0},
        "skipped": [],
    }


def test_search_prints_hits_the_most_similar_first(made: dict[str, Any], printed: Any):
    shown = printed("search", made["space"], made["gallery"], "--text", "t11", "-k", "4")
    assert (shown["from"], shown["to"]) == ("text", "image")
    assert len(shown["hits"]) == 4
    assert all(hit.keys() == HIT_KEYS for hit in shown["hits"])
    similarity = [hit["similarity"] for hit in shown["hits"]]
    assert similarity == sorted(similarity, reverse=True)
    assert "i11" in [hit["id"] for hit in shown["hits"]]


def test_evaluate_prints_every_direction_the_never_paired_too(made: dict[str, Any], printed: Any):
    pairs = made["world"] / "pairs.csv"
    shown = printed("evaluate", made["space"], pairs, *made["cache"])
    found = {(entry["from"], entry["to"]) for entry in shown["directions"]}
    assert len(shown["directions"]) == len(found) == 6
    assert ("audio", "image") in found
    assert all(entry.keys() >= DIRECTION_KEYS for entry in shown["directions"])
    one = printed(
        "evaluate", made["space"], pairs, "--from", "text", "--to", "image", *made["cache"]
    )
    assert [(d["from"], d["to"]) for d in one["directions"]] == [("text", "image")]


def test_verify_prints_stages_and_galleries_and_exits_1_where_a_bit_moved(
    made: dict[str, Any], printed: Any, run: Run, tmp_path: Path
):
    shown = printed("verify", made["space"], "--gallery", made["gallery"])
    assert shown["ok"]
    assert [stage["name"] for stage in shown["stages"]] == ["0-image+text", "1-audio"]
    assert [gallery["rows"] for gallery in shown["galleries"]] == [160]
    shutil.copytree(made["gallery"], tmp_path / "gallery")
    flip_bit(tmp_path / "gallery" / "vectors.npy")
    status, out, _ = run("verify", made["space"], "--gallery", tmp_path / "gallery", "--json")
    assert status == 1
    assert json.loads(out)["ok"] is False
    status, out, _ = run("verify", made["space"], "--gallery", tmp_path / "gallery")
    assert status == 1
    assert f"gallery {tmp_path / 'gallery'}: CHANGED" in out


def test_encode_prints_what_it_did_and_does_it_once(
    made: dict[str, Any], printed: Any, tmp_path: Path
):
    call = [
        "encode", made["world"] / "pairs.csv", *named(made["world"], "video"),
        "--cache", tmp_path / "cache",
    ]  # fmt: skip
    first, again = printed(*call), printed(*call)
    assert first["features"]["video"].keys() == {"items", "encoded", "skipped", "store", "seconds"}
    assert [part["features"]["video"]["encoded"] for part in (first, again)] == [160, 0]


def test_facts_are_printed_as_json(printed: Any):
    names = [adapter["name"] for adapter in printed("encoders")["encoders"]]
    assert {"builtin", "hub", "onnx", "vectors"} <= set(names)
    recipes = {entry["name"]: entry["fields"] for entry in printed("recipes")["recipes"]}
    assert recipes.keys() == RECIPES.keys()
    assert recipes["oneencoder"].keys() == FIELDS.keys()


def test_a_process_with_json_prints_nothing_else_on_stdout(made: dict[str, Any], tmp_path: Path):
    done = in_a_process(
        "align", "pairs.csv", *named(Path(), "image", "text"),
        "--out", tmp_path / "space", "--json", "--threads", "1", *made["cache"], *SIZES,
        cwd=made["world"],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["stage"] == "0-image+text"
    # The encoders' files were named from that folder; the space is used from this one.
    # Trained by the same call from the same seed, it has the bits of the other: its gallery fits.
    done = in_a_process("search", tmp_path / "space", made["gallery"], "--text", "t11", "-k", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "i11" in done.stdout.split()


# Columns, splits, skipped items ------------------------------------------------------------


def test_columns_are_renamed_and_the_split_column_left_out(
    made: dict[str, Any], printed: Any, run: Run, tmp_path: Path
):
    rows = [[f"i{row}", f"t{row}", "somewhere"] for row in range(160)]
    pairs = write_table(tmp_path / "pairs.csv", ["photo", "words", "split"], rows)
    call = [
        "align", pairs, *named(made["world"], "image", "text"), "--column", "image=photo",
        "--column", "text=words", "--out", tmp_path / "space", *made["cache"], *SIZES,
    ]  # fmt: skip
    status, _, err = run(*call)
    assert status == 1
    assert "split 'somewhere' is unknown" in err
    assert "--column split=" in err
    assert printed(*call, "--column", "split=")["stage"] == "0-image+text"


def test_a_broken_item_ends_the_job_or_is_listed(made: dict[str, Any], run: Run, tmp_path: Path):
    rows = [[f"i{row}", f"t{row}"] for row in [*range(40), 4000]]
    pairs = write_table(tmp_path / "pairs.csv", ["image", "text"], rows)
    call = [
        "align", pairs, *named(made["world"], "image", "text"), "--out", tmp_path / "space",
        "--cache", tmp_path / "cache", *SIZES,
    ]  # fmt: skip
    status, out, err = run(*call)
    assert (status, out) == (1, "")
    assert "pairs.csv row 41 (line 42): i4000" in err
    assert "--on-error skip" in err
    status, out, err = run(*call, "--on-error", "skip", "--json")
    assert status == 0
    (skipped,) = json.loads(out)["skipped"]
    assert (skipped["where"], skipped["value"]) == ("pairs.csv row 41 (line 42)", "i4000")
    call = [
        "evaluate",
        tmp_path / "space",
        pairs,
        "--on-error",
        "skip",
        "--cache",
        tmp_path / "cache",
    ]
    status, out, err = run(*call)
    assert status == 0
    assert "skipped 1 item:\n  pairs.csv row 41" in err
    status, out, err = run(*call, "--json")
    assert len(json.loads(out)["skipped"]) == 1


def test_a_folder_of_pictures_is_embedded_and_its_broken_ones_listed(
    printed: Any, run: Run, tmp_path: Path
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 90, 200 - 10 * number)).save(
            folder / f"{number}.png"
        )
    rows = [[f"photos/{number}.png", f"picture {number}"] for number in range(12)]
    pairs = write_table(tmp_path / "pairs.csv", ["image", "text"], rows)
    printed(
        "align", pairs, "--encoder", "image=builtin:pixels", "--encoder", "text=builtin:ngrams",
        "--out", tmp_path / "space", "--cache", tmp_path / "cache", *SIZES,
    )  # fmt: skip
    (folder / "bad.png").write_bytes((folder / "1.png").read_bytes()[:40])
    call = [
        "embed",
        tmp_path / "space",
        folder,
        "--modality",
        "image",
        "--cache",
        tmp_path / "cache",
    ]
    status, _, err = run(*call, "--out", tmp_path / "g1")
    assert status == 1
    assert err.startswith("modalign: photos/bad.png: ")
    assert err.count("bad.png") == 1
    shown = printed(*call, "--out", tmp_path / "g2", "--on-error", "skip")
    assert shown["rows"] == 12
    assert [item["where"] for item in shown["skipped"]] == ["photos/bad.png"]
    status, out, _ = run(
        "search", tmp_path / "space", tmp_path / "g2", "--image", folder / "3.png", "-k", 1
    )
    assert (status, out.split()[2]) == (0, "3.png")


# The split of training ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(made: dict[str, Any]) -> Path:
    """A space whose rows were held out with another seed and share than the defaults."""
    space = made["root"] / "drawn"
    call = [
        "align", made["world"] / "pairs.csv", *named(made["world"], "image", "text"),
        "--out", space, "--seed", 3, "--validation", 0.2, *made["cache"], *SIZES,
    ]  # fmt: skip
    assert main([str(argument) for argument in call]) == 0
    return space


def split_of(space: Path, stage: str = "0-image+text") -> Any:
    record = json.loads((space / "stages" / stage / "stage.json").read_text(encoding="utf-8"))
    return record["pairs"]["split"]


def test_a_stage_records_what_its_split_was_drawn_with_and_which_rows(
    drawn: Path, made: dict[str, Any]
):
    split = split_of(drawn)
    assert (split["seed"], split["validation"]) == (3, 0.2)
    rows = [int(row) for row in split["rows"].split(",")]
    assert len(rows) == 32
    assert rows == sorted(rows)
    assert split["rows"] != split_of(made["space"])["rows"]


def test_evaluate_measures_the_rows_that_were_held_out_in_training(
    drawn: Path, made: dict[str, Any], printed: Any
):
    shown = printed("evaluate", drawn, made["world"] / "pairs.csv", *made["cache"])
    stage = json.loads((drawn / "stages" / "0-image+text" / "stage.json").read_text())
    assert [d["queries"] for d in shown["directions"]] == [32, 32]
    kept = [(d["from"], d["recall_at_1"], d["median_rank"]) for d in shown["directions"]]
    trained = stage["validation"]["directions"]
    assert kept == [(d["from"], d["recall_at_1"], d["median_rank"]) for d in trained]


def test_evaluate_refuses_a_split_that_would_measure_what_was_trained_on(
    drawn: Path, made: dict[str, Any], run: Run, printed: Any
):
    call = ["evaluate", drawn, made["world"] / "pairs.csv", *made["cache"]]
    for flag, value, used in (("--seed", "0", "3"), ("--validation", "0.1", "0.2")):
        line = refused(run, *call, flag, value)
        assert f"{flag} {value}: the space was trained on pairs.csv with {flag} {used}" in line
        assert "rows that it was trained on would be measured" in line
        assert "--split all" in line
    shown = printed(*call, "--seed", "0", "--split", "all")
    assert [d["queries"] for d in shown["directions"]] == [160, 160]
    same = printed(*call, "--seed", "3", "--validation", "0.2")
    assert [d["queries"] for d in same["directions"]] == [32, 32]


def test_pairs_the_space_never_saw_are_split_as_the_flags_say(
    drawn: Path, made: dict[str, Any], printed: Any, tmp_path: Path
):
    rows = [[f"i{row}", f"t{row}"] for row in range(100)]
    pairs = write_table(tmp_path / "others.csv", ["image", "text"], rows)
    shown = printed(
        "evaluate", drawn, pairs, "--seed", "5", "--validation", "0.3", *made["cache"]
    )  # fmt: skip
    assert [d["queries"] for d in shown["directions"]] == [30, 30]


def test_a_modality_added_on_the_same_pairs_holds_the_same_rows_out(
    drawn: Path, made: dict[str, Any], run: Run, printed: Any, tmp_path: Path
):
    space, pairs = tmp_path / "space", made["world"] / "pairs.csv"
    shutil.copytree(drawn, space)
    add = ["add", space, pairs, *named(made["world"], "audio"), "--anchor", "text", *STEPS]
    line = refused(run, *add, "--validation", "0.1", *made["cache"])
    assert "trained on pairs.csv with --validation 0.2" in line
    printed(*add, "--seed", "8", *made["cache"])
    assert split_of(space, "1-audio") == split_of(drawn)
    shown = printed("evaluate", space, pairs, *made["cache"])
    assert [d["queries"] for d in shown["directions"]] == [32] * 6


def test_a_split_column_that_training_went_by_is_not_left_out_of_evaluate(
    made: dict[str, Any], run: Run, printed: Any, tmp_path: Path
):
    words = ["train"] * 120 + ["validation"] * 20 + ["test"] * 20
    rows = [[f"i{row}", f"t{row}", word] for row, word in enumerate(words)]
    pairs = write_table(tmp_path / "pairs.csv", ["image", "text", "split"], rows)
    space, encoders = tmp_path / "space", named(made["world"], "image", "text")
    printed("align", pairs, *encoders, "--out", space, *made["cache"], *SIZES)
    assert split_of(space) is None
    # The seed is then that of the intervals alone.
    for seed in ([], ["--seed", "4"]):
        shown = printed("evaluate", space, pairs, *seed, *made["cache"])
        assert [d["queries"] for d in shown["directions"]] == [20, 20]
    line = refused(run, "evaluate", space, pairs, "--column", "split=", *made["cache"])
    assert "trained on the rows that its split column names" in line


# Calls that must change --------------------------------------------------------------------


def refused(run: Run, *arguments: object, status: int = 2) -> str:
    """Call a command that must fail with one line on stderr; return the line."""
    found, out, err = run(*arguments)
    assert (found, out) == (status, ""), err
    assert err.startswith("modalign: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aling"], "No such command 'aling'; see `modalign --help`"),
        (["align"], "Missing argument 'PAIRS'; see `modalign align --help`"),
        ([*ALIGN, "--wide", "3"], "No such option"),
        (ALIGN, "no --encoder is given, expected"),
        ([*ALIGN, "--recipe", "best"], "known: alt-moe, alt-moe-paper, auto"),
        ([*ALIGN, "--fusion", "glue"], "known: addition, additive, concatenation"),
        ([*ALIGN, "--precision", "int4"], "known: bfloat16, float32"),
        ([*ALIGN, "--width", "30"], "expected a multiple of heads, 4"),
        ([*ALIGN, "--learning-rate", "inf"], "expected more than 0, finite"),
        ([*ALIGN, "--weight-decay", "nan"], "expected 0 or more, finite"),
        ([*ALIGN, "--seed", "-1"], "'--seed': -1 is not in the range"),
        ([*ALIGN, "--device", "abacus"], "--device abacus: cannot be used here"),
        ([*ALIGN, "--encoder", "image"], "expected NAME=VALUE"),
        ([*ALIGN, "--encoder", "image=cnn:a"], "one --encoder is given (image), expected one for"),
        ([*ALIGN, *BUILTIN], "PAIRS pairs.csv: there is no such file"),
    ],
)
def test_a_wrong_call_is_one_line_with_the_way_out(run: Run, arguments: list[str], words: str):
    assert words in refused(run, *arguments)


def test_a_call_without_a_command_shows_the_help(run: Run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "Commands:" in err


@pytest.mark.parametrize(
    ("space", "gallery", "words"),
    [
        ("gallery", "gallery", "is a gallery, expected the space it was made with"),
        ("space", "space", "is a space, expected a gallery"),
        ("none", "gallery", "there is no such folder"),
        ("space", "none", "no gallery here"),
        ("world", "gallery", "no space here (there is no space.json)"),
    ],
)
def test_a_folder_of_the_wrong_kind_is_told(
    made: dict[str, Any], run: Run, space: str, gallery: str, words: str
):
    folders = {**made, "none": made["root"] / "none"}
    assert words in refused(run, "search", folders[space], folders[gallery], "--text", "t1")


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (["--text", "t1", "--image", " "], "--image is empty, expected what to search by"),
        ([], "no query is given, expected --text"),
        (["--query", "smell=x"], "modality 'smell' is unknown; known: audio, image, text"),
        (["--text", "t1", "-k", "0"], "'-k': 0 is not in the range"),
    ],
)
def test_search_wants_one_query_of_a_known_modality(
    made: dict[str, Any], run: Run, queries: list[str], words: str
):
    assert words in refused(run, "search", made["space"], made["gallery"], *queries)


def test_several_queries_are_one(made: dict[str, Any], printed: Any):
    call = ["search", made["space"], made["gallery"], "-k", "3"]
    both = printed(*call, "--text", "t11", "--audio", "a11")
    assert (both["from"], both["to"]) == ("text+audio", "image")
    assert both["hits"][0]["probability"] is None
    # Both parts mean the same scene: so does what they find.
    assert "i11" in [hit["id"] for hit in both["hits"]]


def test_a_query_that_is_not_there_is_named(made: dict[str, Any], run: Run):
    line = refused(run, "search", made["space"], made["gallery"], "--text", "t999", status=1)
    assert "t999: no vector has this id" in line


def test_add_says_what_is_wrong_with_the_modality_or_the_anchor(made: dict[str, Any], run: Run):
    pairs, before = made["world"] / "pairs.csv", contents(made["space"])
    add = ["add", made["space"], pairs, *made["cache"]]
    assert "has audio already (its modalities: image, text, audio), expected" in refused(
        run, *add, *named(made["world"], "audio")
    )
    assert "2 new modalities (video, sensor), expected one" in refused(
        run, *add, *named(made["world"], "video", "sensor")
    )
    video = named(made["world"], "video")
    assert "anchor 'smell' is unknown; known: audio, image, text" in refused(
        run, *add, *video, "--anchor", "smell"
    )
    assert "say which with --anchor" in refused(run, *add, *video)
    assert "width is 64, this space's first stage has 32" in refused(
        run, *add, *video, "--anchor", "text", "--width", "64"
    )
    assert contents(made["space"]) == before


def test_evaluate_says_which_modality_or_split_is_wrong(made: dict[str, Any], run: Run):
    call = ["evaluate", made["space"], made["world"] / "pairs.csv", *made["cache"]]
    assert "modality 'smell' is unknown" in refused(run, *call, "--from", "smell")
    assert "split test has no rows; there are 144 train, 16 validation" in refused(
        run, *call, "--split", "test"
    )


def test_what_is_there_is_not_written_over(made: dict[str, Any], run: Run):
    pairs, before = made["world"] / "pairs.csv", contents(made["root"])
    encoders = named(made["world"], "image", "text")
    again = refused(run, "align", pairs, *encoders, "--out", made["space"])
    assert "a space is there already, finished" in again
    assert "to add a modality to it use `modalign add`" in again
    assert "is there already" in refused(
        run, "embed", made["space"], pairs, "--modality", "image", "--out", made["gallery"]
    )
    assert "holds other files" in refused(run, "align", pairs, *encoders, "--out", made["world"])
    assert contents(made["root"]) == before


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["align", "NONE", *BUILTIN, "--out", "x"], "PAIRS NONE: there is no such file"),
        (["align", "PAIRS", *BUILTIN, "--out", "x", "--column", "text=words"], "column 'words'"),
        (["add", "SPACE", "NONE", "--encoder", "video=hub:none"], "PAIRS NONE: there is no such"),
        (["add", "SPACE", "PAIRS", "--encoder", "smell=hub:none", "--anchor", "text"],
         "column 'smell'"),
        (["evaluate", "SPACE", "NONE", "--encoder", "image=hub:none"], "PAIRS NONE: there is no"),
        (["encode", "NONE", "--encoder", "image=hub:none"], "ITEMS NONE: there is no such file"),
        (["encode", "PAIRS", "--encoder", "smell=hub:none"], "column 'smell'"),
        (["embed", "SPACE", "NONE", "--modality", "image", "--encoder", "image=hub:none",
          "--out", "x"], "ITEMS NONE: there is no such file"),
    ],
)  # fmt: skip
def test_wrong_pairs_are_told_before_an_encoder_is_loaded(
    made: dict[str, Any], run: Run, call: list[str], words: str
):
    # An encoder that cannot be loaded would be told instead.
    where = {"SPACE": made["space"], "PAIRS": made["world"] / "pairs.csv", "NONE": "nope.csv"}
    status = 1 if words.startswith("column") else 2
    line = refused(run, *[where.get(word, word) for word in call], status=status)
    assert words.replace("NONE", "nope.csv") in line


def test_validation_0_without_a_split_column_is_refused_with_the_way_out(
    made: dict[str, Any], run: Run
):
    line = refused(
        run, "align", made["world"] / "pairs.csv", *named(made["world"], "image", "text"),
        "--out", "x", "--validation", "0",
    )  # fmt: skip
    assert "--validation 0 holds no rows out to validate with, and no split column is read" in line
    assert "leave --validation out" in line


@pytest.mark.parametrize("flag", ["--text", "--query"])
def test_an_empty_query_is_refused(made: dict[str, Any], run: Run, flag: str):
    value = {"--text": " ", "--query": "text= "}[flag]
    assert "--text is empty, expected what to search by" in refused(
        run, "search", made["space"], made["gallery"], flag, value
    )


def test_a_query_file_that_is_not_there_is_a_wrong_call(printed: Any, run: Run, tmp_path: Path):
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 90, 0)).save(tmp_path / f"{number}.png")
    rows = [[f"{number}.png", f"picture {number}"] for number in range(12)]
    pairs = write_table(tmp_path / "pairs.csv", ["image", "text"], rows)
    cache = ["--cache", tmp_path / "cache"]
    printed("align", pairs, *BUILTIN, "--out", tmp_path / "space", *cache, *SIZES)
    printed("embed", tmp_path / "space", pairs, "--modality", "text", "--out", tmp_path / "g",
            *cache)  # fmt: skip
    for query in (["--image", "nope.jpg"], ["--query", "image=nope.jpg"]):
        line = refused(run, "search", tmp_path / "space", tmp_path / "g", *query)
        assert "image query nope.jpg: there is no such file or folder; correct the path" in line


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (["aling"], 2),
        (["align", "nope.csv", *BUILTIN, "--out", "x"], 2),
        (["encode", "BROKEN", "--encoder", "text=builtin:ngrams"], 1),
    ],
)
def test_an_error_is_an_object_on_stdout_with_json_and_still_a_line_on_stderr(
    run: Run, call: list[str], status: int, tmp_path: Path
):
    (tmp_path / "broken.csv").write_text("text\na,b\n", encoding="utf-8")
    call = [str(tmp_path / "broken.csv") if word == "BROKEN" else word for word in call]
    found, out, err = run(*call, "--json")
    error = json.loads(out)["error"]
    assert (found, error["exit_code"]) == (status, status)
    assert err == f"modalign: {error['message']}\n"


def test_verify_tells_a_gallery_of_another_space_from_a_changed_one(
    made: dict[str, Any], drawn: Path, printed: Any, run: Run, tmp_path: Path
):
    gallery = tmp_path / "gallery"
    printed(
        "embed", drawn, made["world"] / "pairs.csv", "--modality", "image", "--out", gallery,
        *made["cache"],
    )  # fmt: skip
    call = ["verify", made["space"], "--gallery", gallery]
    status, out, _ = run(*call)
    assert (status, f"gallery {gallery}: of another space\n" in out) == (1, True)
    status, out, _ = run(*call, "--json")
    (entry,) = json.loads(out)["galleries"]
    assert (status, entry["ok"], entry["of_another_space"]) == (1, False, True)
    flip_bit(gallery / "vectors.npy")
    status, out, _ = run(*call)
    assert (status, f"gallery {gallery}: CHANGED\n" in out) == (1, True)
    status, out, _ = run("verify", drawn, "--gallery", gallery)
    assert (status, f"gallery {gallery}: CHANGED\n" in out) == (1, True)


def test_debug_shows_where_an_error_comes_from(made: dict[str, Any]):
    with pytest.raises(ValueError, match="no space here"):
        main(["verify", str(made["world"]), "--debug"])
