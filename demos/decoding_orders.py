"""One world under several decoding orders: how they look and how fast they are.

    python -m demos.decoding_orders --world car_racing

draws the tokens of a frame one by one (`raster`), diagonal by diagonal, in a few strided subsets,
or all at once (`whole_frame`), from the same start with the same actions and random numbers, and
writes `outputs/decoding_orders.png`, a film strip with one row for each order.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

import worldgen
from worldgen.errors import WorldgenError
from worldgen.evaluation.pages.film_strip import film_strip
from worldgen.tokenizers.action import parse_actions


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one order did."""

    order: str
    calls_per_frame: float
    """How often the model is asked for one frame."""
    frames_per_second: float
    """Pixels included."""
    frames: UInt8[np.ndarray, "time height width 3"]


def run_order(
    world: worldgen.World, order: str, actions: Num[np.ndarray, "step group"], *, seed: int
) -> Result:
    """Play the actions under one decoding order.

    Raises:
        ConfigError: If the order is unknown.
    """
    session = world.session(seed=seed, decoder=order)
    # The first step pays for memory and code that later ones find ready.
    session.fork().step(actions[0])
    begin = time.perf_counter()
    frames, calls = [session.frame], 0
    for action in actions:
        frames.append(session.step(action))
        calls += session.calls
    seconds = time.perf_counter() - begin
    return Result(
        order=order,
        calls_per_frame=calls / len(actions),
        frames_per_second=len(actions) / seconds,
        frames=np.stack(frames),
    )


def format_table(results: Sequence[Result]) -> str:
    """Return a table with one line for each order."""
    width = max(len("order"), *(len(result.order) for result in results))
    lines = [f"{'order':{width}}  calls per frame  frames per second"]
    for result in results:
        lines.append(
            f"{result.order:{width}}  {result.calls_per_frame:15.1f}  "
            f"{result.frames_per_second:17.1f}"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Run the demo with the words of the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="car_racing", help="shipped name or folder")
    parser.add_argument("--orders", nargs="+", help="default: those that the world learned")
    parser.add_argument("--actions", help='such as "gas*30,left+gas*10"; default: a tour of all')
    parser.add_argument("--seed", type=int, default=0, help="of the random draws")
    parser.add_argument("--out", type=Path, default=Path("outputs/decoding_orders.png"))
    arguments = parser.parse_args(words)
    try:
        world = worldgen.load(arguments.world)
        schema = world.action_tokenizer.schema
        tour = ",".join(f"{name}*8" for name in schema.named)
        actions = parse_actions(arguments.actions or tour, schema)
        results = [
            run_order(world, order, actions, seed=arguments.seed)
            for order in arguments.orders or world.card.decoders
        ]
        rows = {result.order: result.frames for result in results}
        film_strip(rows, arguments.out, every=max(1, len(actions) // 12))
    except WorldgenError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_table(results))
    print(f"written: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
