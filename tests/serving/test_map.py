"""The map of a driven world in a real browser: what it shows, and ways drawn on it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="drives the page with Playwright")

from playwright.sync_api import Browser, Page, expect

from tests.factories import tiny_driven_world, tiny_world
from tests.serving.pages import PHONE, begin, frame_number, save_log, settle, visitor
from worldgen.ego_motion import integrate, path_length
from worldgen.pipeline import load
from worldgen.serving import running_server

pytestmark = pytest.mark.browser

AHEAD = [(0.0, 0.3), (-0.3, 0.5)]
"""A way in shares of half the map's height, to the right and up from the car."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    driven = tiny_driven_world(tmp_path_factory.mktemp("driven"))
    return [str(driven), str(tiny_world(tmp_path_factory.mktemp("keys")))]


@pytest.fixture(scope="module")
def url(folders: list[str]) -> Iterator[str]:
    with running_server(folders) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visitor(browser, url) as made:
        begin(made)
        made.evaluate("() => window.worldgen.setPace('fast')")
        yield made


def path(page: Page) -> np.ndarray:
    return np.array(page.evaluate("() => window.worldgen.path()"))


def driven_path(page: Page, folder: str) -> np.ndarray:
    """Return the way of the actions in the log that the server keeps."""
    log: dict[str, Any] = save_log(page)
    ids = np.array(log["actions"], np.int64).reshape(-1, 3)
    return integrate(load(folder).action_tokenizer.decode(ids))


def drive_to(page: Page, frame: int, *keys: str) -> None:
    for key in keys:
        page.keyboard.down(key)
    page.wait_for_function(f"() => window.worldgen.statistics().frame >= {frame}")
    for key in keys:
        page.keyboard.up(key)
    page.keyboard.press("KeyP")
    expect(page.locator("#play")).to_have_text("Play")
    settle(page)


def draw(page: Page, way: Sequence[tuple[float, float]]) -> None:
    box = page.locator("#map").bounding_box()
    assert box is not None
    half = box["height"] / 2
    x, y = box["x"] + box["width"] / 2, box["y"] + half
    page.mouse.move(x, y)
    page.mouse.down()
    for right, up in way:
        page.mouse.move(x + right * half, y - up * half, steps=5)
    page.mouse.up()


def pixels(page: Page) -> str:
    return str(page.locator("#map").evaluate("canvas => canvas.toDataURL()"))


def test_the_map_shows_where_the_keys_have_led_and_forgets_what_is_taken_back(
    page: Page, folders: list[str]
) -> None:
    # Nothing real drives this world, so there is nothing to switch off.
    expect(page.locator("#reality-on")).to_be_hidden()
    drive_to(page, 6, "ArrowUp", "ArrowLeft")
    assert len(path(page)) == frame_number(page) + 1
    np.testing.assert_allclose(path(page), driven_path(page, folders[0]), atol=1e-3)
    expect(page.locator("#driven")).to_have_text(f"{path_length(path(page)):.0f} m driven")
    before = pixels(page)
    page.locator("#slider").fill("2")
    expect(page.locator("#driven")).to_have_text("3 m driven")
    page.wait_for_function("old => document.querySelector('#map').toDataURL() !== old", arg=before)
    page.locator("#fork").click()
    expect(page.locator("#branches button[aria-pressed=true]")).to_have_text("B · here")
    settle(page)
    assert len(path(page)) == 3
    # A world of keys has no map.
    page.locator("[data-world=tiny]").click()
    expect(page.locator("#map-figure")).to_be_hidden()
    expect(page.locator("#autopilot")).to_be_hidden()


def test_the_car_follows_a_drawn_way_to_its_end_and_stops(page: Page, folders: list[str]) -> None:
    draw(page, AHEAD)
    page.wait_for_function("() => window.worldgen.statistics().running")
    expect(page.locator("#route-end")).to_be_visible()
    expect(page.locator("#status")).to_have_text("The car is at the end of its route.")
    settle(page)
    assert not page.evaluate("() => window.worldgen.statistics().running")
    expect(page.locator("#route-end")).to_be_hidden()
    # The shorter side of the map is ten seconds of 1.6 x 16 metres.
    end = np.array([AHEAD[-1][1], -AHEAD[-1][0]]) * 5 * 1.6 * 16
    assert np.linalg.norm(path(page)[-1, :2] - end) < 4.0
    np.testing.assert_allclose(path(page), driven_path(page, folders[0]), atol=1e-3)


def test_a_key_takes_the_wheel_from_a_route_and_from_the_model(page: Page) -> None:
    page.locator("#autopilot").click()
    expect(page.locator("#autopilot")).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("() => window.worldgen.statistics().frame >= 4")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#autopilot")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("KeyP")
    settle(page)
    # A model of random weights turns about; keys go straight on or rest.
    assert np.abs(np.diff(path(page)[:4, 2])).max() > 0
    draw(page, AHEAD)
    expect(page.locator("#route-end")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#route-end")).to_be_hidden()


def test_a_trajectory_file_is_driven_and_a_bad_one_named(page: Page, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("yaw_deg,x_m,y_m,steps\n2,1.6,0,6\n")
    bad.write_text("speed\n3\n")
    page.locator("#trajectory-file").set_input_files(str(bad))
    expect(page.locator("#status")).to_contain_text("bad.csv")
    page.locator("#trajectory-file").set_input_files(str(good))
    expect(page.locator("#status")).to_have_text("The car is at the end of its route.")
    settle(page)
    np.testing.assert_allclose(np.degrees(path(page)[:, 2]), 2.0 * np.arange(7), atol=0.01)


def test_on_a_phone_the_map_is_below_the_picture_and_can_be_drawn_on(
    browser: Browser, url: str
) -> None:
    with visitor(browser, url, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        begin(page)
        boxes = [page.locator(each).bounding_box() for each in ("#dream", "#map", "#keys")]
        dream, plan, keys = (box for box in boxes if box is not None)
        assert dream["y"] + dream["height"] <= plan["y"]
        assert plan["y"] + plan["height"] <= keys["y"]
        assert page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
        draw(page, AHEAD)
        expect(page.locator("#route-end")).to_be_visible()
