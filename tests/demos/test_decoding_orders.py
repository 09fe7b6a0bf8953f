"""The demo of decoding orders: a row and a line for each order."""

from pathlib import Path

import pytest
from PIL import Image

from demos.decoding_orders import main
from tests.factories import tiny_world


def test_every_order_gets_a_row_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_world(tmp_path / "world")
    out = tmp_path / "orders.png"
    assert main(["--world", str(folder), "--actions", "gas*3", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["whole_frame", "1.0"],
        ["strided:4", "4.0"],
        ["diagonal", "15.0"],
        ["raster", "64.0"],
    ]
    assert Image.open(out).height > 4 * 128


def test_an_unknown_order_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_world(tmp_path / "world")
    assert main(["--world", str(folder), "--orders", "spiral", "--actions", "gas"]) == 2
    assert "unknown decoder or decoding order 'spiral'" in capsys.readouterr().err
