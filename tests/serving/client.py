"""A visitor in Python, for tests: sends what the page sends and reads what it reads."""

import json
from types import TracebackType
from typing import Any, Self

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from worldgen.serving.protocol import Kind, Picture, Step, pack_step, unpack_picture

PATIENCE = 120.0
"""Seconds until a test gives up waiting; only a server that hangs takes so long."""


class Client:
    """Connects, and keeps every message until a test asks for it."""

    def __init__(self, url: str, **options: Any) -> None:
        # Threads of a test hand sockets around; the block form of `connect` does not suit that.
        patience: dict[str, Any] = {"open_timeout": PATIENCE, "ping_timeout": PATIENCE}
        self.socket = connect(
            url.replace("http", "ws") + "play", legacy=True, **(patience | options)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def command(self, name: str, /, **fields: Any) -> None:
        self.socket.send(json.dumps({"do": name, **fields}))

    def open(self, world: str = "tiny", **fields: Any) -> dict[str, Any]:
        self.command("open", world=world, **fields)
        return self.notice("drive")

    def step(self, *values: float, stamp: float = 1.0) -> Picture:
        self.send_step(*values, stamp=stamp)
        while (picture := self.picture(Kind.DREAM)).stamp != stamp:
            pass
        return picture

    def send_step(self, *values: float, stamp: float = 1.0) -> None:
        self.socket.send(pack_step(Step(stamp=stamp, values=np.array(values, np.float32))))

    def close_code(self) -> int | None:
        """Read until the server closes the socket; return its code, None if none came."""
        try:
            while True:
                self.socket.recv(timeout=PATIENCE)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else None

    def notice(self, name: str) -> dict[str, Any]:
        """Read up to the next notice of that name."""
        while True:
            message = self.socket.recv(timeout=PATIENCE)
            if isinstance(message, str):
                notice: dict[str, Any] = json.loads(message)
                if notice["say"] == name:
                    return notice
                assert name == "error" or notice["say"] != "error", notice

    def binary(self, kind: Kind) -> bytes:
        """Read up to the next binary message of that kind."""
        while True:
            message = self.socket.recv(timeout=PATIENCE)
            if isinstance(message, bytes) and message[0] == kind:
                return message

    def picture(self, kind: Kind) -> Picture:
        return unpack_picture(self.binary(kind))
