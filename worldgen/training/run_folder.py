"""The folder of one training run: metrics as JSON lines, curves, pictures, summary."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from worldgen.checkpoint import write_atomically, write_text

__all__ = ["RunFolder"]


class RunFolder:
    """Names and writes the files of a run.

    ```
    runs/visual_tokenizer/car_racing/
      metrics.jsonl            a line for each logged step
      curves.png               every metric over steps
      reconstructions_*.png    pictures at validation
      checkpoint.safetensors   where to resume
      summary.json             settings and final figures
    ```
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.path / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, each with a `step`."""
        return self.path / "metrics.jsonl"

    def forget_after(self, step: int) -> None:
        """Drop logged lines of steps beyond a checkpoint, which will be logged again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self.metrics, text)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a line of figures."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the logged lines, oldest first."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line]

    def draw_curves(self) -> None:
        """Draw every metric over steps into `curves.png`."""
        # Matplotlib is slow to import and only wanted here; the object interface needs no display.
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter

        lines = self.read_metrics()
        names = sorted({name for line in lines for name in line} - {"step"})
        if not names:
            return
        columns = min(4, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(3.6 * columns, 2.4 * rows))
        # Fixed margins: fitting them to the text draws everything several times over.
        wide, high = 1 / columns, 1 / rows
        figure.subplots_adjust(0.14 * wide, 0.12 * high, 0.99, 1 - 0.12 * high, 0.25, 0.4)
        for place, name in enumerate(names, start=1):
            axes = figure.add_subplot(rows, columns, place)
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), linewidth=1.0)
            # A fixed height, and few ticks: laying text out is nearly all that drawing takes.
            axes.set_title(name.replace("_", " "), fontsize=9, y=1.0)
            axes.tick_params(which="both", labelsize=7)
            axes.locator_params(nbins=4)
            axes.grid(alpha=0.3)
            values = [value for _, value in points]
            if "loss" in name and 0 < 10 * min(values) <= max(values):
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter(NullFormatter())
        write_atomically(self.path / "curves.png", lambda path: figure.savefig(path, dpi=100))

    def save_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a picture as PNG."""
        write_atomically(self.path / name, lambda path: Image.fromarray(picture).save(path))

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        text = json.dumps(summary, indent=2) + "\n"
        write_text(self.path / "summary.json", text)
