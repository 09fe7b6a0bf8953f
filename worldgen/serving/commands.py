"""Commands of the socket: JSON objects for all that is in no hurry, `do` names the command."""

import dataclasses
import json
from typing import Any, Final

from worldgen.config import build
from worldgen.errors import ConfigError
from worldgen.serving.protocol import ProtocolError

__all__ = [
    "MAX_COMMAND_BYTES",
    "Cancel",
    "Close",
    "Command",
    "Fork",
    "Load",
    "Open",
    "Preview",
    "Reality",
    "Restore",
    "Rewind",
    "Save",
    "Switch",
    "Trace",
    "Trajectory",
    "Video",
    "parse_command",
]

MAX_COMMAND_BYTES: Final = 4 * 1024 * 1024
"""An uploaded log of an hour at 20 frames per second fits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Open:
    """A new drive in a world, from one of its starts (wrapped round) with a seed."""

    world: str
    seed: int = 0
    start: int = 0
    decoder: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restore:
    """The drive that the page remembers after the server was away.

    `actions` are numbers `[step][group]`. They are checked as an array by who uses them: element
    by element a long drive takes seconds, in which no other visitor would be served.
    """

    world: str
    seed: int
    start: int
    decoder: str | None
    actions: Any
    digest: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewind:
    """Go back to a frame of this branch and forget what came after it."""

    frame: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """Show a past frame of this branch, dream and reality, without going there."""

    frame: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fork:
    """Keep this branch and go on in a copy of it that ends at a frame."""

    frame: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switch:
    """Go on in another branch."""

    branch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Close:
    """Forget a branch; not the one being played."""

    branch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Save:
    """Send the log of this branch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """Replay a log, compare every frame with it, and go on from its end.

    `log` is what `RolloutLog.to_json` made; like actions it is checked by who uses it.
    """

    log: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Send the steps that follow a line drawn from where the vehicle is, in a world of ego motion.

    `points` are places `[point][x, y]`; they are checked by who uses them.
    """

    points: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Send the steps of a trajectory file, from where the vehicle is, in a world of ego motion."""

    name: str
    """Of the file; its ending tells the format."""
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """Send the last minute of this branch as mp4."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reality:
    """Run the real environment beside the dream, or stop it."""

    on: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cancel:
    """Stop a replay that is under way."""


Command = (
    Open
    | Restore
    | Rewind
    | Preview
    | Fork
    | Switch
    | Close
    | Save
    | Load
    | Trace
    | Trajectory
    | Video
    | Reality
    | Cancel
)
_COMMANDS: Final[dict[str, type[Any]]] = {
    cls.__name__.lower(): cls
    for cls in (
        *(Open, Restore, Rewind, Preview, Fork, Switch),
        *(Close, Save, Load, Trace, Trajectory, Video, Reality, Cancel),
    )
}


def parse_command(text: str) -> Command:
    """Return the command that a JSON message holds.

    Raises:
        ProtocolError: If it is no JSON object, names no command, or has other fields than that.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a text message that is not JSON ({error})") from error
    if not isinstance(message, dict) or not isinstance(message.get("do"), str):
        raise ProtocolError("a JSON message without a command in 'do'")
    cls = _COMMANDS.get(message.pop("do"))
    if cls is None:
        raise ProtocolError(f"an unknown command; known are {', '.join(_COMMANDS)}")
    try:
        command: Command = build(cls, message)
    except ConfigError as error:
        raise ProtocolError(f"a malformed command ({error})") from error
    return command
