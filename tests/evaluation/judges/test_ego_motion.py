"""Drives read from frames, against drives given."""

import numpy as np
import pytest
import torch

from tests.factories import car_schema
from worldgen.ego_motion import integrate, path_length
from worldgen.errors import CheckpointError, DataError
from worldgen.evaluation.judges.ego_motion import compare_drives, probe_motion, read_motion
from worldgen.evaluation.judges.inverse_dynamics import InverseDynamicsConfig, InverseDynamicsModel
from worldgen.evaluation.judges.probes import MotionProbe, MotionProbeConfig
from worldgen.tokenizers.action import Axis, driving_schema


def drives(clips: int = 4, steps: int = 50) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack(
        [
            random.normal(0, 3, (clips, steps)),
            random.uniform(1, 3, (clips, steps)),
            random.normal(0, 0.1, (clips, steps)),
        ],
        -1,
    )


def judge(schema: object = None) -> InverseDynamicsModel:
    config = InverseDynamicsConfig(
        frame_height=16, frame_width=16, window_frames=4, channels=(4, 4), width=8
    )
    torch.manual_seed(0)
    return InverseDynamicsModel(config, schema or driving_schema("car_racing")).eval()  # type: ignore[arg-type]


def test_the_same_drive_does_not_deviate() -> None:
    figures = compare_drives(drives(), drives())
    assert figures["deviation_end"] == figures["deviation_mean"] == figures["heading_end"] == 0
    assert figures["clips"] == 4
    assert all(axis["correlation"] == pytest.approx(1) for axis in figures["axes"].values())


def test_deviations_of_a_drive_that_is_read_too_fast_and_one_that_is_turned() -> None:
    straight = np.tile([[0.0, 2.0, 0.0]], (3, 100, 1))
    faster = compare_drives(straight, straight * [1.0, 1.1, 1.0])
    assert faster["deviation_end"] == pytest.approx(0.1)
    # Half of it on average: it grows with the way.
    assert faster["deviation_mean"] == pytest.approx(0.1 * 101 / 200)
    turned = straight.copy()
    turned[:, 0, 0] = 30.0
    askew = compare_drives(straight, turned)
    assert askew["heading_end"] == pytest.approx(30)
    # The turn comes after the first step: a chord of 99 steps.
    assert askew["deviation_end"] == pytest.approx(2 * np.sin(np.radians(15)) * 0.99)
    assert askew["axes"]["yaw"]["root_mean_square_error"] == pytest.approx(3.0)


def test_the_median_clip_counts() -> None:
    given = drives(5)
    seen = given.copy()
    seen[4, :, 1] += 5
    seen[3, :, 1] += 0.1
    figures = compare_drives(given, seen)
    assert figures["deviation_end"] == 0
    seen[1:4, :, 1] += 0.1
    assert 0 < compare_drives(given, seen)["deviation_end"] < 0.2
    expected = np.linalg.norm((integrate(given[2]) - integrate(seen[2]))[-1, :2])
    middle = compare_drives(given[2:3], seen[2:3])["deviation_end"]
    assert middle == pytest.approx(expected / path_length(integrate(given[2])))


def test_parked_clips_are_left_out() -> None:
    given = drives(3)
    given[1] *= 1e-4
    seen = given.copy()
    seen[1, :, 1] += 1
    figures = compare_drives(given, seen)
    assert (figures["clips"], figures["parked"]) == (2, 1)
    assert figures["deviation_end"] == 0
    nowhere = compare_drives(np.zeros((2, 5, 3)), np.zeros((2, 5, 3)))
    assert (nowhere["clips"], nowhere["deviation_end"]) == (0, None)


def test_motion_is_the_mean_over_the_bins() -> None:
    reader = judge()
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 16, 16, 3), np.uint8)
    read = read_motion(reader, frames)
    assert read.shape == (2, 8, 3)
    with torch.no_grad():
        clip = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        for index, (group, logits) in enumerate(
            zip(reader.schema.groups, reader(clip), strict=True)
        ):
            centres = torch.from_numpy(group.from_ids(np.arange(group.size)))
            mean = (logits.double().softmax(-1) * centres).sum(-1)
            np.testing.assert_allclose(read[..., index], mean.numpy(), atol=1e-5)


def test_a_sure_judge_reads_the_centre_of_its_bin() -> None:
    reader = judge()
    wanted = [300, 70, 12]
    with torch.no_grad():
        reader.heads.weight.zero_()
        reader.heads.bias.zero_()
        first = 0
        for group, place in zip(reader.schema.groups, wanted, strict=True):
            reader.heads.bias[first + place] = 100.0
            first += group.size
    frames = np.zeros((1, 4, 16, 16, 3), np.uint8)
    expected = [
        float(group.from_ids(np.array(place)))
        for group, place in zip(reader.schema.groups, wanted, strict=True)
    ]
    np.testing.assert_allclose(read_motion(reader, frames), np.tile(expected, (1, 3, 1)))
    assert (reader.label(frames) == wanted).all()


def test_a_probe_of_turn_and_speed_reads_motion() -> None:
    probe = MotionProbe(
        MotionProbeConfig(
            frame_height=16, frame_width=16, quantities=("speed", "yaw_change"), view="whole"
        )
    )
    with torch.no_grad():
        for parameter in probe.readout.parameters():
            parameter.zero_()
        probe.mean.copy_(torch.tensor([30.0, 0.1]))
    frames = np.zeros((2, 9, 16, 16, 3), np.uint8)
    motion = probe_motion(probe, frames, 20.0)
    np.testing.assert_allclose(motion, np.tile([np.degrees(0.1), 1.5, 0.0], (2, 7, 1)), rtol=1e-6)
    still = MotionProbe(MotionProbeConfig(frame_height=16, frame_width=16, quantities=("speed",)))
    with pytest.raises(CheckpointError, match="this one reads speed"):
        probe_motion(still, frames, 20.0)


def test_what_is_refused() -> None:
    frames = np.zeros((1, 4, 16, 16, 3), np.uint8)
    with pytest.raises(CheckpointError, match="steering, pedals and no ego motion"):
        read_motion(judge(car_schema()), frames)
    with pytest.raises(DataError, match=r"both \[clip, step, 3\]"):
        compare_drives(drives(), drives()[:, 1:])
    broken = drives()
    broken[0, 3] = np.nan
    with pytest.raises(DataError, match="without ego data"):
        compare_drives(drives(), broken)
    assert isinstance(driving_schema("car_racing").groups[0], Axis)
