"""The search page in a real browser, on the real server and drawn data."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import threading
import wave
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'modalign[serve]'")
pytest.importorskip("playwright", reason="playwright is not installed: pip install 'modalign[dev]'")

import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from modalign import load_space, read_items
from modalign.gallery import Gallery
from modalign.index import build_index
from modalign.serve.app import PAGE, make_app
from served_spaces import GatedWords, Kept, kept_below, photo_id, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
LOOPBACK = "127.0.0.1"
WORDS = "two blue squares on the left"
# What nobody should write, and somebody does.
HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>"\'&'
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}

# The server and the browser -----------------------------------------------------------------


@contextmanager
def served(kept: Kept, *indexes: str, port: int = 0, **settings: Any) -> Iterator[str]:
    """Serve, and give the address of the page; the server is stopped in the end."""
    listening = socket.create_server((LOOPBACK, port))
    config = uvicorn.Config(
        make_app(kept.service(*indexes, **settings)), log_config=None, ws="none", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://{LOOPBACK}:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return kept_below(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def address(kept: Kept) -> Iterator[str]:
    with served(kept) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


class Visits:
    """Opens pages, and holds what went wrong in them and where their requests went.

    Attributes:
        wrong: Messages of uncaught errors and of refusals by the page's own policy.
        asked: Addresses of all requests.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self._contexts = ExitStack()

    def open(self, address: str, **options: Any) -> Page:
        """Open an address as somebody who was never here."""
        context = self.browser.new_context(
            **{"viewport": DESKTOP, "reduced_motion": "reduce", **options}
        )
        self._contexts.callback(context.close)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._heard)
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)
        return page

    def _heard(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.wrong.append(message.text)

    def close(self) -> None:
        """Close the pages, and look at what they did."""
        self._contexts.close()
        assert self.wrong == []
        elsewhere = [
            url
            for url in self.asked
            if urlsplit(url).scheme != "blob" and urlsplit(url).hostname != LOOPBACK
        ]
        assert elsewhere == []
        assert self.asked


@pytest.fixture
def visits(browser: Browser) -> Iterator[Visits]:
    opened = Visits(browser)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def modules(browser: Browser, address: str) -> Iterator[Page]:
    """A page that only lends its modules."""
    page = browser.new_page()
    page.goto(address)
    yield page
    page.close()


# What a test says of a page -----------------------------------------------------------------


def search(page: Page, words: str) -> None:
    page.fill("#words", words)
    page.press("#words", "Enter")
    shows_results(page, words)


def shows_results(page: Page, words: str = "") -> None:
    expect(page.locator("#found")).to_contain_text(
        re.compile(r"^\d+ results? for .*" + re.escape(words))
    )
    settled(page)


def settled(page: Page) -> None:
    """Wait until no search is under way."""
    expect(page.locator("#results:not([aria-busy])")).to_have_count(1)


def mixed(page: Page, key: str, mix: str) -> list[str]:
    """Press a key on the slider; return the results of the weights that the address then says."""
    page.keyboard.press(key)
    wait_for(lambda: fields(page).get("mix") == mix)
    settled(page)
    return names(page)


def names(page: Page) -> list[str]:
    """Return the names of the results, in their order."""
    return page.locator("#gallery .open").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label').split(';')[0])"
    )


def fields(page: Page) -> dict[str, str]:
    """Return what the address says."""
    return {
        name: values[0]
        for name, values in parse_qs(page.evaluate("location.search.slice(1)")).items()
    }


def kinds(page: Page) -> set[str]:
    return set(page.locator("#gallery .hit").evaluate_all("all => all.map(e => e.dataset.kind)"))


def focused(page: Page) -> str:
    return page.evaluate(
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    )


CARRIED = """([data, name, kind]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  window.carried = new DataTransfer();
  window.carried.items.add(new File([bytes], name, { type: kind }));
}"""


def carry(page: Page, path: Path, name: str, kind: str) -> None:
    """Put a file where a drop or the clipboard has it."""
    page.evaluate(CARRIED, [base64.b64encode(path.read_bytes()).decode(), name, kind])


def drop(page: Page, path: Path, kind: str) -> None:
    """Drop a file on the page, as from a file manager."""
    carry(page, path, path.name, kind)
    page.evaluate(
        """for (const name of ["dragenter", "dragover", "drop"]) {
          const told = { dataTransfer: window.carried, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent(name, told));
        }"""
    )


def paste(page: Page, path: Path, name: str) -> None:
    """Paste a picture from the clipboard."""
    carry(page, path, name, "image/png")
    page.evaluate(
        """document.dispatchEvent(
          new ClipboardEvent("paste", { clipboardData: window.carried, cancelable: true }))"""
    )


def module(page: Page, name: str, call: str) -> Any:
    """Return what an expression on a module of the page comes to."""
    return page.evaluate(f"import('/page/{name}.js').then((module) => {call})")


# Searching ----------------------------------------------------------------------------------


def test_words_find_items_of_every_modality_and_the_address_says_so(visits, address):
    page = visits.open(address)
    search(page, WORDS)
    assert fields(page) == {"q": WORDS}
    assert len(names(page)) == 20
    assert kinds(page) == {"image", "audio", "text"}
    assert page.title() == f"“{WORDS}” · modalign"
    # Pictures come near the screen and are there; each score is said in words or as a number.
    expect(page.locator("#gallery img.here").first).to_be_visible()
    scores = page.locator("#gallery .score").all_inner_texts()
    assert all(re.search(r"similarity\s*-?\d\.\d\d|likely|perhaps", score) for score in scores)


def test_the_first_paint_comes_soon(visits, address):
    page = visits.open(address)
    expect(page.locator(".ways-in")).to_be_visible()
    milliseconds = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    print(f"first contentful paint after {milliseconds:.0f} ms")
    assert milliseconds < 2000


@pytest.mark.parametrize(("kind", "media_type"), [("image", "image/png"), ("video", "video/mp4")])
def test_a_file_that_is_dropped_is_searched_by(visits, address, kept, kind, media_type):
    path = {"image": kept.images[7], "video": kept.clip}[kind]
    page = visits.open(address)
    expect(page.locator(".ways-in")).to_be_visible()
    drop(page, path, media_type)
    shows_results(page, "a picture" if kind == "image" else "a clip")
    expect(page.locator("#parts")).to_contain_text(path.name)
    assert fields(page) == {"file": kind}
    if kind == "image":
        page.click("#show-image")
        expect(page.locator("#gallery .hit:not([data-kind=image])")).to_have_count(0)
        assert names(page)[0] == f"Picture: {path.name}"


def test_a_picture_is_picked_or_pasted_and_taken_out_again(visits, address, kept):
    page = visits.open(address)
    page.set_input_files("#file", kept.images[3])
    shows_results(page, "a picture")
    paste(page, kept.images[5], "pasted.png")
    expect(page.locator("#parts")).to_contain_text("pasted.png")
    expect(page.locator("#parts li")).to_have_count(1)
    page.get_by_role("button", name="Remove: picture pasted.png").click()
    expect(page.locator("#parts li")).to_have_count(0)
    assert page.locator("body").get_attribute("data-view") == "home"


def test_a_sound_is_recorded_and_the_server_reads_it(visits, address):
    page = visits.open(address)
    page.click("#record")
    expect(page.locator("#recording .time")).to_have_text(re.compile(r"0:01 of"))
    with page.expect_response("**/v1/search") as answered:
        page.click("text=Stop and search")
    assert answered.value.json()["from"] == ["audio"]
    shows_results(page, "a sound")
    expect(page.locator("#parts")).to_contain_text("recording.wav")


def test_a_recording_is_a_wav_file_of_the_samples(modules):
    data = modules.evaluate(
        """async () => {
          const { encodeWav, joined } = await import("/page/wav.js");
          const samples = joined([Float32Array.of(0, 0.5), Float32Array.of(-1, 2)]);
          const bytes = new Uint8Array(await encodeWav(samples, 16000).arrayBuffer());
          return btoa(String.fromCharCode(...bytes));
        }"""
    )
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        assert memoryview(file.readframes(9)).cast("h").tolist() == [0, 16384, -32767, 32767]


def test_a_sound_plays_by_ranges_and_one_at_a_time(visits, address):
    page = visits.open(f"{address}?q=a+green+star&modality=audio")
    shows_results(page)
    statuses: list[int] = []
    page.on(
        "response",
        lambda each: (
            statuses.append(each.status)
            if "range" in each.request.headers and "/v1/media/sounds/" in each.url
            else None
        ),
    )
    first, second = page.locator("#gallery .hit").nth(0), page.locator("#gallery .hit").nth(1)
    first.locator(".play").click()
    expect(page.locator("#gallery .cannot")).to_have_count(0)
    wait_for(lambda: page.evaluate("document.querySelector('#gallery audio')?.currentTime > 0"))
    assert page.evaluate("document.querySelector('#gallery audio').readyState") >= 2
    assert set(statuses) == {206}
    expect(first.locator(".play")).to_have_attribute("aria-label", re.compile("^Pause the sound"))
    second.locator(".play").click()
    wait_for(lambda: page.evaluate("!document.querySelectorAll('#gallery audio')[1].paused"))
    assert page.evaluate("document.querySelectorAll('#gallery audio')[0].paused")
    # It is drawn as the loudness of the file itself.
    expect(first.locator(".wave.heard")).to_have_count(1)


def test_more_like_this_leads_from_any_result_to_any_modality(visits, address):
    page = visits.open(f"{address}?q=a+green+star&modality=image")
    shows_results(page)
    name = names(page)[0]
    page.locator("#gallery .hit").first.hover()
    page.locator("#gallery .alike").first.click()
    shows_results(page, "like album/")
    assert fields(page)["like"].startswith("photos/album/")
    assert name not in names(page)
    assert page.locator("#words").input_value() == ""
    page.locator("#gallery .open").first.click()
    page.get_by_role("button", name="Sounds like this").click()
    expect(page.locator("#gallery .hit[data-kind=audio]")).to_have_count(20)
    assert fields(page)["modality"] == "audio"


def test_the_slider_says_which_of_two_counts_more(visits, address, kept):
    page = visits.open(f"{address}?modality=image")
    page.set_input_files("#file", kept.images[3])
    shows_results(page, "a picture")
    by_picture = names(page)
    search(page, "one large green star in the middle")
    slider = page.get_by_label("Between your picture and your words")
    assert slider.input_value() == "50"
    even = names(page)
    slider.focus()
    by_words = mixed(page, "End", "image:5,text:95")
    assert len({tuple(by_picture), tuple(even), tuple(by_words)}) == 3
    assert by_picture[0] == mixed(page, "Home", "image:95,text:5")[0] != by_words[0]
    assert slider.get_attribute("aria-valuetext") == "95 % your picture, 5 % your words"


def test_three_parts_have_a_slider_each(visits, address, kept):
    page = visits.open(f"{address}?q=a+green+star&like=photos/{photo_id(2).replace('&', '%26')}")
    page.set_input_files("#file", kept.sound)
    expect(page.locator("#mix input")).to_have_count(3)
    settled(page)
    assert page.locator("#mix output").all_inner_texts() == ["33 %", "33 %", "33 %"]
    with page.expect_response("**/v1/search") as answered:
        page.locator("#level-text").fill("100")
    assert answered.value.json()["from"] == ["text", "audio", "image"]
    assert fields(page)["mix"] == "like:25,audio:25,text:50"


# The address --------------------------------------------------------------------------------


def test_a_link_that_is_shared_opens_the_same_results(visits, address):
    page = visits.open(address)
    search(page, WORDS)
    page.click("#show-image")
    page.click("#filter-open")
    page.locator("#filter-panel label", has_text="dog").click()
    expect(page.locator("#gallery .hit")).to_have_count(14)
    other = visits.open(page.url)
    shows_results(other, WORDS)
    assert names(other) == names(page)
    assert json.loads(fields(other)["filter"]) == {"label": ["dog"]}


def test_a_link_to_a_search_by_a_file_says_that_links_carry_none(visits, address, kept):
    page = visits.open(f"{address}?q=at+night&file=image")
    expect(page.locator(".state")).to_contain_text("A link cannot carry files")
    shows_results(page, "a picture that is not here with “at night”")
    page.set_input_files("#file", kept.images[1])
    shows_results(page, "a picture with “at night”")


def test_an_item_is_opened_by_its_link_and_back_closes_it(visits, address):
    page = visits.open(f"{address}?q=a+green+star&modality=image")
    shows_results(page)
    page.locator("#gallery .open").nth(2).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("result 3 of 20")
    expect(dialog.locator("table")).to_contain_text("label")
    wait_for(lambda: page.evaluate("document.querySelector('img.large').naturalWidth > 0"))
    other = visits.open(page.url)
    expect(other.get_by_role("dialog")).to_contain_text("result 3 of 20")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("result 4 of 20")
    page.go_back()
    expect(dialog).to_have_count(0)
    assert "open" not in fields(page)


def test_back_and_forward_walk_through_searches_with_their_files(visits, address, kept):
    page = visits.open(address)
    search(page, "a red circle")
    first = names(page)
    page.evaluate("scrollTo(0, 300)")
    page.set_input_files("#file", kept.images[3])
    shows_results(page, "a picture with")
    second = names(page)
    assert page.evaluate("scrollY") == 0
    page.go_back()
    shows_results(page, "“a red circle”")
    assert names(page) == first
    assert page.evaluate("scrollY") == 300
    expect(page.locator("#parts li")).to_have_count(0)
    page.go_forward()
    expect(page.locator("#parts")).to_contain_text(kept.images[3].name)
    assert names(page) == second


def test_recent_searches_are_listed_searched_again_and_forgotten(visits, address):
    page = visits.open(address)
    search(page, "a red circle")
    search(page, "two blue squares")
    page.click(".brand")
    expect(page.locator(".recents li")).to_have_count(2)
    page.click("#recent-open")
    page.get_by_role("dialog").get_by_role("button", name="“a red circle”").click()
    shows_results(page, "“a red circle”")
    page.click("#recent-open")
    page.get_by_role("button", name="Forget them all").click()
    expect(page.get_by_role("dialog")).to_contain_text("Nothing yet")
    assert page.evaluate("localStorage.getItem('modalign.recent')") is None


def test_who_is_quicker_than_the_page_is_not_overruled(visits, address):
    page = visits.open("about:blank")
    held: list[Any] = []
    page.route("**/v1/spaces", lambda route: held.append(route))

    def begin() -> None:
        with page.expect_request("**/v1/spaces"):
            page.goto(address)

    def go_on() -> None:
        held.pop().continue_()
        expect(page.locator("#filters")).to_contain_text("Everything")

    begin()
    page.fill("#words", "not sent yet")
    go_on()
    assert page.locator("#words").input_value() == "not sent yet"
    begin()
    search(page, "a red circle")
    page.fill("#words", "not sent yet")
    go_on()
    assert page.locator("#words").input_value() == "not sent yet"
    shows_results(page, "a red circle")


# Filters ------------------------------------------------------------------------------------


def test_filters_are_by_collection_by_value_and_by_range(visits, address):
    page = visits.open(f"{address}?q=a+green+star")
    shows_results(page)
    page.click("#filter-open")
    page.locator("#filter-panel label", has_text="photos").click()
    expect(page.locator("#gallery .hit:not([data-kind=image])")).to_have_count(0)
    page.goto(f'{page.url}&filter={{"year":{{"gte":2003,"lte":2005}}}}')
    expect(page.locator("#gallery .hit")).to_have_count(3)
    expect(page.locator(".chosen")).to_contain_text("year: 2003..2005")
    page.get_by_role("button", name="Remove the filter year: 2003..2005").click()
    expect(page.locator("#gallery .hit")).to_have_count(20)


def test_filters_that_nothing_fits_say_so_and_are_cleared(visits, address):
    page = visits.open(f'{address}?q=a+green+star&filter={{"year":{{"lt":1990}}}}')
    expect(page.locator(".state")).to_contain_text("Nothing fits these filters")
    page.click("text=Clear the filters")
    shows_results(page)
    assert fields(page) == {"q": "a green star"}


def test_more_results_come_until_the_limit(visits, address):
    page = visits.open(f"{address}?q=a+green+star")
    shows_results(page)
    first = names(page)
    page.click("text=Show 20 more")
    expect(page.locator("#gallery .hit")).to_have_count(40)
    assert names(page)[:20] == first
    assert fields(page)["k"] == "40"
    page.goto(f"{address}?q=a+green+star&k=100")
    # 40 pictures, 20 sounds, 3 texts: there are no more.
    expect(page.locator("#gallery .hit")).to_have_count(63)
    expect(page.locator("#more")).to_be_empty()


# Keys, light, width -------------------------------------------------------------------------


def test_everything_is_done_by_keys(visits, address):
    page = visits.open(address)
    expect(page.locator(".ways-in")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("more like this result")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("/")
    page.keyboard.type("a green star")
    page.keyboard.press("Enter")
    shows_results(page, "“a green star”")
    found = names(page)
    page.keyboard.press("ArrowDown")
    assert focused(page).startswith(found[0])
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith(found[1])
    page.keyboard.press("ArrowDown")
    row = page.evaluate(
        "getComputedStyle(document.querySelector('#gallery')).gridTemplateColumns.split(' ').length"
    )
    assert focused(page).startswith(found[1 + row])
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("result 2 of 20")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert focused(page).startswith(found[1])
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("m")
    expect(page.locator("#found")).to_contain_text("like")
    assert "like" in fields(page)
    # The focus is with the new results, not lost.
    assert focused(page).startswith(names(page)[0])


def test_dark_and_light_are_switched_and_remembered(visits, address):
    page = visits.open(address, color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light, dark) == ("rgb(252, 251, 249)", "rgb(20, 24, 26)")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    page.click("#theme")
    assert page.evaluate("localStorage.getItem('modalign.theme')") is None
    system = visits.open(address, color_scheme="dark")
    assert system.evaluate("getComputedStyle(document.body).backgroundColor") == dark


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const style = getComputedStyle(document.documentElement);
  const probe = document.body.appendChild(document.createElement("i"));
  const light = (name) => {
    probe.style.color = `var(--${name})`;
    canvas.fillStyle = getComputedStyle(probe).color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const texts = ["ink", "quiet", "accent", "warm", "bad"];
  const papers = ["paper", "card", "tint", "wash"];
  const found = {};
  for (const text of texts) {
    for (const paper of papers) found[`${text} on ${paper}`] = ratio(light(text), light(paper));
  }
  found["on-accent on accent"] = ratio(light("on-accent"), light("accent"));
  probe.remove();
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_read_easily(visits, address, scheme):
    page = visits.open(address, color_scheme=scheme)
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) == 21
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


UNNAMED = """() => [...document.querySelectorAll("button, a, input, img, audio, video, dialog")]
  .filter((each) => each.checkVisibility() && !each.ariaHidden && !each.ariaLabel)
  .filter((each) => !(each.innerText?.trim() || each.hasAttribute("alt") || each.labels?.length))
  .map((each) => each.outerHTML)"""


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_is_cut_off_and_all_has_a_name(visits, address, kept, viewport):
    page = visits.open(address, viewport=viewport)

    def check(what: str) -> None:
        wide, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= room, what
        assert page.evaluate(UNNAMED) == [], what

    expect(page.locator(".ways-in")).to_be_visible()
    check("home")
    page.set_input_files("#file", kept.images[3])
    search(page, "a long query that goes on and on about one green star")
    check("results")
    page.click("#filter-open")
    check("filters")
    page.click("#filter-open")
    for kind in ("image", "audio", "text"):
        page.locator(f"#gallery .hit[data-kind={kind}] .open").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        check(f"{kind} opened")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    for landmark in ("banner", "main", "contentinfo", "search"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page.locator("#count[role=status]")).to_contain_text("results for a picture with")


# What is hostile, slow or broken ------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(kept: Kept) -> str:
    """Return an index, NAME=FOLDER, whose ids, values, fields and metadata are hostile."""
    space = load_space(kept.folder / "space")
    lines = kept.folder / "hostile.txt"
    lines.write_text(f"{HOSTILE}\n", encoding="utf-8")
    values = read_items(lines, "text").values
    gallery = Gallery.write(
        kept.folder / "hostile-gallery",
        modality="text",
        width=space.gallery_width("text"),
        embedding=space.embedding_sha256("text"),
        encoder=space.encoder("text").fingerprint,
        ids=[HOSTILE],
        vectors=[space.embed("text", values, exact=True)],
        values=values,
    )
    build_index(
        gallery, kept.folder / "hostile", metadata={HOSTILE: {HOSTILE: HOSTILE, "title": HOSTILE}}
    )
    return f"<b>bold={kept.folder / 'hostile'}"


def test_hostile_values_are_text(visits, kept, hostile):
    with served(kept, hostile) as address:
        page = visits.open(address)
        page.fill("#words", HOSTILE)
        page.press("#words", "Enter")
        expect(page.locator("#gallery blockquote")).to_have_text(HOSTILE)
        page.click("#filter-open")
        page.locator("#gallery .open").click()
        expect(page.get_by_role("dialog").locator("td").first).to_have_text(HOSTILE)
        page.keyboard.press("m")
        shows_results_or_none(page)
        page.click("#recent-open")
        assert page.evaluate("window.harmed") is None
        assert page.locator("img[src=x], body script").count() == 0


def shows_results_or_none(page: Page) -> None:
    expect(page.locator("#found")).to_have_text(re.compile("^(No results|\\d+ result)"))


MARKUP = r"(inner|outer|Adjacent)HTML|document\.write|\beval\(|new Function|DOMParser"


def test_the_page_makes_no_markup_of_data_and_knows_no_other_host():
    files = [path for path in PAGE.iterdir() if path.suffix in (".js", ".css", ".html", ".svg")]
    assert len(files) > 20
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(MARKUP, text), path
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, path
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script>", page)


def test_every_module_is_loaded_at_once():
    # A module that is not named in the page is found only when another one was read.
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'modulepreload" href="page/(\w+\.js)"', page))
    imported = {
        name
        for path in PAGE.glob("*.js")
        for name in re.findall(r'from "\./(\w+\.js)"', path.read_text(encoding="utf-8"))
    }
    assert named == imported
    assert all((PAGE / name).is_file() for name in named)


def test_a_slow_search_shows_where_results_will_be_then_says_why_and_stops(visits, kept):
    words = GatedWords()
    with served(kept, encoder=words) as address:
        page = visits.open(address)
        expect(page.locator(".ways-in")).to_be_visible()
        page.clock.install()
        page.fill("#words", "slow green star")
        page.press("#words", "Enter")
        page.clock.fast_forward(200)
        expect(page.locator(".ghost")).to_have_count(0)
        page.clock.fast_forward(200)
        expect(page.locator(".ghost").first).to_be_visible(timeout=1500)
        expect(page.locator("#count")).to_have_text("Searching …")
        page.clock.fast_forward(5000)
        expect(page.locator(".state")).to_contain_text("Still searching")
        page.click("text=Stop")
        expect(page.locator("#found")).to_have_text("Stopped")
        words.gate.set()
        search(page, "a red circle")


def test_a_new_search_ends_the_one_before(visits, kept):
    words = GatedWords()
    with served(kept, encoder=words, batch=1) as address:
        page = visits.open(address)
        gone: list[str] = []
        page.on("requestfailed", lambda request: gone.append(request.failure))
        page.fill("#words", "slow green star")
        page.press("#words", "Enter")
        wait_for(lambda: bool(words.seen))
        page.fill("#words", "a red circle")
        page.press("#words", "Enter")
        words.gate.set()
        shows_results(page, "“a red circle”")
        assert gone == ["net::ERR_ABORTED"]


def test_a_server_that_was_stopped_is_told_of_and_found_again(visits, kept):
    with served(kept) as address:
        page = visits.open(address)
        search(page, "a red circle")
    page.fill("#words", "two blue squares")
    page.press("#words", "Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server does not answer")
    with served(kept, port=urlsplit(address).port):
        alert.get_by_role("button", name="Try again").click()
        shows_results(page, "“two blue squares”")


def test_a_token_is_asked_for_kept_in_the_tab_and_sent_for_media_too(visits, kept):
    with served(kept, token="open sesame") as address:
        page = visits.open(f"{address}?q=a+green+star&modality=image")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("A token is wanted")
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        expect(dialog).to_contain_text("not accepted")
        page.fill("#token", "open sesame")
        page.press("#token", "Enter")
        shows_results(page)
        source = page.locator("#gallery img.here").first.get_attribute("src")
        assert source.startswith("blob:")
        page.reload()
        shows_results(page)
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [1, 1]


def test_without_the_token_the_page_says_so_and_asks_again(visits, kept):
    with served(kept, token="open sesame") as address:
        page = visits.open(address)
        expect(page.get_by_role("dialog")).to_contain_text("A token is wanted")
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_contain_text("A token is wanted")
        page.get_by_role("button", name="Enter the token").click()
        page.fill("#token", "open sesame")
        page.press("#token", "Enter")
        expect(page.locator(".ways-in")).to_be_visible()


def answering(page: Page, status: int, message: str, **headers: str) -> None:
    """Let the next search be answered so, and those after it by the server."""
    body = {"error": {"message": message, "type": "any"}}
    page.route(
        "**/v1/search",
        lambda route: route.fulfill(status=status, headers=headers, json=body),
        times=1,
    )


def test_a_busy_server_is_asked_again_when_it_said(visits, address):
    page = visits.open(address)
    answering(page, 503, "the queue is full", **{"Retry-After": "1"})
    page.fill("#words", "a red circle")
    page.press("#words", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("Trying again in 1 second.")
    shows_results(page, "“a red circle”")


def test_what_the_server_refuses_is_said_in_its_words(visits, address):
    page = visits.open(address)
    titles = {
        400: "This cannot be searched so",
        413: "This is too large",
        422: "This cannot be read",
        500: "The server failed",
        504: "It took too long",
    }
    for status, title in titles.items():
        answering(page, status, f"item: is odd, expected {status}; take another")
        page.fill("#words", "a red circle")
        page.press("#words", "Enter")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(f"Item: is odd, expected {status}; take another.")
        expect(alert).to_contain_text(title)


def test_files_that_cannot_be_searched_by_are_refused_with_the_way_out(visits, address, tmp_path):
    page = visits.open(address)
    expect(page.locator(".ways-in")).to_be_visible()
    note = tmp_path / "note.txt"
    note.write_text("no picture")
    drop(page, note, "text/plain")
    expect(page.locator("#notice")).to_contain_text("“note.txt” is no picture, sound or clip")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(33 * 2**20))
    page.set_input_files("#file", large)
    expect(page.locator("#notice")).to_contain_text("has 33 MB; the server takes 32 MB at most")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    page.set_input_files("#file", broken)
    expect(page.get_by_role("alert")).to_contain_text("The picture cannot be read")
    assert str(tmp_path) not in page.get_by_role("alert").inner_text()


# Words --------------------------------------------------------------------------------------


def test_probabilities_are_plain_words(modules):
    said = module(
        modules,
        "words",
        "[0.995, 0.9, 0.899, 0.6, 0.3, 0.299, 0.001].map((p) => module.likelihood(p))"
        ".map(({ word, percent }) => `${word}, ${percent}`)",
    )
    assert said == [
        "very likely, over 99 %",
        "very likely, 90 %",
        "likely, 90 %",
        "likely, 60 %",
        "perhaps, 30 %",
        "unlikely, 30 %",
        "unlikely, under 1 %",
    ]


def test_a_filter_is_written_as_a_value_or_a_range(modules):
    texts = ["dog", " 2001 ", "2000..2010", "-5 .. 1.5", ">= 3", "< 2", ""]
    read = module(modules, "filters", f"{json.dumps(texts)}.map(module.filterOf)")
    assert read == [
        ["dog"],
        ["2001", 2001],
        {"gte": 2000, "lte": 2010},
        {"gte": -5, "lte": 1.5},
        {"gte": 3},
        {"lt": 2},
        None,
    ]


def test_an_address_says_all_that_a_query_says(modules):
    asked = {
        "text": "at night & day = 24 h",
        "like": "photos/album/07 & more?.png",
        "weights": {"text": 0.3, "like": 0.7},
        "modalities": ["image", "audio"],
        "indexes": ["photos"],
        "filter": {"label": ["dog", 3], "year": {"gte": 2000}},
        "k": 40,
    }
    read = modules.evaluate(
        """async (asked) => {
          const { addressOf, readAddress } = await import("/page/address.js");
          const { changed, EMPTY } = await import("/page/query.js");
          return readAddress(addressOf(changed(EMPTY, asked), "photos/a/b"));
        }""",
        asked,
    )
    assert read["open"] == "photos/a/b"
    assert read["problems"] == []
    assert {name: read["query"][name] for name in asked} == asked
