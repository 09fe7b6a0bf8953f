"""Worlds to look around in, played in a real browser: the mouse, many keys, pictures of any shape.

What arrived is read from the log: the actions as the session has kept them.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("playwright", reason="drives the page with Playwright")

from playwright.sync_api import Browser, Page, expect

from tests.factories import tiny_model_config, tiny_world
from tests.serving.pages import PATIENCE, PHONE, begin, frame_number, save_log, settle, visitor
from worldgen.generation import SamplingConfig, Start
from worldgen.models import (
    NextFrameTransformer,
    NextTokenConfig,
    NextTokenTransformer,
    save_world_model,
)
from worldgen.pipeline import WorldCard, save_starts
from worldgen.serving import running_server
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    Axis,
    Categorical,
    PointerAxis,
    actions_from_keys,
)
from worldgen.tokenizers.action.minecraft import minecraft_schema
from worldgen.tokenizers.quantizers import FSQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    build_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.patch import PatchConfig

pytestmark = pytest.mark.browser

MINEWORLD = minecraft_schema("mineworld")
MINECRAFT = minecraft_schema("minecraft")
LIMIT = 200
TURNING = ActionSchema(
    groups=(
        # One bin for each pixel, so that sums of movements are exact.
        Axis("turn", -LIMIT - 0.5, LIMIT + 0.5, 2 * LIMIT + 1),
        Axis("tilt", -LIMIT - 0.5, LIMIT + 0.5, 2 * LIMIT + 1),
        Categorical("hand", ("none", "grab")),
    ),
    named={"grab": {"hand": "grab"}},
    keys={"Mouse0": "grab"},
    pointer={"x": PointerAxis("turn", 1.0), "y": PointerAxis("tilt", -1.0)},
)
"""Movements to the right and upwards are positive."""
CLICKING = ActionSchema(
    groups=(Categorical("hand", ("none", "grab")),),
    named={"grab": {"hand": "grab"}},
    keys={"Mouse2": "grab"},
)
"""A world with a button of the mouse, in which nothing looks around."""
SCHEMAS = {
    "mineworld": MINEWORLD,
    "minecraft": MINECRAFT,
    "turning": TURNING,
    "clicking": CLICKING,
}
SIZES = {
    "mineworld": (224, 384, 16),
    "minecraft": (128, 64, 8),
    "turning": (64, 64, 8),
    "clicking": (64, 64, 8),
}
"""Height and width of the frames, and pixels of a token."""


def write_world(folder: Path, name: str) -> str:
    """Write a world of random weights that is played by a schema; return its folder."""
    schema, (height, width, patch) = SCHEMAS[name], SIZES[name]
    network = PatchConfig(patch=patch, width=8, blocks=1)
    config = ConvolutionalTokenizerConfig(
        frame_height=height,
        frame_width=width,
        encoder=network,
        decoder=network,
        quantizer=FSQConfig(levels=(4, 4, 4)),
    )
    actions = ActionTokenizer(schema)
    rows, columns = height // patch, width // patch
    sizes: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "num_action_tokens": actions.num_slots,
        "action_vocabulary_size": actions.vocabulary_size,
    }
    model: NextFrameTransformer | NextTokenTransformer = NextFrameTransformer(
        tiny_model_config(**sizes)
    )
    if schema is MINEWORLD:
        # As its family is made: pictures and actions are one sequence of tokens.
        model = NextTokenTransformer(
            NextTokenConfig(
                codebook_size=64,
                width=16,
                num_heads=2,
                num_key_value_heads=2,
                feed_forward_width=24,
                windows=(3, 3),
                **sizes,
            )
        )
    start = Start(
        visual_ids=torch.randint(0, 64, (2, rows * columns)),
        action_ids=torch.from_numpy(actions.encode(schema.rest()))[None],
    )
    card = WorldCard(
        name=name,
        title=name,
        description="Random weights, for tests.",
        frames_per_second=16.0,
        action_schema=schema.to_json(),
        decoders=("whole_frame",),
        sampling=SamplingConfig(),
    )
    folder.mkdir()
    save_visual_tokenizer(folder / "tokenizer.safetensors", build_visual_tokenizer(config).eval())
    save_world_model(folder / "model.safetensors", model)
    save_starts(folder / "starts.safetensors", [start])
    card.write(folder)
    return str(folder)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a world for each of `SCHEMAS`."""
    folder = tmp_path_factory.mktemp("worlds")
    with running_server([write_world(folder / name, name) for name in SCHEMAS]) as url:
        yield url


@pytest.fixture
def page(browser: Browser, worlds: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page of the world that a test names by `pytest.mark.parametrize("page", ...)`."""
    with visitor(browser, f"{worlds}#world={request.param}") as made:
        begin(made)
        made.evaluate(
            """() => {
              window.seen = { x: 0, y: 0 };
              addEventListener("mousemove", (event) => {
                window.seen.x += event.movementX;
                window.seen.y += event.movementY;
              });
            }"""
        )
        yield made


in_mineworld = pytest.mark.parametrize("page", ["mineworld"], indirect=True)
in_minecraft = pytest.mark.parametrize("page", ["minecraft"], indirect=True)
in_turning = pytest.mark.parametrize("page", ["turning"], indirect=True)


def center(page: Page) -> tuple[int, int]:
    """Return the middle of the picture, where the button is that begins."""
    box = page.locator("#dream").bounding_box()
    assert box is not None
    return round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)


def enter(page: Page) -> None:
    """Click the picture; wait until the world goes on and has the mouse."""
    take_mouse(page)
    expect(page.locator("body")).to_have_class(re.compile(r"\blocked\b"))
    more_frames(page, 1)


def take_mouse(page: Page) -> None:
    """Click the picture until the world has the mouse.

    A browser may refuse it, or not answer at all, while a window opens or has just let go of it.
    """
    hint = page.locator("#mouse")
    answered = re.compile("Esc frees the mouse|the browser keeps the mouse")
    for _ in range(10):
        page.mouse.click(*center(page))
        with contextlib.suppress(AssertionError):
            expect(hint).to_have_text(answered, timeout=PATIENCE / 10)
        if hint.inner_text().startswith("Esc"):
            return
    raise AssertionError("the browser refused the mouse ten times")


def more_frames(page: Page, count: int) -> None:
    """Wait until so many more steps were taken; the first of them may have begun before."""
    frame = page.evaluate("() => window.worldgen.statistics().frame")
    page.wait_for_function(f"() => window.worldgen.statistics().frame >= {frame + count}")


def pause(page: Page) -> None:
    page.keyboard.press("KeyP")
    expect(page.locator("#play")).to_have_text("Play")
    settle(page)


def single_step(page: Page) -> None:
    frame = frame_number(page)
    page.keyboard.press("Period")
    expect(page.locator("#dream-frame")).to_have_text(f"frame {frame + 1}")
    settle(page)


def move(page: Page, *movements: tuple[int, int]) -> None:
    """Move the mouse; wait until the page has seen it."""
    x, y = getattr(page, "place", center(page))
    seen = page.evaluate("() => window.seen")
    for right, down in movements:
        x, y = x + right, y + down
        page.mouse.move(x, y)
    page.place = x, y  # type: ignore[attr-defined]
    total = [seen[axis] + sum(each[i] for each in movements) for i, axis in enumerate("xy")]
    page.wait_for_function(
        "([x, y]) => window.seen.x === x && window.seen.y === y",
        arg=total,
    )


def actions(page: Page, schema: ActionSchema) -> np.ndarray:
    """Return the actions of the drive, as the server's log has them, `[step, group]`."""
    tokenizer = ActionTokenizer(schema)
    ids = np.asarray(save_log(page)["actions"], np.int64)
    return np.asarray(tokenizer.decode(ids.reshape(-1, tokenizer.num_slots)))


def tap(page: Page, action: str) -> None:
    """Press and release a cap before the page can do anything else."""
    page.locator(f".cap[data-action={action}]").dispatch_event("click")


def runs(values: Sequence[Any]) -> list[Any]:
    return [value for value, _ in groupby(values)]


@in_mineworld
def test_the_controls_are_those_of_the_schema_grouped_by_where_they_lie(page: Page) -> None:
    shown = page.locator(".cap").evaluate_all("caps => caps.map(cap => cap.dataset.action)")
    assert sorted(shown) == sorted(set(MINEWORLD.keys.values()))
    assert page.locator(".pad").first.locator(".cap span").all_inner_texts() == [
        *("forward", "back", "left", "right"),
    ]
    assert page.locator(".pad").last.locator(".cap span").all_inner_texts() == [
        *("look up", "look down", "look left", "look right"),
    ]
    expect(page.locator(".numbers h3")).to_have_text("hotbar")
    assert page.locator(".numbers kbd").all_inner_texts() == list("123456789")
    mouse = page.locator(".mouse .cap").evaluate_all("caps => caps.map(cap => cap.innerText)")
    assert sorted(text.split() for text in mouse) == [
        ["left", "attack"],
        ["middle", "pick", "item"],
        ["right", "use"],
    ]
    expect(page.locator(".mouse .move")).to_have_text("move it: camera yaw, camera pitch")


@in_mineworld
def test_keys_buttons_and_digits_arrive_as_options_of_the_schema(page: Page) -> None:
    enter(page)
    chain: list[dict[str, str | float]] = [{}]

    def add(group: str, option: str) -> None:
        more_frames(page, 2)
        chain.append(chain[-1] | {group: option})

    page.keyboard.down("KeyW")
    add("forward_back", "forward")
    page.keyboard.down("Space")
    add("jump", "jump")
    page.mouse.down(button="right")
    add("use_attack", "use")
    page.mouse.down(button="middle")
    add("drop_pick", "pickItem")
    page.keyboard.down("Digit5")
    add("hotbar", "hotbar.5")
    page.mouse.down(button="left")
    add("use_attack", "attack")
    lit = page.locator(".cap.on").evaluate_all("caps => caps.map(cap => cap.dataset.action)")
    assert sorted(lit) == ["attack", "forward", "hotbar.5", "jump", "pickItem", "use"]
    # With everything down, or the last steps might be any mixture of what is let go.
    pause(page)
    expected = [MINEWORLD.action(settings).tolist() for settings in chain]
    assert runs(actions(page, MINEWORLD).tolist()) == expected
    expect(page.locator("#branches")).to_be_hidden()


@in_mineworld
def test_control_is_a_key_of_this_world_and_no_modifier(page: Page) -> None:
    page.keyboard.down("ControlLeft")
    page.keyboard.down("KeyW")
    more_frames(page, 2)
    page.keyboard.press("KeyP")
    expect(page.locator("#play")).to_have_text("Play")
    settle(page)
    last = actions(page, MINEWORLD)[-1]
    wanted = MINEWORLD.action({"forward_back": "forward", "sprint_sneak": "sprint"})
    assert last.tolist() == wanted.tolist()


@in_mineworld
def test_of_two_keys_for_one_group_the_later_wins_as_in_python(page: Page) -> None:
    held = []
    for codes, key, down in (
        (["KeyA"], "KeyA", True),
        (["KeyA", "KeyD"], "KeyD", True),
        (["KeyA"], "KeyD", False),
    ):
        (page.keyboard.down if down else page.keyboard.up)(key)
        more_frames(page, 2)
        held.append(actions_from_keys(codes, MINEWORLD).tolist())
    pause(page)
    assert runs(actions(page, MINEWORLD).tolist()) == held


@in_mineworld
def test_the_camera_turns_by_the_bin_of_the_movement(page: Page) -> None:
    enter(page)
    pause(page)
    move(page, (100, -40))
    single_step(page)
    tokenizer = ActionTokenizer(MINEWORLD)
    # 0.15 degrees a pixel; upwards is a negative pitch.
    wanted = tokenizer.encode(MINEWORLD.action({"camera_yaw": 15.0, "camera_pitch": -6.0}))
    assert save_log(page)["actions"][-1] == wanted.tolist()


@in_turning
def test_movements_between_steps_are_summed_and_taken_once(page: Page) -> None:
    enter(page)
    pause(page)
    begun = len(actions(page, TURNING))
    move(page, (30, -5), (1, 0), (-11, 2))
    single_step(page)
    single_step(page)
    move(page, (0, 7))
    single_step(page)
    # More than the axis holds is dropped: the view must not turn on when the hand has stopped.
    move(page, (LIMIT, 0), (LIMIT, 0))
    single_step(page)
    single_step(page)
    steps = actions(page, TURNING)[begun:]
    assert np.allclose(steps, [[20, 3, 0], [0, 0, 0], [0, -7, 0], [LIMIT, 0, 0], [0, 0, 0]])


@in_turning
def test_while_the_world_goes_on_no_movement_is_lost_or_doubled(page: Page) -> None:
    enter(page)
    pause(page)
    begun = len(actions(page, TURNING))
    # Where the mouse went while the world stood still is forgotten when it plays on.
    move(page, (50, 50))
    page.keyboard.press("KeyP")
    more_frames(page, 2)
    for _ in range(10):
        move(page, (7, 2), (5, -3))
    more_frames(page, 2)
    pause(page)
    steps = actions(page, TURNING)[begun:]
    assert np.allclose(steps.sum(axis=0), [120, 10, 0])


@in_turning
def test_with_the_pace_on_keys_a_movement_is_a_step(page: Page) -> None:
    page.evaluate("() => window.worldgen.setPace('keys')")
    take_mouse(page)
    for frame in (1, 2):
        move(page, (frame, 0))
        expect(page.locator("#dream-frame")).to_have_text(f"frame {frame}")
    settle(page)
    assert np.allclose(actions(page, TURNING), [[1, 0, 0], [2, 0, 0]])


@in_turning
def test_the_click_that_enters_the_world_is_no_action_of_it(page: Page) -> None:
    enter(page)
    more_frames(page, 2)
    pause(page)
    assert not actions(page, TURNING).any()


@in_mineworld
def test_while_the_world_has_the_mouse_the_browser_does_nothing_of_its_own(page: Page) -> None:
    prevented = """() => ["mousedown", "mouseup", "contextmenu", "auxclick", "wheel"].filter((name) => {
      const options = { button: name === "wheel" ? 0 : 1, bubbles: true, cancelable: true };
      const event = name === "wheel" ? new WheelEvent(name, options) : new MouseEvent(name, options);
      return !document.querySelector("#dream").dispatchEvent(event);
    })"""
    enter(page)
    assert page.evaluate(prevented) == ["mousedown", "mouseup", "contextmenu", "auxclick", "wheel"]
    page.evaluate("() => document.exitPointerLock()")
    expect(page.locator("#mouse")).to_have_text("click to look with the mouse")
    assert "wheel" not in page.evaluate(prevented)


@in_mineworld
def test_escape_gives_the_mouse_back_and_lets_its_buttons_go(page: Page) -> None:
    enter(page)
    page.mouse.down()
    expect(page.locator(".cap.on")).to_have_text(re.compile("attack"))
    page.keyboard.press("Escape")
    expect(page.locator("#mouse")).to_have_text("click to look with the mouse")
    expect(page.locator("body")).not_to_have_class(re.compile(r"\blocked\b"))
    expect(page.locator(".cap.on")).to_have_count(0)
    page.mouse.up()
    # A button that is pressed now is the page's.
    page.mouse.down(button="right")
    more_frames(page, 2)
    expect(page.locator(".cap.on")).to_have_count(0)
    page.mouse.up(button="right")
    enter(page)


@in_turning
def test_where_the_mouse_is_refused_a_drag_looks_around(page: Page) -> None:
    page.evaluate(
        """() => {
          HTMLCanvasElement.prototype.requestPointerLock =
            () => Promise.reject(new DOMException("no", "NotAllowedError"));
        }"""
    )
    page.mouse.click(*center(page))
    expect(page.locator("#mouse")).to_have_text("the browser keeps the mouse: drag to look")
    more_frames(page, 1)
    # Without the button it is no drag.
    move(page, (9, 9))
    page.mouse.down()
    move(page, (2, 0), (38, -10), (1, 1))
    page.mouse.up()
    move(page, (-20, 30))
    more_frames(page, 2)
    pause(page)
    assert np.allclose(actions(page, TURNING).sum(axis=0), [41, 9, 0])
    expect(page.locator("body")).not_to_have_class(re.compile(r"\blocked\b"))


@pytest.mark.parametrize("page", ["clicking"], indirect=True)
def test_without_a_view_to_turn_buttons_act_over_the_picture(page: Page) -> None:
    x, y = center(page)
    page.mouse.move(x, y + 100)
    page.mouse.down(button="right")
    more_frames(page, 2)
    pause(page)
    assert runs(actions(page, CLICKING).tolist()) == [[1]]
    page.mouse.up(button="right")
    expect(page.locator(".cap.on")).to_have_count(0)
    expect(page.locator("#mouse")).to_have_text("")


def test_on_a_phone_a_finger_on_the_picture_looks_and_nothing_overflows(
    browser: Browser, worlds: str
) -> None:
    phone: dict[str, Any] = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    with visitor(browser, f"{worlds}#world=turning", **phone) as page:
        begin(page)
        expect(page.locator("#mouse")).to_have_text("drag to look around")
        x, y = center(page)
        # Below the button that begins.
        y += 100
        tools = page.context.new_cdp_session(page)
        for kind, points in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x + 30, "y": y - 5}]),
            ("touchMove", [{"x": x + 70, "y": y - 15}]),
            ("touchEnd", []),
        ):
            tools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        more_frames(page, 2)
        page.locator("#play").click()
        settle(page)
        assert np.allclose(actions(page, TURNING).sum(axis=0), [70, 15, 0])
        for name in SCHEMAS:
            page.locator(f"#worlds [data-world={name}]").click()
            expect(page.locator("h1")).to_have_text(name)
            fits(page, *SIZES[name][:2])


def fits(page: Page, height: int, width: int) -> None:
    """Wait until the picture has the shape of the frames and lies inside of the window."""
    page.wait_for_function(
        """([height, width]) => {
          const box = document.querySelector("#dream").getBoundingClientRect();
          const wide = document.documentElement.scrollWidth <= innerWidth;
          const inside = box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
          return wide && inside && box.width > 100 && Math.abs(box.width / width - box.height / height) < 0.02;
        }""",
        arg=[height, width],
    )


def test_frames_of_any_shape_are_seen_whole(browser: Browser, worlds: str) -> None:
    for name, (height, width, _) in SIZES.items():
        with visitor(browser, f"{worlds}#world={name}") as page:
            begin(page)
            fits(page, height, width)
            page.set_viewport_size({"width": 1000, "height": 620})
            fits(page, height, width)


@in_minecraft
def test_a_key_of_the_world_is_no_shortcut_of_the_page(page: Page) -> None:
    assert MINECRAFT.keys["KeyF"] == "swapHands"
    assert "(" not in (page.locator("#fork").get_attribute("title") or "")
    expect(page.locator("#play")).to_have_attribute("aria-keyshortcuts", "P")
    page.keyboard.down("KeyF")
    more_frames(page, 2)
    pause(page)
    page.keyboard.up("KeyF")
    expect(page.locator("#branches")).to_be_hidden()
    wanted = MINECRAFT.action({"swap_hands": "swapHands"}).tolist()
    assert runs(actions(page, MINECRAFT).tolist()) == [wanted]


@in_mineworld
def test_a_page_with_a_key_down_asks_before_it_closes(page: Page) -> None:
    # The event itself: a busy browser closes without asking the page.
    asks = """() => !dispatchEvent(new Event("beforeunload", { cancelable: true }))"""
    assert not page.evaluate(asks)
    page.keyboard.down("ControlLeft")
    assert page.evaluate(asks)
    page.keyboard.up("ControlLeft")
    more_frames(page, 2)
    assert not page.evaluate(asks)


def test_frames_drawn_together_leave_what_is_new_to_the_next_ones(
    browser: Browser, tmp_path: Path
) -> None:
    folder = tiny_world(tmp_path / "together", frames_per_step=4)
    with running_server([str(folder)]) as url, visitor(browser, url) as page:
        begin(page)
        page.evaluate("() => window.worldgen.setPace('keys')")
        tap(page, "left")
        expect(page.locator("#dream-frame")).to_have_text("frame 1")
        settle(page)
        tap(page, "right")
        expect(page.locator("#dream-frame")).to_have_text("frame 5")
        settle(page)
        rows = np.asarray(save_log(page)["actions"])[:5]
        assert (rows[:4] == rows[0]).all()
        assert (rows[4] != rows[0]).any()
