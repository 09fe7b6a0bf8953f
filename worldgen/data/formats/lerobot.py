"""LeRobot data sets, versions 2.0, 2.1 and 3.0: tables in parquet, pictures in videos or tables."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from worldgen.data.episodes import Column, Episode
from worldgen.data.formats.base import (
    CUT,
    Content,
    Layout,
    Progress,
    Reading,
    ReadOptions,
    Recording,
    Step,
    cut_into_episodes,
)
from worldgen.data.formats.frames import resize, timed_frames, video_facts
from worldgen.data.formats.report import RecordingReport, Report, describe_schema
from worldgen.data.formats.tables import (
    flat_names,
    json_lines,
    read_object_file,
    read_table,
    whole_number,
)
from worldgen.data.formats.vectors import MinecraftVector, RobotVector, VectorActions
from worldgen.errors import DataError
from worldgen.tokenizers.action.minecraft import minecraft_schema

__all__ = ["LeRobotDataset"]

_INFO = Path("meta/info.json")
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_FIELD = re.compile(r"\{(\w+)(?::0(\d+)d)?\}")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where one episode lies."""

    index: int
    length: int
    places: Mapping[str, int]
    """What the template of the table's path is filled with."""
    video_places: Mapping[str, Mapping[str, int]]
    """The same for each camera."""
    starts: Mapping[str, float]
    """Seconds at which the episode begins in the video of each camera."""


class LeRobotDataset(Layout):
    """A folder with `meta/info.json`; `action[t]` acts after frame t.

    Action vectors whose entries are named after Minecraft's keys and camera become Minecraft
    actions. Others become one axis for each entry, between the least and the largest value that
    the data set's own statistics know.
    """

    name = "lerobot"
    looks_like = "LeRobot v2.0, v2.1 or v3.0: meta/info.json, parquet tables and videos"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._info = read_object_file(path / _INFO)
        self._version = str(self._info.get("codebase_version"))
        if self._version not in _VERSIONS:
            raise DataError(
                f"{path / _INFO} is of version {self._version}; this reads {', '.join(_VERSIONS)}; "
                "convert it with LeRobot first"
            )
        self._sources: list[_Source] | None = None
        self._table: tuple[tuple[Path, tuple[str, ...]], Any] | None = None

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether `meta/info.json` describes features of such a data set."""
        try:
            info = json.loads((path / _INFO).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(info, dict) and {"codebase_version", "features"} <= info.keys()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the features that are pictures."""
        return tuple(
            name
            for name, feature in self._info["features"].items()
            if isinstance(feature, dict) and feature.get("dtype") in ("video", "image")
        )

    def recordings(self) -> list[Recording]:
        """Return the episodes, with their splits if the data set has more than one."""
        return [
            Recording(
                name=f"episode_{source.index:06d}", split=self._split(source.index), key=source
            )
            for source in self._episode_sources()
        ]

    def inspect(self, limit: int | None = None, progress: Progress | None = None) -> Report:
        """Return what is there; tables are read, pictures counted or looked up by time."""
        reading, recordings = Reading(), self.recordings()
        camera = self._camera(None)
        reports = []
        rates, sizes, codecs = Counter[str](), Counter[str](), Counter[str]()
        for recording in recordings[:limit]:
            source: _Source = recording.key
            frames = actions = None
            try:
                rows = self._rows(source, ("timestamp",))
                actions = len(rows["timestamp"])
                if actions != source.length:
                    reading.note(
                        recording.name, f"says {source.length} rows, its table has {actions}"
                    )
                frames = actions
                if self._is_video(camera):
                    video = self._video_path(source, camera)
                    facts = video_facts(video)
                    # The episode may be a part of the video, so its last frame has to be there.
                    start = round(source.starts[camera] * facts.frames_per_second)
                    frames = max(0, min(actions, facts.frames - start))
                    if frames < actions:
                        reading.note(
                            self._name(video),
                            f"has {frames} of the {actions} frames of {recording.name}",
                        )
                    rates[f"{facts.frames_per_second:g}"] += 1
                    sizes[f"{facts.height} x {facts.width}"] += 1
                    codecs[facts.codec] += 1
            except DataError as error:
                reading.note(recording.name, str(error))
            reports.append(
                RecordingReport(
                    name=recording.name, frames=frames, actions=actions, split=recording.split
                )
            )
            if progress is not None:
                progress(1)
        return Report(
            layout=f"{self.name} {self._version}",
            path=str(self.path),
            versions={self._version: len(recordings)},
            frames_per_second=dict(rates) or {f"{self._rate():g}": len(recordings)},
            frame_sizes=dict(sizes) or {self._declared_size(camera): len(recordings)},
            action_schema=describe_schema(self._actions(ReadOptions()).schema),
            recordings=tuple(reports),
            total_recordings=len(recordings),
            problems=tuple(reading.problems),
            notes=tuple(self._notes(camera, codecs)),
        )

    def content(self, options: ReadOptions) -> Content:
        """Return what the episodes have in common, as `meta/info.json` says."""
        camera = self._camera(options.camera)
        height, _, width = self._declared_size(camera).partition(" x ")
        return Content(
            schema=self._actions(options).schema,
            columns={
                "timestamp": Column(dtype="float64", unit="second", meaning="in the episode"),
                "cut": CUT,
            },
            frames_per_second=self._rate(),
            frame_size=options.size or (int(height), int(width)),
        )

    def read(self, recording: Recording, content: Content, reading: Reading) -> Iterator[Episode]:
        """Yield one episode of the data set, in parts where it is too long for one."""
        steps = self._steps(recording, content, reading)
        longest = reading.options.episode_frames
        yield from cut_into_episodes(steps, content, longest, driver="unknown")

    def _steps(
        self, recording: Recording, content: Content, reading: Reading
    ) -> Iterator[Step | None]:
        source: _Source = recording.key
        camera = self._camera(reading.options.camera)
        try:
            rows = self._rows(source, ("timestamp", "action"))
            times, vectors = _vectors(rows["timestamp"])[:, 0], _vectors(rows["action"])
            actions = self._actions(reading.options).convert(vectors)
            finite = np.isfinite(vectors).all(axis=1)
            frames = self._frames(source, camera, times, reading)
            count = 0
            for count, frame in enumerate(frames, start=1):
                if not finite[count - 1]:
                    reading.note(recording.name, f"action {count - 1} is not finite; left out")
                    yield None
                    continue
                yield Step(
                    frame=resize(frame, content.frame_size, reading),
                    action=actions[count - 1],
                    values={"timestamp": times[count - 1]},
                )
            if count < len(times):
                reading.note(
                    recording.name,
                    f"{len(times)} actions for {count} frames; the first {count} are used",
                )
        except DataError as error:
            reading.note(recording.name, f"{error}; the frames before are used")

    def _frames(
        self, source: _Source, camera: str, times: Float[np.ndarray, " row"], reading: Reading
    ) -> Iterator[Frame]:
        if not self._is_video(camera):
            for cell in self._rows(source, (camera,))[camera]:
                reading.frames += 1
                yield self._picture(cell)
            return
        start = source.starts[camera]
        timed = timed_frames(self._video_path(source, camera), reading, start)
        yield from _frames_at(timed, start + times, tolerance=0.5 / self._rate())

    def _picture(self, cell: object) -> Frame:
        """Return a picture that lies in a table, or beside it under the name in the table."""
        content = cell.get("bytes") if isinstance(cell, dict) else None
        name = cell.get("path") if isinstance(cell, dict) else None
        try:
            if isinstance(content, bytes):
                picture = Image.open(io.BytesIO(content))
            elif isinstance(name, str):
                picture = Image.open(self._inside(name))
            else:
                raise DataError("a picture in the table has neither bytes nor a path")
            with picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"a picture in the table cannot be read ({error})") from error

    def _episode_sources(self) -> list[_Source]:
        if self._sources is None:
            read = self._sources_v3 if self._version == "v3.0" else self._sources_v2
            self._sources = sorted(read(), key=lambda source: source.index)
        return self._sources

    def _sources_v2(self) -> Iterator[_Source]:
        chunk_size = whole_number(self._info.get("chunks_size", 1000), "chunks_size")
        for entry in json_lines(self.path / "meta/episodes.jsonl"):
            index = whole_number(entry.get("episode_index"), "episode_index of meta/episodes.jsonl")
            places = {"episode_chunk": index // max(1, chunk_size), "episode_index": index}
            yield _Source(
                index=index,
                length=whole_number(entry.get("length"), "length of meta/episodes.jsonl"),
                places=places,
                video_places=dict.fromkeys(self.cameras, places),
                starts=dict.fromkeys(self.cameras, 0.0),
            )

    def _sources_v3(self) -> Iterator[_Source]:
        cameras = [camera for camera in self.cameras if self._is_video(camera)]
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        for camera in cameras:
            columns += [
                f"videos/{camera}/{part}"
                for part in ("chunk_index", "file_index", "from_timestamp")
            ]
        files = sorted((self.path / "meta/episodes").rglob("*.parquet"))
        if not files:
            raise DataError(f"{self.path} has no tables in meta/episodes; copy it again")
        for file in files:
            for row in read_table(file, columns).to_pylist():
                yield _Source(
                    index=row["episode_index"],
                    length=row["length"],
                    places={
                        "chunk_index": row["data/chunk_index"],
                        "file_index": row["data/file_index"],
                    },
                    video_places={
                        camera: {
                            "chunk_index": row[f"videos/{camera}/chunk_index"],
                            "file_index": row[f"videos/{camera}/file_index"],
                        }
                        for camera in cameras
                    },
                    starts={
                        camera: float(row[f"videos/{camera}/from_timestamp"]) for camera in cameras
                    },
                )

    def _rows(self, source: _Source, columns: tuple[str, ...]) -> dict[str, list[Any]]:
        """Return columns of an episode's table; the table of several episodes is read once."""
        path = self._filled("data_path", source.places)
        wanted = (path, columns)
        if self._table is None or self._table[0] != wanted:
            self._table = (wanted, read_table(path, ["episode_index", *columns]))
        table = self._table[1]
        numbers = np.asarray(table.column("episode_index"))
        chosen = table.take(np.flatnonzero(numbers.reshape(-1) == source.index))
        return {name: chosen.column(name).to_pylist() for name in columns}

    def _video_path(self, source: _Source, camera: str) -> Path:
        return self._filled("video_path", {**source.video_places[camera], "video_key": camera})

    def _filled(self, template_name: str, values: Mapping[str, int | str]) -> Path:
        """Return a path made of a template of `meta/info.json`; never one outside the folder."""
        template = self._info.get(template_name)
        if not isinstance(template, str):
            raise DataError(f"{self.path / _INFO} has no {template_name}")

        def fill(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise DataError(f"{template_name} {template!r} asks for {match[1]!r}; unknown here")
            value = values[match[1]]
            return f"{value:0{int(match[2] or 0)}d}" if isinstance(value, int) else str(value)

        return self._inside(_FIELD.sub(fill, template))

    def _inside(self, name: str) -> Path:
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise DataError(f"{name!r} lies outside of {self.path}; refused")
        return path

    def _actions(self, options: ReadOptions) -> VectorActions:
        feature = self._info["features"].get("action")
        if not isinstance(feature, dict):
            raise DataError(
                f"{self.path / _INFO} has no feature 'action', so nothing to learn from"
            )
        size = int(
            np.prod([whole_number(side, "shape of action") for side in feature.get("shape", [])])
        )
        names = flat_names(feature.get("names"))
        if MinecraftVector.fits(names, size):
            return MinecraftVector(minecraft_schema(options.schema or "minecraft"), names)
        if options.schema is not None:
            raise DataError(
                f"the actions of {self.path} are not Minecraft's ({', '.join(names) or 'unnamed'}); "
                f"leave --schema {options.schema} out"
            )
        return RobotVector(names, *self._action_limits(size))

    def _action_limits(
        self, size: int
    ) -> tuple[Float[np.ndarray, " entry"], Float[np.ndarray, " entry"]]:
        """Return the least and the largest value of each entry, by statistics or by looking."""
        known = list(self._action_statistics())
        lows, highs = (_vectors([entry.get(end) for entry in known]) for end in ("min", "max"))
        if not len(lows) == len(highs) > 0 or lows.shape[1] != size or highs.shape[1] != size:
            lows = highs = np.concatenate(
                [
                    _vectors(self._rows(source, ("action",))["action"])
                    for source in self._episode_sources()
                ]
            )
        finite = np.isfinite(lows).all(axis=1) & np.isfinite(highs).all(axis=1)
        if not finite.any():
            raise DataError(f"{self.path} has no finite actions, so nothing to learn from")
        return lows[finite].min(axis=0), highs[finite].max(axis=0)

    def _action_statistics(self) -> Iterator[Mapping[str, Any]]:
        whole = self.path / "meta/stats.json"
        if whole.is_file():
            yield _mapping(read_object_file(whole).get("action"))
        elif (self.path / "meta/episodes_stats.jsonl").is_file():
            for entry in json_lines(self.path / "meta/episodes_stats.jsonl"):
                yield _mapping(_mapping(entry.get("stats")).get("action"))

    def _camera(self, wanted: str | None) -> str:
        cameras = self.cameras
        if not cameras:
            raise DataError(f"{self.path} has no videos and no pictures, so nothing to learn from")
        if wanted is not None and wanted not in cameras:
            raise DataError(f"{self.path} has no camera {wanted!r}; it has {', '.join(cameras)}")
        return wanted or cameras[0]

    def _is_video(self, camera: str) -> bool:
        return bool(self._info["features"][camera]["dtype"] == "video")

    def _declared_size(self, camera: str) -> str:
        feature = self._info["features"][camera]
        shape, names = feature.get("shape"), flat_names(feature.get("names"))
        if not isinstance(shape, list) or len(shape) != 3:
            raise DataError(f"{self.path / _INFO} gives {camera!r} the shape {shape}, no picture's")
        # Some say channels first, and few agree on how to name the axes.
        first = bool(names and names[0].startswith("c")) or (shape[0] == 3 and shape[2] != 3)
        height, width = (shape[1], shape[2]) if first else (shape[0], shape[1])
        return f"{whole_number(height, 'height')} x {whole_number(width, 'width')}"

    def _rate(self) -> float:
        rate = self._info.get("fps")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise DataError(f"{self.path / _INFO} has fps {rate!r}; it needs a positive number")
        return float(rate)

    def _split(self, index: int) -> str | None:
        splits = self._info.get("splits")
        if not isinstance(splits, dict) or len(splits.keys() & _SPLITS.keys()) < 2:
            return None
        for name, span in splits.items():
            first, _, last = str(span).partition(":")
            if not (name in _SPLITS and first.isdecimal() and last.isdecimal()):
                continue
            if int(first) <= index < int(last):
                return _SPLITS[name]
        return None

    def _notes(self, camera: str, codecs: Counter[str]) -> Iterator[str]:
        if len(self.cameras) > 1:
            yield f"cameras: {', '.join(self.cameras)}; {camera} is read unless --camera says other"
        if codecs:
            slow = ", slow to decode without a GPU" if codecs.keys() & {"av1", "libdav1d"} else ""
            yield f"video codec {', '.join(codecs)}{slow}"
        actions = self._actions(ReadOptions())
        yield from actions.notes
        if isinstance(actions, MinecraftVector):
            limits = self._action_limits(len(actions.names))
            if (
                np.abs(limits[0][actions.camera]).max()
                <= 1
                >= np.abs(limits[1][actions.camera]).max()
            ):
                yield "the camera stays within 1; it is taken for degrees, which may be wrong"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path.resolve()).as_posix()


def _frames_at(
    timed: Iterator[tuple[float, Frame]], wanted: Float[np.ndarray, " row"], tolerance: float
) -> Iterator[Frame]:
    """Yield the frame nearest to each wanted time, until one is farther away than `tolerance`."""
    current = next(timed, None)
    following = next(timed, None) if current is not None else None
    for moment in wanted:
        while (
            current is not None
            and following is not None
            and abs(following[0] - moment) <= abs(current[0] - moment)
        ):
            current, following = following, next(timed, None)
        if current is None or abs(current[0] - moment) > tolerance:
            return
        yield current[1]


def _vectors(rows: Sequence[object]) -> Float[np.ndarray, "row entry"]:
    """Return cells of a table, numbers or lists of them, as one array; NaN where there is none."""
    try:
        return np.array(rows, np.float64).reshape(len(rows), -1) if rows else np.empty((0, 1))
    except (TypeError, ValueError) as error:
        raise DataError(f"a column of vectors holds something else ({error})") from error


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
