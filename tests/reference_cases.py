"""Numbers computed by other projects' code: each case a folder, found here and where one says."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent / "reference"


@dataclass(frozen=True)
class Case:
    """One folder: `config.json` and tensors."""

    folder: Path
    config: dict[str, Any]

    @property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @property
    def outputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "outputs.safetensors")

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"


def reference_cases(family: str, wanted: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """Return the cases of a family that a test can take, as parameters named after their folders.

    Looks in `tests/reference/<family>/` and, when that variable is set, in
    `$WORLDGEN_REFERENCE_DIR/<family>/`.

    Args:
        family: The project that computed the numbers.
        wanted: Decides by a case's `config.json` alone.
    """
    return [pytest.param(case, id=case.folder.name) for case in _cases(family, wanted)]


def _cases(family: str, wanted: Callable[[dict[str, Any]], bool]) -> Iterator[Case]:
    given = os.environ.get("WORLDGEN_REFERENCE_DIR")
    for place in [HERE, *([Path(given)] if given else [])]:
        for path in sorted((place / family).glob("*/config.json")):
            config = json.loads(path.read_text())
            if wanted(config):
                yield Case(path.parent, config)
