"""What the words of the command line do; each command takes its arguments and returns a status."""

from argparse import Namespace
from collections.abc import Callable

from worldgen.commands import generating, importing, measuring, playing, recordings

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[[Namespace], int]] = {
    **playing.COMMANDS,
    **generating.COMMANDS,
    **measuring.COMMANDS,
    **importing.COMMANDS,
    **recordings.COMMANDS,
}
"""Command, as named by the parser -> the function that runs it."""
