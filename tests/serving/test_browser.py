"""The page in a real browser: what a visitor does, and what he sees."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="drives the page with Playwright")

from playwright.sync_api import Browser, Page, expect

from tests.factories import tiny_world
from tests.serving.pages import PHONE, begin, frame_number, save_log, settle, visitor
from worldgen.serving import Limits, running_server

pytestmark = pytest.mark.browser

PACE = 5.0
"""Frames per second of the world whose pace is measured; a busy machine still reaches it."""
FRAMES = "() => window.worldgen.statistics().frames"
FRAMES_AND_TIME = "() => [window.worldgen.statistics().frames, performance.now()]"
PIXELS = "canvas => canvas.toDataURL()"


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visitor(browser, url) as made:
        yield made


@pytest.fixture
def slow_page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page of a world that goes at `PACE`, far slower than it could."""
    folder = tiny_world(tmp_path / "slow")
    card = folder / "world.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"frames_per_second": PACE}))
    with running_server([str(folder)]) as url, visitor(browser, url) as made:
        yield made


def play_to(page: Page, frame: int) -> None:
    """Hold a key until a frame is reached, then pause."""
    page.keyboard.down("ArrowUp")
    page.wait_for_function(f"() => window.worldgen.statistics().frame >= {frame}")
    page.keyboard.up("ArrowUp")
    page.keyboard.press("KeyP")
    expect(page.locator("#play")).to_have_text("Play")
    settle(page)


def drag_to(page: Page, frame: int) -> None:
    page.locator("#slider").fill(str(frame))
    expect(page.locator("#dream-frame")).to_have_text(f"frame {frame}")


def dream(page: Page) -> str:
    """Return the picture of the dream, for comparisons."""
    return str(page.locator("#dream").evaluate(PIXELS))


def expect_dream(page: Page, picture: str, *, same: bool = True) -> None:
    """Wait until the dream shows this picture, or any other than this."""
    page.wait_for_function(
        "([picture, same]) => (document.querySelector('#dream').toDataURL() === picture) === same",
        arg=[picture, same],
    )


def beats(begin: float, end: float) -> float:
    """Return how many frames the world's own pace has room for, of two times of the page."""
    return (end - begin) * PACE / 1000


def test_a_key_begins_the_drive_and_the_canvas_changes(page: Page) -> None:
    begin(page)
    before = page.locator("#dream").evaluate(PIXELS)
    page.keyboard.down("ArrowLeft")
    expect(page.locator(".cap.on")).to_contain_text("left")
    page.wait_for_function("() => window.worldgen.statistics().frames > 5")
    page.keyboard.up("ArrowLeft")
    expect(page.locator(".cap.on")).to_have_count(0)
    expect(page.locator("#veil")).to_be_hidden()
    expect_dream(page, before, same=False)
    page.wait_for_function("() => window.worldgen.statistics().frames_per_second > 0")
    figures = page.evaluate("() => window.worldgen.statistics()")
    assert 0 < figures["model_ms_p50"] <= figures["latency_ms_p50"] <= figures["latency_ms_p95"]


def test_pause_stands_still_and_a_single_step_takes_one(page: Page) -> None:
    begin(page)
    play_to(page, 3)
    stood = frame_number(page)
    page.wait_for_timeout(300)
    settle(page)
    assert frame_number(page) == stood
    page.locator("#step").click()
    expect(page.locator("#dream-frame")).to_have_text(f"frame {stood + 1}")
    page.wait_for_timeout(200)
    settle(page)
    assert frame_number(page) == stood + 1


def test_rewinding_previews_and_goes_on_from_there(page: Page) -> None:
    begin(page)
    play_to(page, 8)
    last = dream(page)
    drag_to(page, 2)
    expect_dream(page, last, same=False)
    page.get_by_role("button", name="Back to newest").click()
    expect(page.locator("#dream-frame")).not_to_have_text("frame 2")
    expect_dream(page, last)
    drag_to(page, 2)
    page.locator("#step").click()
    expect(page.locator("#dream-frame")).to_have_text("frame 3")
    expect(page.locator("#slider")).to_have_attribute("max", "3")


def test_forks_are_kept_and_can_be_switched_between(page: Page) -> None:
    begin(page)
    play_to(page, 6)
    length = frame_number(page)
    last = dream(page)
    drag_to(page, 2)
    page.get_by_role("button", name="Fork here").click()
    expect(page.locator("#branches")).to_be_visible()
    expect(page.locator("#slider")).to_have_attribute("max", "2")
    page.locator("#branches").get_by_role("button", name=f"A · {length} frames").click()
    expect(page.locator("#slider")).to_have_attribute("max", str(length))
    expect_dream(page, last)
    page.get_by_role("button", name="Forget branch B").click()
    expect(page.locator("#branches")).to_be_hidden()


def test_a_log_is_saved_loaded_and_verified(page: Page, tmp_path: Path) -> None:
    begin(page)
    play_to(page, 5)
    length = frame_number(page)
    with page.expect_download() as download:
        page.locator("#save").click()
    path = tmp_path / "log.json"
    download.value.save_as(path)
    assert len(json.loads(path.read_text())["actions"]) == length
    page.locator("#surprise").click()
    expect(page.locator("#dream-frame")).to_have_text("frame 0")
    page.locator("#file").set_input_files(path)
    expect(page.locator("#status")).to_have_text(f"Replayed {length} frames: identical to the log.")
    expect(page.locator("#dream-frame")).to_have_text(f"frame {length}")


def test_a_file_that_is_no_log_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    begin(page)
    for name, text, message in (
        ("a.json", "{", "a.json is not a log: it is not JSON."),
        ("b.json", "{}", "not a rollout log"),
    ):
        (tmp_path / name).write_text(text)
        page.locator("#file").set_input_files(tmp_path / name)
        expect(page.locator("#status")).to_contain_text(message)
    play_to(page, 2)


def test_the_last_minute_downloads_as_a_video(page: Page, tmp_path: Path) -> None:
    begin(page)
    play_to(page, 4)
    with page.expect_download() as download:
        page.locator("#video").click()
    download.value.save_as(tmp_path / "drive.mp4")
    content = (tmp_path / "drive.mp4").read_bytes()
    assert content[4:8] == b"ftyp"
    assert len(content) > 1000
    assert download.value.suggested_filename.startswith("tiny-seed0-frame")


def test_reality_runs_beside_the_dream_and_is_compared_with_it(page: Page) -> None:
    begin(page)
    play_to(page, 5)
    length = frame_number(page)
    expect(page.locator("#reality-note")).to_have_text(f"frame {length}")
    expect(page.locator("#reality-veil")).to_be_hidden()
    expect(page.locator(".likeness b")).to_have_text(re.compile(r"^\d+\.\d dB$"))
    last = page.locator("#reality").evaluate(PIXELS)
    drag_to(page, 1)
    expect(page.locator("#reality-note")).to_have_text("frame 1")
    assert page.locator("#reality").evaluate(PIXELS) != last
    page.locator("#step").click()
    expect(page.locator("#reality-note")).to_have_text("frame 2")


def test_without_its_environment_a_world_says_why_and_plays_on(page: Page) -> None:
    begin(page)
    page.locator("#worlds button").nth(1).click()
    expect(page.locator("#reality-text")).to_contain_text("no_such_module")
    play_to(page, 3)


def test_the_pace_is_the_worlds_own_unless_the_visitor_wants_more(slow_page: Page) -> None:
    page = slow_page
    begin(page)
    _, began = page.evaluate(FRAMES_AND_TIME)
    page.keyboard.press("ArrowUp")
    page.wait_for_function(f"{FRAMES} >= 20")
    # No step is asked for before its beat: whatever delays frames, their count never leads.
    frames, now = page.evaluate(FRAMES_AND_TIME)
    assert frames <= 2 + beats(began, now)
    page.get_by_text("on keys only").click()
    settle(page)
    stood = page.evaluate(FRAMES)
    page.wait_for_timeout(300)
    assert page.evaluate(FRAMES) == stood
    page.get_by_text("fastest").click()
    page.wait_for_function(f"{FRAMES} > 20")


def test_a_page_that_was_held_up_does_not_hurry_afterwards(slow_page: Page) -> None:
    page = slow_page
    begin(page)
    page.keyboard.press("ArrowUp")
    page.wait_for_function(f"{FRAMES} > 2")
    before, began = page.evaluate(
        """() => {
          const end = performance.now() + 3000;
          while (performance.now() < end);
          return [window.worldgen.statistics().frames, performance.now()];
        }"""
    )
    page.wait_for_function(f"{FRAMES} >= {before + 10}")
    frames, now = page.evaluate(FRAMES_AND_TIME)
    # One frame was under way, one was due, and one may make up for lost time; 15 were missed.
    assert frames - before <= 3 + beats(began, now)


def test_frames_per_second_are_those_of_the_last_two_seconds(page: Page) -> None:
    rate = page.evaluate(
        """async () => {
          const { Statistics } = await import("/static/statistics.js");
          const statistics = new Statistics();
          const times = (from, step) => Array.from({ length: 30 }, (_, index) => from + step * index);
          for (const painted of [...times(0, 10), ...times(60_000, 100)]) {
            statistics.add({ asked: painted - 9, sent: painted - 8, painted, modelMilliseconds: 5 });
          }
          return statistics.rate();
        }"""
    )
    assert rate == pytest.approx(10)


def test_a_new_drive_begins_from_the_start_and_seed_that_were_asked_for(page: Page) -> None:
    begin(page)
    page.locator("#start").select_option("1")
    page.locator("#decoder").select_option("diagonal")
    page.locator("#seed").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#world=tiny&start=1&seed=7$"))
    play_to(page, 2)
    log = save_log(page)
    assert (log["start"], log["decoder"]) == (1, "diagonal")


def test_a_server_that_chooses_says_what_it_chose(browser: Browser, world_folder: Path) -> None:
    with running_server([str(world_folder)], adaptive=True) as url, visitor(browser, url) as page:
        begin(page)
        by_load = page.locator("#decoder option[value='']")
        expect(page.locator("#decoder")).to_have_value("")
        expect(by_load).to_have_text(
            re.compile("^by load: (whole frame|strided:4|diagonal|raster)$")
        )
        page.locator("#decoder").select_option("diagonal")
        page.get_by_role("button", name="Begin").click()
        expect(by_load).to_have_text("by load")
        expect(page.locator("#decoder")).to_have_value("diagonal")
        play_to(page, 1)
        assert save_log(page)["decoder"] == "diagonal"


def test_the_address_opens_the_same_drive_again(browser: Browser, url: str) -> None:
    with visitor(browser, f"{url}#world=other&start=1&seed=12") as page:
        begin(page)
        expect(page.locator("#seed")).to_have_value("12")
        expect(page.locator("#start")).to_have_value("1")
        expect(page.locator("#worlds [aria-pressed=true]")).to_have_text("A tiny world")


def test_two_pages_have_a_world_each(browser: Browser, url: str) -> None:
    with visitor(browser, url) as one, visitor(browser, url) as two:
        begin(one)
        begin(two)
        play_to(one, 4)
        length, last = frame_number(one), dream(one)
        assert frame_number(two) == 0
        for frame in (1, 2):
            two.locator("#step").click()
            expect(two.locator("#dream-frame")).to_have_text(f"frame {frame}")
        assert dream(two) != last
        assert (frame_number(one), dream(one)) == (length, last)


def test_a_full_server_says_so_and_lets_in_who_waits(browser: Browser, world_folder: Path) -> None:
    with (
        running_server([str(world_folder)], max_sessions=1) as url,
        visitor(browser, url) as waiting,
    ):
        begin(waiting)
        with visitor(browser, url) as refused:
            expect(refused.locator("#veil-title")).to_have_text("Every place is taken")
            expect(refused.locator("#link-text")).to_have_text("all places taken")
            waiting.goto("about:blank")
            refused.get_by_role("button", name="Try now").click()
            # The page also tries by itself: a click that comes a moment later begins the drive.
            refused.wait_for_function("() => window.worldgen.statistics().world === 'tiny'")
            expect(refused.locator("#link-text")).to_have_text("connected")
            play_to(refused, 1)


def port_of(url: str) -> int:
    return int(url.rstrip("/").rsplit(":", 1)[1])


def test_a_server_that_goes_away_and_comes_back_brings_the_drive_back(
    browser: Browser, world_folder: Path
) -> None:
    with contextlib.ExitStack() as stack:
        with running_server([str(world_folder)]) as url:
            page = stack.enter_context(visitor(browser, url))
            begin(page)
            play_to(page, 6)
            length = frame_number(page)
            last = dream(page)
        expect(page.locator("#veil-title")).to_have_text("The server is away")
        expect(page.locator("#link-text")).to_have_text("server away")
        with running_server([str(world_folder)], port=port_of(url)):
            expect(page.locator("#status")).to_contain_text(f"Your run is back: {length} frames")
            expect(page.locator("#link-text")).to_have_text("connected")
            expect_dream(page, last)
            page.locator("#step").click()
            expect(page.locator("#dream-frame")).to_have_text(f"frame {length + 1}")
            page.close()


def test_an_idle_page_sleeps_and_wakes(browser: Browser, world_folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        with running_server([str(world_folder)], limits=Limits(idle_seconds=1.0)) as url:
            page = stack.enter_context(visitor(browser, url))
            expect(page.locator("#veil-title")).to_have_text("Asleep")
        # On a slow machine a server that is so impatient would send it to sleep again at once.
        with running_server([str(world_folder)], port=port_of(url)):
            page.get_by_role("button", name="Wake up").click()
            begin(page)
            page.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_plays_by_touch_and_nothing_overflows(
    browser: Browser, url: str, scheme: str
) -> None:
    context: dict[str, Any] = {
        "viewport": PHONE,
        "has_touch": True,
        "is_mobile": True,
        "color_scheme": scheme,
    }
    with visitor(browser, url, **context) as page:
        begin(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
        box = page.locator(".cap", has_text="gas").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= PHONE["height"]
        assert min(box["width"], box["height"]) >= 44
        page.locator(".cap", has_text="gas").tap()
        page.wait_for_function("() => window.worldgen.statistics().frames > 2")
        assert len(page.screenshot()) > 10_000


def test_every_control_has_a_name_and_the_card_can_be_read(page: Page) -> None:
    begin(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select")]
          .filter(each => each.checkVisibility() && each.type !== "file")
          .filter(each => !(each.textContent.trim() || each.ariaLabel || each.labels?.length))
          .map(each => each.outerHTML)"""
    )
    assert nameless == []
    page.get_by_role("button", name="About").click()
    expect(page.get_by_role("dialog")).to_contain_text("Random weights, for tests.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
