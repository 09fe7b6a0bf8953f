"""The web application, and the server that runs it: `serve` for people, `running_server` for tests."""

import contextlib
import itertools
import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from worldgen.errors import WorldgenError
from worldgen.serving.commands import MAX_COMMAND_BYTES
from worldgen.serving.connection import Connection, Limits
from worldgen.serving.engine import Engine
from worldgen.serving.guard import Guard
from worldgen.serving.visit import Visit

__all__ = ["create_app", "running_server", "serve"]

_STATIC = Path(__file__).resolve().parent / "static"
_logger = logging.getLogger("worldgen.serving")


def create_app(
    world_names: Sequence[str],
    *,
    max_sessions: int = 8,
    adaptive: bool = False,
    limits: Limits | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Starlette:
    """Return the application: one page, its files, and one WebSocket at `/play`.

    Args:
        world_names: Shipped names or folders of the worlds to offer; they are loaded here.
        max_sessions: Visitors at once; one more is refused politely.
        adaptive: Whether a new drive gets a decoding order that the machine keeps up with.
        limits: What one visitor may ask for.
        allowed_hosts: Names, beside localhost and numeric addresses, that a browser may use.

    Raises:
        WorldgenError: If a world cannot be loaded.
    """
    engine = Engine(world_names, max_sessions=max_sessions, adaptive=adaptive)
    allowed = limits or Limits()
    numbers = itertools.count(1)

    async def page(request: Request) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    async def play(websocket: WebSocket) -> None:
        connection = Connection(websocket, allowed)
        await Visit(connection, engine, f"visitor {next(numbers)}").run()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.report_warm_up()
        yield
        engine.stop()

    return Starlette(
        routes=[
            Route("/", page),
            WebSocketRoute("/play", play),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[Middleware(Guard, allowed_hosts=tuple(allowed_hosts))],
        lifespan=lifespan,
    )


def serve(
    world_names: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    open_browser: bool = True,
    max_sessions: int = 8,
    adaptive: bool = False,
) -> None:
    """Serve worlds until Ctrl-C.

    Args:
        world_names: Shipped names or folders.
        host: Address to listen on; the default is reached from this machine only.
        port: Port; 0 takes a free one.
        open_browser: Show the page in the user's browser, if there is one.
        max_sessions: Visitors at once.
        adaptive: Whether a new drive gets a decoding order that the machine keeps up with.

    Raises:
        WorldgenError: If a world cannot be loaded or the address cannot be had.
    """
    _log_to_terminal()
    with _listen(host, port) as listener:
        app = create_app(world_names, max_sessions=max_sessions, adaptive=adaptive)
        url = _url(host, listener)
        _logger.info("playing %s at %s (Ctrl-C stops)", ", ".join(map(str, world_names)), url)
        if open_browser and _has_display():
            # Opened a moment later, when the server answers.
            threading.Timer(0.5, webbrowser.open, (url,)).start()
        with contextlib.suppress(KeyboardInterrupt):
            _server(app).run(sockets=[listener])


@contextlib.contextmanager
def running_server(
    world_names: Sequence[str],
    *,
    port: int = 0,
    max_sessions: int = 8,
    adaptive: bool = False,
    limits: Limits | None = None,
) -> Iterator[str]:
    """Run a server in a thread of this process, on a free port; yield the page's URL.

    For tests and measurements; `serve` is the same server for people.

    Args:
        world_names: Shipped names or folders.
        port: Port; 0 takes a free one.
        max_sessions: Visitors at once.
        adaptive: Whether a new drive gets a decoding order that the machine keeps up with.
        limits: What one visitor may ask for.

    Raises:
        WorldgenError: If a world cannot be loaded or the port is taken.

    Example:
        >>> with running_server(["car_racing"]) as url:
        ...     print(url)
    """
    with _listen("127.0.0.1", port) as listener:
        app = create_app(world_names, max_sessions=max_sessions, adaptive=adaptive, limits=limits)
        server = _server(app)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="worldgen-server", daemon=True
        )
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise WorldgenError("the server ended before it answered; see its log")
                time.sleep(0.01)
            yield _url("127.0.0.1", listener)
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        # The message of `create_server` repeats the address; the errors of names have no number.
        number = getattr(error, "errno", None) or 0
        what = os.strerror(number) if number > 0 else str(error)
        raise WorldgenError(
            f"cannot listen on {host} port {port}: {what}; choose another port with --port, "
            "or stop what uses this one"
        ) from error
    # Inherited by every connection. Without it a picture that follows another waits 40 ms for the
    # browser's delayed acknowledgement; asyncio sets it only on sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listener.getsockname()[1]}/"


def _server(app: Starlette) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws_max_size=MAX_COMMAND_BYTES,
            # A frame is 12 kB and must be there at once; deflating it costs more than it saves.
            ws_per_message_deflate=False,
            ws_ping_interval=10.0,
            ws_ping_timeout=10.0,
            timeout_graceful_shutdown=2,
            limit_concurrency=256,
        )
    )


class _OneLine(logging.Formatter):
    """A user sees what happened, not the stack where it happened."""

    def format(self, record: logging.LogRecord) -> str:
        lines = record.getMessage().strip().splitlines()
        text = lines[0] if lines else ""
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        return f"{time.strftime('%H:%M:%S')} {record.levelname.lower()}: {text}"


def _log_to_terminal() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    for name, level in (("worldgen.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _has_display() -> bool:
    # Without a screen Python would open a text browser inside the user's terminal.
    windows_or_mac = not sys.platform.startswith("linux")
    return windows_or_mac or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
