"""Play worlds in a browser: `serve` for people, `running_server` for tests and measurements."""

from worldgen.serving.app import create_app, running_server, serve
from worldgen.serving.connection import Limits

__all__ = ["Limits", "create_app", "running_server", "serve"]
