"""Configurations are strict: what does not fit is refused with its path."""

from dataclasses import dataclass

import pytest

from worldgen.config import build, config_dir, load_config, to_mapping
from worldgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested part."""

    grid: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Whole."""

    inner: Inner
    rate: float = 0.5


def test_a_mapping_becomes_the_dataclass_and_back() -> None:
    outer = build(Outer, {"inner": {"grid": [2, 3]}})
    assert outer == Outer(inner=Inner(grid=(2, 3)))
    assert build(Outer, to_mapping(outer)) == outer


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"inner": {"grid": [2, 3]}, "rte": 1.0}, "rte"),
        ({"inner": {"grid": [2, 3], "extra": 1}}, "extra"),
        ({"inner": {}}, "inner.grid"),
        ({"inner": {"grid": [2, "x"]}}, "grid"),
        ({"inner": {"grid": [2, 3]}, "rate": "fast"}, "rate"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(mapping: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(Outer, mapping)


def test_an_unknown_experiment_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        load_config("world_model", ["experiment=nonsense"])


def test_missing_values_are_refused() -> None:
    from omegaconf import OmegaConf

    with pytest.raises(ConfigError, match="rate"):
        build(Outer, OmegaConf.create({"inner": {"grid": [1, 2]}, "rate": "???"}))


def test_the_shipped_yaml_is_found() -> None:
    assert (config_dir() / "world_model.yaml").is_file()
