"""commaVQ: minutes of driving as the ids of comma's tokenizer, in folders or in WebDataset shards."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int

from worldgen.data.episodes import VISUAL_IDS, Column, TokenGrid
from worldgen.data.formats.base import Content, Reading, ReadOptions, Recording
from worldgen.data.formats.drives import Drive
from worldgen.data.formats.driving import DrivingLayout, Frame
from worldgen.ego_motion import has_ego_data, integrate
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionSchema, Categorical
from worldgen.tokenizers.visual import (
    FalseColourTokenizer,
    FalseColourTokenizerConfig,
    save_visual_tokenizer,
)

__all__ = ["CommaVq"]

GRID = TokenGrid(rows=8, columns=16, codebook_size=1024)
TOKENIZER_FILE = "tokenizer.safetensors"

_RATE = 20.0
_LARGEST_MEMBER = 1 << 26
_LOOKED_AT = 20
_TOKENS, _POSES = "token.npy", "pose.npy"
_NO_MOTION = ActionSchema(groups=(Categorical("ego_motion", ("unknown",)),))


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Where one minute lies: in a file, or under a key in a shard."""

    file: Path
    key: str | None = None
    has_poses: bool = False
    damage: str = ""
    """What is wrong with the rest of a shard."""


@dataclass
class _Cursor:
    """A shard read from front to back; samples are asked for in that order."""

    shard: Path
    samples: Iterator[tuple[str, dict[str, bytes]]]
    passed: set[str] = field(default_factory=set)


class CommaVq(DrivingLayout):
    """Ids of 8 x 16 cells, 0 to 1023, for each of 1,200 frames at 20 a second; no pictures.

    Known are shards `*.tar.gz` or `*.tar` with members `KEY.token.npy`, `KEY.pose.npy` and
    `KEY.json`, and files `KEY.token.npy` (or any other `.npy` of ids) with `KEY.pose.npy` beside.
    Ids are [frame, 8, 16] or [frame, 128], row by row, of any integer dtype.

    Rows of `pose.npy` are taken for velocities along and around the axes forward, right and down
    of the device: forward, right, down in m/s, then roll, pitch, yaw in rad/s, until the next
    frame. Its makers do not document it; that order is the one of openpilot's models, and the first
    and the last number agree with how others read them. Where no minute has poses, the only
    action is "unknown".

    Conversion writes a recording of ids, and beside it a `tokenizer.safetensors` that paints ids in
    false colours and makes world models train; see `FalseColourTokenizer`.
    """

    name = "commavq"
    looks_like = "commaVQ: *.tar.gz with KEY.token.npy and KEY.pose.npy, or such files in folders"
    usual_rate = _RATE

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._cursor: _Cursor | None = None
        self._recordings: list[Recording] | None = None

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there is a shard, or a file, with such ids."""
        for shard in _shards(path)[:1]:
            try:
                return any(name.endswith(_TOKENS) for name in _first_names(shard))
            except (tarfile.TarError, OSError, EOFError):
                return False
        return any(_holds_ids(file) for file in _arrays(path)[:_LOOKED_AT])

    def recordings(self) -> list[Recording]:
        """Return the minutes; shards are read through once for their names."""
        if self._recordings is None:
            self._recordings = [
                *(
                    Recording(name=self._sample_name(sample), key=sample)
                    for shard in _shards(self.path)
                    for sample in _in_shard(shard)
                ),
                *(
                    Recording(
                        name=self._name(file).removesuffix(".npy").removesuffix(".token"),
                        key=_Sample(file=file, has_poses=_pose_file(file).is_file()),
                    )
                    for file in _arrays(self.path)
                    if _holds_ids(file)
                ),
            ]
        return self._recordings

    def schema(self, frames_per_second: float) -> ActionSchema:
        """Return axes of ego motion, or the one action "unknown" where no minute has poses."""
        return super().schema(frames_per_second) if self._has_poses else _NO_MOTION

    def columns(self) -> Mapping[str, Column]:
        """Return the ids."""
        return {
            VISUAL_IDS: Column(
                dtype="uint16",
                shape=(GRID.rows, GRID.columns),
                meaning="ids of comma's tokenizer, row by row",
            )
        }

    def content(self, options: ReadOptions) -> Content:
        """Return what the episodes have in common.

        Raises:
            DataError: If no minute can be read, or frames are to be scaled.
        """
        if options.size is not None:
            raise DataError(f"{self.path} holds ids and no frames; leave height and width out")
        content = super().content(options)
        return Content(
            schema=content.schema,
            columns=content.columns,
            frames_per_second=content.frames_per_second,
            frame_size=(0, 0),
            tokens=GRID,
        )

    def write_beside(self, out: Path) -> None:
        """Write the tokenizer that paints ids, unless there is a file in its place already."""
        path = out / TOKENIZER_FILE
        if not path.exists():
            config = FalseColourTokenizerConfig(
                rows=GRID.rows, columns=GRID.columns, codebook_size=GRID.codebook_size
            )
            save_visual_tokenizer(path, FalseColourTokenizer(config))

    def drive(self, recording: Recording, camera: str | None, reading: Reading) -> Drive:
        """Return ids and poses of a minute."""
        if camera is not None:
            raise DataError(f"{self.path} has one camera; leave --camera {camera} out")
        sample: _Sample = recording.key
        source = recording.name
        tokens, poses = self._load(sample, source)
        ids = _as_grid(tokens, source)
        times = np.arange(len(ids)) / _RATE
        wrong = np.asarray(((ids < 0) | (ids >= GRID.codebook_size)).any(axis=(1, 2)))
        if poses is None:
            if self._has_poses:
                raise DataError(f"{source}: no poses, which the others have; left out")
            # Poses that say nothing; the only action is "unknown".
            places = np.zeros((len(ids), 3))
        else:
            length = min(len(poses), len(ids))
            if len(poses) != len(ids):
                reading.note(
                    source,
                    f"{len(ids)} frames and {len(poses)} poses; the first {length} are used",
                )
            ids, times, wrong = ids[:length], times[:length], wrong[:length]
            places = _places(poses[:length])
        if wrong.any():
            reading.note(
                source,
                f"{int(wrong.sum())} frames have ids beyond 0 to {GRID.codebook_size - 1}, the "
                f"first is {int(np.flatnonzero(wrong)[0]) + 1}",
            )
            places[wrong] = np.nan
        return Drive(
            source=source,
            times=times,
            poses=places,
            values={VISUAL_IDS: np.where(wrong[:, None, None], 0, ids).astype(np.uint16)},
        )

    def actions(
        self, motion: Float64[np.ndarray, "step 3"], schema: ActionSchema
    ) -> tuple[np.ndarray, tuple[object, ...]]:
        """Return ego motion within its bins, or the action "unknown"."""
        if schema == _NO_MOTION:
            return np.zeros((len(motion), 1), np.int64), ()
        return super().actions(motion, schema)

    def frame_size(self, drive: Drive) -> tuple[int, int]:
        """Return 0 x 0: there are no pixels."""
        return 0, 0

    def size_text(self, drive: Drive) -> str:
        """Return the size of the grid."""
        return f"{GRID.rows} x {GRID.columns} visual ids, no pixels"

    def frames(
        self, drive: Drive, rows: Int[np.ndarray, " step"], reading: Reading
    ) -> Iterator[Frame | None]:
        """Yield frames without pixels."""
        for _ in rows:
            reading.frames += 1
            yield np.empty((0, 0, 3), np.uint8)

    def _sample_name(self, sample: _Sample) -> str:
        shard = sample.file.with_name(sample.file.name.partition(".")[0])
        return f"{self._name(shard)}/{sample.key or 'rest'}"

    @property
    def _has_poses(self) -> bool:
        return any(recording.key.has_poses for recording in self.recordings())

    def _load(self, sample: _Sample, source: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ids and poses as they are in the files."""
        if sample.damage:
            raise DataError(f"{self._name(sample.file)}: {sample.damage}; the rest is left out")
        if sample.key is None:
            pose_file = _pose_file(sample.file)
            return (
                _array(sample.file, source),
                _array(pose_file, source) if sample.has_poses else None,
            )
        members = self._members(sample.file, sample.key)
        for name in (_TOKENS, _POSES):
            if len(members.get(name, b"")) > _LARGEST_MEMBER:
                raise DataError(f"{source}: {name} has more than {_LARGEST_MEMBER:,} bytes")
        return (
            _array(io.BytesIO(members[_TOKENS]), source),
            _array(io.BytesIO(members[_POSES]), source) if _POSES in members else None,
        )

    def _members(self, shard: Path, key: str) -> dict[str, bytes]:
        """Return the files of a sample; shards are compressed, so reading goes on where it was."""
        cursor = self._cursor
        if cursor is None or cursor.shard != shard or key in cursor.passed:
            cursor = self._cursor = _Cursor(shard=shard, samples=_samples(shard))
        for found, members in cursor.samples:
            cursor.passed.add(found)
            if found == key:
                return members
        raise DataError(f"{self._name(shard)}: {key} is not there any more")


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name.endswith((".tar", ".tar.gz")) else []
    return sorted(file for file in path.rglob("*.tar*") if file.name.endswith((".tar", ".tar.gz")))


def _arrays(path: Path) -> list[Path]:
    """Return the `.npy` files that may hold ids."""
    files = [path] if path.is_file() else sorted(path.rglob("*.npy"))
    return [file for file in files if file.suffix == ".npy" and not file.name.endswith(_POSES)]


def _pose_file(tokens: Path) -> Path:
    stem = tokens.name.removesuffix(".npy")
    if stem in ("token", "tokens"):
        return tokens.with_name(_POSES)
    return tokens.with_name(f"{stem.removesuffix('.token')}.{_POSES}")


def _holds_ids(file: Path) -> bool:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return file.name.endswith(f".{_TOKENS}")
    return array.dtype.kind in "iu" and array.shape[1:] in (
        (GRID.rows, GRID.columns),
        (GRID.rows * GRID.columns,),
    )


def _array(file: Path | io.BytesIO, source: str) -> np.ndarray:
    try:
        # allow_pickle is off, so that a file cannot run code.
        return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{source}: damaged ({error}); copy it again") from error


def _as_grid(tokens: np.ndarray, source: str) -> Int[np.ndarray, "frame row column"]:
    shape = (GRID.rows, GRID.columns)
    if tokens.dtype.kind not in "iu" or tokens.shape[1:] not in (shape, (shape[0] * shape[1],)):
        raise DataError(
            f"{source}: ids of shape {tokens.shape} and type {tokens.dtype}; they are whole numbers "
            f"[frame, {shape[0]}, {shape[1]}] or [frame, {shape[0] * shape[1]}]"
        )
    return tokens.reshape(-1, *shape).astype(np.int64)


def _places(poses: np.ndarray) -> Float64[np.ndarray, "frame 3"]:
    """Return places and headings in the plane; NaN in frames whose velocities are unknown.

    At constant velocities in its own axes the car drives an arc: turning by a, it gets as far as
    the velocity times the step times sinc(a / 2), in the direction a / 2.
    """
    if poses.ndim != 2 or poses.shape[1] < 6 or poses.dtype.kind not in "fiu":
        poses = np.full((len(poses), 6), np.nan)
    velocities = poses[:, :6].astype(np.float64)
    known = has_ego_data(velocities)
    forward, right, yaw = np.where(known[:, None], velocities, 0.0)[:, [0, 1, 5]].T
    # Forward, right, down to forward, left, up.
    turn = -yaw / _RATE
    offset = (forward - 1j * right) / _RATE * np.sinc(turn / (2 * np.pi)) * np.exp(0.5j * turn)
    motion = np.stack([np.degrees(turn), offset.real, offset.imag], axis=-1)
    places = integrate(motion[:-1])
    places[~known] = np.nan
    return places


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield keys and files of a shard, whose files of one key follow each other."""
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(shard, "r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                stem, _, ending = Path(member.name).name.partition(".")
                found = f"{Path(member.name).parent.as_posix()}/{stem}".removeprefix("./")
                if found != key and key:
                    yield key, members
                    members = {}
                key = found
                content = archive.extractfile(member)
                if content is not None and ending in (_TOKENS, _POSES):
                    members[ending] = content.read(_LARGEST_MEMBER + 1)
    except (tarfile.TarError, OSError, EOFError) as error:
        if key:
            yield key, members
        raise DataError(f"{shard} is damaged or cut off ({error})") from error
    if key:
        yield key, members


def _in_shard(shard: Path) -> Iterator[_Sample]:
    """Yield the samples of a shard that have ids, and one more where it is damaged."""
    try:
        for key, members in _samples(shard):
            if _TOKENS in members:
                yield _Sample(file=shard, key=key, has_poses=_POSES in members)
    except DataError as error:
        yield _Sample(file=shard, damage=str(error).removeprefix(f"{shard} "))


def _first_names(shard: Path) -> Iterator[str]:
    with tarfile.open(shard, "r|*") as archive:
        for number, member in enumerate(archive):
            if number == _LOOKED_AT:
                return
            yield member.name
