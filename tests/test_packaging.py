"""The wheel holds the library, its worlds and its YAML, and plays where no clone is in sight."""

import os
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import worldgen
from tests.factories import tiny_world

ROOT = Path(__file__).resolve().parent.parent
MAX_WORLD_BYTES = 25_000_000
PATIENCE = 180.0
"""Seconds until a test gives up waiting."""
PINS = dict(
    line.strip().split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINES = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build as a release does: the source archive from the tree, the wheel from the archive."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a fresh environment and return that environment's programs.

    Its dependencies are reached where they already are. A path file inside a folder that is reached
    by a path file is not read, so the editable install that may lie there does not lead to the clone.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    ask = [str(programs / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n", encoding="utf-8")
    return programs


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _tree(folder: str, pattern: str) -> set[str]:
    files = (ROOT / folder).rglob(pattern)
    return {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}


@pytest.mark.slow
def test_the_wheel_puts_one_name_into_site_packages(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _names(wheel)}
    assert tops == {"worldgen", f"worldgen-{worldgen.__version__}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_every_module_every_yaml_file_and_the_page(wheel: Path) -> None:
    names = _names(wheel)
    assert {name for name in names if name.endswith(".py")} == _tree("worldgen", "*.py")
    yaml = {name for name in names if name.endswith(".yaml")}
    assert yaml == {f"worldgen/{name}" for name in _tree("configs", "*.yaml")}
    page = {name for name in names if name.startswith("worldgen/serving/static/")}
    assert page == _tree("worldgen/serving/static", "*")
    assert "worldgen/py.typed" in names


@pytest.mark.slow
def test_the_wheel_holds_each_shipped_world_whole(wheel: Path) -> None:
    names = _names(wheel)
    for world in worldgen.shipped_worlds():
        files = {f"worldgen/worlds/{world}/{name}.safetensors" for name in ("tokenizer", "model")}
        assert {*files, f"worldgen/worlds/{world}/world.json"} <= names


def test_no_shipped_world_weighs_more_than_25_megabytes() -> None:
    for world in worldgen.shipped_worlds():
        files = [path for path in (ROOT / "worldgen/worlds" / world).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= MAX_WORLD_BYTES, world


@pytest.mark.slow
def test_the_wheel_alone_imports_every_module(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil, worldgen\n"
        "for module in pkgutil.walk_packages(worldgen.__path__, 'worldgen.'):\n"
        "    if module.name != 'worldgen.__main__':\n"
        "        importlib.import_module(module.name)\n"
        "from worldgen.config import config_dir\n"
        "print(worldgen.__file__, config_dir(), sep='\\n')\n"
    )
    lines = _run_python(installed, tmp_path, code).splitlines()
    for line in lines:
        assert Path(line).is_relative_to(installed.parent), line
        assert not Path(line).is_relative_to(ROOT), line


@pytest.mark.slow
@pytest.mark.parametrize("world", ["a world's folder", *worldgen.shipped_worlds()])
def test_the_wheel_alone_generates_frames_and_serves_the_page(
    installed: Path, tmp_path: Path, world: str
) -> None:
    if world == "a world's folder":
        world = str(tiny_world(tmp_path / "world"))
    code = (
        "import worldgen\n"
        f"world = worldgen.load({world!r})\n"
        "session = world.session(seed=1)\n"
        "for action in list(world.action_tokenizer.schema.named)[:3]:\n"
        "    frame = session.step(action)\n"
        "print(frame.shape, frame.dtype)\n"
    )
    assert re.fullmatch(r"\(\d+, \d+, 3\) uint8\s*", _run_python(installed, tmp_path, code))
    with _playing(installed, tmp_path, world) as url:
        assert b"<canvas" in urllib.request.urlopen(url, timeout=PATIENCE).read()


def _run_python(programs: Path, folder: Path, code: str) -> str:
    done = subprocess.run(
        [str(programs / "python"), "-c", code],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _playing(programs: Path, folder: Path, world: str) -> Iterator[str]:
    """Run `worldgen play` of the environment and give the page's address once it answers."""
    command = [str(programs / "worldgen"), "play", "--world", world, "--no-browser", "--port", "0"]
    log = folder / "play.txt"
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + PATIENCE
        # The port takes connections from the moment its number is printed.
        while not (address := re.search(r"http://\S+", log.read_text(encoding="utf-8"))):
            assert server.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "no address is printed"
            time.sleep(0.1)
        yield address[0]
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)


@pytest.mark.parametrize("line", LINES)
def test_the_tested_version_lies_in_the_range_of_pyproject(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.name in PINS, f"{requirement.name} is not pinned; run: make constraints"
    assert requirement.specifier.contains(PINS[requirement.name])


def test_constraints_pin_torch_without_a_build() -> None:
    # With +cpu the pin could not be met from the registry, where a GPU or macOS build is wanted.
    assert re.fullmatch(r"\d+\.\d+\.\d+", PINS["torch"])


def test_pre_commit_runs_the_pinned_ruff() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.search(r"ruff-pre-commit\n    rev: v(\S+)", text)[1] == PINS["ruff"]  # type: ignore[index]
