"""The library's own episodes, so that they can be looked at and scaled like recordings of others."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from worldgen.data.captions import CAPTION_COLUMN, NO_CAPTION, load_captions
from worldgen.data.episodes import SPLITS, VISUAL_IDS, Column, Dataset, Episode
from worldgen.data.formats.base import (
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
from worldgen.errors import DataError

__all__ = ["NativeEpisodes"]


class NativeEpisodes(Layout):
    """A folder with a `dataset.json`; splits, columns and environment are kept."""

    name = "worldgen"
    looks_like = "worldgen's own episodes: dataset.json and the folders train, validation, test"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._dataset = Dataset(path)

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether the folder has a `dataset.json`."""
        return (path / "dataset.json").is_file()

    def recordings(self) -> list[Recording]:
        """Return the complete episodes of all splits."""
        return [
            Recording(name=f"{split}/episode_{info.index:06d}", split=split, key=info)
            for split in SPLITS
            for info in self._dataset.episodes(split)
        ]

    def inspect(self, limit: int | None = None, progress: Progress | None = None) -> Report:
        """Return what is there; pictures are counted, columns read."""
        reading, recordings = Reading(), self.recordings()
        reports = []
        rates, sizes = Counter[str](), Counter[str]()
        tokens = self._dataset.metadata.tokens
        for recording in recordings[:limit]:
            frames = actions = None
            try:
                columns = self._dataset.load_columns(recording.key)
                if tokens is None:
                    facts = video_facts(self._dataset.video_path(recording.key))
                    frames = facts.frames
                    rates[f"{facts.frames_per_second:g}"] += 1
                    sizes[f"{facts.height} x {facts.width}"] += 1
                else:
                    frames = len(columns[VISUAL_IDS])
                    rates[f"{self._dataset.metadata.frames_per_second:g}"] += 1
                    sizes[f"{tokens.rows} x {tokens.columns} visual ids, no pixels"] += 1
                actions = len(columns["action"])
                if {frames, actions} != {recording.key.length}:
                    reading.note(
                        f"{recording.name}.json",
                        f"says {recording.key.length} rows; there are {frames} frames and "
                        f"{actions} actions",
                    )
            except (DataError, KeyError) as error:
                reading.note(f"{recording.name}.json", str(error))
            reports.append(
                RecordingReport(
                    name=recording.name, frames=frames, actions=actions, split=recording.split
                )
            )
            if progress is not None:
                progress(1)
        for split in SPLITS:
            if incomplete := self._dataset.num_incomplete(split):
                reading.note(split, f"{incomplete} episodes were begun and not finished; left out")
        metadata = self._dataset.metadata
        environment = metadata.environment
        notes = [f"environment: {environment['id'] if environment else 'none'}"]
        if (table := load_captions(self._dataset)) is not None:
            notes.append(f"captions: {len(table.captions):,} different ones")
        return Report(
            layout=self.name,
            path=str(self.path),
            versions={str(metadata.version): len(recordings)},
            frames_per_second=dict(rates),
            frame_sizes=dict(sizes),
            action_schema=describe_schema(metadata.schema),
            recordings=tuple(reports),
            total_recordings=len(recordings),
            problems=tuple(reading.problems),
            notes=tuple(notes),
        )

    def content(self, options: ReadOptions) -> Content:
        """Return the metadata, with the frames' size as asked for."""
        if options.schema is not None:
            raise DataError(
                f"{self.path} has an action schema of its own; leave --schema {options.schema} out"
            )
        metadata = self._dataset.metadata
        if metadata.tokens is not None:
            raise DataError(
                f"{self.path} holds visual ids and no frames, so there is nothing to scale; train on "
                "it as it is"
            )
        columns = dict(metadata.columns)
        if load_captions(self._dataset) is not None:
            meaning = "number of the caption in captions.json, -1 for none"
            columns[CAPTION_COLUMN] = Column(dtype="int32", meaning=meaning)
        return Content(
            schema=metadata.schema,
            columns=columns,
            frames_per_second=metadata.frames_per_second,
            frame_size=options.size or (metadata.frame_height, metadata.frame_width),
            environment=metadata.environment,
        )

    def write_beside(self, out: Path) -> None:
        """Write the captions, where there are any."""
        if (table := load_captions(self._dataset)) is not None:
            table.write(out)

    def read(self, recording: Recording, content: Content, reading: Reading) -> Iterator[Episode]:
        """Yield the episode with its frames scaled, in parts where it is too long for one."""
        info = recording.key
        longest = reading.options.episode_frames
        yield from cut_into_episodes(
            self._steps(recording, content, reading), content, longest, driver=info.driver
        )

    def _steps(
        self, recording: Recording, content: Content, reading: Reading
    ) -> Iterator[Step | None]:
        try:
            columns = self._dataset.load_columns(recording.key)
            actions = columns.pop("action")
            frames = timed_frames(self._dataset.video_path(recording.key), reading)
            for row, (_, frame) in enumerate(frames):
                values = {name: column[row] for name, column in columns.items()}
                # Episodes that were recorded after the others were captioned have no captions.
                values.setdefault(CAPTION_COLUMN, NO_CAPTION)
                yield Step(
                    frame=resize(frame, content.frame_size, reading),
                    action=actions[row],
                    values=values,
                )
                if columns["cut"][row]:
                    yield None
        except (DataError, KeyError, IndexError) as error:
            reading.note(f"{recording.name}.json", f"{error}; the frames before are used")
