from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalign.encoders import load_encoder
from modalign.errors import DataError, UsageError
from modalign.pairs import Pairs, read_pairs
from modalign.recipes import CombinedRecipe, Recipe
from modalign.report import Hit, Report, SearchExample, Shown, StageSummary, experts, write_report
from modalign.report.baselines import told
from modalign.report.choices import settings, tried
from modalign.report.curves import BOTTOM, LEFT, RIGHT, TOP, round_values, stage_charts
from modalign.report.figures import arrow, count, duration, share, small_share
from modalign.report.formulas import closed_forms_of, rows_measured
from modalign.report.spaces import Measured, measure
from modalign.report.writing import recall_matrix
from modalign.space import Space, align
from vector_spaces import DIRECTED, key, spec, write_table, write_vectors, write_world
from vector_spaces import RECIPE as SHARED

HOSTILE = "<script>alert('1')</script>\"&"
EMPTY_ELEMENTS = {"meta", "img", "br", "link"}
# The smallest bytes are enough: nothing here decodes them.
MEDIA = {"image": "0.png", "audio": "0.wav", "video": "0.mp4"}


class Page(HTMLParser):
    """Keeps the elements, in order, and checks that each one is closed where it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [words for name, words in self.words if name == tag]


def direction(source: str, target: str, **more: object) -> dict[str, object]:
    return {
        "from": source,
        "to": target,
        "queries": 1500,
        "gallery": 200,
        "recall_at_1": 0.237,
        "recall_at_5": 0.5,
        "recall_at_10": 1.0,
        "median_rank": 3.5,
        "mean_reciprocal_rank": 0.4,
        "interval_95": [0.2, 0.27],
        **more,
    }


LOG = (
    {"step": 0, "recall": 0.0, "image->text": 0.0, "text->image": 0.0},
    {"step": 50, "recall": 0.3, "image->text": 0.25, "text->image": 0.35, "loss": 4.0},
    {"step": 100, "recall": 0.4, "image->text": 0.5, "text->image": 0.3, "loss": 2.0},
)
STAGE = StageSummary(
    name="0-image+text",
    kind="universal-projection",
    modalities=("image", "text"),
    anchor=None,
    trainable_parameters=305283,
    encoded={"image": 1500, "text": 6000},
    seconds={"encode image": 3.2, "train": 75.0},
    steps=100,
    best_step=50,
    directions=(direction("image", "text"),),
    log=LOG,
)
VERIFY = {
    "ok": True,
    "stages": [{"name": "0-image+text", "ok": True, "problems": []}],
    "galleries": [{"name": "images", "ok": True, "problems": [], "rows": 12345}],
}
BARE = Report(title="A run", summary="What happened.", seconds=131.4)


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for name in MEDIA.values():
        (folder / name).write_bytes(name.encode())
    return folder


def item(media: Path, modality: str, text: str = "a red circle") -> Shown:
    value = text if modality == "text" else media / MEDIA[modality]
    return Shown(f"{modality}-0", modality, value)


def search(media: Path, source: str, target: str) -> SearchExample:
    answers = (Hit(item(media, target), 0.75, False), Hit(item(media, target), 0.5, True))
    return SearchExample(source, target, item(media, source), answers)


@pytest.fixture
def full(media):
    return replace(
        BARE,
        machine={"threads": 2},
        stages=(STAGE,),
        directions=(
            direction("image", "text", paired=True),
            direction("text", "image", paired=True, recall_at_1=0.5),
            direction("audio", "image", paired=False, recall_at_1=0.125),
        ),
        searches=(
            search(media, "image", "text"),
            search(media, "text", "audio"),
            search(media, "text", "video"),
            search(media, "image", "text"),
        ),
        verify=VERIFY,
        commands=("# look again", "modalign verify space"),
    )


def page_of(folder: Path, report: Report, **options: int) -> Page:
    return Page(write_report(folder, report, **options)[0])


# The page ------------------------------------------------------------------------------------


def test_a_report_is_two_files_in_a_folder_it_makes(tmp_path):
    page, figures = write_report(tmp_path / "new" / "run", BARE)
    assert (page, figures) == (tmp_path / "new/run/report.html", tmp_path / "new/run/report.json")
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_the_parts_follow_one_another_under_headings_without_gaps(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert page.text("h1") == ["A run"]
    assert page.text("h2") == [
        "What finds what",
        "Searches to look at",
        "How the space was made",
        "Proof that nothing moved",
        "How to go on",
        "The machine",
    ]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_report_without_parts_is_a_title_and_a_summary(tmp_path):
    page = page_of(tmp_path, BARE)
    assert page.text("h1") + page.text("h2") == ["A run"]
    assert "What happened." in page.text("p")
    assert page.text("dd") == ["2\u202fmin 11\u202fs"]
    assert not page.all("table")


def test_a_stage_without_a_log_and_without_validation_has_no_charts_and_no_table(tmp_path):
    page = page_of(tmp_path, replace(BARE, stages=(replace(STAGE, log=(), directions=()),)))
    assert page.text("h3") == ["0-image+text"]
    assert not page.all("svg")
    assert {"class": "charts"} not in page.all("div")
    assert not page.all("table")


def test_everything_that_needs_a_name_has_one(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all(player["aria-label"] for player in page.all("audio") + page.all("video"))
    assert all(header["scope"] in ("row", "col") for header in page.all("th"))
    scrolled = [box for box in page.all("div") if box.get("class") == "wide"]
    assert [(bool(box["aria-label"]), box["tabindex"]) for box in scrolled] == [(True, "0")] * 4
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert [svg["aria-label"] for svg in drawings] == [
        "Validation recall@1 by training step; best: step\u202f50",
        "Training loss by training step; best: step\u202f50",
    ]


def test_the_page_holds_no_outside_address_and_no_script(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.source)
    addresses = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert len(addresses) == 6
    assert all(address.startswith("data:") for address in addresses)
    assert not page.all("script")
    assert not page.all("link")


def test_the_figures_are_written_as_in_papers_with_chance_beside_them(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert ".237" in page.text("span")
    assert ".200 to .270" in page.text("td")
    assert {"chance .005", "chance .025", "chance .050"} <= set(page.text("span"))
    assert {"7\u202f500", "305\u202f283"} <= set(page.text("dd"))
    assert {"1\u202f500", "12\u202f345", "3.5", "1.000"} <= set(page.text("td"))
    assert page.text("td").count("paired") == 2
    assert page.text("td").count("never paired") == 1


def test_directions_of_which_nobody_knows_whether_they_were_paired_say_nothing_of_it(tmp_path):
    page = page_of(tmp_path, replace(BARE, directions=(direction("a", "b"),)))
    assert "Trained together" not in page.text("th")
    assert "paired" not in page.source.partition("<main>")[2]


def test_the_matrix_marks_what_was_never_paired_by_words_and_border(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    cells = [cell for cell in page.all("td") if "--heat" in (cell.get("style") or "")]
    assert [(cell.get("class"), cell["style"]) for cell in cells] == [
        (None, "--heat:0.237"),
        (None, "--heat:0.5"),
        ("apart", "--heat:0.125"),
    ]
    assert page.text("span").count("never paired") == 1


def test_the_page_says_what_was_measured(tmp_path, full):
    page = page_of(tmp_path / "out", replace(full, measured_on="the train rows of a.csv"))
    assert any("Recall@1 on the train rows of a.csv: the" in words for words in page.text("p"))


def test_the_matrix_has_one_order_for_both_sides_and_gaps_where_nothing_was_measured():
    lines = [direction("text", "image"), direction("image", "text"), direction("audio", "text")]
    matrix = recall_matrix(lines)
    assert matrix.sources == ("text", "image", "audio")
    assert matrix.targets == ("text", "image")
    assert matrix.cells == ((None, lines[0]), (lines[1], None), (lines[2], None))


def test_what_verify_found_changed_is_named(tmp_path):
    broken = {"name": "1-audio", "ok": False, "problems": ["weights: sha256 differs"]}
    page = page_of(
        tmp_path, replace(BARE, verify={"ok": False, "stages": [broken], "galleries": []})
    )
    assert {"✗ problems", "✗ changed", "weights: sha256 differs"} <= set(page.text("span"))
    assert "nothing moved" not in page.source


def test_commands_stand_as_they_were_given(tmp_path, full):
    source = page_of(tmp_path / "out", full).source
    assert '<span class="remark"># look again</span>\nmodalign verify space\n' in source


# Searches and media --------------------------------------------------------------------------


def test_searches_are_grouped_by_direction_and_the_first_group_is_open(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert page.all("details") == [{"open": None}, {}, {}]
    titles = [title for title in page.text("h3") if "→" in title]
    assert titles == ["image → text", "text → audio", "text → video"]
    notes = [note for note in page.text("span") if "came first" in note]
    assert notes[0] == "a right item came first in 0 of 2"


def test_the_right_hit_is_marked_by_a_tick_and_a_word(tmp_path, media):
    page = page_of(tmp_path / "out", replace(BARE, searches=(search(media, "text", "image"),)))
    assert page.text("span").count("✓ right") == 1
    assert "1 · another" in page.text("span")
    assert {".750", ".500"} <= set(page.text("span"))


def test_each_medium_is_embedded_in_the_element_that_plays_it(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert page.text("blockquote").count("a red circle") == 6
    for tag, media_type, name in (
        ("img", "image/png", "0.png"),
        ("audio", "audio/wav", "0.wav"),
        ("video", "video/mp4", "0.mp4"),
    ):
        expected = f"data:{media_type};base64,{base64.b64encode(name.encode()).decode()}"
        assert {element["src"] for element in page.all(tag)} == {expected}
    assert {"controls", "loop", "muted", "playsinline"} <= set(page.all("video")[0])


def test_media_beyond_the_limit_are_linked_with_a_note(tmp_path, media):
    found = SearchExample(
        "text",
        "image",
        item(media, "text"),
        tuple(Hit(item(media, m), 0.5, False) for m in ("image", "audio")),
    )
    # One data URI of 5 bytes takes 30 characters; the sound's no longer fits.
    page = page_of(tmp_path / "out", replace(BARE, searches=(found,)), limit_bytes=30)
    assert page.all("img")[0]["src"].startswith("data:")
    assert page.all("audio")[0]["src"] == "../media/0.wav"
    smaller = page_of(tmp_path / "out", replace(BARE, searches=(found,)), limit_bytes=29)
    assert smaller.all("img")[0]["src"] == "../media/0.png"
    assert "audio audio-0 · linked, not in this page" in page.text("span")
    assert any("1 of them are linked beside this page" in words for words in page.text("p"))


def test_a_file_that_a_browser_cannot_show_is_a_link(tmp_path, media):
    (media / "cloud of points.ply").write_bytes(b"ply")
    query = Shown("0", "points", media / "cloud of points.ply")
    page = page_of(tmp_path / "out", replace(BARE, searches=(SearchExample("a", "b", query, ()),)))
    assert page.all("a") == [{"href": "../media/cloud%20of%20points.ply"}]
    assert page.text("a") == ["cloud of points.ply"]


@pytest.mark.parametrize("name", ["gone.png", "gone.ply"])
def test_a_missing_media_file_is_named_and_nothing_is_written(tmp_path, media, name):
    query = Shown("7", "image", media / name)
    report = replace(BARE, searches=(SearchExample("image", "text", query, ()),))
    with pytest.raises(DataError, match=rf"{name}: cannot be read .* image 7; look at the path"):
        write_report(tmp_path / "out", report)
    assert not (tmp_path / "out").exists()


def test_a_limit_below_zero_is_refused(tmp_path):
    with pytest.raises(UsageError, match="limit_bytes is -1, expected 0"):
        write_report(tmp_path, BARE, limit_bytes=-1)


def test_hostile_words_stay_words_wherever_they_stand(tmp_path):
    image = tmp_path / '"><img src=x onerror=alert(1)>.png'
    image.write_bytes(b"0")
    shown = (Shown(HOSTILE, HOSTILE, HOSTILE), Shown(HOSTILE, HOSTILE, image))
    stage = replace(
        STAGE,
        name=HOSTILE,
        kind=HOSTILE,
        modalities=(HOSTILE,),
        anchor=HOSTILE,
        encoded={HOSTILE: 1},
        seconds={HOSTILE: 1.0},
        log=({"step": 1, f"{HOSTILE}->b": 0.5},),
    )
    broken = {"name": HOSTILE, "ok": False, "problems": [HOSTILE]}
    report = Report(
        title=HOSTILE,
        summary=HOSTILE,
        seconds=1.0,
        machine={HOSTILE: HOSTILE},
        stages=(stage,),
        directions=(direction(HOSTILE, "b", paired=False),),
        searches=tuple(SearchExample(HOSTILE, "b", one, (Hit(one, 0.5, True),)) for one in shown),
        verify={"ok": False, "stages": [broken], "galleries": [broken]},
        commands=(HOSTILE, "#" + HOSTILE),
    )
    for limit in (0, 1000):
        page = page_of(tmp_path / "out", report, limit_bytes=limit)
        assert not page.all("script")
        assert len(page.all("img")) == 2
        assert not any("onerror" in attributes for _, attributes in page.elements)
        assert page.text("blockquote") == [HOSTILE] * 2
    assert page_of(tmp_path / "out", report, limit_bytes=0).all("img")[0]["src"] == (
        "../%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.png"
    )


# Curves --------------------------------------------------------------------------------------


def test_curves_go_through_the_points_of_the_log():
    recall, loss = stage_charts(LOG, best_step=50)
    middle = (LEFT + RIGHT) / 2
    assert [curve.name for curve in recall.curves] == ["image → text", "text → image"]
    # The axis ends at .5: .25 is half way up, .35 is 70 %, .3 is 60 %.
    assert recall.curves[0].points == f"{LEFT},{BOTTOM} {middle:g},116 {RIGHT},{TOP}"
    assert recall.curves[1].points == f"{LEFT},{BOTTOM} {middle:g},84.8 {RIGHT},100.4"
    assert loss.curves[0].points == f"{middle:g},{TOP} {RIGHT},116"


def test_the_best_step_is_marked_on_the_axis_and_on_every_curve():
    recall, loss = stage_charts(LOG, best_step=50)
    middle = (LEFT + RIGHT) / 2
    assert (recall.best.position, recall.best.label) == (middle, "best: step\u202f50")
    assert [curve.best for curve in recall.curves] == [(middle, 116), (middle, 84.8)]
    assert loss.curves[0].best == (middle, TOP)


def test_ticks_are_round_and_as_precise_as_their_spacing():
    recall, loss = stage_charts(LOG, best_step=50)
    assert [tick.label for tick in recall.y_ticks] == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert [tick.label for tick in recall.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [tick.label for tick in loss.y_ticks] == ["0", "1", "2", "3", "4"]


def test_a_log_without_figures_gives_no_chart_and_a_missing_figure_a_shorter_curve():
    nan = float("nan")
    assert stage_charts([{"step": 0, "loss": nan}, {"step": 5, "loss": None}], best_step=0) == []
    (chart,) = stage_charts([{"step": 0, "loss": nan}, {"step": 10, "loss": 1.0}], best_step=0)
    assert chart.curves[0].points == f"{RIGHT},{TOP}"
    assert chart.curves[0].best is None


def test_values_below_zero_and_steps_that_are_not_round_fit_the_axes():
    (chart,) = stage_charts([{"step": 45, "loss": -1.0}, {"step": 90, "loss": 1.0}], best_step=90)
    assert [tick.label for tick in chart.y_ticks] == ["-1.0", "-0.5", "0.0", "0.5", "1.0"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "20", "40", "60", "80"]
    assert chart.curves[0].points == f"{(LEFT + RIGHT) / 2:g},{BOTTOM} {RIGHT},{TOP}"


@pytest.mark.parametrize(("best_step", "anchor"), [(0, "start"), (100, "end")])
def test_the_label_of_the_best_step_stays_inside_the_drawing(best_step, anchor):
    assert [c.best_anchor for c in stage_charts(LOG, best_step=best_step)] == [anchor, anchor]


def test_a_log_of_step_0_alone_is_no_curve():
    assert stage_charts([{"step": 0, "a->b": 0.5}], best_step=0) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.55, [0, 0.2, 0.4, 0.6]),
        (0, 900, [0, 200, 400, 600, 800, 1000]),
        (-0.5, 2, [-0.5, 0, 0.5, 1, 1.5, 2]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3e-5, [0, 1e-5, 2e-5, 3e-5]),
    ],
)
def test_round_values_enclose_the_data(low, high, expected):
    assert round_values(low, high) == expected


# Figures and JSON ----------------------------------------------------------------------------


def test_numbers_are_written_for_readers():
    assert [share(x) for x in (0.237, 1.0, 0.0, -0.041, -0.0001, None)] == [
        *(".237", "1.000", ".000", "−.041", ".000", "–")
    ]
    assert (small_share(0.005), small_share(0.0002)) == (".005", "<\u202f.001")
    assert [count(x) for x in (305283, 3.5, 9.0, None)] == ["305\u202f283", "3.5", "9", "–"]
    times = [duration(s).replace("\u202f", " ") for s in (0.412, 7.31, 48.2, 59.7, 312, 7260)]
    assert times == ["0.41 s", "7.3 s", "48 s", "1 min 0 s", "5 min 12 s", "2 h 1 min"]
    assert arrow("image->text") == "image → text"


def test_the_json_file_holds_all_of_the_report_with_paths_seen_from_its_folder(tmp_path, full):
    _, figures = write_report(tmp_path / "out", full)
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert list(written) == [
        *("title", "summary", "seconds", "machine", "stages"),
        *(
            "directions",
            "measured_on",
            "closed_form",
            "routing",
            "stored",
            "forecast",
            "searches",
            "verify",
            "commands",
        ),
    ]
    assert written["routing"] == []
    assert written["closed_form"] == {}
    assert written["verify"] == VERIFY
    assert written["directions"] == [dict(line) for line in full.directions]
    assert written["stages"][0]["validation"] == {"directions": [direction("image", "text")]}
    assert written["stages"][0]["log"] == list(LOG)
    first = written["searches"][0]
    assert (first["from"], first["to"]) == ("image", "text")
    assert first["query"] == {"id": "image-0", "modality": "image", "value": "../media/0.png"}
    assert first["hits"][1] == {
        "id": "text-0",
        "modality": "text",
        "value": "a red circle",
        "similarity": 0.5,
        "right": True,
    }
    assert not first["hits"][0]["right"]


def test_without_a_folder_the_json_holds_paths_as_they_were_given():
    assert Shown("0", "image", Path("/a/b.png")).as_json()["value"] == "/a/b.png"


# Experts -----------------------------------------------------------------------------------


def routed(
    source: str | None, task: str | None, load: list[float], **more: object
) -> dict[str, object]:
    target = {"image": "text", "text": "image", None: None}[source] if task else None
    return {
        "direction": f"{source}>{target}" if target else None,
        "from": source,
        "to": target,
        "task": task,
        "router": "learned",
        "rows": 1500,
        "load": load,
        "gate": [0.25] * len(load),
        "entropy": 0.875,
        "open": list(range(len(load))),
        "dead": [],
        **more,
    }


ROUTING = (
    routed("image", "prediction", [0.5, 0.25, 0.25, 0.0], dead=[3]),
    routed("image", "contrast", [0.5, 0.25, 0.25, 0.0], dead=[3]),
    routed("text", "prediction", [0.0, 0.5, 0.5, 0.0, 0.0], dead=[0, 3, 4]),
    routed("text", "contrast", [0.2, 0.4, 0.4], open=[1, 2]),
    routed("image", None, [0.5, 0.25, 0.25, 0.0], dead=[3]),
    routed(None, "contrast", [0.5, 0.25, 0.25, 0.0, 0.0], dead=[3]),
    routed(None, None, [0.5, 0.25, 0.25, 0.0, 0.0], dead=[3]),
)


def test_a_report_without_a_mixture_says_nothing_of_experts(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert "Experts" not in page.text("h2")
    assert experts.expert_map(()) is None
    assert experts.told(()) == []


def test_experts_have_a_section_with_a_picture_and_a_table(tmp_path):
    page = page_of(tmp_path, replace(BARE, routing=ROUTING))
    assert page.text("h2") == ["Experts"]
    assert page.text("title")[1:3] == [
        "image → text, prediction, expert 0: load .500, gate share .250",
        "image → text, prediction, expert 1: load .250, gate share .250",
    ]
    assert "text → image, contrast, expert 0: cannot be chosen" in page.text("title")
    dead = [box for box in page.all("rect") if box["class"] == "load dead"]
    assert len(dead) == sum(len(row["dead"]) for row in ROUTING)
    assert page.text("text").count("×") == len(dead)
    assert page.text("th")[:5] == ["Direction and task", "Rows", "Evenness", "Dead", "0"]
    assert "text → image, prediction" in page.text("th")
    assert {"0, 3, 4", ".875", "none"} <= {*page.text("span"), *page.text("td")}


def test_a_cell_is_the_stronger_the_more_rows_choose_its_expert():
    drawn = experts.expert_map(ROUTING)
    assert drawn is not None
    first, fourth = drawn.lines[0].cells, drawn.lines[3].cells
    assert (drawn.peak, drawn.count) == (0.5, 5)
    assert [cell.strength for cell in first] == [1.0, 0.52, 0.52, 0.04, None]
    assert [cell.strength is None for cell in fourth] == [True, False, False, True, True]
    assert [cell.dead for cell in first] == [False, False, False, True, False]


@pytest.mark.parametrize("count", [1, 12, 200])
def test_cells_lie_side_by_side_inside_the_drawing(count):
    drawn = experts.expert_map([routed("image", "contrast", [1 / count] * count)] * 3)
    assert drawn is not None
    for line in drawn.lines:
        for left, right in pairwise(line.cells):
            assert left.x + drawn.cell < right.x
        assert line.cells[-1].x + drawn.cell < drawn.width
        assert line.y + experts.CELL_HEIGHT < drawn.height


def test_means_stand_apart_from_what_was_counted():
    tops = experts.line_tops(ROUTING)
    steps = [after - before for before, after in pairwise(tops)]
    assert steps[3] > steps[0] == steps[1] == steps[2] == steps[4]


def test_dead_experts_are_named_over_all_and_where_tasks_differ_by_task():
    assert experts.told(ROUTING) == [
        "A learned gate sends each row to the experts with its highest shares.",
        "Dead over all, with less than a twentieth of an even load: expert 3.",
        "Dead in some directions: text → image, prediction: experts 0 and 4.",
    ]
    both = [routed("image", task, [0.6, 0.4, 0, 0], dead=[2, 3]) for task in ("a", "b")]
    assert experts.told([*both, routed(None, None, [0.6, 0.2, 0.1, 0.1])])[1:] == [
        "Dead in some directions: image → text: experts 2 and 3."
    ]


def test_where_no_expert_is_dead_it_is_said_and_one_network_says_nothing_of_it():
    alive = [routed("image", "contrast", [0.5, 0.5]), routed(None, None, [0.5, 0.5])]
    assert experts.told(alive)[1].startswith("No expert is dead")
    assert "experts of its own" in experts.told(alive[:1])[1]
    (only,) = experts.told([routed("image", "contrast", [1.0], router="mlp")])
    assert "nothing is routed" in only


def test_the_plain_table_has_a_dash_where_an_expert_cannot_be_chosen():
    lines = experts.format_routing(ROUTING).splitlines()
    assert lines[0].split() == ["load", "by", "expert", "rows", "evenness", *"01234"]
    assert lines[4].split()[-6:] == ["0.875", "–", ".400", ".400", "–", "–"]
    assert lines[-1].split() == ["all", "1,500", "0.875", ".500", ".250", ".250", ".000", ".000"]


# Closed forms beside the space -------------------------------------------------------------

CLOSED = CombinedRecipe(members="cca")
QUICK = {"min_steps": 4, "validate_steps": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), rows=200)


def pairs_of(table: Path, *modalities: str, **options: Any) -> Pairs:
    return read_pairs(table, modalities, reads=dict.fromkeys(modalities, "key"), **options)


def made(world: Path, out: Path, recipe: Recipe, pairs: Pairs) -> Space:
    encoders = {name: load_encoder(spec(world, name), modality=name) for name in pairs.modalities}
    return align(pairs, encoders, out=out, recipe=recipe, cache=out.parent / "features")


def add(space: Space, world: Path, pairs: Pairs, **options: Any) -> Space:
    encoder = load_encoder(spec(world, "audio"), modality="audio")
    return space.add(pairs, encoder, cache=space.folder.parent / "features", **options)


def measured(space: Space, pairs: Pairs, **options: Any) -> Measured:
    encoded = space.encode_pairs(pairs, cache=space.folder.parent / "features")
    return measure(space, encoded, **options)


def ways(lines: Any) -> list[tuple[str, str]]:
    return [(line["from"], line["to"]) for line in lines]


@pytest.fixture(scope="module")
def closed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """A space of a closed form and nothing else."""
    folder = tmp_path_factory.mktemp("closed")
    return made(world, folder / "s", CLOSED, pairs_of(world / "pairs.csv", "image", "text"))


@pytest.mark.parametrize("split", ["validation", "all", "train"])
def test_beside_a_space_that_is_a_closed_form_stands_the_same(world, closed, split):
    pairs = pairs_of(world / "pairs.csv", "image", "text", validation=0.0)
    found = measured(closed, pairs if split == "all" else closed.as_trained(pairs), split=split)
    assert [each.gallery for each in found.directions] == [
        {"validation": 20, "all": 200, "train": 180}[split]
    ] * 2
    assert found.closed_form == {
        "member": "cca",
        "split": split,
        "directions": [each.as_json() for each in found.directions],
        "left_out": [],
    }


@pytest.mark.parametrize("recipe", [SHARED, CLOSED, DIRECTED], ids=lambda recipe: recipe.family)
def test_all_that_was_trained_together_has_a_closed_form_and_nothing_else(
    world, tmp_path, recipe, closed
):
    quick = recipe.changed(QUICK)
    space = made(world, tmp_path / "s", quick, pairs_of(world / "pairs.csv", "image", "text"))
    add(space, world, pairs_of(world / "pairs.csv", "audio", "text"))
    pairs = space.as_trained(pairs_of(world / "pairs.csv", "image", "text", "audio"))
    told_of: list[tuple[Any, ...]] = []
    found = measured(space, pairs, progress=lambda *each: told_of.append(each))
    assert len(found.directions) == 6
    assert ways(found.closed_form["directions"]) == [
        *(("image", "text"), ("text", "image"), ("text", "audio"), ("audio", "text")),
    ]
    # The same rows, pairs and formula, whatever was trained beside it.
    alone = measured(closed, closed.as_trained(pairs_of(world / "pairs.csv", "image", "text")))
    assert found.closed_form["directions"][:2] == alone.closed_form["directions"]
    assert found.closed_form["left_out"] == []
    assert told_of == [
        ("closed form", 1, 2, "image and text"),
        ("closed form", 2, 2, "text and audio"),
    ]


def test_three_modalities_of_a_first_stage_have_a_closed_form_each_two(world, tmp_path):
    pairs = pairs_of(world / "pairs.csv", "image", "text", "audio")
    space = made(world, tmp_path / "s", DIRECTED.changed(QUICK), pairs)
    found = measured(space, space.as_trained(pairs))
    assert sorted(ways(found.closed_form["directions"])) == sorted(space.directions())
    one_way = measured(space, space.as_trained(pairs), directions=[("audio", "image")])
    assert ways(one_way.closed_form["directions"]) == [("audio", "image")]


def test_each_stage_has_a_closed_form_of_the_rows_it_was_trained_on(world, tmp_path):
    """The later one was trained on another file, with validation rows of its own."""
    table = world / "pairs.csv"
    space = made(world, tmp_path / "s", CLOSED, pairs_of(table, "image", "text"))
    rest = [[key("audio", row), key("text", row)] for row in range(100)]
    part = write_table(tmp_path / "part.csv", ["audio", "text"], rest)
    add(space, world, pairs_of(part, "audio", "text", validation=0.3))
    assert [stage.record["pairs"]["rows"]["train"] for stage in space.stages] == [180, 70]
    everything = pairs_of(table, "image", "text", "audio", validation=0.0)
    encoded, own = (
        space.encode_pairs(pairs, cache=tmp_path / "features")
        for pairs in (everything, pairs_of(part, "audio", "text", validation=0.0))
    )
    asked: dict[str, Any] = {"split": None, "seed": 0, "progress": lambda *_: None}
    directions = space.evaluate_encoded(encoded, split="all")
    found = closed_forms_of(space, encoded, directions, trained_on=[encoded, own], **asked)
    assert len(found["directions"]) == 4
    assert {line["gallery"] for line in found["directions"]} == {200}
    without = closed_forms_of(space, encoded, directions, trained_on=[encoded], **asked)
    assert ways(without["directions"]) == [("image", "text"), ("text", "image")]
    (left,) = without["left_out"]
    assert left["modalities"] == ["text", "audio"]
    assert left["why"] == (
        "pairs.csv: not the pairs that text and audio were trained on, expected part.csv as it "
        "was then; report on that one"
    )


def test_pairs_without_training_rows_have_a_report_without_a_closed_form(world, closed, tmp_path):
    rows = [[key(m, row) for m in ("image", "text")] for row in range(30)]
    held = write_table(tmp_path / "held.csv", ["image", "text"], rows)
    found = measured(closed, pairs_of(held, "image", "text", validation=0.0), split="all")
    assert found.closed_form["directions"] == []
    page = page_of(tmp_path / "out", found.report())
    assert "Closed form" not in page.text("th")
    (note,) = [words for words in page.text("p") if "closed form" in words]
    assert note == (
        "No closed form for image and text (held.csv: not the pairs that image and text were "
        "trained on, expected pairs.csv as it was then; report on that one)."
    )


def test_pairs_that_lost_training_rows_have_no_closed_form(world, closed):
    pairs = closed.as_trained(pairs_of(world / "pairs.csv", "image", "text"))
    row = int(np.flatnonzero(pairs.splits == 0)[0])
    found = measured(closed, pairs.without("image", [row], ["gone"]))
    (left,) = found.closed_form["left_out"]
    assert left["why"] == (
        "pairs.csv: 179 training and 20 validation rows are left, expected 180 and 20 as in "
        "training; mend the items that are missing now"
    )


@pytest.mark.parametrize(("rows", "fitted"), [(15, False), (16, True)])
def test_too_few_rows_to_train_on_have_no_closed_form(tmp_path, rows, fitted):
    world = write_world(tmp_path, rows=rows + 4)
    splits = ["train"] * rows + ["validation"] * 4
    lines = [[key("image", row), key("text", row), split] for row, split in enumerate(splits)]
    table = write_table(tmp_path / "few.csv", ["image", "text", "split"], lines)
    space = made(world, tmp_path / "s", CLOSED, pairs_of(table, "image", "text"))
    found = measured(space, pairs_of(table, "image", "text")).closed_form
    assert ways(found["directions"]) == ([("image", "text"), ("text", "image")] if fitted else [])
    assert [left["why"] for left in found["left_out"]] == (
        []
        if fitted
        else [
            "few.csv: 15 pairs of image and text to train on and 4 to validate by, expected 16 or "
            "more and some; give more pairs"
        ]
    )


@pytest.mark.parametrize("names", [("image", "text"), ("text", "image")])
def test_few_kinds_of_text_have_a_closed_form_and_a_forecast_in_either_order(tmp_path, names):
    world = write_world(tmp_path, rows=200)
    splits = ["train" if row % 11 else "validation" for row in range(200)]
    lines = [[key("image", n), key("text", n % 10), split] for n, split in enumerate(splits)]
    table = write_table(tmp_path / "kinds.csv", ["image", "text", "split"], lines)
    space = made(world, tmp_path / "s", CLOSED, pairs_of(table, *names))
    encoded = space.encode_pairs(pairs_of(table, *names), cache=tmp_path / "features")
    found = measure(space, encoded, forecast=True)
    assert found.closed_form["left_out"] == []
    assert len(found.closed_form["directions"]) == 2
    assert found.forecast["counted"] == "image"
    assert "by the number of items of image" in page_of(tmp_path / "out", found.report()).source
    assert measure(space, encoded, closed_form=False).closed_form == {}


def test_what_the_closed_form_refuses_is_said_and_the_report_is_written(tmp_path):
    """All pictures look alike to their encoder."""
    world = write_world(tmp_path, rows=60)
    write_vectors(world / "image.npz", np.ones((60, 24)), [key("image", row) for row in range(60)])
    pairs = pairs_of(world / "pairs.csv", "image", "text")
    space = made(world, tmp_path / "s", SHARED.changed(QUICK), pairs)
    found = measured(space, space.as_trained(pairs))
    (left,) = found.closed_form["left_out"]
    assert "all features of the image side are equal" in left["why"]
    page = page_of(tmp_path / "out", found.report())
    assert any("No closed form for image and text" in words for words in page.text("p"))


def test_items_without_a_partner_stay_in_the_gallery_of_the_closed_form(world, tmp_path):
    rows = [[key("image", row), key("text", row), key("audio", row)] for row in range(30)]
    for row in rows[:10]:
        row[2] = ""
    table = write_table(tmp_path / "gaps.csv", ["image", "text", "audio"], rows)
    pairs = pairs_of(table, "image", "text", "audio", may_be_empty=True, validation=0.0)
    space = made(world, tmp_path / "s", CLOSED, pairs_of(world / "pairs.csv", "image", "text"))
    add(space, world, pairs_of(world / "pairs.csv", "audio", "text"))
    encoded = space.encode_pairs(pairs, cache=tmp_path / "features")
    (found,) = space.evaluate_encoded(encoded, split="all", directions=[("audio", "text")])
    paired = rows_measured(encoded, "audio", "text", None)
    assert (found.queries, found.gallery) == (20, 30)
    assert [len(paired.tables[name]) for name in ("audio", "text")] == [20, 30]
    ids = {name: pairs.items[name].ids for name in ("audio", "text")}
    assert all(ids["audio"][a][1:] == ids["text"][t][1:] for a, t in paired.pairs)


FORMULA = {
    "member": "cca",
    "split": "test",
    "directions": [
        direction("image", "text", recall_at_1=0.271),
        direction("text", "image", recall_at_1=0.25),
    ],
    "left_out": [{"modalities": ["audio", "text"], "why": "words.csv: 3 rows"}],
}


def with_formula(report: Report, **recalls: float) -> Report:
    lines = [
        direction("image", "text", paired=True, recall_at_1=recalls["image"]),
        direction("text", "image", paired=True, recall_at_1=recalls["text"]),
        direction("audio", "image", paired=False),
    ]
    return replace(report, directions=tuple(lines), closed_form=FORMULA)


def test_the_closed_form_stands_beside_the_recall_and_a_note_says_what_it_is(tmp_path):
    page = page_of(tmp_path, with_formula(BARE, image=0.237, text=0.3))
    heads = page.text("th")
    assert heads[heads.index("R@1") + 1] == "Closed form"
    assert [words for words in page.text("td") if words in (".271", ".250")] == [".271", ".250"]
    # An audio query has none: what was never paired has no formula.
    assert page.text("td").count("–") == 1
    assert page.text("span").count("space behind") == 1
    notes = [words for words in page.text("p") if "losed form" in words]
    assert notes == [
        "Closed form: regularised canonical correlation (CCA), a formula that is fitted to the "
        "same training pairs; nothing is trained. Its settings were chosen on the validation rows.",
        "The space finds less than the closed form from image to text (.237 against .271): there "
        "the formula (recipe closed-form) serves better than what was trained.",
        "No closed form for audio and text (words.csv: 3 rows).",
    ]
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["closed_form"] == FORMULA


def test_a_difference_within_the_interval_is_called_chance_and_not_marked_as_bad(tmp_path):
    """The interval of what the space finds ends at .270."""
    report = with_formula(BARE, image=0.237, text=0.249)
    sentences = told(FORMULA, report.directions)
    assert "from image to text (.237 against .271): there" in sentences[1]
    assert sentences[2] == (
        "The space is behind the closed form from text to image (.249 against .250), though "
        "within the 95 % interval of what it finds itself: chance may explain that."
    )
    page = page_of(tmp_path, report)
    marks = [a["class"] for a in page.all("span") if (a.get("class") or "").startswith("sub")]
    assert marks.count("sub bad") == 1
    assert page.text("span").count("space behind") == 2


def test_a_space_that_is_never_behind_is_said_to_be_so(tmp_path):
    report = with_formula(BARE, image=0.271, text=0.26)
    assert told(FORMULA, report.directions)[1] == (
        "The space finds as much as the closed form or more wherever both were measured."
    )
    assert "space behind" not in page_of(tmp_path, report).source


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("validation", "rows, which are those measured here: that favours it a little."),
        ("train", "rows, and what is measured here are the rows that it was fitted to."),
        ("all", "rows, and the rows that it was fitted to are among those measured here."),
    ],
)
def test_rows_that_the_closed_form_has_seen_are_named(split, words):
    seen = {**FORMULA, "split": split}
    assert told(seen, with_formula(BARE, image=0.3, text=0.3).directions)[0].endswith(words)


def test_a_report_without_closed_forms_says_nothing_of_them(tmp_path, full):
    page = page_of(tmp_path / "out", full)
    assert "Closed form" not in page.text("th")
    assert "losed form" not in page.source.partition("<main>")[2]
    assert told({}, full.directions) == []


# What recipe auto tried ----------------------------------------------------------------------

CHOSEN = {
    "held_out": {"pairs": 60, "trained_on": 340},
    "candidates": ["cca", "mlp", "mlp"],
    "kept": ["cca", "mlp"],
    "shares": [0.6667, 0.3333],
    "tried": [
        {"weights": [1.0, 0.0, 0.0], "mean_reciprocal_rank": 0.4},
        {"weights": [0.0, 1.0, 0.0], "mean_reciprocal_rank": 0.3},
        {"weights": [0.0, 0.0, 1.0], "mean_reciprocal_rank": 0.2},
        {"weights": [1.0, 0.5, 0.0], "mean_reciprocal_rank": 0.45},
        {"weights": [2.0, 1.0, 0.0], "mean_reciprocal_rank": 0.45},
        {"weights": [1.0, 1.0, 2.0], "mean_reciprocal_rank": 0.5},
    ],
    "closed_forms": {
        "cca": {"regularisation": 0.03, "power": 0.5},
        "ridge": {"regularisation": 14.117647, "power": 1.0},
        "procrustes": {"regularisation": 0.03, "power": 1.0},
    },
    "corrections": {},
    "compared": [],
    "steps_taken": 90,
    "kept_step": 90,
    "budget": 150.0,
}


def test_every_mix_is_shown_once_the_best_first_and_the_kept_one_marked():
    found = tried(CHOSEN)
    assert found is not None
    assert found.members == ("cca", "mlp", "mlp 2")
    assert [(mix.shares, mix.mean_reciprocal_rank, mix.kept) for mix in found.mixes] == [
        ((0.25, 0.25, 0.5), 0.5, False),
        ((0.666667, 0.333333, 0.0), 0.45, True),
        ((1.0, 0.0, 0.0), 0.4, False),
        ((0.0, 1.0, 0.0), 0.3, False),
        ((0.0, 0.0, 1.0), 0.2, False),
    ]


def test_which_of_two_alike_was_kept_is_not_said_where_nobody_knows():
    other = {"weights": [1.0, 0.0, 0.5], "mean_reciprocal_rank": 0.1}
    found = tried({**CHOSEN, "tried": [*CHOSEN["tried"], other]})
    assert found is not None
    assert not any(mix.kept for mix in found.mixes)


@pytest.mark.parametrize("without", [{"tried": []}, {"tried": CHOSEN["tried"][:1]}])
def test_one_mix_alone_is_no_choice(without):
    assert tried({**CHOSEN, **without}) is None
    assert tried({}) is None


def test_a_formula_has_a_dash_for_what_it_has_not_to_set():
    assert settings(CHOSEN) == {
        "cca": {"regularisation": 0.03, "power": 0.5},
        "ridge": {"regularisation": 14.117647, "power": None},
        "procrustes": {"regularisation": None, "power": None},
    }
    assert settings({}) == {}


def test_what_was_tried_is_folded_away_under_plain_headings(tmp_path):
    page = page_of(tmp_path, replace(BARE, stages=(replace(STAGE, chosen=CHOSEN),)))
    assert page.all("details") == [{}, {}]
    assert page.text("h5") == ["Every mix that was tried", "How the formulas were set"]
    assert {"5 mixes of 3 members", "cca, ridge, procrustes"} <= set(page.text("span"))
    heads = page.text("th")
    place = heads.index("Mean of 1 / rank")
    assert heads[place : place + 6] == ["Mean of 1 / rank", "cca", "mlp", "mlp 2", ".500", ".450"]
    assert page.text("span").count("✓ kept") == 1
    cells = [words.replace("\xa0", " ") for words in page.text("td")]
    place = cells.index("25 %")
    assert cells[place : place + 6] == ["25 %", "25 %", "50 %", "67 %", "33 %", "–"]
    assert cells[-6:] == ["0.03", "0.5", "14.1", "–", "–", "–"]
    # Both networks are of one kind, which is explained once.
    assert page.source.count("mlp: a network of two layers") == 1


def test_a_record_of_before_mixes_were_kept_has_the_page_without_them(tmp_path):
    old = {name: CHOSEN[name] for name in CHOSEN if name not in ("tried", "closed_forms")}
    page = page_of(tmp_path, replace(BARE, stages=(replace(STAGE, chosen=old),)))
    assert not page.all("details")
