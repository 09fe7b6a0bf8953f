"""Skips what this machine cannot run, finds Chromium, and gives each test the same torch."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# In continuous integration a test that needs a browser must run, not vanish.
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}


def find_chromium() -> Path | None:
    """Return the browser: `CHROMIUM`, one on the path, or the one that Playwright downloaded."""
    named = os.environ.get("CHROMIUM")
    candidates = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    for candidate in candidates:
        if found := shutil.which(candidate):
            return Path(found)
    folder = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright")
    return next(iter(sorted(Path(folder).glob("chromium-*/chrome-linux*/chrome"))), None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("browser") and find_chromium() is None:
        reason = "needs Chromium: install it, or let CHROMIUM name its program"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser's program, for tests marked `browser`."""
    found = find_chromium()
    assert found is not None, "mark the test with pytest.mark.browser"
    return found


@pytest.fixture(autouse=True)
def same_torch_for_each_test() -> Iterator[None]:
    """Start from one random state, and give back what a test has set for the whole process."""
    threads = torch.get_num_threads()
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    # Not without need: the first call imports a compiler, which takes seconds.
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
