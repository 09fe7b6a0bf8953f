"""Judges: small networks, trained on real frames, that read motion or tiles from frames."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build
from worldgen.errors import CheckpointError, ConfigError
from worldgen.records import to_float

__all__ = [
    "MotionProbe",
    "MotionProbeConfig",
    "Probe",
    "TileColumn",
    "TileProbe",
    "TileProbeConfig",
    "load_probes",
    "save_probes",
]

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class MotionProbeConfig:
    """What a motion probe sees and reads."""

    frame_height: int
    frame_width: int
    quantities: tuple[str, ...]
    """Names of what is read, for example yaw_rate and speed."""
    num_frames: int = 3
    """Consecutive frames seen; the reading belongs to the last."""
    view: Literal["road", "dashboard", "whole"] = "road"
    """`road` hides the dashboard, which prints the speed: there the judge must see motion."""
    dashboard_rows: int = 8
    """Rows of pixels at the bottom that hold the dashboard."""
    width: int = 24

    def __post_init__(self) -> None:
        if not self.quantities or self.num_frames < 1 or self.width < 1:
            raise ConfigError(
                f"a motion probe needs quantities, frames and width, got {self.quantities}, "
                f"{self.num_frames}, {self.width}"
            )
        if not 0 < self.dashboard_rows < self.frame_height:
            raise ConfigError(
                f"dashboard_rows must be in 1 to {self.frame_height - 1}, got {self.dashboard_rows}"
            )


class MotionProbe(nn.Module):
    """Reads quantities of motion from a few consecutive frames."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: MotionProbeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        sizes = (3 * config.num_frames, width, 2 * width, 2 * width, 3 * width)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(sizes)):
            side = 5 if number == 0 else 3
            layers += [nn.Conv2d(before, after, side, stride=2, padding=side // 2), nn.GELU()]
        self.features = nn.Sequential(*layers)
        with torch.no_grad():
            blank = torch.zeros(1, sizes[0], config.frame_height, config.frame_width)
            num_features = self.features(blank).numel()
        self.readout = nn.Sequential(
            nn.Linear(num_features, 64), nn.GELU(), nn.Linear(64, len(config.quantities))
        )
        # Scale of the readings in the training data; the network itself works on unit variance.
        self.register_buffer("mean", torch.zeros(len(config.quantities)))
        self.register_buffer("deviation", torch.ones(len(config.quantities)))

    def forward(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Float[Tensor, "batch quantity"]:
        """Return standardised readings of frames in [-1, 1]; `time` is `num_frames`."""
        split = self.config.frame_height - self.config.dashboard_rows
        seen = frames.clone()
        if self.config.view == "road":
            seen[..., split:, :] = -1.0
        elif self.config.view == "dashboard":
            seen[..., :split, :] = -1.0
        stacked = rearrange(seen, "b time rgb height width -> b (time rgb) height width")
        readings: Tensor = self.readout(self.features(stacked).flatten(1))
        return readings

    @torch.no_grad()
    def read(self, frames: UInt8[np.ndarray, "clip time h w 3"]) -> dict[str, np.ndarray]:
        """Return each quantity as [clip, time - num_frames + 1], in the units of the recording.

        Args:
            frames: uint8 in [0, 255], consecutive along time.
        """
        span = self.config.num_frames
        count = frames.shape[1] - span + 1
        clips = np.stack([frames[:, start : start + span] for start in range(count)], axis=1)
        flat = rearrange(clips, "clip start time h w rgb -> (clip start) time h w rgb")
        readings = [
            self(to_float(torch.from_numpy(np.ascontiguousarray(flat[first : first + _BATCH]))))
            for first in range(0, len(flat), _BATCH)
        ]
        scaled = torch.cat(readings) * self.deviation + self.mean
        table = rearrange(
            scaled.numpy(), "(clip start) quantity -> quantity clip start", start=count
        )
        return dict(zip(self.config.quantities, table, strict=True))


@dataclass(frozen=True, kw_only=True)
class TileColumn:
    """A column of the recording that says what some rows of tiles show."""

    name: str
    """In the recording; each of its rows holds class numbers, tiles in raster order."""
    rows: int
    """Rows of tiles that it covers."""
    classes: tuple[str, ...]
    """Names in the order of the recorded numbers."""


@dataclass(frozen=True, kw_only=True)
class TileProbeConfig:
    """What a tile probe tells apart."""

    columns: tuple[TileColumn, ...]
    """From the top of the frame to its bottom; their classes are numbered through."""
    tile: int = 8
    """Side of a tile in pixels."""
    width: int = 32

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or self.tile < 4 or self.tile % 4 or self.width < 1:
            raise ConfigError(
                f"a tile probe needs two classes or more, a tile side divisible by 4 and a "
                f"positive width, got {len(self.classes)}, {self.tile}, {self.width}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes in the order of the numbers that the probe gives."""
        return tuple(name for column in self.columns for name in column.classes)

    @property
    def rows(self) -> int:
        """Rows of tiles of a frame."""
        return sum(column.rows for column in self.columns)


class TileProbe(nn.Module):
    """Reads what a tile shows."""

    def __init__(self, config: TileProbeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.readout = nn.Sequential(
            nn.Linear(2 * width * (config.tile // 4) ** 2, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, len(config.classes)),
        )

    def forward(self, tiles: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch class"]:
        """Return logits of tiles in [-1, 1]."""
        logits: Tensor = self.readout(self.features(tiles).flatten(1))
        return logits

    @torch.no_grad()
    def read(
        self, frames: UInt8[np.ndarray, "*leading height width 3"]
    ) -> Int[np.ndarray, "*leading row column"]:
        """Return the class of every tile; sides of a frame are whole numbers of tiles.

        Args:
            frames: uint8 in [0, 255].
        """
        side = self.config.tile
        height, width = frames.shape[-3:-1]
        rows, columns = height // side, width // side
        flat = frames.reshape(-1, height, width, 3)
        classes = []
        for first in range(0, len(flat), _BATCH):
            part = torch.from_numpy(np.ascontiguousarray(flat[first : first + _BATCH]))
            tiles = rearrange(
                to_float(part), "b rgb (row h) (column w) -> (b row column) rgb h w", h=side, w=side
            )
            classes.append(self(tiles).argmax(dim=-1))
        grid = torch.cat(classes).numpy()
        return grid.reshape(*frames.shape[:-3], rows, columns)


Probe = MotionProbe | TileProbe

_KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "motion": (MotionProbeConfig, MotionProbe),
    "tiles": (TileProbeConfig, TileProbe),
}


def _kind(probe: Probe) -> str:
    return "motion" if isinstance(probe, MotionProbe) else "tiles"


def save_probes(
    path: Path, probes: Mapping[str, Probe], held_out: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the probes of a world to one file.

    Args:
        path: By convention `probe.safetensors` in the world's folder.
        probes: By name, for example road and dashboard.
        held_out: For each probe its figures on held-out real frames.
    """
    tensors = {
        f"{name}.{key}": tensor
        for name, probe in probes.items()
        for key, tensor in probe.state_dict().items()
    }
    metadata = {
        "kind": "probes",
        "probes": {
            name: {
                "kind": _kind(probe),
                "config": dataclasses.asdict(probe.config),
                "held_out": held_out[name],
            }
            for name, probe in probes.items()
        },
    }
    save_tensors(path, tensors, metadata)


def load_probes(path: Path) -> tuple[dict[str, Probe], dict[str, dict[str, Any]]]:
    """Return the probes of a world and their figures on held-out real frames, by name.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds something else.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "probes":
        raise CheckpointError(f"{path} holds {metadata.get('kind')!r}, not probes")
    probes: dict[str, Probe] = {}
    figures = {}
    for name, entry in metadata["probes"].items():
        if entry["kind"] not in _KINDS:
            raise CheckpointError(
                f"{path}: probe {name!r} is of kind {entry['kind']!r}; known: {', '.join(_KINDS)}"
            )
        config_class, probe_class = _KINDS[entry["kind"]]
        probe = probe_class(build(config_class, entry["config"]))
        prefix = f"{name}."
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        load_state(probe, own, path)
        probes[name] = probe.eval()
        figures[name] = entry["held_out"]
    return probes, figures
