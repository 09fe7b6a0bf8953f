"""What a batch of a step is: images or clips, how many, and how large."""

from collections import Counter

import numpy as np
import pytest

from worldgen.errors import ConfigError
from worldgen.training.stages import StageConfig, Stages

IMAGES = StageConfig(share=1.0, image_batch_size=4)
JOINT = StageConfig(
    share=3.0,
    image_batch_size=2,
    video_share=0.25,
    clip_frames=3,
    clip_batch_size=5,
    resolutions=((8, 8), (8, 16)),
)


def stages(seed: int = 0) -> Stages:
    """Return two stages over ten frames of which the last two begin no clip of three."""
    return Stages(
        (IMAGES, JOINT),
        lambda clip_frames: (np.arange(10) <= 10 - clip_frames).astype(float),
        frame_size=(16, 16),
        seed=seed,
    )


def test_stages_follow_each_other_by_their_shares() -> None:
    reached = [stages().stage(progress) for progress in (0.0, 0.2499, 0.25, 0.9999)]
    assert reached == [0, 0, 1, 1]


def test_a_stage_of_images_draws_images_alone() -> None:
    for step in range(50):
        draw = stages().draw(step, 0)
        assert (draw.kind, draw.num_frames, draw.resolution) == ("images", 4, (16, 16))


def test_a_joint_stage_draws_clips_and_resolutions_in_their_shares() -> None:
    draws = [stages().draw(step, 1) for step in range(2000)]
    kinds = Counter((draw.kind, len(draw.starts), draw.num_frames) for draw in draws)
    assert kinds.keys() == {("images", 2, 2), ("videos", 5, 15)}
    # Three standard deviations of 2000 draws are 0.03.
    assert kinds[("videos", 5, 15)] / 2000 == pytest.approx(0.25, abs=0.03)
    sizes = Counter(draw.resolution for draw in draws)
    assert sizes[(8, 16)] / 2000 == pytest.approx(0.5, abs=0.034)
    assert max(int(draw.starts.max()) for draw in draws if draw.kind == "videos") == 7
    assert max(int(draw.starts.max()) for draw in draws if draw.kind == "images") == 9


def test_clips_begin_once_with_the_first_stage_that_draws_them() -> None:
    made = Stages(
        (IMAGES, IMAGES, JOINT, IMAGES, JOINT),
        lambda clip_frames: np.ones(40),
        frame_size=(8, 8),
        seed=0,
    )
    begins = [(before, before + 1) for before in range(4) if made.clips_begin(before, before + 1)]
    assert begins == [(1, 2)]
    assert not made.clips_begin(1, 1)
    assert made.clips_begin(0, 2)


def test_a_draw_is_a_function_of_seed_and_step_alone() -> None:
    used, fresh = stages(), stages()
    for step in range(20):
        used.draw(step, 1)
    again, expected = used.draw(7, 1), fresh.draw(7, 1)
    assert np.array_equal(again.starts, expected.starts)
    assert (again.kind, again.resolution) == (expected.kind, expected.resolution)
    assert any(
        stages(1).draw(step, 1).starts.tolist() != stages(2).draw(step, 1).starts.tolist()
        for step in range(5)
    )


@pytest.mark.parametrize(
    "wrong", [{"share": 0.0}, {"video_share": 1.5}, {"clip_frames": 0}, {"resolutions": ((0, 8),)}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"stage needs|pairs of pixels"):
        StageConfig(image_batch_size=1, **wrong)  # type: ignore[arg-type]
