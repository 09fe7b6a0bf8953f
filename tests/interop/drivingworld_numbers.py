"""Numbers of DrivingWorld's world model, and what they are compared with."""

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.reference_cases import Case
from worldgen.interop.drivingworld_weights import world_model_from_upstream
from worldgen.models import DrivingConfig, DrivingTransformer

__all__ = ["SLOTS", "close", "model_of", "motion_ids"]

SLOTS = ("yaw", "pose_x", "pose_y")


def model_of(case: Case) -> DrivingTransformer:
    return world_model_from_upstream(
        load_file(case.weights), case.config, codebook=case.inputs["codebook"], path=case.weights
    )


def motion_ids(case: Case, config: DrivingConfig) -> tuple[Tensor, Tensor]:
    """Return ids `[batch, frame, slot]` of the motion that led to each frame, and who has motion."""
    x, y = case.inputs["pose"].unbind(-1)
    yaw = case.inputs["yaw"][..., 0]
    yaws, xs, ys = config.slot_options
    places = (
        ((yaw + 8 - 8 / yaws) * yaws / 16).floor().clamp(0, yaws - 1),
        (x * xs / 8).floor().clamp(0, xs - 1),
        ((y + 0.5 - 0.5 / ys) * ys).floor().clamp(0, ys - 1),
    )
    ids = torch.stack(places, dim=-1).long() + torch.tensor(config.first_ids)
    return ids, x[:, 0].isfinite()


def close(ours: Tensor, theirs: Tensor) -> None:
    tolerance = max(2e-4, 2e-4 * float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=0, atol=tolerance)
