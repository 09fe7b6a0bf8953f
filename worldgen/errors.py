"""The errors that a user of worldgen can cause, one type for each place to look."""

__all__ = [
    "ActionError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EnvironmentMissingError",
    "LogError",
    "SessionLimitError",
    "WorldgenError",
]


class WorldgenError(Exception):
    """Base of every error below; the command line prints its message without a traceback."""


class ConfigError(WorldgenError, ValueError):
    """A configuration has an unknown key, a wrong type, or values that do not fit together."""


class DataError(WorldgenError, ValueError):
    """A recording, a token cache or a video is missing, foreign, damaged or of the wrong shape."""


class CheckpointError(WorldgenError, ValueError):
    """Weights are missing, truncated, or belong to another configuration."""


class ActionError(WorldgenError, ValueError):
    """An action does not fit the schema of its world."""


class LogError(WorldgenError, ValueError):
    """A rollout log is malformed or belongs to another world."""


class SessionLimitError(WorldgenError, RuntimeError):
    """A session cannot go on: too many are open, or it was asked for a frame it does not have."""


class EnvironmentMissingError(WorldgenError, RuntimeError):
    """The real environment of a world is not installed."""
