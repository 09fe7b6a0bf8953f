"""The command `worldgen`: its words, its exit statuses, and how it reports mistakes."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import worldgen
from worldgen.errors import WorldgenError

__all__ = ["build_parser", "main"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_LARGEST_SCALE = 64
"""Frames of 64 pixels are then as large as any screen."""
_MOST_STEPS_OUT = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 is done, 1 a replay that differs, 2 a mistake of the user with one line about it, 130 an
    interrupt.

    Args:
        arguments: Words after `worldgen`; those of the process by default.
    """
    parsed = build_parser().parse_args(arguments)
    try:
        # Torch takes seconds to import, and --help and a misspelt word need none of it.
        from worldgen.commands import COMMANDS

        status = COMMANDS[parsed.command](parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has left; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (WorldgenError, OSError) as error:
        print(f"worldgen: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("worldgen: stopped", file=sys.stderr)
        return _INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `command` of the result names the one to run."""
    parser = argparse.ArgumentParser(
        prog="worldgen", description="Play and measure worlds that live in a neural network."
    )
    parser.add_argument("--version", action="version", version=worldgen.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_play(commands)
    _add_rollout(commands)
    _add_generate(commands)
    _add_replay(commands)
    info = _add_command(commands, "info", "describe a world", "info")
    info.add_argument("world", metavar="NAME|FOLDER")
    info.add_argument("--json", action="store_true", help="as JSON")
    _add_command(commands, "list", "name the shipped worlds", "list")
    _add_evaluate(commands)
    _add_bench(commands)
    _add_pareto(commands)
    _add_import(commands)
    _add_data(commands)
    return parser


def _add_play(commands: Any) -> None:
    play = _add_command(commands, "play", "play in the browser", "play")
    play.add_argument(
        "--world",
        action="append",
        metavar="NAME|FOLDER",
        help="world to offer; repeat for several (default: all shipped worlds)",
    )
    play.add_argument(
        "--port", type=_whole_number(0, 65535), default=8765, help="default: 8765; 0 takes any"
    )
    play.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    play.add_argument("--no-browser", action="store_true", help="do not open a browser")
    play.add_argument(
        "--max-sessions", type=_whole_number(1), default=8, help="players at once (default: 8)"
    )
    play.add_argument(
        "--adaptive",
        action="store_true",
        help="draw a new run in the best decoding order that the machine keeps up with "
        "(default: in the first one on the world's card)",
    )


def _add_rollout(commands: Any) -> None:
    rollout = _add_command(
        commands,
        "rollout",
        "play actions, a trajectory, or the model itself, into a video",
        "rollout",
    )
    _add_world(rollout)
    what = rollout.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--actions",
        metavar="ACTIONS|FILE.txt",
        help='such as "left*20,left+gas*4,gas*40", or a file of such lines',
    )
    what.add_argument(
        "--trajectory",
        type=Path,
        metavar="FILE",
        help="poses or ego motion to drive, as csv, json or npy, for worlds driven by ego motion",
    )
    what.add_argument(
        "--drive", action="store_true", help="the model itself does what its players did"
    )
    rollout.add_argument(
        "--seconds",
        type=_positive_number,
        help="length; lists are repeated, the last step of a trajectory is held (default: all of it)",
    )
    rollout.add_argument(
        "--repeat", type=_whole_number(1), help="play it this often (default: once)"
    )
    rollout.add_argument(
        "--seed", type=_whole_number(0), default=0, help="decides every random draw (default: 0)"
    )
    rollout.add_argument(
        "--start", type=_whole_number(0), default=0, help="index of the start (default: 0)"
    )
    rollout.add_argument(
        "--decoder", help='decoding order, such as "strided:4" (default: the world\'s own)'
    )
    _add_sampling(rollout)
    _add_video(rollout)
    _add_log(rollout)
    rollout.add_argument(
        "--motion", type=Path, metavar="FILE.csv", help="ego motion that was driven, to write"
    )


def _add_generate(commands: Any) -> None:
    generate = _add_command(
        commands,
        "generate",
        "make a video of any length from a picture, a clip, a session, text and actions",
        "generate",
    )
    generate.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE|FOLDER",
        help="video to write: *.mp4, *.webm, *.gif, or a folder for PNG files",
    )
    generate.add_argument(
        "--resume", action="store_true", help="go on with --out where it was stopped"
    )
    generate.add_argument("--world", metavar="NAME|FOLDER", help="shipped name or a world's folder")
    generate.add_argument("--image", type=Path, metavar="FILE", help="picture to begin with")
    generate.add_argument("--clip", type=Path, metavar="FILE", help="video to begin with")
    generate.add_argument(
        "--clip-actions",
        metavar="ACTIONS|FILE",
        help="taken in the clip, as --actions or an episode's .npz (default: rest)",
    )
    generate.add_argument(
        "--session", type=Path, metavar="FILE", help="saved session or log to go on with"
    )
    generate.add_argument(
        "--start", type=_whole_number(0), help="index of a start of the world (default: 0)"
    )
    generate.add_argument(
        "--fit", choices=["crop", "pad"], help="how pictures become frames (default: crop)"
    )
    generate.add_argument("--text", metavar="SENTENCE", help="what is to be seen")
    generate.add_argument(
        "--actions",
        metavar="ACTIONS|FILE.txt|policy",
        help='such as "left*20,gas*40"; policy: what the model itself would do (default: rest)',
    )
    generate.add_argument(
        "--trajectory", type=Path, metavar="FILE", help="poses or ego motion to drive"
    )
    generate.add_argument(
        "--after",
        choices=["repeat", "last", "rest"],
        help="what is done after the script's end (default: actions are repeated, the last step of "
        "a trajectory is held)",
    )
    generate.add_argument(
        "--seconds", type=_positive_number, help="to make (default: as long as the script)"
    )
    generate.add_argument(
        "--before",
        type=_positive_number,
        metavar="SECONDS",
        help="to make before --clip or --image, which end the video",
    )
    generate.add_argument(
        "--from-second",
        type=float,
        metavar="T",
        help="keep the session up to there, and make the rest anew",
    )
    generate.add_argument(
        "--to", type=Path, metavar="IMAGE", help="picture that the video ends with"
    )
    generate.add_argument(
        "--loop", action="store_true", help="end where it begins, to be shown round and round"
    )
    generate.add_argument(
        "--plan",
        type=_whole_number(2),
        metavar="STRIDE",
        help="plan a key frame every so many frames, then fill (default: frame by frame)",
    )
    generate.add_argument(
        "--seed", type=_whole_number(0), help="decides every random draw (default: 0)"
    )
    generate.add_argument(
        "--decoder", help='decoding order, such as "strided:4" (default: the world\'s own)'
    )
    _add_sampling(generate)
    generate.add_argument(
        "--text-guidance", type=float, help="towards the text; default: the world's own"
    )
    generate.add_argument(
        "--scale", type=_whole_number(1, _LARGEST_SCALE), help="video pixels per pixel (default: 4)"
    )
    _add_log(generate)


def _add_replay(commands: Any) -> None:
    replay = _add_command(commands, "replay", "generate a logged rollout again", "replay")
    replay.add_argument("log", type=Path, metavar="LOG.json")
    replay.add_argument(
        "--world", metavar="NAME|FOLDER", help="default: the shipped world that the log names"
    )
    replay.add_argument("--verify", action="store_true", help="exit with 1 if a frame differs")
    _add_video(replay)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure quality")
    parts = evaluate.add_subparsers(required=True, metavar="WHAT")
    world = _add_command(parts, "world", "rollouts and action following", "evaluate world")
    _add_world(world)
    world.add_argument(
        "--clips", type=_whole_number(1), default=64, help="test clips (default: 64)"
    )
    world.add_argument(
        "--data", type=Path, metavar="FOLDER", help="recording to take clips from (test split)"
    )
    world.add_argument(
        "--inverse-dynamics",
        type=Path,
        metavar="FILE",
        help="judge that reads actions from frames (default: the one in the world's folder)",
    )
    world.add_argument(
        "--long",
        action="store_true",
        help="replay 1,000 frames and time frame 5,000; minutes instead of seconds",
    )
    world.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")
    world.add_argument("--html", type=Path, metavar="FILE", help="report with film strips")
    _add_evaluate_long(parts)
    _add_evaluate_revisits(parts)
    _add_evaluate_text(parts)
    _add_evaluate_drive(parts)
    _add_evaluate_tokenizer(parts)


def _add_evaluate_long(parts: Any) -> None:
    long = _add_command(
        parts, "long", "drift of long rollouts, in windows of five seconds", "evaluate long"
    )
    _add_world(long)
    long.add_argument(
        "--seconds", type=_whole_number(5), default=60, help="length of a rollout (default: 60)"
    )
    long.add_argument("--rollouts", type=_whole_number(1), default=8, help="rollouts (default: 8)")
    long.add_argument(
        "--actions",
        choices=("recorded", "policy"),
        default="recorded",
        help="those of the test clips, or those that the model itself would take",
    )
    long.add_argument("--decoder", metavar="NAME", help="default: the first on the world's card")
    long.add_argument(
        "--plan",
        type=_whole_number(2),
        metavar="STRIDE",
        help="draw every STRIDE-th frame first, then fill the gaps (default: frame after frame)",
    )
    long.add_argument(
        "--data", type=Path, metavar="FOLDER", help="recording to take clips from (test split)"
    )
    long.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.json",
        help="figures of an earlier run, for the curves of the page; repeat for several",
    )
    long.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")
    long.add_argument("--html", type=Path, metavar="FILE", help="page with curves and film strips")


def _add_evaluate_revisits(parts: Any) -> None:
    revisits = _add_command(
        parts,
        "revisits",
        "does a place look the same after a walk out and back",
        "evaluate revisits",
    )
    _add_world(revisits)
    revisits.add_argument(
        "--out-steps",
        type=_whole_number(1, _MOST_STEPS_OUT),
        default=10,
        help="steps out, and as many back (default: 10)",
    )
    revisits.add_argument(
        "--clips", type=_whole_number(1), default=48, help="test clips to begin at (default: 48)"
    )
    revisits.add_argument(
        "--decoder", metavar="NAME", help="default: the first on the world's card"
    )
    revisits.add_argument(
        "--data", type=Path, metavar="FOLDER", help="recording to take clips from (test split)"
    )
    revisits.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="NAME|FOLDER",
        help="world to measure from the same contexts; repeat for several",
    )
    revisits.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")
    revisits.add_argument("--html", type=Path, metavar="FILE", help="page with curves and walks")


def _add_evaluate_text(parts: Any) -> None:
    told = _add_command(
        parts, "text", "are the facts of captions true in frames drawn from them", "evaluate text"
    )
    _add_world(told)
    told.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="recording to take captions from (test split)",
    )
    told.add_argument(
        "--captions",
        type=_whole_number(2),
        default=200,
        help="different captions, at most (default: 200)",
    )
    told.add_argument(
        "--seed", type=_whole_number(0), default=0, help="chooses and draws (default: 0)"
    )
    told.add_argument(
        "--seconds-on",
        type=_positive_number,
        default=0.0,
        metavar="SECONDS",
        help="read the facts again so much later (default: only from the first frame)",
    )
    told.add_argument("--decoder", metavar="NAME", help="default: the first on the world's card")
    told.add_argument("--temperature", type=float, help="default: the world's own")
    told.add_argument(
        "--text-guidance", type=float, help="towards the text; default: the world's own"
    )
    told.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")
    told.add_argument("--html", type=Path, metavar="FILE", help="page with sentences and frames")


def _add_evaluate_drive(parts: Any) -> None:
    drive = _add_command(
        parts, "drive", "does a world of ego motion go where it is told", "evaluate drive"
    )
    _add_world(drive)
    drive.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="recording of ego motion to take clips from (test split)",
    )
    drive.add_argument(
        "--judge",
        type=Path,
        metavar="FILE",
        help="reads motion from frames: an inverse dynamics model or probes (default: the world's "
        "inverse_dynamics.safetensors)",
    )
    drive.add_argument(
        "--seconds", type=_whole_number(1), default=10, help="length of a drive (default: 10)"
    )
    drive.add_argument(
        "--clips", type=_whole_number(1), default=32, help="test clips (default: 32)"
    )
    drive.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")


def _add_evaluate_tokenizer(parts: Any) -> None:
    tokenizer = _add_command(
        parts, "tokenizer", "pictures against their reconstructions", "evaluate tokenizer"
    )
    tokenizer.add_argument(
        "--tokenizer",
        required=True,
        metavar="FILE|NAME|FOLDER",
        help="tokenizer.safetensors, shipped world, or folder of a world or a run",
    )
    tokenizer.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="images, videos and recordings, in any of its folders",
    )
    tokenizer.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="part of recordings, or folder of that name (default: test of a recording, else all)",
    )
    tokenizer.add_argument(
        "--frames",
        type=_whole_number_or_all,
        default=17,
        metavar="N|all",
        help="frames of a clip; all takes whole videos (default: 17)",
    )
    tokenizer.add_argument(
        "--limit", type=_whole_number(1), help="most images, and most clips (default: no limit)"
    )
    tokenizer.add_argument(
        "--size", type=_size, metavar="HxW", help="default: what the tokenizer was made for"
    )
    tokenizer.add_argument(
        "--seed", type=_whole_number(0), default=0, help="decides perturbed codes (default: 0)"
    )
    tokenizer.add_argument("--lpips", type=Path, metavar="FILE", help="weights, to measure LPIPS")
    tokenizer.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="tokenizer whose encoder gives features (default: fixed random convolutions)",
    )
    tokenizer.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    tokenizer.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")
    tokenizer.add_argument("--html", type=Path, metavar="FILE", help="report with examples")


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure speed")
    parts = bench.add_subparsers(required=True, metavar="WHAT")
    play = _add_command(parts, "play", "from an action to its frame", "bench play")
    _add_world(play)
    play.add_argument("--frames", type=_whole_number(1), default=200, help="default: 200")
    play.add_argument(
        "--json", metavar="FILE|-", default="-", help="figures (default: standard output)"
    )
    tokenizer = _add_command(
        parts, "tokenizer", "the joint tokenizer beside a plain reading of it", "bench tokenizer"
    )
    for name, default in (("frames", 17), ("height", 256), ("width", 256), ("rounds", 3)):
        tokenizer.add_argument(
            f"--{name}", type=_whole_number(1), default=default, help=f"default: {default}"
        )
    tokenizer.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    tokenizer.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the library's networks (default: float32)",
    )
    tokenizer.add_argument(
        "--json", metavar="FILE|-", default="-", help="figures (default: standard output)"
    )

    _add_bench_decode(parts)


def _add_bench_decode(parts: Any) -> None:
    decode = _add_command(parts, "decode", "every decoder on one model", "bench decode")
    subject = decode.add_mutually_exclusive_group(required=True)
    subject.add_argument("--world", metavar="NAME|FOLDER", help="shipped name or a world's folder")
    subject.add_argument(
        "--model", metavar="NAME", help="sizes in configs/model, such as mineworld_300m_16f"
    )
    decode.add_argument(
        "--random-weights", action="store_true", help="what --model needs: speed without quality"
    )
    _add_decoders(decode)
    decode.add_argument(
        "--frames", type=_whole_number(1), default=32, help="timed for each decoder (default: 32)"
    )
    decode.add_argument("--rows", type=_whole_number(1), help="of the model's grid (default: 14)")
    decode.add_argument(
        "--columns", type=_whole_number(1), help="of the model's grid (default: 24)"
    )
    decode.add_argument(
        "--layers", type=_whole_number(1), help="only so many of the model's (default: all)"
    )
    decode.add_argument(
        "--tokenizer", metavar="NAME", help="sizes in configs/tokenizer, to count pixels too"
    )
    decode.add_argument(
        "--with-upstream",
        action="store_true",
        help="run the same model the way MineWorld does, for raster and diagonal order",
    )
    _add_draft(decode)
    decode.add_argument(
        "--clips",
        type=_whole_number(0),
        default=4,
        help="test clips that quality is measured on; 0 for speed alone (default: 4)",
    )
    decode.add_argument(
        "--horizon", type=_whole_number(4, 64), default=16, help="frames of a clip (default: 16)"
    )
    _add_device(decode)
    decode.add_argument(
        "--json", metavar="FILE|-", default="-", help="figures (default: standard output)"
    )


def _add_pareto(commands: Any) -> None:
    pareto = _add_command(commands, "pareto", "decoders by speed and quality", "pareto")
    _add_world(pareto)
    _add_decoders(pareto)
    _add_draft(pareto)
    pareto.add_argument(
        "--frames", type=_whole_number(1), default=64, help="timed for each decoder (default: 64)"
    )
    pareto.add_argument(
        "--clips", type=_whole_number(1), default=16, help="test clips (default: 16)"
    )
    pareto.add_argument(
        "--horizon",
        type=_whole_number(4, 64),
        default=32,
        help="frames predicted in each clip (default: 32)",
    )
    _add_device(pareto)
    pareto.add_argument(
        "--html", required=True, type=Path, metavar="FILE", help="page with chart and table"
    )
    pareto.add_argument("--json", metavar="FILE|-", help="all figures; - is standard output")


def _add_draft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft",
        type=Path,
        metavar="FILE",
        help="small world model of the same tokenizers, which guesses for speculative:...",
    )


def _add_decoders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        action="append",
        metavar="NAME",
        help='such as "strided:4"; repeat for several (default: one of every kind)',
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the world model (default: float32)",
    )


def _add_import(commands: Any) -> None:
    parent = commands.add_parser("import", help="read checkpoints of others")
    parts = parent.add_subparsers(required=True, metavar="ORIGIN")
    _add_import_mineworld(parts)
    _add_import_drivingworld(parts)
    commavq = _add_command(parts, "commavq", "a codec of driving video", "import commavq")
    commavq.add_argument(
        "--decoder", required=True, type=Path, metavar="FILE", help="decoder_pytorch_model.bin"
    )
    commavq.add_argument(
        "--encoder",
        type=Path,
        metavar="FILE",
        help="encoder_pytorch_model.bin (default: none, ids can be shown and not made)",
    )
    commavq.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")
    omni = _add_command(parts, "omnitokenizer", "a joint tokenizer", "import omnitokenizer")
    omni.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help="*.ckpt or *.safetensors"
    )
    omni.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")
    omni.add_argument(
        "--arguments",
        type=Path,
        metavar="FILE.json",
        help="arguments of its training (default: those in the checkpoint)",
    )
    omni.add_argument(
        "--mode",
        choices=["upstream", "aligned"],
        default="upstream",
        help="upstream: its numbers, for whole clips, as released weights were trained; aligned: "
        "causal, to train further (default: upstream)",
    )
    omni.add_argument(
        "--attention",
        choices=["sdpa", "einsum_bias"],
        default="sdpa",
        help="einsum_bias where the weights were trained with torch before 2.1 (default: sdpa)",
    )


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="read recordings of others")
    parts = data.add_subparsers(required=True, metavar="WHAT")
    inspect = _add_command(
        parts, "inspect", "say what a folder of recordings holds", "data inspect"
    )
    inspect.add_argument("path", type=Path, metavar="PATH", help="folder, or one recording")
    inspect.add_argument("--json", metavar="FILE|-", help="all of it; - is standard output")
    inspect.add_argument(
        "--limit", type=_whole_number(1), help="most recordings to look into (default: all)"
    )
    convert = _add_command(parts, "convert", "make native episodes of recordings", "data convert")
    convert.add_argument("path", type=Path, metavar="PATH", help="folder, or one recording")
    convert.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="folder to make, or to continue"
    )
    convert.add_argument("--height", type=_whole_number(1), help="of frames (default: as recorded)")
    convert.add_argument("--width", type=_whole_number(1), help="of frames (default: as recorded)")
    convert.add_argument(
        "--crop",
        action="store_true",
        help="cut frames to the shape of --height and --width before scaling (default: stretch)",
    )
    convert.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="take fewer frames a second of a drive (default: all)",
    )
    convert.add_argument(
        "--actions",
        choices=["recorded", "ego_motion"],
        default="recorded",
        help="ego_motion: take the poses of worldgen's own episodes for actions (default: recorded)",
    )
    convert.add_argument(
        "--schema",
        choices=["minecraft", "mineworld", "vpt_camera", "auto", "car_racing", "drivingworld"],
        help="actions of Minecraft (default: minecraft), or bins of ego motion (default: auto, "
        "fitted to the recording); other recordings have their own",
    )
    convert.add_argument(
        "--poses",
        metavar="NAMES",
        help="columns for --actions ego_motion: x, y and heading, or x, y, z, qx, qy, qz, qw "
        "(default: x,y,yaw)",
    )
    convert.add_argument(
        "--gui",
        choices=["drop", "keep"],
        default="drop",
        help="frames in which a window of the game is open: leave out, or keep and draw the cursor "
        "(default: drop)",
    )
    convert.add_argument("--camera", metavar="NAME", help="of several videos (default: the first)")
    convert.add_argument(
        "--episode-frames",
        type=_whole_number(2),
        default=600,
        metavar="N",
        help="longer recordings become several episodes (default: 600)",
    )
    convert.add_argument("--limit", type=_whole_number(1), help="most recordings (default: all)")


def _add_import_mineworld(parts: Any) -> None:
    mineworld = _add_command(parts, "mineworld", "a world of Minecraft", "import mineworld")
    mineworld.add_argument(
        "--config", required=True, type=Path, metavar="FILE.yaml", help="upstream's configuration"
    )
    mineworld.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="*.ckpt, *.bin or *.safetensors with the transformer",
    )
    mineworld.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="the visual tokenizer (default: the checkpoint, or what the configuration names)",
    )
    mineworld.add_argument(
        "--tokenizer-config",
        type=Path,
        metavar="FILE.json",
        help="sizes of the visual tokenizer (default: what the configuration names)",
    )
    mineworld.add_argument(
        "--height", type=_whole_number(1), help="of frames, in pixels (default: 224)"
    )
    mineworld.add_argument(
        "--width", type=_whole_number(1), help="of frames, in pixels (default: 384)"
    )
    mineworld.add_argument(
        "--start",
        type=Path,
        metavar="IMAGE|VIDEO",
        help="what the world begins with (default: a frame of plain grey)",
    )
    mineworld.add_argument(
        "--start-actions",
        type=Path,
        metavar="FILE.jsonl",
        help="the video's actions, one line a frame: the world begins with up to 8 frames",
    )
    mineworld.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="folder to make"
    )


def _add_import_drivingworld(parts: Any) -> None:
    driving = _add_command(parts, "drivingworld", "a world of driving", "import drivingworld")
    driving.add_argument(
        "--tokenizer", required=True, type=Path, metavar="FILE", help="vqvae.pt or *.safetensors"
    )
    driving.add_argument(
        "--model", required=True, type=Path, metavar="FILE", help="world_model.pth or *.safetensors"
    )
    driving.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="JSON or YAML with upstream's settings that differ (default: those of the release)",
    )
    driving.add_argument(
        "--starts",
        type=Path,
        metavar="FOLDER",
        help="clips that the world begins with: PNG files, pose.npy and yaw.npy, or folders of them "
        "(default: a frame of plain grey)",
    )
    driving.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")


def _add_command(
    commands: Any, word: str, description: str, command: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        word, help=description, description=description
    )
    parser.set_defaults(command=command)
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, help="default: the world's own")
    parser.add_argument("--top-p", type=float, help="default: the world's own")
    parser.add_argument("--top-k", type=_whole_number(1), help="default: the world's own")
    parser.add_argument("--min-p", type=float, help="default: the world's own")
    parser.add_argument(
        "--guidance", type=float, help="towards the actions; default: the world's own"
    )


def _add_world(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--world", required=True, metavar="NAME|FOLDER", help="shipped name or a world's folder"
    )


def _add_video(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE|FOLDER",
        help="video to write: *.mp4, *.webm, *.gif, or a folder for PNG files",
    )
    parser.add_argument(
        "--scale",
        type=_whole_number(1, _LARGEST_SCALE),
        default=4,
        help="video pixels per pixel (default: 4)",
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="to write: *.json, a log for replay, or *.safetensors, all frames as tokens, for "
        "--session",
    )


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"needs a number above 0, got {text!r}")
    return number


def _whole_number_or_all(text: str) -> int | None:
    return None if text == "all" else _whole_number(1)(text)


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal() and int(height) * int(width)):
        raise argparse.ArgumentTypeError(
            f"needs height and width in pixels, such as 256x256, got {text!r}"
        )
    return int(height), int(width)


def _whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    allowed = f"{low} or more" if high is None else f"{low} to {high}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"needs a whole number, {allowed}, got {text!r}")
        return number

    return parse
