"""Metrics, curves and pictures of a run."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from worldgen.training import RunFolder


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.log(1, {"loss": 0.5})
    folder.log(2, {"loss": 0.25, "psnr": 30.0})
    assert folder.read_metrics() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "psnr": 30.0},
    ]


def test_lines_after_a_checkpoint_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        folder.log(step, {"loss": 1.0 / step})
    folder.forget_after(20)
    assert [line["step"] for line in folder.read_metrics()] == [10, 20]


def test_curves_are_drawn(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.draw_curves()
    assert not (tmp_path / "curves.png").exists()
    for step in range(5):
        folder.log(step, {"loss": 1.0 / (step + 1), "psnr": 20.0 + step})
    folder.draw_curves()
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500


def test_pictures_and_summary_are_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    folder.save_picture("picture.png", pixels)
    folder.save_summary({"psnr": 37.0})
    with Image.open(tmp_path / "picture.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"psnr": 37.0}
