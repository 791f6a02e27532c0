from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from modalign.errors import DataError, UsageError
from modalign.report import Hit, Report, SearchExample, Shown, StageSummary, experts, write_report
from modalign.report.curves import BOTTOM, LEFT, RIGHT, TOP, round_values, stage_charts
from modalign.report.figures import arrow, count, duration, share, small_share
from modalign.report.writing import recall_matrix

HOSTILE = "<script>alert('1')</script>\"&"
EMPTY_ELEMENTS = {"meta", "img", "br", "link", "circle", "path", "polyline"}
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
            "routing",
            "stored",
            "forecast",
            "searches",
            "verify",
            "commands",
        ),
    ]
    assert written["routing"] == []
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
