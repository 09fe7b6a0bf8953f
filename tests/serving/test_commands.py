"""Commands are read from JSON; what is no command is refused."""

import json

import pytest

from worldgen.serving import commands
from worldgen.serving.commands import parse_command
from worldgen.serving.protocol import ProtocolError


def test_commands_are_read_into_their_types() -> None:
    assert parse_command('{"do": "open", "world": "a", "seed": 4}') == commands.Open(
        world="a", seed=4
    )
    assert parse_command('{"do": "save"}') == commands.Save()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "without a command"),
        ("{}", "without a command"),
        ('{"do": 3}', "without a command"),
        ('{"do": "format_disk"}', "unknown command"),
        ('{"do": "rewind"}', "malformed command"),
        ('{"do": "rewind", "frame": "x"}', "malformed command"),
        ('{"do": "rewind", "frame": 1, "more": 2}', "malformed command"),
    ],
)
def test_text_that_is_no_command_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_command(text)


def test_every_command_of_the_docstring_is_known() -> None:
    for name in ("cancel", "save", "video"):
        assert parse_command(json.dumps({"do": name}))
