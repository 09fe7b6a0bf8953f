"""Messages survive their way through bytes; what is no message is refused."""

import math
import struct

import numpy as np
import pytest

from worldgen.serving import protocol
from worldgen.serving.protocol import (
    Kind,
    Picture,
    ProtocolError,
    Step,
    pack_picture,
    pack_step,
    unpack_picture,
    unpack_step,
)


def test_a_step_survives_its_way_up() -> None:
    step = unpack_step(pack_step(Step(stamp=123.5, values=np.array([0, 2, -0.25], np.float32))))
    assert step.stamp == 123.5
    assert step.values.tolist() == [0, 2, -0.25]


def test_the_bytes_of_a_step_are_those_that_the_page_writes() -> None:
    message = pack_step(Step(stamp=1.5, values=np.array([1.0, 2.0], np.float32)))
    assert message == struct.pack("<BB6xdff", 0, 2, 1.5, 1.0, 2.0)


@pytest.mark.parametrize("height", [64, 200])
def test_a_picture_survives_its_way_down_without_loss(height: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, 96, 3), np.uint8)
    picture = Picture(
        kind=Kind.DREAM,
        frame=frame,
        frame_index=70_000,
        branch=3,
        stamp=9.25,
        model_milliseconds=4.5,
        difference=21.5,
        digest=2**32 - 1,
    )
    arrived = unpack_picture(pack_picture(picture))
    assert np.array_equal(arrived.frame, frame)
    fields = (
        "kind",
        "frame_index",
        "branch",
        "stamp",
        "model_milliseconds",
        "difference",
        "digest",
    )
    for name in fields:
        assert getattr(arrived, name) == getattr(picture, name), name


def test_a_picture_without_a_difference_says_so() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    picture = Picture(kind=Kind.REALITY, frame=frame, frame_index=1)
    assert math.isnan(unpack_picture(pack_picture(picture)).difference)


def test_small_pictures_travel_raw_and_large_ones_compressed() -> None:
    small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((256, 256, 3), np.uint8)
    assert protocol.encode_picture(small)[0] is protocol.Encoding.RGB
    encoding, content = protocol.encode_picture(large)
    assert encoding is protocol.Encoding.WEBP
    assert len(content) < large.size


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00",
        b"\x07" + bytes(19),
        bytes(16) + b"\x00" * 4,
        b"\x00\x05" + bytes(14) + bytes(4),
        b"\x00\x01" + bytes(100),
        bytes(4096),
        struct.pack("<BB6xdf", 0, 1, math.nan, 0.0),
        struct.pack("<BB6xdf", 0, 1, 0.0, math.inf),
    ],
)
def test_bytes_that_are_no_step_are_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"binary message|not finite"):
        unpack_step(message)
