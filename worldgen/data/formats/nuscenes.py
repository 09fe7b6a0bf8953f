"""nuScenes: the tables of its development kit, front camera with key frames and sweeps at 12 Hz."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldgen.data.formats.base import Reading, Recording
from worldgen.data.formats.drives import MICROSECONDS, Drive, inside, numbers
from worldgen.data.formats.driving import PictureDrives
from worldgen.errors import DataError

__all__ = ["NuScenes"]

_FRONT = "CAM_FRONT"
_TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")

Row = Mapping[str, Any]


@dataclass
class _Camera:
    """The pictures of one camera: scene's token -> its rows of sample_data, and their poses."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    poses: dict[str, Row] = field(default_factory=dict)


class NuScenes(PictureDrives):
    """A folder with `v1.0-*/sample_data.json` and the pictures beside, or one of its table folders.

    Each scene is a recording. Its pictures are chained by the tokens `prev` and `next`; their
    poses are of the vehicle, with the quaternion w, x, y, z, and time stamps are microseconds. Maps
    and annotations are not needed. The tables of the whole data set take some gigabytes of memory.

    Source: schema of nuScenes v1.0 in the documentation of its development kit.
    """

    name = "nuscenes"
    looks_like = "nuScenes: v1.0-*/sample_data.json and the other tables, samples and sweeps beside"
    usual_rate = 12.0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._cameras: dict[tuple[Path, str], _Camera] = {}

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there are tables."""
        return bool(_table_folders(path))

    def recordings(self) -> list[Recording]:
        """Return the scenes, by version and in the order of their table."""
        folders = _table_folders(self.path)
        return [
            Recording(
                name=(f"{folder.name}/" if len(folders) > 1 else "") + str(scene.get("name")),
                key=(folder, scene.get("token")),
            )
            for folder in folders
            for scene in _rows(folder, "scene")
        ]

    def drive(self, recording: Recording, camera: str | None, reading: Reading) -> Drive:
        """Return the pictures of a scene, from token to token."""
        folder, scene = recording.key
        source = f"{folder.name}/sample_data.json"
        table = self._camera(folder, camera or _FRONT)
        rows = table.rows.get(scene, [])
        if not rows:
            raise DataError(f"{source}: no pictures of {recording.name}; left out")
        chain = list(_chain(rows))
        if len(chain) < len(rows):
            reading.note(
                source,
                f"{len(rows) - len(chain)} pictures of {recording.name} hang on no chain of tokens; "
                "left out",
            )
        poses = [table.poses.get(row.get("ego_pose_token", ""), {}) for row in chain]
        return Drive(
            source=f"{source}#{recording.name}",
            times=np.array(numbers([row.get("timestamp") for row in chain])) / 1e6,
            poses=np.array([_pose(row) for row in poses]),
            units=MICROSECONDS,
            pictures=[inside(folder.parent, str(row.get("filename"))) for row in chain],
        )

    def _camera(self, folder: Path, channel: str) -> _Camera:
        """Return the rows of one camera, the only ones that are kept of the large tables."""
        if (folder, channel) in self._cameras:
            return self._cameras[folder, channel]
        sensors = {row["token"]: row.get("channel") for row in _rows(folder, "sensor")}
        if channel not in sensors.values():
            raise DataError(
                f"{folder}/sensor.json: no camera {channel!r}; there are "
                f"{', '.join(sorted(str(name) for name in sensors.values()))}"
            )
        mounted = {
            row["token"]
            for row in _rows(folder, "calibrated_sensor")
            if sensors.get(row.get("sensor_token")) == channel
        }
        scenes = {row["token"]: row.get("scene_token") for row in _rows(folder, "sample")}
        camera = _Camera()
        wanted = set()
        for row in _rows(folder, "sample_data"):
            if row.get("calibrated_sensor_token") in mounted:
                scene = scenes.get(row.get("sample_token"))
                camera.rows.setdefault(str(scene), []).append(row)
                wanted.add(row.get("ego_pose_token"))
        camera.poses = {
            row["token"]: row for row in _rows(folder, "ego_pose") if row["token"] in wanted
        }
        self._cameras[folder, channel] = camera
        return camera


def _table_folders(path: Path) -> list[Path]:
    folders = [path, *sorted(path.glob("v1.0-*"))] if path.is_dir() else []
    return [
        folder
        for folder in folders
        if (folder / "sample_data.json").is_file() and (folder / "ego_pose.json").is_file()
    ]


def _rows(folder: Path, table: str) -> list[Row]:
    path = folder / f"{table}.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; nuScenes needs the tables {', '.join(_TABLES)}")
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("token"), str) for row in rows
    ):
        raise DataError(f"{path} is no list of rows with tokens; copy it again")
    return rows


def _chain(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows from token to token; where the chain is broken, its parts by their first times."""
    by_token = {row["token"]: row for row in rows}
    heads = [row for row in by_token.values() if row.get("prev") not in by_token]
    for head in sorted(heads, key=lambda row: numbers([row.get("timestamp")])[0]):
        row: Row | None = head
        while row is not None:
            yield row
            # Taken out, so that a circle of tokens ends.
            del by_token[row["token"]]
            row = by_token.get(str(row.get("next")))


def _pose(row: Row) -> list[float]:
    place, turn = row.get("translation"), row.get("rotation")
    if not (isinstance(place, list) and len(place) == 3):
        place = [None] * 3
    if not (isinstance(turn, list) and len(turn) == 4):
        turn = [None] * 4
    w, x, y, z = numbers(turn)
    return [*numbers(place), x, y, z, w]
