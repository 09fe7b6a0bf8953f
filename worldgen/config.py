"""Hydra composes YAML; frozen dataclasses describe; `build` strictly turns one into the other."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import dacite

from worldgen.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["build", "config_dir", "load_config", "to_mapping"]

_Config = TypeVar("_Config")


def config_dir() -> Path:
    """Return the folder of YAML files: inside the package when installed, beside it in a clone.

    Raises:
        ConfigError: If neither folder exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configs folder in or beside {package}; reinstall worldgen")


def load_config(name: str, overrides: Sequence[str] = ()) -> "DictConfig":
    """Compose a shipped configuration without touching a Hydra that the caller may be running.

    Args:
        name: Top-level entry without suffix, for example `"world_model"`.
        overrides: Hydra overrides, for example `["experiment=car_racing"]`.

    Raises:
        ConfigError: If the entry or an override does not exist; carries Hydra's own words.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(name, list(overrides))
    except HydraException as error:
        raise ConfigError(f"cannot compose {name!r} with {list(overrides)}: {error}") from error
    finally:
        GlobalHydra.instance().hydra = before


def build(cls: type[_Config], mapping: "Mapping[str, Any] | DictConfig") -> _Config:
    """Return the dataclass `cls` filled from a mapping: no unknown key, no missing key, exact types.

    Args:
        cls: A frozen dataclass; nested dataclasses and unions of them are followed.
        mapping: Plain nested mapping, or an OmegaConf node (resolved here).

    Raises:
        ConfigError: With the dotted path of the first wrong entry.
    """
    plain: Any = mapping
    if not isinstance(mapping, dict):
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        if OmegaConf.is_config(mapping):
            try:
                plain = OmegaConf.to_container(
                    cast("DictConfig", mapping), resolve=True, throw_on_missing=True
                )
            except OmegaConfBaseException as error:
                raise ConfigError(f"{cls.__name__}: {error}") from error
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{cls.__name__}: needs a mapping of its fields, got {plain!r}")
    settings = dacite.Config(strict=True, cast=[tuple], strict_unions_match=True)
    try:
        return cast("_Config", dacite.from_dict(cast("Any", cls), plain, settings))
    except (dacite.DaciteError, TypeError) as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as the nested mapping from which `build` makes it again."""
    return dataclasses.asdict(config)
