"""What the commands do that look at recordings and convert them."""

import sys
from argparse import Namespace
from collections.abc import Callable

from tqdm import tqdm

from worldgen.commands.output import check_output, json_path, write_json
from worldgen.errors import DataError

__all__ = ["COMMANDS"]


def _data_inspect(arguments: Namespace) -> int:
    from worldgen.data.formats import open_layout
    from worldgen.data.formats.report import format_report

    check_output(json_path(arguments))
    layout = open_layout(arguments.path)
    with tqdm(unit=" recordings", disable=None, leave=False) as bar:
        report = layout.inspect(arguments.limit, bar.update)
    if arguments.json is not None:
        write_json(report.to_json(), arguments.json)
    if arguments.json != "-":
        for line in format_report(report):
            print(line)
    return 0


def _data_convert(arguments: Namespace) -> int:
    if arguments.actions == "ego_motion":
        return _data_convert_to_motion(arguments)
    from worldgen.data.formats import ReadOptions, open_layout
    from worldgen.data.formats.convert import convert, format_conversion
    from worldgen.data.formats.report import format_problems

    if (arguments.height is None) != (arguments.width is None):
        raise DataError("frames need --height and --width, or neither of them")
    options = ReadOptions(
        size=None if arguments.height is None else (arguments.height, arguments.width),
        schema=arguments.schema,
        gui=arguments.gui,
        camera=arguments.camera,
        episode_frames=arguments.episode_frames,
        frames_per_second=arguments.fps,
        crop=arguments.crop,
    )
    layout = open_layout(arguments.path)
    with tqdm(unit=" recordings", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            conversion = convert(
                layout, arguments.out, options, limit=arguments.limit, progress=show
            )
        except KeyboardInterrupt:
            print(
                f"worldgen: what is in {arguments.out} are whole episodes; the same command goes on",
                file=sys.stderr,
            )
            raise
    for line in (*format_conversion(conversion), *format_problems(conversion.problems)):
        print(line)
    print(f"written to {arguments.out}; train with data.folder={arguments.out}")
    return 0


def _data_convert_to_motion(arguments: Namespace) -> int:
    from worldgen.data.formats import NativeEpisodes
    from worldgen.data.formats.report import format_problems
    from worldgen.data.motion import (
        MOTION_SCHEMAS,
        POSE_COLUMNS,
        convert_to_motion,
        format_motion_conversion,
    )

    schema = arguments.schema or "auto"
    if schema not in MOTION_SCHEMAS:
        raise DataError(f"--schema {schema} is of Minecraft; use {', '.join(MOTION_SCHEMAS)}")
    if not NativeEpisodes.detect(arguments.path):
        raise DataError(
            f"--actions ego_motion takes worldgen's own episodes, and {arguments.path} has no "
            "dataset.json; convert it without --actions first, which recordings of drives need no "
            "more than that"
        )
    names = arguments.poses.split(",") if arguments.poses else POSE_COLUMNS
    with tqdm(unit=" episodes", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        conversion = convert_to_motion(
            arguments.path,
            arguments.out,
            schema=schema,
            columns=[name.strip() for name in names],
            progress=show,
        )
    for line in (*format_motion_conversion(conversion), *format_problems(conversion.problems)):
        print(line)
    print(f"written to {arguments.out}; train with data.folder={arguments.out}")
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "data inspect": _data_inspect,
    "data convert": _data_convert,
}
