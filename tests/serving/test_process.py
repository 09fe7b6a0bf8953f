"""The server as a process of its own: what a user sees in the terminal."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.client import PATIENCE, Client

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from worldgen.serving import serve; "
CODE += "serve([sys.argv[1]], port=0, open_browser=False)"


@pytest.fixture
def server(world_folder: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(world_folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_terminal_shows_lines_and_never_a_traceback(
    server: "subprocess.Popen[str]", world_folder: Path
) -> None:
    assert server.stderr is not None
    line = server.stderr.readline()
    address = re.search(
        rf"playing {re.escape(str(world_folder))} at (http://127.0.0.1:(\d+)/) ", line
    )
    assert address, line
    url, port = address[1], int(address[2])
    with Client(url) as client:
        client.open()
        client.step(1, 0)
    with Client(url) as client:
        client.socket.send("garbage")
        assert client.close_code() == 1003
    # Text that is no UTF-8, and bytes that are no HTTP at all.
    with Client(url) as client:
        client.socket.socket.sendall(b"\x81\x82\x00\x00\x00\x00\xff\xfe")
        assert client.close_code() == 1007
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(os.urandom(200) + b"\r\n\r\n")
        raw.settimeout(PATIENCE)
        assert b"400" in raw.recv(100)
    with Client(url) as client:
        client.open()
        server.send_signal(signal.SIGINT)
        assert client.close_code() in {1001, 1012}
    _, text = server.communicate(timeout=PATIENCE)
    assert server.returncode == 0
    assert "Traceback" not in text
    assert "visitor 1 left after 1 frames" in text
    assert "visitor 2: closed, garbage" in text
    assert all(line[2] == ":" for line in text.splitlines()), text
