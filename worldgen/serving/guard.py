"""Who may talk to the server: Host and Origin are checked before anything else is looked at."""

import ipaddress
import logging
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard"]

_logger = logging.getLogger("worldgen.serving")

_HEADERS = {
    # Nothing is loaded from outside, and no other page may frame this one.
    "content-security-policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; "
        "media-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # The page has no build step, hence no versioned names: it asks each time whether it is new.
    "cache-control": "no-cache",
}


class Guard:
    """Refuses foreign Host headers (DNS rebinding) and foreign Origins (other sites' scripts).

    Allowed hosts are numeric addresses, `localhost`, this machine's name and `allowed_hosts`: a
    name that somebody else's DNS points to this machine is not among them. A client that sends
    no Origin is not a browser and needs no protection.

    Args:
        app: The application to guard.
        allowed_hosts: Further names under which the server is reached, without ports.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str] = ()) -> None:
        self._app = app
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, f"{own}.local", *(host.lower() for host in allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403 (400 for a Host that is none)."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        reason = self._refusal(host, origin)
        if reason is None:
            await self._app(scope, receive, _with_headers(scope, send))
            return
        _logger.warning("refused a request: %s", reason)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse(f"Refused: {reason}.\n", 403)(scope, receive, send)

    def _refusal(self, host: str, origin: str | None) -> str | None:
        name = _host_name(host)
        if name is None or not (name in self._hosts or _is_address(name)):
            return f"Host {host[:100]!r} is not a name of this server"
        if origin is not None and urlsplit_netloc(origin) != host.lower():
            return f"Origin {origin[:100]!r} is not this server"
        return None


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def urlsplit_netloc(origin: str) -> str | None:
    """Return host and port of an origin in lower case, None if it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(scope: Scope, send: Send) -> Send:
    if scope["type"] != "http":
        return send

    async def send_with_headers(message: "dict[str, object]") -> None:
        if message["type"] == "http.response.start":
            extra = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
            given = message.get("headers") or []
            message["headers"] = [*given, *extra]  # type: ignore[misc]
        await send(message)

    return send_with_headers  # type: ignore[return-value]
