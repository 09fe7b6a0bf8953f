"""Worlds and servers for the tests of serving."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories import tiny_world
from worldgen.pipeline import EnvironmentCard
from worldgen.serving import running_server

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
