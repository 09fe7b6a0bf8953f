"""Makes .venv ready: torch first and without CUDA where no driver is, then the pinned rest.

Runs on nothing but Python with venv and pip: `python3 scripts/setup.py --extras envs,dev`.
A second run finds its stamp and returns at once.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MINIMUM = (3, 11)

# Runs inside the new environment: what the installed torch is, and which CUDA packages lie about.
REPORT = """
import importlib.metadata, json, re
names = [distribution.metadata["Name"] for distribution in importlib.metadata.distributions()]
found = "torch" in names
print(json.dumps({
    "torch": importlib.metadata.version("torch") if found else None,
    "needs_cuda": found and any(
        re.match(r"nvidia-|cuda-", line) for line in importlib.metadata.requires("torch") or []
    ),
    "cuda_packages": sorted(name for name in names if name.startswith("nvidia-")),
}))
"""


class SetupError(Exception):
    """What went wrong and what to do about it, for one line on the screen."""


def main() -> int:
    """Make the environment and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument("--extras", default="envs", help="comma separated (default: envs)")
    arguments = parser.parse_args()
    try:
        set_up(arguments.venv, set(filter(None, arguments.extras.split(","))))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def set_up(venv: Path, extras: set[str]) -> None:
    """Install what is missing into `venv`, creating it first if need be."""
    if sys.version_info < MINIMUM:
        raise SetupError(
            f"Python {'.'.join(map(str, MINIMUM))} or newer is needed, this is "
            f"{sys.version.split()[0]}; name another one, as in: make setup PYTHON=python3.12"
        )
    stamp = venv / "setup.json"
    before = _read_stamp(stamp)
    key = _key()
    if before.get("key") == key and extras <= set(before.get("extras", [])):
        return
    # What an earlier run brought stays: tests after playing, playing after tests.
    extras |= set(before.get("extras", []))
    # The programs of an environment name their Python by its full path and cannot be moved.
    moved = "home" in before and before["home"] != str(venv.resolve())
    python = _create(venv, anew=moved)
    stamp.unlink(missing_ok=True)
    _install_torch(python)
    target = f".[{','.join(sorted(extras))}]" if extras else "."
    _say(f"installing worldgen{target[1:]} as pinned in constraints.txt; this takes a minute")
    _run(_pip(python, "--quiet", "-c", str(CONSTRAINTS), "-e", target))
    _check(python)
    document = {"key": key, "extras": sorted(extras), "home": str(venv.resolve())}
    stamp.write_text(json.dumps(document) + "\n", encoding="utf-8")


def has_nvidia_driver() -> bool:
    """Return whether a CUDA build of torch could do anything here."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def wants_cpu_build() -> bool:
    """Return whether torch must come without CUDA; `TORCH=cpu` and `TORCH=cuda` decide by hand."""
    choice = os.environ.get("TORCH", "")
    if choice not in {"", "cpu", "cuda"}:
        raise SetupError(f"TORCH must be cpu or cuda, or be left out, got {choice!r}")
    # Elsewhere the registry's own build has no CUDA.
    return sys.platform == "linux" and (choice == "cpu" or (not choice and not has_nvidia_driver()))


def torch_requirement() -> str:
    """Return the pinned torch, for example `torch==2.13.0`."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise SetupError("constraints.txt pins no torch; run: git checkout constraints.txt")


def _install_torch(python: Path) -> None:
    requirement = torch_requirement()
    cpu = wants_cpu_build()
    installed = _report(python)
    version = requirement.removeprefix("torch==")
    fits = str(installed["torch"]).split("+")[0] == version
    if fits and not (cpu and installed["needs_cuda"]):
        return
    _say(f"installing {requirement}{' without CUDA' if cpu else ''}")
    if not cpu:
        _run(_pip(python, requirement))
        return
    # For torch alone: with this index, pip would ask a second server for every other package too.
    # A version of that index, 2.13.0+cpu, sorts above 2.13.0. What torch needs comes with the rest.
    index = ["--retries", "1", "--timeout", "30", "--extra-index-url", CPU_INDEX]
    _run(_pip(python, "--no-deps", "--force-reinstall", *index, requirement))
    if _report(python)["needs_cuda"]:
        _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torch"])
        raise SetupError(
            f"only the CUDA build of {requirement} was found, and there is no NVIDIA driver; "
            f"is {CPU_INDEX} reachable? To install 3 GB of CUDA anyway: TORCH=cuda make setup"
        )


def _check(python: Path) -> None:
    """Make sure that the second step did not replace torch by a CUDA build."""
    report = _report(python)
    if wants_cpu_build() and report["cuda_packages"]:
        raise SetupError(
            f"CUDA packages came along without an NVIDIA driver: {report['cuda_packages']}; "
            "delete .venv and run make setup again, or allow them with TORCH=cuda"
        )
    _say(f"ready: torch {report['torch']} in {python.parent.parent}")


def _create(venv: Path, *, anew: bool) -> Path:
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if anew or not python.exists() or _fails([str(python), "-m", "pip", "--version"]):
        _say(f"creating {venv}")
        if _fails([sys.executable, "-m", "venv", "--clear", str(venv)]):
            raise SetupError(
                f"{sys.executable} cannot create {venv}; on Debian and Ubuntu the module venv is "
                "a package of its own: apt install python3-venv"
            )
    return python


def _pip(python: Path, *arguments: str) -> list[str]:
    return [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]


def _run(command: Sequence[str]) -> None:
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SetupError(f"this failed, see above: {' '.join(command)}")


def _fails(command: Sequence[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0


def _report(python: Path) -> dict[str, Any]:
    output = subprocess.run([str(python), "-c", REPORT], capture_output=True, check=True).stdout
    report: dict[str, Any] = json.loads(output)
    return report


def _read_stamp(stamp: Path) -> dict[str, Any]:
    try:
        document = json.loads(stamp.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _key() -> str:
    """Return a hash that changes when another installation is due."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    # The editable install points at this folder, and the build of torch follows the driver.
    digest.update(f"{ROOT} {sys.version_info[:2]} {wants_cpu_build()}".encode())
    return digest.hexdigest()


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
