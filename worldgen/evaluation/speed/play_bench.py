"""Speed of playing as a person has it: from the key press to the painted canvas, unpaced."""

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from worldgen.errors import WorldgenError
from worldgen.evaluation.machine import hardware, versions
from worldgen.pipeline import World

__all__ = ["bench_play", "find_browser"]

_START_SECONDS = 180.0
_FRAME_SECONDS = 60.0
_WARM_UP_FRAMES = 20
_FRAMES_PER_PRESS = 4
"""Frames that one measured key press takes about; decides how many presses there are."""


def bench_play(world: World, frames: int = 200, *, browser: bool | None = None) -> dict[str, Any]:
    """Return frames per second and latency of playing a world, everything included.

    Starts `worldgen play` as a user would, opens its page in headless Chromium and presses keys.
    `latency_ms` is from the key press to the painted canvas, a frame under way when the key went
    down included; `frame_latency_ms` from asking for a frame to its being painted. Without a
    browser or Playwright the same steps go through the WebSocket, and `browser` is false: then
    both latencies end when the pixels arrive. Where frames are drawn several at a time, a key shows
    in the first of the next ones: `frames_drawn_together` - 1 frames later than that at most.

    Args:
        world: World to play.
        frames: Frames over which the rate is measured; about half as many more for key presses.
        browser: Whether to use a browser; by default whenever there is one.

    Raises:
        WorldgenError: If the server does not start, stops answering, or a browser is demanded
            and missing.
    """
    program = find_browser()
    ready = program is not None and find_spec("playwright") is not None
    if browser and not ready:
        raise WorldgenError(
            "no browser to measure with: install Chromium (or let CHROMIUM name its program) and "
            "the Python package playwright"
        )
    presses = max(10, frames // _FRAMES_PER_PRESS)
    with _running_play(world) as url:
        if ready and browser is not False:
            assert program is not None
            measured = _through_browser(url, world, program, frames, presses)
        else:
            measured = _through_socket(url, world, frames, presses)
    return {
        "world": world.name,
        "world_hash": world.hash,
        **measured,
        "frames": frames,
        "frames_drawn_together": world.model.layout.frames_per_step,
        "key_presses": presses,
        "decoder": world.card.decoders[0],
        "hardware": {name: value for name, value in hardware().items() if name != "threads"},
        "versions": versions(),
    }


def find_browser() -> Path | None:
    """Return Chromium's program: `CHROMIUM`, one on the path, or the one Playwright downloaded."""
    named = os.environ.get("CHROMIUM")
    for candidate in [named] if named else ["chromium", "chromium-browser", "google-chrome"]:
        if found := shutil.which(candidate):
            return Path(found)
    folder = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright")
    return next(iter(sorted(Path(folder).glob("chromium-*/chrome-linux*/chrome"))), None)


@contextlib.contextmanager
def _running_play(world: World) -> Iterator[str]:
    """Run `worldgen play` in a process of its own, as users do; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = ["play", "--world", str(world.folder), "--port", str(port), "--no-browser"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "worldgen", *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part or "." for part in sys.path)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise WorldgenError(
                        f"worldgen {' '.join(words)} did not start: {log.read()[-2000:].strip()}"
                    )
                time.sleep(0.05)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _through_browser(
    url: str, world: World, program: Path, frames: int, presses: int
) -> dict[str, Any]:
    from playwright.sync_api import Error, sync_playwright

    keys = list(world.action_tokenizer.schema.keys) or ["Space"]
    # As root Chromium refuses its sandbox, and containers often run as root.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=str(program),
                args=arguments,
                headless=True,
                timeout=1000 * _START_SECONDS,
            )
            # Playwright asks the page for its figures by evaluating text, which the page's own
            # policy forbids.
            page = chromium.new_context(bypass_csp=True).new_page()
            page.set_default_timeout(1000 * _FRAME_SECONDS)
            page.goto(url)
            page.wait_for_function("window.worldgen?.statistics().world")
            page.evaluate("window.worldgen.setPace('fast')")
            page.keyboard.press(keys[0])
            _wait_for_frames(page, _WARM_UP_FRAMES)
            page.evaluate("window.worldgen.resetStatistics()")
            page.keyboard.down(keys[0])
            begin = page.evaluate("performance.now()")
            _wait_for_frames(page, frames)
            end = page.evaluate("performance.now()")
            summary = page.evaluate("window.worldgen.statistics()")
            page.keyboard.up(keys[0])
            latencies = [_press(page, keys[number % len(keys)]) for number in range(presses)]
            version = chromium.version
            chromium.close()
    except Error as error:
        first_line = str(error).splitlines()[0]
        raise WorldgenError(f"the page did not answer as it should: {first_line}") from error
    return {
        "browser": True,
        "browser_version": version,
        "frames_per_second": 1000 * summary["frames"] / (end - begin),
        **_percentiles("latency_ms", latencies),
        "frame_latency_ms_p50": summary["round_trip_ms_p50"],
        "frame_latency_ms_p95": summary["round_trip_ms_p95"],
        "model_ms_p50": summary["model_ms_p50"],
        "model_ms_p95": summary["model_ms_p95"],
    }


def _wait_for_frames(page: Any, count: int) -> None:
    script = "count => window.worldgen.statistics().frames >= count"
    # Asking every 20 ms costs the page less than asking at every repaint.
    page.wait_for_function(script, arg=count, polling=20, timeout=1000 * _FRAME_SECONDS * 10)


def _press(page: Any, key: str) -> float:
    """Press a key at a random moment while the world runs; return milliseconds until painted."""
    time.sleep(random.uniform(0.0, 0.05))
    page.evaluate("window.worldgen.resetStatistics()")
    page.keyboard.down(key)
    # Frames under way when the key went down come first, then the one that knows of it, which
    # waited longest; of so few frames the 95th percentile is the largest.
    _wait_for_frames(page, 4)
    latency = float(page.evaluate("window.worldgen.statistics().latency_ms_p95"))
    page.keyboard.up(key)
    return latency


def _through_socket(url: str, world: World, frames: int, presses: int) -> dict[str, Any]:
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    schema = world.action_tokenizer.schema
    actions = [schema.action(settings) for settings in schema.named.values()] or [schema.rest()]
    try:
        with connect(url.replace("http", "ws") + "/play", max_size=None) as connection:
            hello = json.loads(connection.recv(timeout=_FRAME_SECONDS))
            key = hello["worlds"][0]["key"]
            connection.send(json.dumps({"do": "open", "world": key, "seed": 0, "start": 0}))
            _receive_picture(connection)
            for number in range(_WARM_UP_FRAMES):
                _step(connection, actions[number % len(actions)])
            begin = time.perf_counter()
            latencies = [
                _step(connection, actions[number // 10 % len(actions)]) for number in range(frames)
            ]
            seconds = time.perf_counter() - begin
            pressed = [_step(connection, actions[n % len(actions)]) for n in range(presses)]
    except (WebSocketException, OSError, TimeoutError, KeyError, IndexError) as error:
        raise WorldgenError(f"the server did not answer as it should: {error!r}") from error
    return {
        "browser": False,
        "frames_per_second": frames / seconds,
        **_percentiles("latency_ms", pressed),
        **_percentiles("frame_latency_ms", latencies),
    }


def _step(connection: Any, action: np.ndarray) -> float:
    """Take one step; return milliseconds until its picture is here."""
    begin = time.perf_counter()
    values = np.asarray(action, "<f4")
    connection.send(struct.pack("<BB6xd", 0, values.size, begin) + values.tobytes())
    _receive_picture(connection)
    return 1000 * (time.perf_counter() - begin)


def _receive_picture(connection: Any) -> None:
    # Pictures of the real environment (kind 2) and notices come in between.
    while True:
        message = connection.recv(timeout=_FRAME_SECONDS)
        if isinstance(message, bytes) and message[0] == 1:
            return


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {f"{name}_p50": statistics.median(values), f"{name}_p95": cuts[-1]}
