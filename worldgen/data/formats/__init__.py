"""Recordings of others: each layout that can be read is one file here, and stands in `LAYOUTS`."""

from pathlib import Path

from worldgen.data.formats.base import (
    Content,
    Layout,
    Reading,
    ReadOptions,
    Recording,
)
from worldgen.data.formats.comma2k19 import Comma2k19
from worldgen.data.formats.commavq import CommaVq
from worldgen.data.formats.drivingworld import DrivingWorldClips
from worldgen.data.formats.lerobot import LeRobotDataset
from worldgen.data.formats.mineworld_validation import MineWorldValidation
from worldgen.data.formats.native import NativeEpisodes
from worldgen.data.formats.nuplan import NuPlan
from worldgen.data.formats.nuscenes import NuScenes
from worldgen.data.formats.report import Problem, Report
from worldgen.data.formats.vpt import VptRecordings
from worldgen.errors import DataError

__all__ = [
    "LAYOUTS",
    "Comma2k19",
    "CommaVq",
    "Content",
    "DrivingWorldClips",
    "Layout",
    "LeRobotDataset",
    "MineWorldValidation",
    "NativeEpisodes",
    "NuPlan",
    "NuScenes",
    "Problem",
    "ReadOptions",
    "Reading",
    "Recording",
    "Report",
    "VptRecordings",
    "open_layout",
]

LAYOUTS: tuple[type[Layout], ...] = (
    NativeEpisodes,
    LeRobotDataset,
    VptRecordings,
    MineWorldValidation,
    NuScenes,
    NuPlan,
    DrivingWorldClips,
    Comma2k19,
    CommaVq,
)
"""In the order in which they are tried."""


def open_layout(path: Path) -> Layout:
    """Return the reader for the recordings at a path.

    Raises:
        DataError: If the path is missing, or no layout fits; the message lists them all.
    """
    if not path.exists():
        raise DataError(f"nothing at {path}; give a folder of recordings")
    for layout in LAYOUTS:
        if layout.detect(path):
            return layout(path)
    known = "".join(f"\n  {layout.name}: {layout.looks_like}" for layout in LAYOUTS)
    raise DataError(f"{path} holds no recordings of a known layout; known are{known}")
