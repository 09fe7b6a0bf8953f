"""Importing the library is quick, light and complete."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import worldgen

HEAVY = ["hydra", "omegaconf", "gymnasium", "starlette", "uvicorn", "matplotlib", "av"]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(worldgen.__path__, "worldgen.")
    if module.name != "worldgen.__main__"
)


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_every_name_in_all_exists() -> None:
    for name in ["worldgen", *MODULES]:
        module = importlib.import_module(name)
        missing = [item for item in getattr(module, "__all__", []) if not hasattr(module, item)]
        assert not missing, f"{name}.__all__ names {missing}"


def test_importing_worldgen_brings_neither_hydra_nor_gymnasium_nor_a_web_server() -> None:
    code = f"import sys, worldgen; print([name for name in {HEAVY} if name in sys.modules])"
    assert _python(code).strip() == "[]"


def test_loading_names_and_networks_brings_neither_hydra_nor_gymnasium_nor_a_web_server() -> None:
    modules = "worldgen.models, worldgen.tokenizers.visual, worldgen.tokenizers.action"
    code = (
        f"import sys, worldgen, {modules}, worldgen.generation; worldgen.World; worldgen.load;"
        f"print([name for name in {HEAVY[:-2]} if name in sys.modules])"
    )
    assert _python(code).strip() == "[]"


def test_importing_worldgen_takes_far_less_than_torch_itself() -> None:
    # Processor time beside processor time: neither a slow machine nor a busy one changes the ratio.
    # Of three, because the first may have to compile the modules.
    code = (
        "from time import process_time as now; begin = now(); import torch, torch.nn; torch_is_there = now();"
        "import worldgen; worldgen.load; print((now() - torch_is_there) / (torch_is_there - begin))"
    )
    assert min(float(_python(code)) for _ in range(3)) < 0.5
