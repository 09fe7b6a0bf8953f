"""What tests do with the page in a real browser."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LAPTOP = {"width": 1366, "height": 768}
PHONE = {"width": 390, "height": 844}
PATIENCE = 240_000
"""Milliseconds until a test gives up; a machine that trains beside the tests is slow."""
expect.set_options(timeout=PATIENCE)


@contextlib.contextmanager
def visitor(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """Open the page in a browser of its own; fail if it reports an error or looks outside."""
    options: dict[str, Any] = {"viewport": LAPTOP, **context}
    with contextlib.closing(browser.new_context(**options)) as opened:
        page = opened.new_page()
        page.set_default_timeout(PATIENCE)
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url.partition("#")[0], "blob:", "data:"))
                else troubles.append(request.url)
            ),
        )
        page.goto(url)
        yield page
        assert troubles == []


def begin(page: Page) -> None:
    """Wait until the world is open."""
    expect(page.locator("#veil-title")).to_have_text(re.compile("begin"))


def settle(page: Page) -> None:
    """Wait for what was under way when the world was stopped, and for the words about it."""
    page.wait_for_function(
        """() => {
          const { waiting, frame } = window.worldgen.statistics();
          return !waiting && document.querySelector("#dream-frame").textContent === `frame ${frame}`;
        }"""
    )


def frame_number(page: Page) -> int:
    return int(page.locator("#dream-frame").inner_text().removeprefix("frame "))


def save_log(page: Page) -> dict[str, Any]:
    """Return the log that the page offers for download, even while the world has the mouse."""
    with page.expect_download() as download:
        page.locator("#save").dispatch_event("click")
    log: dict[str, Any] = json.loads(Path(download.value.path()).read_text())
    return log
