"""The machine and the versions that a measurement was made with."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import worldgen

__all__ = [
    "available_memory_megabytes",
    "hardware",
    "memory_megabytes",
    "peak_memory_megabytes",
    "versions",
]


def hardware() -> dict[str, Any]:
    """Return processor, cores, threads in use, memory and graphics card, as JSON holds them."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": gpu,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, worldgen and what it computes with."""
    installed = {"python": platform.python_version(), "worldgen": worldgen.__version__}
    for name in ("torch", "numpy", "gymnasium", "playwright"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def memory_megabytes() -> float | None:
    """Return the memory that this process holds now, None where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    pages = int(status.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def available_memory_megabytes() -> float | None:
    """Return the memory that programs can still have, None where the system does not tell."""
    description = Path("/proc/meminfo")
    if description.exists():
        for line in description.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 2**10
    return None


def peak_memory_megabytes() -> float | None:
    """Return the most memory that this process ever held, None where the system does not tell."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kilobytes elsewhere.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
