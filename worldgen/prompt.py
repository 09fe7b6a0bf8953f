"""What a video begins with and follows: an image, a clip, a session, text, actions, a trajectory."""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, Num, UInt8
from numpy.typing import NDArray
from torch import Tensor

from worldgen.data.media import fit, pad, read_image
from worldgen.data.trajectory import Trajectory, read_trajectory
from worldgen.data.video import at_rate, iterate_timed_video
from worldgen.errors import ActionError, ConfigError, DataError
from worldgen.generation import SamplingConfig, Session, Start
from worldgen.pipeline import World
from worldgen.records import to_float
from worldgen.tokenizers.action import MAX_STEPS, is_driving_schema, parse_action, parse_actions

__all__ = ["After", "ChooseAction", "Fit", "Prompt", "script_actions"]

Fit = Literal["crop", "pad"]
After = Literal["repeat", "last", "rest"]
ChooseAction = Callable[[Session], NDArray[Any] | str]
"""Looks at a session and says what to do in its current frame."""

POLICY = "policy"
_LARGEST_ENLARGEMENT = 4.0
"""A picture of fewer pixels says too little about a frame; its tokens would be those of a blur."""
_THINNEST_STRIP = 8
"""Between black bars, in pixels of a frame: less is hardly more than black."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What a video begins with, and what is done in it.

    It begins with one of: an image, a clip, a saved session, a start of the world. Text may stand
    beside any of them but a session, which has its own; alone, the first frame is drawn from it.
    Without all of them it begins as the world's first start does. Then come actions or a trajectory,
    and rest where there is neither.

    Example:
        >>> world = worldgen.load("car_racing")
        >>> prompt = Prompt(image="start.png", actions="gas*40,left+gas*20")
        >>> session = prompt.begin(world, seed=3)
        >>> frames = session.play(prompt.actions_of(world, steps=200))

    Raises:
        ConfigError: If parts contradict each other or are empty.
    """

    image: str | Path | UInt8[NDArray[np.uint8], "height width 3"] | None = None
    """Of any size: the first frame."""
    clip: str | Path | UInt8[NDArray[np.uint8], "time height width 3"] | None = None
    """A video of any size and rate, whose last frame is the first one of what is made."""
    clip_frames_per_second: float | None = None
    """Of a clip given as an array; None for the world's own. A file tells its own."""
    clip_actions: str | Path | Num[NDArray[Any], "frame group"] | None = None
    """Taken in the clip's own frames, the last one's may be missing: written as actions are, or the
    columns of a recorded episode (`.npz`); None for rest."""
    session: str | Path | None = None
    """The file of a saved session that is to go on."""
    start_index: int | None = None
    """One of the world's starts."""
    text: str | None = None
    """What is to be seen."""
    actions: str | Path | Num[NDArray[Any], "step group"] | ChooseAction | None = None
    """`"left*20,gas*40"`, a `.txt` file of such lines, an array, "policy" for what the world's own
    model would do, or any function of a session."""
    trajectory: str | Path | Trajectory | None = None
    """Where to drive, in worlds of ego motion."""
    after: After | None = None
    """What follows the end of a script: it is repeated, its last action is held, or nothing is
    done. None: actions are repeated, the last motion of a trajectory is held."""
    fit: Fit = "crop"
    """How pictures of other sizes become frames: the largest centred part, or the whole picture
    between black bars; both scaled."""

    def __post_init__(self) -> None:
        beginnings = ("image", "clip", "session", "start_index")
        given = [name for name in beginnings if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"a video begins with one thing, got {' and '.join(given)}; give one of them"
            )
        if self.session is not None and self.text is not None:
            raise ConfigError(
                "a saved session goes on with the text that it began with; leave text out, or begin "
                "with an image or a clip"
            )
        if self.actions is not None and self.trajectory is not None:
            raise ConfigError("actions and trajectory both say what is done; give one of them")
        belongs = (self.clip_frames_per_second, self.clip_actions)
        if self.clip is None and any(part is not None for part in belongs):
            raise ConfigError("clip_frames_per_second and clip_actions belong to a clip; give one")
        if isinstance(self.clip, str | Path) and self.clip_frames_per_second is not None:
            raise ConfigError(
                f"the video {self.clip} tells its own rate; leave clip_frames_per_second out"
            )
        rate = self.clip_frames_per_second
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"clip_frames_per_second must be a number above 0, got {rate}")
        if self.text is not None and not self.text.strip():
            raise ConfigError("the text is empty; write what is to be seen, or leave it out")
        if self.fit not in get_args(Fit):
            raise ConfigError(f"fit must be one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        if self.after is not None:
            if self.after not in get_args(After):
                raise ConfigError(
                    f"after must be one of {', '.join(get_args(After))}, got {self.after!r}"
                )
            if self.chooses or (self.actions is None and self.trajectory is None):
                raise ConfigError(
                    "after says what follows a script's end; without a script leave it out"
                )

    @property
    def chooses(self) -> bool:
        """Whether actions are chosen frame by frame, and so cannot be known beforehand."""
        return self.actions == POLICY if isinstance(self.actions, str) else callable(self.actions)

    # What it begins with

    def start(
        self,
        world: World,
        *,
        whole_clip: bool = False,
        note: Callable[[str], None] = lambda _: None,
    ) -> Start:
        """Return the context from which a session of a world begins.

        Args:
            world: To begin in.
            whole_clip: Take all frames of a clip, also those too early to change the next one.
            note: Told what had to be changed to make it fit, one line each.

        Raises:
            ConfigError: If the world knows no text.
            DataError: If a picture or a video is missing, damaged or tiny, or actions of a clip do
                not fit it.
            ActionError: If an action does not fit the world's schema.
            LogError: If the session is of another world.
        """
        if self.session is not None:
            return world.load_session(Path(self.session)).context()
        text_ids = None if self.text is None else world.text_ids(self.text)
        if self.image is not None:
            frames = [self._fitted(self._picture(), world, _name(self.image, "image"), note)]
            actions = _no_actions(world)
        elif self.clip is not None:
            frames, actions = self._clip(world, whole_clip, note)
        elif self.start_index is not None or text_ids is None:
            start = _shipped(world, self.start_index or 0)
            return start if text_ids is None else dataclasses.replace(start, text_ids=text_ids)
        else:
            frames, actions = [], _no_actions(world)
        return Start(
            visual_ids=_encode(world, frames),
            action_ids=world.model.layout.actions_of_steps(actions),
            text_ids=text_ids,
        )

    def begin(
        self,
        world: World,
        *,
        seed: int | None = None,
        decoder: str | None = None,
        sampling: SamplingConfig | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Session:
        """Return a session of a world at the frame that the video begins with.

        A saved session goes on exactly as it would have, with its own seed, decoder and sampling,
        unless one of them is given: then a new session begins with all of its frames as context.

        Args:
            world: To begin in.
            seed: 0 by default.
            decoder: By default the first one on the world's card.
            sampling: By default the card's.
            note: As for `start`.

        Raises:
            WorldgenError: As `start`, and if the decoder is unknown.
        """
        changed = any(part is not None for part in (seed, decoder, sampling))
        if self.session is not None and not changed:
            return world.load_session(Path(self.session))
        beginning: int | Start = self.start(world, note=note)
        shipped = self.image is None and self.clip is None and self.session is None
        if shipped and self.text is None:
            # By its number, which the log then tells.
            beginning = self.start_index or 0
        return world.session(seed=seed or 0, start=beginning, decoder=decoder, sampling=sampling)

    # What is done

    def script(
        self, world: World, *, note: Callable[[str], None] = lambda _: None
    ) -> Num[NDArray[Any], "step group"] | None:
        """Return the actions that are written down; None where there are none.

        Args:
            world: Whose schema they fit.
            note: Told what had to be changed to make them fit, one line each.

        Raises:
            ActionError: If an action does not fit, or the world is not driven by motion.
            DataError: If a file is missing, damaged or empty.
        """
        schema = world.action_tokenizer.schema
        if self.trajectory is not None:
            trajectory = self.trajectory
            if not isinstance(trajectory, Trajectory):
                trajectory = read_trajectory(Path(trajectory))
            actions, changes = trajectory.actions(schema, world.frames_per_second)
            for change in changes:
                note(change)
            return actions
        if self.actions is None or self.chooses:
            return None
        assert not callable(self.actions)
        return script_actions(self.actions, world)

    def actions_of(
        self,
        world: World,
        *,
        steps: int | None = None,
        session: Session | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Iterator[NDArray[Any]]:
        """Return what is done, frame after frame; see `after` for what follows a script's end.

        Args:
            world: Played.
            steps: Frames of the video, the first one not counted; None for as many as are asked
                for.
            session: That is played, where actions are chosen as it goes on.
            note: As for `script`.

        Raises:
            ActionError: As `script`; if the script is longer than the video; or if actions are
                chosen and there is no session to look at.
        """
        if steps is not None and not 0 < steps <= MAX_STEPS:
            raise ActionError(f"a video has 1 to {MAX_STEPS:,} steps, got {steps:,}")
        if self.chooses:
            if session is None:
                raise ActionError(
                    "actions that are chosen frame by frame are not known beforehand, which planning "
                    "and editing need; give a script, or generate frame by frame"
                )
            return itertools.islice(_chosen(session, self._chooser(session)), steps)
        script = self.script(world, note=note)
        rest = world.action_tokenizer.schema.rest()
        if script is None:
            return itertools.islice(itertools.repeat(rest), steps)
        if steps is not None and len(script) > steps:
            raise ActionError(
                f"the script has {len(script):,} steps, {len(script) / world.frames_per_second:g} s, "
                f"and the video {steps:,}, {steps / world.frames_per_second:g} s; make the video "
                "longer or the script shorter"
            )
        after = self.after or ("repeat" if self.trajectory is None else "last")
        return itertools.islice(_played(script, rest, after), steps)

    def _chooser(self, session: Session) -> ChooseAction:
        if callable(self.actions):
            return self.actions
        # Asked once for nothing: a world that predicts no actions says so before it is played.
        session.predict_action()
        return Session.predict_action

    # Text and pictures

    def _picture(self) -> UInt8[np.ndarray, "height width 3"]:
        if isinstance(self.image, str | Path):
            path = Path(self.image)
            if not path.is_file():
                raise DataError(f"no image at {path}; check the path")
            return read_image(path)
        return _checked(np.asarray(self.image), 3, "image")

    def _fitted(
        self,
        picture: UInt8[np.ndarray, "h w 3"],
        world: World,
        name: str,
        note: Callable[[str], None] | None = None,
    ) -> UInt8[np.ndarray, "height width 3"]:
        size = world.tokenizer.frame_height, world.tokenizer.frame_width
        height, width = picture.shape[:2]
        ratios = size[0] / max(height, 1), size[1] / max(width, 1)
        enlargement = max(ratios) if self.fit == "crop" else min(ratios)
        if not min(height, width) or enlargement > _LARGEST_ENLARGEMENT:
            raise DataError(
                f"{name} has {width} x {height} pixels, too few for frames of {size[1]} x {size[0]}, "
                f"which would show it {enlargement:.1f} times enlarged (at most "
                f"{_LARGEST_ENLARGEMENT:g}); give a larger one"
            )
        if self.fit == "pad" and enlargement * min(height, width) < _THINNEST_STRIP:
            raise DataError(
                f"{name} has {width} x {height} pixels, which between black bars would be a strip of "
                f"less than {_THINNEST_STRIP} pixels; crop it, or give a picture of another shape"
            )
        if note is not None and (height, width) != size:
            how = (
                "its largest centred part"
                if self.fit == "crop"
                else "the whole of it, between black bars,"
            )
            note(f"{name}: {width} x {height} pixels; {how} is scaled to {size[1]} x {size[0]}")
        return fit(picture, size) if self.fit == "crop" else pad(picture, size)

    def _clip(
        self, world: World, whole: bool, note: Callable[[str], None]
    ) -> tuple[list[UInt8[np.ndarray, "height width 3"]], Int[Tensor, "frame slot"]]:
        """Return what the world can see of the clip: frames, and the actions of all but the last."""
        name = _name(self.clip, "clip")
        kept: deque[tuple[int, np.ndarray]] = deque(
            maxlen=None if whole else _visible_frames(world)
        )
        count = 0
        for number, frame in at_rate(self._timed_frames(world), world.frames_per_second):
            kept.append((number, self._fitted(frame, world, name, None if kept else note)))
            count += 1
        while len(kept) > world.tokenizer.longest_clip(len(kept)):
            kept.popleft()
        if len(kept) < count:
            note(
                f"{name}: the last {len(kept)} of {count} frames, at {world.frames_per_second:g} a "
                "second, are what the world can see"
            )
        numbers = [number for number, _ in kept]
        return [frame for _, frame in kept], self._actions_of_clip(world, numbers)

    def _timed_frames(self, world: World) -> Iterable[tuple[float, np.ndarray]]:
        if isinstance(self.clip, str | Path):
            return iterate_timed_video(Path(self.clip))
        frames = _checked(np.asarray(self.clip), 4, "clip")
        if not len(frames):
            raise DataError("the clip has no frames; give at least one")
        rate = self.clip_frames_per_second or world.frames_per_second
        return ((number / rate, frame) for number, frame in enumerate(frames))

    def _actions_of_clip(self, world: World, numbers: list[int]) -> Int[Tensor, "frame slot"]:
        """Return the actions taken in frames of the clip that are named, but the last one's."""
        tokenizer = world.action_tokenizer
        if self.clip_actions is None:
            rest = torch.from_numpy(tokenizer.encode(tokenizer.schema.rest()))
            return rest.expand(len(numbers) - 1, -1)
        actions = _clip_actions(self.clip_actions, world)
        steps = [after - before for before, after in itertools.pairwise(numbers)]
        if is_driving_schema(tokenizer.schema) and any(step != 1 for step in steps):
            raise DataError(
                f"the clip's frames are not {world.frames_per_second:g} a second, and ego motion of "
                "one rate is not that of another; give a clip at the world's rate, or leave "
                "clip_actions out"
            )
        if numbers[-1] > len(actions):
            raise DataError(
                f"the clip has {numbers[-1] + 1} frames and actions of {len(actions)}; give one for "
                "each frame, the last one's may be missing"
            )
        return torch.from_numpy(tokenizer.encode(actions[numbers[:-1]]))


def script_actions(
    script: str | Path | Num[NDArray[Any], "step group"], world: World
) -> Num[NDArray[Any], "step group"]:
    """Return the actions of a script: written out, in a `.txt` file, or an array.

    In a file, lines that are empty or begin with # are passed over, and a line need not end with a
    comma.

    Raises:
        ActionError: If an action does not fit the world's schema, or there is none.
        DataError: If the file cannot be read.
    """
    schema = world.action_tokenizer.schema
    if isinstance(script, str | Path):
        if isinstance(script, str) and not script.endswith(".txt"):
            return parse_actions(script, schema)
        path = Path(script)
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the script {path} cannot be read ({error})") from error
        parts = []
        for number, line in enumerate(lines, start=1):
            if not line or line.startswith("#"):
                continue
            try:
                parts.append(parse_actions(line.removesuffix(","), schema))
            except ActionError as error:
                raise ActionError(f"{path}, line {number}: {error}") from None
            if sum(map(len, parts)) > MAX_STEPS:
                raise ActionError(f"{path} has more than {MAX_STEPS:,} steps; shorten it")
        if not parts:
            raise ActionError(f"the script {path} holds no actions; write such as left*20,gas*40")
        return np.concatenate(parts)
    actions = np.asarray(script)
    if actions.ndim != 2 or not len(actions):
        raise ActionError(
            f"actions are an array [step, group] of one step at least, got the shape "
            f"{list(actions.shape)}"
        )
    # Checks that they fit.
    world.action_tokenizer.encode(actions)
    return actions


def _clip_actions(
    source: str | Path | Num[NDArray[Any], "frame group"], world: World
) -> Num[NDArray[Any], "frame group"]:
    if not isinstance(source, str | Path) or Path(source).suffix.lower() != ".npz":
        return script_actions(source, world)
    try:
        with np.load(source, allow_pickle=False) as columns:
            actions = np.asarray(columns["action"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(
            f"{source} does not hold the actions of a recorded episode ({error})"
        ) from error
    return script_actions(actions, world)


def _played(
    script: Num[NDArray[Any], "step group"], rest: NDArray[Any], after: After
) -> Iterator[NDArray[Any]]:
    yield from script
    match after:
        case "repeat":
            yield from itertools.chain.from_iterable(itertools.repeat(script))
        case "last":
            yield from itertools.repeat(script[-1])
        case "rest":
            yield from itertools.repeat(rest)


def _chosen(session: Session, choose: ChooseAction) -> Iterator[NDArray[Any]]:
    """Give out what is chosen in each frame; frames that are drawn together share an action."""
    asked_at: int | None = None
    action = session.parts.action_tokenizer.schema.rest()
    while True:
        if session.frame_index != asked_at and not session.frames_left:
            chosen, asked_at = choose(session), session.frame_index
            schema = session.parts.action_tokenizer.schema
            action = parse_action(chosen, schema) if isinstance(chosen, str) else np.asarray(chosen)
        yield action


def _shipped(world: World, index: int) -> Start:
    if not 0 <= index < len(world.starts):
        raise ConfigError(
            f"world {world.name!r} has starts 0 to {len(world.starts) - 1}, got {index}"
        )
    return world.starts[index]


def _no_actions(world: World) -> Int[Tensor, "frame slot"]:
    return torch.empty((0, world.action_tokenizer.num_slots), dtype=torch.int64)


def _visible_frames(world: World) -> int:
    """Return how many frames can change the next one."""
    cache = world.model.new_cache(1)
    return 1 + int((cache.sink + cache.receptive_field) * world.model.layout.frames_per_step)


@torch.no_grad()
def _encode(
    world: World, frames: list[UInt8[np.ndarray, "height width 3"]]
) -> Int[Tensor, "step cell"]:
    tokenizer = world.tokenizer
    if not frames:
        return torch.empty((0, tokenizer.rows * tokenizer.columns), dtype=torch.int64)
    pixels = to_float(torch.from_numpy(np.stack(frames)))
    clips = pixels[:, None] if tokenizer.single_frames else pixels[None]
    # One by one, so that the ids of a frame do not depend on what it was encoded with.
    grids = torch.cat([tokenizer.encode(clip) for clip in clips.split(1)])
    return rearrange(grids, "clip step row column -> (clip step) (row column)").cpu().long()


def _checked(pixels: NDArray[Any], axes: int, what: str) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != axes or pixels.shape[-1] != 3:
        shape = "[height, width, 3]" if axes == 3 else "[time, height, width, 3]"
        raise DataError(f"the {what} must be uint8 {shape}, got {pixels.dtype} {pixels.shape}")
    return pixels


def _name(source: object, what: str) -> str:
    return str(source) if isinstance(source, str | Path) else f"the {what}"
