"""What lies beside a video that is being made, so that it can be gone on with whatever stops it."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from worldgen.checkpoint import load_tensors, save_tensors, write_text
from worldgen.config import build, to_mapping
from worldgen.data.outputs import FrameOutput, Mark
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.prompt import After

__all__ = ["Saver", "Task", "Unfinished"]

_SECONDS_BETWEEN_SAVES = 15.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a video is to become."""

    options: dict[str, Any]
    """Of the command that began it."""
    begun: int
    """Frame of the session that the first frame to be made follows."""
    origin: int
    """Frame of the session that is frame 0 of the video."""
    steps: int
    """Frames to make."""
    policy: bool
    """Whether actions are chosen frame by frame."""
    after: After
    """What follows the script's end."""


class Unfinished:
    """The folder beside a video, named like it, which is there as long as the video is not complete.

    Args:
        out: The video.

    Raises:
        DataError: If it has no name that the folder could be called by.
    """

    def __init__(self, out: Path) -> None:
        if out.name in {"", ".."}:
            raise DataError(f"cannot write {out}: a video needs a name; give a file or a folder")
        self.out = out
        self.folder = out.with_name(f"{out.name}.resume")
        self.session = self.folder / "session.safetensors"
        self.key_frames = self.folder / "key_frames.safetensors"
        self._task = self.folder / "task.safetensors"
        self._mark = self.folder / "mark.json"

    def check_unused(self) -> None:
        """Refuse to begin a video that can be gone on with.

        Raises:
            DataError: If it can.
        """
        if self._mark.is_file():
            raise DataError(
                f"{self.out} is not complete; go on with --resume, or remove {self.folder} to begin "
                "again"
            )

    def begin(self, task: Task, script: NDArray[Any] | None) -> None:
        """Write down what is to be made.

        Args:
            task: All but the script.
            script: `[step, group]`; None where nothing is written down.
        """
        tensors = {} if script is None else {"script": torch.from_numpy(script.copy())}
        save_tensors(self._task, tensors, to_mapping(task))

    def task(self) -> tuple[Task, NDArray[Any] | None]:
        """Return what is to be made.

        Raises:
            DataError: If there is nothing to go on with, or it is damaged.
        """
        if not self._mark.is_file():
            there = (
                f"{self.out} is complete, or was stopped before anything was saved"
                if self.out.exists()
                else f"there is no {self.out}"
            )
            raise DataError(
                f"nothing to go on with: {there}, and nothing lies in {self.folder}; leave --resume "
                "out to begin"
            )
        try:
            tensors, metadata = load_tensors(self._task)
            task = build(Task, metadata)
        except (CheckpointError, ConfigError) as error:
            raise DataError(f"cannot go on with {self.out}: {error}") from error
        script = tensors.get("script")
        return task, None if script is None else script.numpy()

    def mark(self) -> Mark:
        """Return how much of the video is there.

        Raises:
            DataError: If the file is damaged.
        """
        try:
            return build(Mark, json.loads(self._mark.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self._mark} is damaged ({error}); begin again") from error

    def save_mark(self, mark: Mark) -> None:
        """Write down how much of the video is there."""
        write_text(self._mark, json.dumps(to_mapping(mark)))

    def remove(self) -> None:
        """Remove the folder; the video is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Saver:
    """Saves what it takes to go on, every so many seconds.

    Args:
        unfinished: Where to.
        save: Writes what the video is made from, as it is now.
        anywhere: Whether to end a piece of the video to save, instead of saving where one ends.
    """

    def __init__(self, unfinished: Unfinished, save: Callable[[], None], *, anywhere: bool) -> None:
        self._unfinished = unfinished
        self._save = save
        self._anywhere = anywhere
        self._next = 0.0

    def keep(self, output: FrameOutput) -> None:
        """See `Keeper.keep`."""
        if time.monotonic() >= self._next and (
            self._anywhere or output.mark.frames == output.num_frames
        ):
            self.keep_now(output)

    def keep_now(self, output: FrameOutput) -> None:
        """See `Keeper.keep_now`."""
        mark = output.settle()
        # In this order: what is saved may be ahead of the mark, which can be gone back to.
        self._save()
        self._unfinished.save_mark(mark)
        self._next = time.monotonic() + _SECONDS_BETWEEN_SAVES

    def forget(self) -> None:
        """See `Keeper.forget`."""
        self._unfinished.remove()
