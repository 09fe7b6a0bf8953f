"""What README and docs show works: Python blocks run, commands name what exists, links lead on."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import worldgen
from worldgen.cli import build_parser
from worldgen.config import load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
# Programs whose own words are not checked here.
FOREIGN = {"cd", "git", "pip", "pre-commit", "source", "python3", "torchrun"}


def _blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    """Return each shell line of the documents, continued lines joined, comments left out."""
    lines = []
    for name in NAMES:
        for block in _blocks(name, "bash"):
            joined = block.replace("\\\n", " ")
            lines += [command for line in joined.splitlines() for command in line.split("&&")]
    stripped = (shlex.join(shlex.split(line, comments=True)) for line in lines)
    return sorted({line for line in stripped if line})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if _blocks(name, "python")])
def test_python_blocks_run_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    code = "\n".join(_blocks(name, "python"))
    for world in set(re.findall(r'worldgen\.load\("(\w+)"\)', code)):
        if world not in worldgen.shipped_worlds():
            pytest.skip(f"the world {world!r} is not shipped yet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", _commands())
def test_shell_lines_name_what_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
        words = words[1:]
    program, rest = Path(words[0]).name, words[1:]
    if program == "make":
        assert {word for word in rest if "=" not in word} <= set(TARGETS)
    elif program == "worldgen":
        _check_parsed(rest, capsys)
    elif program == "python" and rest[0] == "-m":
        _check_module(rest[1], rest[2:], capsys)
    else:
        assert program in FOREIGN, f"nothing checks the program {program!r}"


def _check_parsed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        build_parser().parse_args(words)
    except SystemExit as error:
        if error.code != 0:
            pytest.fail(capsys.readouterr().err)


def _check_module(module: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if module == "worldgen":
        _check_parsed(words, capsys)
        return
    found = importlib.util.find_spec(module)
    assert found is not None, f"no module {module!r}"
    assert found.origin is not None, f"{module!r} is a folder and cannot be run"
    if not Path(found.origin).is_relative_to(ROOT):
        return
    source = Path(found.origin).read_text(encoding="utf-8")
    if entry := re.search(r'config_name="(\w+)"', source):
        load_config(entry[1], words)
    else:
        for word in words:
            option = word.partition("=")[0]
            assert not word.startswith("-") or f'"{option}"' in source, f"{module} has no {option}"


@pytest.mark.parametrize("name", NAMES)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    for link in links:
        if not link.startswith(("http://", "https://")):
            assert ((ROOT / name).parent / link).exists(), f"{name} links to {link}"


def test_the_readme_tells_of_every_room_of_the_house() -> None:
    tree = next(block for block in _blocks("README.md", "text") if "worldgen/  " in block)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    folders = {path.split("/")[0] for path in tracked if "/" in path and path[0] != "."}
    missing = {folder for folder in folders if f"{folder}/" not in tree}
    assert not missing, f"the file tree of README.md lacks {missing}"
