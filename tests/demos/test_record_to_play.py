"""The notebook from recording to playing, from end to end at tiny size."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "demos" / "record_to_play.ipynb"


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.timeout(2400)  # Records and trains twice, on a machine that may be slow.
def test_the_notebook_records_trains_and_plays(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    notebook = read_notebook()
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    tiny = [
        "training.threads=1",
        "training.batch_size=2",
        "training.validation_frames=2",
        "training.log_steps=2",
    ]
    parameters.source = "\n".join(
        (
            "FRAMES = 300",
            "EPISODE_LENGTH = 60",
            "TOKENIZER_STEPS = 4",
            "WORLD_MODEL_STEPS = 4",
            f"FOLDER = {str(tmp_path)!r}",
            f"MORE = {tiny!r}",
        )
    )
    client = NotebookClient(
        notebook,
        timeout=1000,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    client.execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )
    assert "model.safetensors" in printed
    assert "<title>" in printed


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
