"""Recordings as others make them, a few frames long; each frame carries its number as its colour."""

import io
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from worldgen.data.video import write_video

HEIGHT, WIDTH, RATE = 36, 64, 20.0


def picture(number: int) -> np.ndarray:
    """Return the frame of a number, of one colour."""
    frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    frame[:] = (number % 256, 200 - number // 256, 77)
    return frame


def numbers(frames: np.ndarray) -> list[int]:
    """Return the numbers of frames, read in the corner where no cursor is drawn."""
    corner = frames[:, -1, -1].astype(int)
    return [int(red + 256 * (200 - green)) for red, green, _ in corner]


def write_frames(path: Path, count: int, *, rate: float = RATE) -> None:
    """Write a video of frames 0 to count - 1, lossless."""
    write_video(path, (picture(number) for number in range(count)), rate, lossless=True)


def cut_in_the_middle(path: Path, share: float = 0.5) -> None:
    """Move the table of contents to the front of an mp4 file and throw the end of it away."""
    whole = path.with_name("whole.mp4")
    with (
        av.open(str(path)) as source,
        av.open(str(whole), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copied
                target.mux(packet)
    content = whole.read_bytes()
    pictures = content.index(b"mdat")
    path.write_bytes(content[: pictures + int((len(content) - pictures) * share)])
    whole.unlink()


def line(
    *,
    keys: Sequence[str] = (),
    buttons: Sequence[int] = (),
    new_buttons: Sequence[int] = (),
    dx: float = 0.0,
    dy: float = 0.0,
    hotbar: int = 0,
    gui: bool = False,
    cursor: tuple[float, float] = (640.0, 360.0),
    **more: Any,
) -> dict[str, Any]:
    """Return one line of VPT's recorder."""
    return {
        "mouse": {
            "x": cursor[0],
            "y": cursor[1],
            "dx": dx,
            "dy": dy,
            "scaledX": 0.0,
            "scaledY": 0.0,
            "dwheel": 0.0,
            "buttons": list(buttons),
            "newButtons": list(new_buttons),
        },
        "keyboard": {
            "keys": [f"key.keyboard.{key}" for key in keys],
            "newKeys": [],
            "chars": "",
        },
        "isGuiOpen": gui,
        "isGuiInventory": gui,
        "hotbar": hotbar,
        "yaw": 90.0,
        "pitch": -3.5,
        "xpos": 10.5,
        "ypos": 64.0,
        "zpos": -7.25,
        "tick": 1,
        "milli": 50,
        "inventory": [{"type": "dirt", "quantity": 1}],
        "serverTick": 1,
        "serverTickDurationMs": 5.0,
        "stats": {},
        **more,
    }


def write_lines(path: Path, lines: Iterable[Mapping[str, Any] | str]) -> None:
    """Write a jsonl file; text goes in as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(
        (entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in lines
    )
    path.write_text(text)


def write_vpt(
    stem: Path, lines: Sequence[Mapping[str, Any] | str], frames: int | None = None
) -> None:
    """Write a recording of VPT: as many frames as lines unless told otherwise."""
    write_lines(stem.with_name(stem.name + ".jsonl"), lines)
    write_frames(stem.with_name(stem.name + ".mp4"), len(lines) if frames is None else frames)


def write_lerobot(
    folder: Path,
    episodes: Sequence[np.ndarray],
    *,
    version: str = "v2.1",
    names: Any = None,
    cameras: Sequence[str] = ("observation.images.front",),
    images: bool = False,
    rate: float = RATE,
    statistics: bool = True,
    **info: Any,
) -> None:
    """Write a LeRobot data set of action vectors [row, entry]; frames count over all episodes.

    In version 3.0 all episodes lie in one table and one video for each camera.
    """
    size = episodes[0].shape[1]
    together = version == "v3.0"
    starts = np.cumsum([0, *map(len, episodes)])
    dtype = "image" if images else "video"
    features: dict[str, Any] = {
        camera: {
            "dtype": dtype,
            "shape": [HEIGHT, WIDTH, 3],
            "names": ["height", "width", "channel"],
        }
        for camera in cameras
    }
    features["action"] = {"dtype": "float32", "shape": [size], "names": names}
    place = (
        "chunk-{chunk_index:03d}/file-{file_index:03d}"
        if together
        else "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    )
    video = f"videos/{{video_key}}/{place}.mp4"
    if not together:
        video = video.replace(
            "{video_key}/chunk-{episode_chunk:03d}", "chunk-{episode_chunk:03d}/{video_key}"
        )
    _write_json(
        folder / "meta/info.json",
        {
            "codebase_version": version,
            "robot_type": None,
            "fps": rate,
            "chunks_size": 1000,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": f"data/{place}.parquet",
            "video_path": video,
            "features": features,
            **info,
        },
    )
    rows = []
    for index, (actions, start) in enumerate(zip(episodes, starts, strict=False)):
        for row, action in enumerate(actions):
            entry = {
                "action": action.astype(np.float32).tolist(),
                "timestamp": np.float32(row / rate),
                "episode_index": index,
                "frame_index": row,
            }
            if images:
                entry |= {
                    camera: {"bytes": _png(int(start) + row), "path": None} for camera in cameras
                }
            rows.append(entry)
    if together:
        _write_table(folder / "data/chunk-000/file-000.parquet", rows)
        _write_v3_episodes(folder, episodes, starts, () if images else cameras, rate)
    else:
        write_lines(
            folder / "meta/episodes.jsonl",
            [
                {"episode_index": index, "tasks": ["walk"], "length": len(actions)}
                for index, actions in enumerate(episodes)
            ],
        )
        for index in range(len(episodes)):
            _write_table(
                folder / f"data/chunk-000/episode_{index:06d}.parquet",
                [row for row in rows if row["episode_index"] == index],
            )
    if not images:
        _write_videos(folder, starts, cameras, rate, together=together)
    if statistics:
        _write_statistics(folder, episodes, version)


def _write_videos(
    folder: Path, starts: np.ndarray, cameras: Sequence[str], rate: float, *, together: bool
) -> None:
    for camera in cameras:
        spans = [(0, int(starts[-1]))] if together else list(itertools.pairwise(starts))
        for index, (first, last) in enumerate(spans):
            place = (
                f"videos/{camera}/chunk-000/file-000.mp4"
                if together
                else f"videos/chunk-000/{camera}/episode_{index:06d}.mp4"
            )
            frames = (picture(number) for number in range(first, last))
            write_video(folder / place, frames, rate, lossless=True)


def _write_v3_episodes(
    folder: Path,
    episodes: Sequence[np.ndarray],
    starts: np.ndarray,
    cameras: Sequence[str],
    rate: float,
) -> None:
    rows = []
    for index, actions in enumerate(episodes):
        row: dict[str, Any] = {
            "episode_index": index,
            "length": len(actions),
            "tasks": ["walk"],
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": int(starts[index]),
            "dataset_to_index": int(starts[index + 1]),
        }
        for camera in cameras:
            row |= {
                f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": 0,
                f"videos/{camera}/from_timestamp": float(starts[index] / rate),
                f"videos/{camera}/to_timestamp": float(starts[index + 1] / rate),
            }
        rows.append(row)
    _write_table(folder / "meta/episodes/chunk-000/file-000.parquet", rows)


def _write_statistics(folder: Path, episodes: Sequence[np.ndarray], version: str) -> None:
    def limits(actions: np.ndarray) -> dict[str, Any]:
        return {
            "action": {"min": actions.min(axis=0).tolist(), "max": actions.max(axis=0).tolist()}
        }

    if version == "v3.0":
        _write_json(folder / "meta/stats.json", limits(np.concatenate(episodes)))
    elif version == "v2.1":
        write_lines(
            folder / "meta/episodes_stats.jsonl",
            [
                {"episode_index": index, "stats": limits(actions)}
                for index, actions in enumerate(episodes)
            ],
        )


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


def copy_folder(source: Path, target: Path) -> Path:
    """Return a copy of a folder."""
    return Path(shutil.copytree(source, target))
