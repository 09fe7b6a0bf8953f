"""The server as a process of its own: what a user sees in the terminal."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.client import Client

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from worldgen.serving import serve; "
CODE += "serve([sys.argv[1]], port=int(sys.argv[2]), open_browser=False)"


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
        return number


@pytest.fixture
def server(world_folder: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(world_folder), str(port)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert f"playing {world_folder} at http://127.0.0.1:{port}/" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_terminal_shows_lines_and_never_a_traceback(
    server: "subprocess.Popen[str]", port: int
) -> None:
    url = f"http://127.0.0.1:{port}/"
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
        raw.settimeout(5)
        assert b"400" in raw.recv(100)
    with Client(url) as client:
        client.open()
        server.send_signal(signal.SIGINT)
        assert client.close_code() in {1001, 1012}
    _, text = server.communicate(timeout=20)
    assert server.returncode == 0
    assert "Traceback" not in text
    assert "visitor 1 left after 1 frames" in text
    assert "visitor 2: closed, garbage" in text
    assert all(line[2] == ":" for line in text.splitlines()), text
