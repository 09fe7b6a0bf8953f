"""A folder of images, videos and recordings, listed once and read frame by frame."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from worldgen.data.episodes import SPLITS, Dataset
from worldgen.data.video import iterate_video
from worldgen.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "MediaFolder",
    "Skipped",
    "centred_box",
    "fit",
    "pad",
    "read_image",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that could not be used, or not to its end."""

    path: Path
    reason: str


class MediaFolder:
    """The images and videos of a folder and of all folders in it, in the order of their names.

    Recordings among them (folders with a `dataset.json`) give the videos of the complete episodes
    of `split`. Files and folders whose names begin with a dot, and files that are neither image
    nor video by their suffix, are passed over. Nothing is opened before it is read; a file that
    cannot be read is noted in `skipped` once, and reading the others goes on.

    Args:
        path: Folder, for example `recordings/car_racing` or `photographs`.
        split: "train", "validation" or "test": which episodes of recordings count. In a folder
            that holds a folder of that name, only what lies in there.

    Raises:
        DataError: If the folder is missing, holds neither image nor video, or holds a recording
            and no split is named.

    Example:
        >>> folder = MediaFolder(Path("photographs"))
        >>> for path in folder.images:
        ...     picture = folder.try_image(path, (256, 256))
    """

    def __init__(self, path: Path, split: str | None = None) -> None:
        if not path.is_dir():
            raise DataError(f"no folder {path}; give one that holds images or videos")
        if split is not None and split not in SPLITS:
            raise DataError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        self.path = path
        self.split = split
        self.skipped: list[Skipped] = []
        self.images: list[Path] = []
        self.videos: list[Path] = []
        self.recordings: list[Path] = []
        self._list(path)
        if not self.images and not self.videos:
            known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            part = f" in split {split!r}" if split else ""
            raise DataError(
                f"{path} holds no images and no videos{part}; files with the endings {known} and "
                "recordings are looked for in all its folders"
            )

    def read_image(self, path: Path, size: Size | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """Return an image, uint8 RGB, turned upright, transparency dropped.

        Args:
            path: One of `images`.
            size: Height and width to fit it into, see `fit`; None leaves it as it is.

        Raises:
            DataError: If the file is missing or damaged; it is then in `skipped`.
        """
        try:
            return read_image(path, size)
        except DataError as error:
            self._skip(path, error)
            raise

    def read_frames(
        self, path: Path, size: Size | None = None
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yield the frames of a video in order, decoding each once and keeping none.

        Args:
            path: One of `videos`.
            size: Height and width to fit each frame into, see `fit`; None leaves it as it is.

        Raises:
            DataError: If the file is missing or damaged, at once, or ends early, after the last
                frame that is there; it is then in `skipped`.
        """
        try:
            for frame in iterate_video(path):
                yield frame if size is None else fit(frame, size)
        except DataError as error:
            self._skip(path, error)
            raise

    def read_clips(
        self,
        path: Path,
        num_frames: int,
        size: Size | None = None,
        stride: int | None = None,
    ) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """Yield clips of consecutive frames in order, decoding each frame once.

        What is left over at the end and fills no clip is dropped. Memory is that of one clip.

        Args:
            path: One of `videos`.
            num_frames: Frames of a clip.
            size: Height and width to fit each frame into, see `fit`; None leaves it as it is.
            stride: Frames between the beginnings of two clips; `num_frames` by default, so that
                clips neither overlap nor leave frames out.

        Raises:
            DataError: If the file is missing, damaged, or shorter than a clip, at once, or ends
                early, after the last whole clip; it is then in `skipped`.
        """
        step = num_frames if stride is None else stride
        if num_frames < 1 or step < 1:
            raise DataError(
                f"clips need 1 frame and a stride of 1 at least, got {num_frames}, {step}"
            )
        held: deque[UInt8[np.ndarray, "h w 3"]] = deque(maxlen=num_frames)
        count = 0
        for count, frame in enumerate(self.read_frames(path, size), start=1):
            held.append(frame)
            first = count - num_frames
            if first >= 0 and first % step == 0:
                yield np.stack(held)
        if count < num_frames:
            short = DataError(
                f"{path} has {count} frames, a clip needs {num_frames}; ask for shorter clips"
            )
            self._skip(path, short)
            raise short

    def try_image(self, path: Path, size: Size | None = None) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return what `read_image` does, None for a file that is now in `skipped`."""
        try:
            return self.read_image(path, size)
        except DataError:
            return None

    def try_clips(
        self,
        path: Path,
        num_frames: int,
        size: Size | None = None,
        stride: int | None = None,
    ) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """Yield what `read_clips` does, and end where it raises; the file is then in `skipped`."""
        try:
            yield from self.read_clips(path, num_frames, size, stride)
        except DataError:
            return

    def name(self, path: Path) -> str:
        """Return the path of a file inside the folder, with forward slashes."""
        return path.relative_to(self.path).as_posix()

    def _skip(self, path: Path, error: DataError) -> None:
        if all(entry.path != path for entry in self.skipped):
            # The path stands beside the reason already.
            reason = str(error).removeprefix(f"{path} ")
            self.skipped.append(Skipped(path=path, reason=reason))

    def _list(self, folder: Path) -> None:
        if (folder / "dataset.json").is_file():
            self._list_recording(folder)
            return
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        if folder == self.path and self.split and (folder / self.split).is_dir():
            entries = [folder / self.split]
        for entry in entries:
            suffix = entry.suffix.lower()
            if entry.is_dir():
                # A link could lead back up, and then in circles.
                if not entry.is_symlink():
                    self._list(entry)
            elif suffix in IMAGE_SUFFIXES:
                self.images.append(entry)
            elif suffix in VIDEO_SUFFIXES:
                self.videos.append(entry)

    def _list_recording(self, folder: Path) -> None:
        if self.split is None:
            raise DataError(
                f"{folder} is a recording; name the split to take, one of {', '.join(SPLITS)}"
            )
        dataset = Dataset(folder)
        self.recordings.append(folder)
        self.videos += [dataset.video_path(info) for info in dataset.episodes(self.split)]


def fit(picture: UInt8[np.ndarray, "h w 3"], size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture of exactly `size`: the largest centred part of that shape, scaled.

    Scaling is bicubic with antialiasing; a picture that has the size already is returned as it is.

    Args:
        picture: uint8 RGB.
        size: Height and width, in pixels.
    """
    if picture.shape[:2] == size:
        return picture
    box = centred_box(picture.shape[:2], size)
    resized = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def pad(picture: UInt8[np.ndarray, "h w 3"], size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture of exactly `size`: the whole of it, scaled, between black bars.

    Scaling is as of `fit`.

    Args:
        picture: uint8 RGB.
        size: Height and width, in pixels.
    """
    scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    padded = np.zeros((*size, 3), np.uint8)
    padded[top : top + height, left : left + width] = fit(picture, (height, width))
    return padded


def centred_box(picture: Size, shape: Size) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the largest centred part of a picture of a shape.

    Args:
        picture: Height and width of the picture, in pixels.
        shape: Height and width, of which only the ratio counts.
    """
    height, width = picture
    scale = min(height / shape[0], width / shape[1])
    cut_height, cut_width = scale * shape[0], scale * shape[1]
    top, left = (height - cut_height) / 2, (width - cut_width) / 2
    return left, top, left + cut_width, top + cut_height


def read_image(path: Path, size: Size | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image as `MediaFolder.read_image` does, wherever it lies.

    Raises:
        DataError: If the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # Sixteen bits; Pillow's own conversion to eight saturates instead of scaling.
                grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                upright = Image.fromarray(grey)
            picture = np.asarray(upright.convert("RGB"))
    # Pillow raises almost anything on damaged files, by format.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path} is damaged or not an image ({error}); copy it again") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large for a picture ({error}); give a smaller one"
        ) from error
    return picture if size is None else fit(picture, size)
