"""Facts of captions, read from frames that were drawn from them, on tiles that a judge reads right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation import toy_tiles
from worldgen.cli import main
from worldgen.data.captions import CaptionTable
from worldgen.errors import ConfigError
from worldgen.evaluation import text
from worldgen.evaluation.text import TextProtocol, describe_fact, evaluate_text, topic_of
from worldgen.pipeline import World, load

TABLE = CaptionTable(
    captions=(
        *(
            toy_tiles.caption(f"stone in row {row}", "stone", rows=(row, row + 1), columns=(0, 8))
            for row in range(5)
        ),
        toy_tiles.caption("facing west", "player-left", rows=(3, 4), columns=(4, 5)),
        toy_tiles.caption("facing east", "player-right", rows=(3, 4), columns=(4, 5)),
        toy_tiles.caption("grass beside you", "grass", rows=(2, 5), columns=(3, 6)),
    )
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_tiles.record(tmp_path_factory.mktemp("recording"), captions=TABLE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    texts = tuple(caption.text for caption in TABLE.captions)
    return load(toy_tiles.world(tmp_path_factory.mktemp("world"), texts=texts))


def test_real_frames_hold_what_they_say_and_others_by_chance(world: World, recording: Path) -> None:
    result = evaluate_text(world, TextProtocol(), data=recording, progress=False)
    assert result["facts"]["real_frames"] == 1.0
    assert result["captions_with_all_facts"]["real_frames"] == 1.0
    told = [caption["text"] for caption in result["captions"]]
    assert len(set(told)) == len(told) > 4
    assert result["protocol"]["facts"] == len(told)
    # Random weights know nothing: what is true in their frames is true in any of them.
    assert result["facts"]["generated"] < 1.0
    assert sum(each["facts"] for each in result["by_topic"].values()) == len(told)
    assert "later" not in result["facts"]
    again = evaluate_text(world, TextProtocol(), data=recording, progress=False)
    assert again["facts"] == result["facts"]
    assert again["captions"] == result["captions"]


def test_a_world_that_shows_what_it_is_told_has_every_fact(
    world: World, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = text._choose

    def remembered(*arguments: Any) -> Any:
        captions, real = chosen(*arguments)

        def draw(*given: Any) -> dict[str, np.ndarray]:
            first, count = given[3], len(given[2])
            shown = real[first : first + count]
            return {"generated": shown, "no_text": np.zeros_like(shown)}

        monkeypatch.setattr(text, "_draw", draw)
        return captions, real

    monkeypatch.setattr(text, "_choose", remembered)
    result = evaluate_text(world, TextProtocol(captions=6), data=recording, progress=False)
    assert result["facts"]["generated"] == 1.0
    assert result["facts"]["another_caption"] < 1.0
    assert result["protocol"]["captions"] == 6


def test_the_command_writes_figures_and_a_page(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "text", "--world", str(world.folder), "--data", str(recording)]
    words += ["--captions", "5", "--seed", "3", "--seconds-on", "0.2", "--text-guidance", "2"]
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main([*words, *files]) == 0
    assert "drawn from the sentence" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["protocol"]["seconds_on"] == 0.2
    assert figures["protocol"]["text_guidance"] == 2.0
    assert 0.0 <= figures["facts"]["later"] <= 1.0
    page = (tmp_path / "out.html").read_text()
    for caption in figures["captions"]:
        assert caption["text"] in page


def test_an_interrupt_leaves_the_captions_that_are_complete(
    world: World, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = text._draw, []

    def stopped(*arguments: Any) -> Any:
        drawn.append(1)
        if len(drawn) > 1:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(text, "_draw", stopped)
    monkeypatch.setattr(text, "LARGEST_BATCH", 3)
    result = evaluate_text(world, TextProtocol(captions=6), data=recording, progress=False)
    assert result["interrupted"]
    assert len(result["captions"]) == result["protocol"]["captions"] == 3


def test_facts_are_told_in_words() -> None:
    names = toy_tiles.CLASSES
    fact = {"kind": "tiles", "classes": ["stone"], "rows": [0, 3], "columns": [0, 8], "least": 2}
    assert topic_of(fact, names) == "stone"
    assert describe_fact(fact, names) == "at least 2: stone, in rows 0 to 2, columns 0 to 7"
    others = [name for name in names if name != "cow"]
    assert topic_of({**fact, "classes": others}, names) == "no cow"
    value = {"kind": "values", "column": "speed", "low": None, "high": 0.5}
    assert topic_of(value) == "speed"
    assert describe_fact(value) == "speed below 0.5"


def test_mistakes_are_told(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = toy_tiles.world(tmp_path / "mute")
    words = ["evaluate", "text", "--data", str(recording), "--world"]
    assert main([*words, str(mute)]) == 2
    assert "reads no text" in capsys.readouterr().err
    silent = toy_tiles.record(tmp_path / "silent", episodes=1)
    words = ["evaluate", "text", "--data", str(silent), "--world"]
    assert main([*words, str(world.folder)]) == 2
    assert "has no captions" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="two captions"):
        TextProtocol(captions=1)
