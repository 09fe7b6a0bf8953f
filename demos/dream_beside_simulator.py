"""The same actions from the same start, in a learned world and in the simulator it learned from.

    python -m demos.dream_beside_simulator --world car_racing

writes `outputs/dream_beside_simulator.png`, a film strip, and the mp4 of the same name, the dream
on the left and the simulator on the right. Where the two drift apart, the world has things to learn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

import worldgen
from worldgen.data.video import write_video
from worldgen.errors import EnvironmentMissingError, WorldgenError
from worldgen.evaluation.pages.film_strip import film_strip
from worldgen.generation import Start
from worldgen.real_environment import RealEnvironment
from worldgen.tokenizers.action import parse_actions

Clip = UInt8[np.ndarray, "time height width 3"]
Actions = Num[np.ndarray, "step group"]

_GAP = 4


def dream(world: worldgen.World, actions: Actions, *, start: int = 0, seed: int = 0) -> Clip:
    """Return the frames that the learned world shows, one more than there are actions."""
    session = world.session(start=start, seed=seed)
    return np.stack([session.frame, *(session.step(action) for action in actions)])


def reality(world: worldgen.World, actions: Actions, *, start: int = 0) -> Clip:
    """Return the frames of the real environment, brought to the same start first.

    Raises:
        EnvironmentMissingError: If the world or the start names no environment, or it is not
            installed.
    """
    card, origin = world.card.environment, world.starts[start]
    if card is None or origin.environment_seed is None or origin.environment_actions is None:
        raise EnvironmentMissingError(
            f"world {world.name!r} does not say how its simulator comes to start {start}; "
            "choose a shipped world"
        )
    with RealEnvironment(card.id, card.options) as environment:
        frame = _bring_to(origin, environment)
        return np.stack([frame, *(environment.step(action) for action in actions)])


def _bring_to(start: Start, environment: RealEnvironment) -> UInt8[np.ndarray, "height width 3"]:
    assert start.environment_seed is not None
    assert start.environment_actions is not None
    frame = environment.reset(seed=start.environment_seed)
    for action in start.environment_actions:
        frame = environment.step(action)
    return frame


def side_by_side(left: Clip, right: Clip) -> Clip:
    """Return one clip that shows both, a white gap between them."""
    gap = np.full((*left.shape[:2], _GAP, 3), 255, np.uint8)
    return np.concatenate((left, gap, right), axis=2)


def peak_signal_to_noise(frames: Clip, truth: Clip) -> Num[np.ndarray, " time"]:
    """Return how near each frame is to the truth, in decibel; infinite where they are equal."""
    errors = np.mean((frames.astype(np.float64) - truth) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255**2 / errors))


def run(arguments: argparse.Namespace) -> None:
    """Generate both clips, write strip and video, and print how far they are apart."""
    world = worldgen.load(arguments.world)
    schema = world.action_tokenizer.schema
    tour = ",".join(f"{name}*8" for name in schema.named)
    actions = parse_actions(arguments.actions or tour, schema)
    dreamt = dream(world, actions, start=arguments.start, seed=arguments.seed)
    real = reality(world, actions, start=arguments.start)
    every = max(1, len(dreamt) // 12)
    strip = film_strip(
        {"simulator": real, "dream": dreamt}, Path(f"{arguments.out}.png"), every=every
    )
    video = Path(f"{arguments.out}.mp4")
    write_video(video, side_by_side(dreamt, real), world.frames_per_second, scale=arguments.scale)
    decibel = peak_signal_to_noise(dreamt, real)
    for step in range(0, len(decibel), every):
        print(f"step {step:4d}: {decibel[step]:5.1f} dB")
    print(f"written: {strip} and {video}")


def main(words: Sequence[str] | None = None) -> int:
    """Run the demo with the words of the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="car_racing", help="shipped name or folder")
    parser.add_argument("--actions", help='such as "gas*30,left+gas*10"; default: a tour of all')
    parser.add_argument("--start", type=int, default=0, help="index of the start")
    parser.add_argument("--seed", type=int, default=0, help="of the dream's random draws")
    parser.add_argument("--scale", type=int, default=4, help="video pixels per pixel")
    parser.add_argument(
        "--out", default="outputs/dream_beside_simulator", help="files without suffix"
    )
    try:
        run(parser.parse_args(words))
    except WorldgenError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
