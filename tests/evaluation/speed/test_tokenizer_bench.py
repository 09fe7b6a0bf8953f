"""The bench of the joint tokenizer: what it reports, and the sizes it refuses."""

import json

import pytest

from worldgen.cli import main
from worldgen.errors import ConfigError
from worldgen.evaluation.speed.tokenizer_bench import (
    RELEASED_SIZES,
    TokenizerBench,
    bench_tokenizer,
    measure,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 250}, "multiples of 8, got 250 x 256"),
        ({"frames": 16}, r"1 \+ k x 4, got 16"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizerBench(**changes)  # type: ignore[arg-type]


def test_command_reports_a_wrong_size_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tokenizer", "--height", "100"]) == 2
    assert "multiples of 8, got 100 x 256" in capsys.readouterr().err


def test_plain_reading_takes_squares_of_whole_windows_only() -> None:
    assert TokenizerBench().fits_plain
    assert TokenizerBench(height=128, width=128).fits_plain
    assert not TokenizerBench(height=720, width=1280).fits_plain
    assert not TokenizerBench(height=72, width=72).fits_plain


SIZES = RELEASED_SIZES | {"embedding_dim": 16, "heads": 2, "dim_head": 8, "n_codes": 32}
SMALL = TokenizerBench(frames=5, height=64, width=64, rounds=1)


def test_plain_reading_and_library_in_upstreams_order_give_equal_ids() -> None:
    plain, upstream = (measure(SMALL, SIZES, name) for name in ("plain", "upstream"))
    assert len(plain["ids"]) == 2 * 8 * 8
    assert plain["ids"] == upstream["ids"]
    assert plain["encode_seconds"] > 0
    assert plain["decode_seconds"] > 0


@pytest.mark.slow
def test_contenders_agree_and_are_compared() -> None:
    result = bench_tokenizer(SMALL, SIZES)
    assert result["ids_equal"] == 1.0
    for name in ("plain", "aligned", "upstream"):
        assert result[name]["seconds"] > 0
        assert result[name]["peak_mb"] >= result[name]["working_mb"] >= 0
    assert result["times_faster"] == result["plain"]["seconds"] / result["aligned"]["seconds"]
    json.dumps(result)
