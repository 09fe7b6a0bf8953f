"""Worlds, servers and a browser for the tests of serving."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.factories import tiny_world
from worldgen.pipeline import EnvironmentCard
from worldgen.serving import running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOY = EnvironmentCard(id="tests.serving.toy_environment:worldgen-tests/Toy-v0")


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world with a real environment."""
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny", environment=TOY)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world of other weights that names an environment which is not installed."""
    missing = EnvironmentCard(id="no_such_module:Missing-v0")
    folder = tmp_path_factory.mktemp("worlds") / "other"
    return tiny_world(folder, name="other", environment=missing, seed=1)


@pytest.fixture
def url(world_folder: Path, other_folder: Path) -> Iterator[str]:
    """A running server with both worlds."""
    with running_server([str(world_folder), str(other_folder)]) as address:
        yield address


@pytest.fixture(scope="module")
def browser(chromium: Path) -> "Iterator[Browser]":
    """Chromium without a window, for tests that have found Playwright."""
    from playwright.sync_api import sync_playwright

    from tests.serving.pages import ARGUMENTS, PATIENCE

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=str(chromium), args=ARGUMENTS, timeout=PATIENCE
        )
        yield running
        running.close()
