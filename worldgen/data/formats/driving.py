"""Layouts of recorded drives: frames and the poses beside them become steps of ego motion."""

import dataclasses
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int, UInt8
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
from worldgen.data.formats.drives import SAME_RATE, Drive, Track, make_track, schema_at
from worldgen.data.formats.frames import resize
from worldgen.data.formats.report import RecordingReport, Report, describe_schema
from worldgen.data.media import read_image
from worldgen.ego_motion import has_ego_data
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionSchema, Axis
from worldgen.tokenizers.action.driving import clip_to_bins

__all__ = ["COLUMNS", "DrivingLayout", "Frame", "PictureDrives"]

COLUMNS: Mapping[str, Column] = {
    "timestamp": Column(dtype="float64", unit="second", meaning="since the drive's first frame"),
    "speed": Column(dtype="float64", unit="metre/second", meaning="until the next frame"),
    "cut": CUT,
}

Frame = UInt8[np.ndarray, "height width 3"]

_NAMED_FILES = 3


class DrivingLayout(Layout):
    """What layouts of recorded drives share.

    The action of a frame is the ego motion to the next frame used: yaw in degrees, x and y in
    metres. A frame of which that is not known, as the last one of a drive, is no step. A drive
    breaks off at gaps in time and at jumps; nothing is joined over them.
    """

    usual_rate: ClassVar[float]
    """Frames a second that the makers announce; measured rates near it are taken for it."""
    can_thin_out = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.root = path if path.is_dir() else path.parent

    @abstractmethod
    def drive(self, recording: Recording, camera: str | None, reading: Reading) -> Drive:
        """Return the frames and poses of a recording.

        Args:
            recording: One of `recordings`.
            camera: Which of several; None is the front one.
            reading: Where to note what is wrong and does not matter.

        Raises:
            DataError: If nothing of the recording can be used.
        """

    @abstractmethod
    def frame_size(self, drive: Drive) -> tuple[int, int]:
        """Return height and width of the frames of a drive, in pixels.

        Raises:
            DataError: If no frame can be read.
        """

    @abstractmethod
    def frames(
        self, drive: Drive, rows: Int[np.ndarray, " step"], reading: Reading
    ) -> Iterator[Frame | None]:
        """Yield the frames at some places, which ascend; None where one cannot be read.

        Fewer than asked for where the frames end early.
        """

    def schema(self, frames_per_second: float) -> ActionSchema:
        """Return the schema of the actions."""
        return schema_at(frames_per_second)

    def actions(
        self, motion: Float64[np.ndarray, "step 3"], schema: ActionSchema
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Return actions of motion, and what had to be clipped by more than the width of a bin."""
        # Poses of a parked car tremble, and so it would reverse; that changes no id.
        lows, highs, bins = np.array(
            [(axis.low, axis.high, axis.bins) for axis in schema.groups if isinstance(axis, Axis)]
        ).T
        held = np.clip(motion, lows, highs)
        near = np.abs(held - motion) <= (highs - lows) / bins
        return clip_to_bins(np.where(near, held, motion), schema)

    def size_text(self, drive: Drive) -> str:
        """Return the size of frames for a person."""
        height, width = self.frame_size(drive)
        return f"{height} x {width}"

    def inspect(self, limit: int | None = None, progress: Progress | None = None) -> Report:
        """Return what is there; poses are read and judged, pictures are only looked up."""
        reading, recordings = Reading(), self.recordings()
        rates, sizes = Counter[str](), Counter[str]()
        reports, speeds = [], []
        without_pose = breaks = 0
        schema = self.schema(self.usual_rate)
        for recording in recordings[:limit]:
            frames = actions = None
            try:
                drive = self.drive(recording, None, reading)
                frames = len(drive.times) - self._note_missing(drive, reading)
                known = has_ego_data(drive.poses)
                actions = int(known.sum())
                without_pose += int((~known).sum())
                rates[f"{self._rate(drive):g}"] += 1
                sizes[self.size_text(drive)] += 1
                track = make_track(drive, self._rate(drive), None, reading)
                schema = self.schema(self._rate(drive))
                self._clipped(drive, track, schema, reading)
                speeds.append(track.speeds)
                breaks += int((~track.follows[1:]).sum())
            except DataError as error:
                self._note(reading, recording, error)
            reports.append(
                RecordingReport(
                    name=recording.name, frames=frames, actions=actions, split=recording.split
                )
            )
            if progress is not None:
                progress(1)
        return Report(
            layout=self.name,
            path=str(self.path),
            versions={},
            frames_per_second=dict(rates),
            frame_sizes=dict(sizes),
            action_schema=describe_schema(schema),
            recordings=tuple(reports),
            total_recordings=len(recordings),
            problems=tuple(reading.problems),
            notes=tuple(_drive_notes(np.concatenate([[], *speeds]), breaks, without_pose)),
        )

    def content(self, options: ReadOptions) -> Content:
        """Return what the episodes have in common, by the first drive that can be read."""
        if options.schema is not None:
            raise DataError(
                f"the actions of {self.path} are ego motion; leave --schema {options.schema} out"
            )
        first_error = None
        for recording in self.recordings():
            try:
                drive = self.drive(recording, options.camera, Reading(options=options))
                rate, size = self._rate(drive), options.size or self.frame_size(drive)
                # Whose units are wrong has no say in the rate.
                make_track(drive, rate, None, Reading(options=options))
            except DataError as error:
                first_error = first_error or error
                continue
            if options.frames_per_second is not None:
                if options.frames_per_second > rate * (1 + SAME_RATE):
                    raise DataError(
                        f"{self.path} has {rate:g} frames a second; {options.frames_per_second:g} "
                        f"would have to be made up, ask for {rate:g} or fewer"
                    )
                rate = options.frames_per_second
            return Content(
                schema=self.schema(rate),
                columns={**COLUMNS, **self.columns()},
                frames_per_second=rate,
                frame_size=size,
            )
        reason = f"; the first: {first_error}" if first_error else ""
        raise DataError(f"no drive in {self.path} can be read{reason}")

    def columns(self) -> Mapping[str, Column]:
        """Return what episodes hold beside `COLUMNS`."""
        return {}

    def read(self, recording: Recording, content: Content, reading: Reading) -> Iterator[Episode]:
        """Yield the episodes of one drive."""
        steps = self._steps(recording, content, reading)
        longest = reading.options.episode_frames
        yield from cut_into_episodes(steps, content, longest, driver="human")

    def _steps(
        self, recording: Recording, content: Content, reading: Reading
    ) -> Iterator[Step | None]:
        try:
            drive = self.drive(recording, reading.options.camera, reading)
            self._note_missing(drive, reading)
            wanted = reading.options.frames_per_second
            rate = self._rate(drive)
            track = make_track(drive, rate, wanted, reading)
            if rate < content.frames_per_second * (1 - SAME_RATE) or (
                wanted is None and rate > content.frames_per_second * (1 + SAME_RATE)
            ):
                raise DataError(
                    f"{drive.source}: has {rate:g} frames a second, the others "
                    f"{content.frames_per_second:g}; left out"
                )
            actions = self._clipped(drive, track, content.schema, reading)
        except DataError as error:
            self._note(reading, recording, error)
            return
        start = np.nanmin(drive.times)
        frames = self.frames(drive, track.rows, reading)
        for step, (row, frame) in enumerate(zip(track.rows, frames, strict=False)):
            if not track.follows[step]:
                yield None
            if frame is None:
                yield None
                continue
            yield Step(
                frame=resize(frame, content.frame_size, reading),
                action=actions[step],
                values={
                    "timestamp": drive.times[row] - start,
                    "speed": track.speeds[step],
                    **{name: rows[row] for name, rows in drive.values.items()},
                },
            )

    def _rate(self, drive: Drive) -> float:
        """Return the rate that a drive was recorded at, without the jitter of its clock."""
        rate = drive.rate
        if abs(rate - self.usual_rate) <= SAME_RATE * self.usual_rate:
            return self.usual_rate
        return round(rate, 2)

    def _clipped(
        self, drive: Drive, track: Track, schema: ActionSchema, reading: Reading
    ) -> np.ndarray:
        actions, clippings = self.actions(track.motion, schema)
        for clipping in clippings:
            # Counted like the rows of poses, so that they can be found.
            named = dataclasses.replace(clipping, steps=track.rows[clipping.steps] + 1)
            reading.note(drive.source, str(named))
        return actions

    def _note_missing(self, drive: Drive, reading: Reading) -> int:
        missing = [picture for picture in drive.pictures if not picture.is_file()]
        if missing:
            shown = ", ".join(self._name(picture) for picture in missing[:_NAMED_FILES])
            more = len(missing) - _NAMED_FILES
            reading.note(
                drive.source,
                f"{len(missing)} of {len(drive.pictures)} pictures are missing, left out: {shown}"
                + (f" and {more} more" if more > 0 else ""),
            )
        return len(missing)

    def _note(self, reading: Reading, recording: Recording, error: DataError) -> None:
        text = str(error).replace(f"{self.root}/", "")
        path, separator, message = text.partition(": ")
        if separator and " " not in path:
            reading.note(path, message)
        else:
            reading.note(recording.name, text)

    def _name(self, path: Path) -> str:
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else str(path)


class PictureDrives(DrivingLayout):
    """Drives whose frames are picture files."""

    def frame_size(self, drive: Drive) -> tuple[int, int]:
        """Return the size that the first picture announces."""
        for picture in drive.pictures:
            try:
                with Image.open(picture) as image:
                    return image.height, image.width
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
        raise DataError(f"{drive.source}: none of its {len(drive.pictures)} pictures can be opened")

    def frames(
        self, drive: Drive, rows: Int[np.ndarray, " step"], reading: Reading
    ) -> Iterator[Frame | None]:
        """Yield pictures; those that are damaged are noted."""
        for row in rows:
            picture = drive.pictures[row]
            begun = time.perf_counter()
            frame = None
            if picture.is_file():
                try:
                    frame = read_image(picture)
                    reading.frames += 1
                except DataError as error:
                    name = self._name(picture)
                    reading.note(name, f"{str(error).removeprefix(f'{picture} ')}; left out")
            reading.decode_seconds += time.perf_counter() - begun
            yield frame


def _drive_notes(
    speeds: Float64[np.ndarray, " step"], breaks: int, without_pose: int
) -> Iterator[str]:
    if len(speeds):
        yield (
            f"speed {speeds.min():.3g} to {speeds.max():.3g} m/s, half of the time "
            f"{np.median(speeds):.3g} or less"
        )
    yield f"gaps and jumps inside of recordings: {breaks:,}; an episode ends at each"
    if without_pose:
        yield f"frames without a pose: {without_pose:,}"
