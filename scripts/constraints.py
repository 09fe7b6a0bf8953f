"""Writes constraints.txt: the versions in this environment of everything worldgen[envs,dev] needs.

Run by `make constraints` after a deliberate upgrade and a green `make test`.
"""

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = """\
# The versions that the tests ran with. Written by: make constraints
"""


def closure(root: str, extras: Iterable[str]) -> dict[str, str]:
    """Return name and version of every installed distribution that `root[extras]` leads to.

    Raises:
        importlib.metadata.PackageNotFoundError: If a requirement is not installed here.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(root, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        distribution = importlib.metadata.distribution(name)
        # The build of torch, 2.13.0+cpu, depends on the machine: only its version is pinned.
        versions[canonicalize_name(name)] = Version(distribution.version).public
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, more) for more in ("", *requirement.extras)]
    del versions[canonicalize_name(root)]
    return versions


def main() -> int:
    """Write the file and return the exit status."""
    versions = closure("worldgen", ["envs", "dev"])
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    CONSTRAINTS.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(lines)} versions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
