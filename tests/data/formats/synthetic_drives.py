"""Drives as others record them: a car on a circle, each frame with its number as its colour."""

import io
import json
import sqlite3
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.data.formats.synthetic import picture

SPEED, TURN = 6.0, 10.0
"""Metres and degrees a second, to the left."""


def circle(count: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return times in seconds and poses (x, y, heading) on a circle, in closed form."""
    times = np.arange(count) / rate
    heading = np.radians(TURN) * times
    radius = SPEED / np.radians(TURN)
    return times, np.stack(
        [100 + radius * np.sin(heading), -40 + radius * (1 - np.cos(heading)), heading], axis=-1
    )


def motion_of_step(seconds: float) -> list[float]:
    """Return yaw in degrees, x and y in metres of a step on the circle, in closed form."""
    angle, radius = np.radians(TURN) * seconds, SPEED / np.radians(TURN)
    return [TURN * seconds, radius * np.sin(angle), radius * (1 - np.cos(angle))]


def quaternions(headings: np.ndarray) -> np.ndarray:
    """Return w, x, y, z of turns around the vertical axis."""
    zero = np.zeros_like(headings)
    return np.stack([np.cos(headings / 2), zero, zero, np.sin(headings / 2)], axis=-1)


def write_pictures(paths: Sequence[Path]) -> None:
    """Write picture n at the n-th path; lossless whatever the ending."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path, "PNG")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def nuplan_rows(count: int, rate: float = 10.0) -> tuple[list[str], list[dict[str, float]]]:
    """Return names of pictures and rows of poses as an ego file has them."""
    times, poses = circle(count, rate)
    rows = [
        {
            **{"x": x, "y": y, "z": 3.0, "qw": w, "qx": 0.0, "qy": 0.0, "qz": z},
            **{"vx": SPEED, "vy": 0.0, "ax": 0.0, "ay": 0.0},
            "timestamp": 1_623_257_896_400_000 + round(1e6 * moment),
        }
        for moment, (x, y, _), (w, _, _, z) in zip(
            times, poses, quaternions(poses[:, 2]), strict=True
        )
    ]
    return [f"{number:016x}.jpg" for number in range(count)], rows


def write_nuplan(
    folder: Path, logs: Mapping[str, int], *, rows: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Write an index of one scene a log, its pictures and its poses (`rows` for all if given)."""
    index = []
    for log, count in logs.items():
        names, own = nuplan_rows(count)
        poses = own if rows is None else rows
        write_pictures([folder / "sensor_blobs" / log / "CAM_F0" / name for name in names])
        write_json(
            folder / f"ego_meta/{log}.json",
            {
                "CAM_F0": {
                    f"CAM_F0/{name}": row
                    for name, row in zip(names, poses, strict=False)
                    if row is not None
                }
            },
        )
        index.append(
            {
                "CAM_F0": names,
                "scene": f"{log}-scene",
                "data_root": f"/data/nuplan/sensor_blobs/{log}",
                "pose": f"ego_meta/{log}.json",
            }
        )
    write_json(folder / "nuplan_val.json", index)


def write_nuplan_database(folder: Path, log: str, count: int) -> Path:
    """Write a database of nuPlan with the tables that matter, and its pictures."""
    names, rows = nuplan_rows(count)
    write_pictures([folder / "sensor_blobs" / log / "CAM_F0" / name for name in names])
    path = folder / f"splits/mini/{log}.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE log (token BLOB, logfile TEXT)")
        database.execute("CREATE TABLE camera (token BLOB, log_token BLOB, channel TEXT)")
        database.execute(
            "CREATE TABLE ego_pose (token BLOB, timestamp INTEGER, x REAL, y REAL, z REAL, "
            "qw REAL, qx REAL, qy REAL, qz REAL, vx REAL, vy REAL)"
        )
        database.execute(
            "CREATE TABLE image (token BLOB, ego_pose_token BLOB, camera_token BLOB, "
            "filename_jpg TEXT, timestamp INTEGER)"
        )
        database.executemany(
            "INSERT INTO camera VALUES (?, ?, ?)",
            [(b"front", b"log", "CAM_F0"), (b"left", b"log", "CAM_L0")],
        )
        for number, (name, row) in enumerate(zip(names, rows, strict=True)):
            token, moment = number.to_bytes(8), row["timestamp"]
            keys = ("x", "y", "z", "qw", "qx", "qy", "qz")
            database.execute(
                "INSERT INTO ego_pose VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 6.0, 0.0)",
                (token, moment, *(row[key] for key in keys)),
            )
            for camera, channel in ((b"front", "CAM_F0"), (b"left", "CAM_L0")):
                database.execute(
                    "INSERT INTO image VALUES (?, ?, ?, ?, ?)",
                    (token + camera, token, camera, f"{log}/{channel}/{name}", moment),
                )
    return path


def write_drivingworld(clip: Path, pictures: int, rows: int | None = None) -> None:
    """Write a clip: motion to each frame in arrays with an axis too many, the first row zero."""
    write_pictures([clip / f"{number:06d}.png" for number in range(pictures)])
    motion = np.tile(motion_of_step(0.2), (pictures if rows is None else rows, 1))
    motion[0] = 0.0
    np.save(clip / "pose.npy", motion[None, :, 1:])
    np.save(clip / "yaw.npy", motion[None, :, :1])


def write_nuscenes(folder: Path, scenes: Mapping[str, int], rate: float = 12.0) -> None:
    """Write the tables and front pictures of scenes; rows of tables lie in no order."""
    sensors = [("front", "CAM_FRONT"), ("lidar", "LIDAR_TOP")]
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [{"token": token, "channel": channel} for token, channel in sensors],
        "calibrated_sensor": [
            {"token": f"mounted-{token}", "sensor_token": token} for token, _ in sensors
        ],
        **{name: [] for name in ("scene", "sample", "sample_data", "ego_pose")},
    }
    for scene, count in scenes.items():
        times, poses = circle(count, rate)
        tables["scene"].append({"token": f"token-{scene}", "name": scene})
        for number in range(count):
            place = "samples" if number % 6 == 0 else "sweeps"
            sample = f"{scene}-sample-{-(-number // 6)}"
            if number % 6 == 0:
                tables["sample"].append({"token": sample, "scene_token": f"token-{scene}"})
            for token, channel in sensors:
                tables["sample_data"].append(
                    {
                        "token": f"{scene}-{token}-{number}",
                        "prev": f"{scene}-{token}-{number - 1}" if number else "",
                        "next": f"{scene}-{token}-{number + 1}" if number + 1 < count else "",
                        "sample_token": sample,
                        "ego_pose_token": f"{scene}-pose-{number}",
                        "calibrated_sensor_token": f"mounted-{token}",
                        "filename": f"{place}/{channel}/{scene}-{number}.jpg",
                        "timestamp": 1_531_883_530_449_377 + round(1e6 * times[number]),
                        "is_key_frame": number % 6 == 0,
                    }
                )
            tables["ego_pose"].append(
                {
                    "token": f"{scene}-pose-{number}",
                    "translation": [*poses[number, :2].tolist(), 0.0],
                    "rotation": quaternions(poses[number : number + 1, 2])[0].tolist(),
                    "timestamp": 1_531_883_530_449_377 + round(1e6 * times[number]),
                }
            )
        # The last frames of a scene belong to the last sample.
        last = f"{scene}-sample-{-(-(count - 1) // 6)}"
        if all(row["token"] != last for row in tables["sample"]):
            tables["sample"].append({"token": last, "scene_token": f"token-{scene}"})
        write_pictures(
            [
                folder
                / ("samples" if number % 6 == 0 else "sweeps")
                / f"CAM_FRONT/{scene}-{number}.jpg"
                for number in range(count)
            ]
        )
    random = np.random.default_rng(0)
    for name, rows in tables.items():
        order = random.permutation(len(rows)) if name != "scene" else range(len(rows))
        write_json(folder / f"v1.0-mini/{name}.json", [rows[place] for place in order])


def write_comma2k19(
    segment: Path, count: int, *, frames: int | None = None, suffix: str = ""
) -> None:
    """Write a segment: the circle on the ground at 37 degrees north, seen from the earth's centre."""
    times, poses = circle(count, 20.0)
    latitude, longitude = np.radians(37.4), np.radians(-122.1)
    up = np.array(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ]
    )
    east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
    north = np.cross(up, east)
    ground = np.stack([east, north, up], axis=1)
    places = 6_371_000.0 * up + poses[:, :2] @ ground[:, :2].T
    turns = []
    for heading in poses[:, 2]:
        cosine, sine = np.cos(heading), np.sin(heading)
        # Columns are the axes forward, right and down.
        device = ground @ np.array([[cosine, sine, 0], [sine, -cosine, 0], [0, 0, -1.0]])
        turns.append(_quaternion(device))
    folder = segment / "global_pose"
    folder.mkdir(parents=True)
    for name, array in (
        ("frame_times", 1234.5 + times),
        ("frame_positions", places),
        ("frame_orientations", np.array(turns)),
        ("frame_velocities", np.zeros_like(places)),
    ):
        with (folder / f"{name}{suffix}").open("wb") as file:
            np.save(file, array)
    write_hevc(segment / "video.hevc", count if frames is None else frames)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return w, x, y, z of a rotation matrix: the eigenvector of Bar-Itzhack's matrix."""
    r = rotation
    matrix = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r.trace()],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1]
    return np.array([w, x, y, z])


def write_hevc(path: Path, count: int) -> None:
    """Write frames 0 to count - 1 as a raw HEVC stream, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="hevc") as container:
        stream = container.add_stream("libx265", rate=Fraction(20))
        first = picture(0)
        stream.height, stream.width, stream.pix_fmt = first.shape[0], first.shape[1], "gbrp"
        stream.options = {"x265-params": "lossless=1:log-level=none", "preset": "ultrafast"}
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="gbrp")))
        container.mux(stream.encode(None))


def comma_ids(count: int, seed: int = 0) -> np.ndarray:
    """Return ids [frame, 8, 16], int16, that stand still in most cells."""
    random = np.random.default_rng(seed)
    ids = np.broadcast_to(random.integers(0, 1024, (8, 16)), (count, 8, 16)).copy()
    ids[:, 3:5, 6:10] = random.integers(0, 1024, (count, 2, 4))
    return ids.astype(np.int16)


def comma_velocities(count: int) -> np.ndarray:
    """Return rows of `pose.npy` for the circle: a turn to the left is a negative yaw rate."""
    rows = np.zeros((count, 6), np.float32)
    rows[:, 0], rows[:, 5] = SPEED, -np.radians(TURN)
    return rows


def npy(array: np.ndarray) -> bytes:
    """Return an array as the content of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write a WebDataset shard: key -> ending -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for key, members in samples.items():
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def minute(count: int, seed: int = 0) -> dict[str, bytes]:
    """Return the files of a sample of commaVQ."""
    return {
        "json": json.dumps({"file_name": f"minute-{seed}"}).encode(),
        "pose.npy": npy(comma_velocities(count)),
        "token.npy": npy(comma_ids(count, seed)),
    }
