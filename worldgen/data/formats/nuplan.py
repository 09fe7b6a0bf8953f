"""nuPlan: pictures of a camera at 10 Hz, poses in DrivingWorld's JSON files or nuPlan's databases."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgen.data.formats.base import Reading, Recording
from worldgen.data.formats.drives import MICROSECONDS, Drive, inside, numbers
from worldgen.data.formats.driving import PictureDrives
from worldgen.data.formats.tables import read_object_file
from worldgen.errors import DataError

__all__ = ["NuPlan"]

_FRONT = "CAM_F0"
_POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
_DATABASE_DEPTH = 4
_SENSORS = "sensor_blobs"
_SENSORS_DEPTH = 3
_BEGINNING = 1 << 16

_QUERY = f"""
    SELECT image.filename_jpg, image.timestamp, {", ".join(f"ego_pose.{name}" for name in _POSE)}
    FROM image
    JOIN camera ON image.camera_token = camera.token
    LEFT JOIN ego_pose ON image.ego_pose_token = ego_pose.token
    WHERE camera.channel = ?
    ORDER BY image.timestamp
"""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """An entry of an index."""

    index: Path
    number: int
    content: object


class NuPlan(PictureDrives):
    """nuPlan's pictures, `sensor_blobs/LOG/CAM_F0/*.jpg`, with one of two kinds of poses.

    **Index** (DrivingWorld, arXiv:2412.19505): a JSON list of scenes, each with the names of its
    pictures in order under `CAM_F0`, the log's folder in `data_root` and the file with its poses in
    `pose`, `ego_meta/LOG.json`. That file maps `CAM_F0/NAME.jpg`, in a map under the camera or at
    the top, to x, y, z, qw, qx, qy, qz and the timestamp in microseconds: the pose of the matched
    lidar sweep. Each scene is a recording.

    **Databases** (nuPlan v1.1, `splits/*/LOG.db`, SQLite): a recording is a log. Assumed are the
    tables image (filename_jpg, timestamp, camera_token, ego_pose_token), camera (token, channel)
    and ego_pose (token, x, y, z, qx, qy, qz, qw), time stamps in microseconds, and names of
    pictures relative to `sensor_blobs`, as the development kit declares them. Where a folder has
    an index, its databases are not looked at.

    Data roots and names that lead out of the given folder are not followed; instead the log's
    folder is looked for in `sensor_blobs`, and its poses in `ego_meta`.
    """

    name = "nuplan"
    looks_like = (
        "nuPlan: an index of scenes with CAM_F0, data_root and pose (JSON), or databases (*.db), "
        "and sensor_blobs/LOG/CAM_F0/*.jpg"
    )
    usual_rate = 10.0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._poses: tuple[Path, Mapping[str, Any]] | None = None

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there is an index, or a database with pictures and poses."""
        if next(_indices(path), None) is not None:
            return True
        database = next(_databases(path), None)
        return database is not None and _is_nuplan(database)

    def recordings(self) -> list[Recording]:
        """Return the scenes of all indices, or else the databases."""
        scenes = [
            Recording(
                name=f"{index.stem}/{number:06d}",
                key=_Scene(index=index, number=number, content=content),
            )
            for index in _indices(self.path)
            for number, content in enumerate(_read_index(index))
        ]
        return scenes or [
            Recording(name=self._name(database.with_suffix("")), key=database)
            for database in _databases(self.path)
        ]

    def drive(self, recording: Recording, camera: str | None, reading: Reading) -> Drive:
        """Return the pictures and poses of a scene or a log."""
        if isinstance(recording.key, _Scene):
            return self._drive_of_scene(recording.key, camera or _FRONT)
        return self._drive_of_database(recording.key, camera or _FRONT)

    def _drive_of_scene(self, scene: _Scene, camera: str) -> Drive:
        source = f"{self._name(scene.index)}:entry {scene.number + 1}"
        entry = scene.content if isinstance(scene.content, dict) else {}
        names, folder = entry.get(camera), entry.get("data_root")
        if not isinstance(names, list) or not names or not isinstance(folder, str):
            raise DataError(f"{source} lists no pictures of {camera}, or no data_root; left out")
        pictures = self._folder_of_log(folder) / camera
        path = self._pose_file(entry.get("pose"), Path(folder).name)
        table = self._read_poses(path)
        rows = table.get(camera)
        rows = rows if isinstance(rows, dict) else table
        found = [rows.get(f"{camera}/{name}") for name in names]
        poses = [row if isinstance(row, dict) else {} for row in found]
        return Drive(
            source=self._name(path),
            times=np.array(numbers([row.get("timestamp") for row in poses])) / 1e6,
            poses=np.array([numbers([row.get(name) for name in _POSE]) for row in poses]),
            units=MICROSECONDS,
            pictures=[inside(self.root, str(pictures / str(name))) for name in names],
        )

    def _drive_of_database(self, database: Path, camera: str) -> Drive:
        source = self._name(database)
        try:
            with closing(_open(database)) as connection:
                rows = connection.execute(_QUERY, (camera,)).fetchall()
        except sqlite3.Error as error:
            raise DataError(
                f"{source}: damaged, or no nuPlan database ({error}); left out"
            ) from error
        if not rows:
            raise DataError(f"{source}: lists no pictures of {camera}; left out")
        sensors = next(
            (root for root in self._sensor_folders() if (root / database.stem).is_dir()),
            self.root / _SENSORS,
        )
        return Drive(
            source=source,
            times=np.array(numbers([row[1] for row in rows])) / 1e6,
            poses=np.array([numbers(row[2:]) for row in rows]),
            units=MICROSECONDS,
            pictures=[inside(self.root, str(sensors / str(row[0]))) for row in rows],
        )

    def _folder_of_log(self, name: str) -> Path:
        places = [self.root / name, *(root / Path(name).name for root in self._sensor_folders())]
        for place in places:
            if place.resolve().is_relative_to(self.root.resolve()) and place.is_dir():
                return place
        return self.root / _SENSORS / Path(name).name

    def _pose_file(self, name: object, log: str) -> Path:
        places = [self.root / f"ego_meta/{log}.json", self.root / f"{log}.json"]
        if isinstance(name, str):
            places.insert(0, self.root / name)
        for place in places:
            if place.resolve().is_relative_to(self.root.resolve()) and place.is_file():
                return place
        return places[0]

    def _sensor_folders(self) -> Iterator[Path]:
        yield self.root
        for depth in range(_SENSORS_DEPTH):
            yield from sorted(self.root.glob("*/" * depth + _SENSORS))

    def _read_poses(self, path: Path) -> Mapping[str, Any]:
        """Return the poses of a log, which its scenes share."""
        if self._poses is None or self._poses[0] != path:
            if not path.is_file():
                raise DataError(f"{self._name(path)}: missing, so its pictures have no poses")
            self._poses = (path, read_object_file(path))
        return self._poses[1]


def _indices(path: Path) -> Iterator[Path]:
    """Yield the files that begin like an index of scenes, in the folder or one below."""
    files = [*sorted(path.glob("*.json")), *sorted(path.glob("*/*.json"))]
    for file in files if path.is_dir() else [path]:
        if file.suffix == ".json" and file.is_file():
            with file.open("rb") as opened:
                # There is a file of poses for each log, and those are objects.
                is_list = opened.read(1) == b"["
                if is_list and b'"CAM_F0"' in opened.read(_BEGINNING):
                    yield file


def _read_index(path: Path) -> list[object]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(content, list):
        raise DataError(f"{path} is no list of scenes; copy it again")
    return content


def _databases(path: Path) -> Iterator[Path]:
    if path.is_file():
        if path.suffix == ".db":
            yield path
        return
    for depth in range(_DATABASE_DEPTH):
        yield from sorted(path.glob("*/" * depth + "*.db"))


def _is_nuplan(database: Path) -> bool:
    try:
        with closing(_open(database)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {"image", "camera", "ego_pose"} <= {name for (name,) in names}
    except sqlite3.Error:
        return False


def _open(database: Path) -> sqlite3.Connection:
    # Read only, and without the side files that SQLite would lay beside it.
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
