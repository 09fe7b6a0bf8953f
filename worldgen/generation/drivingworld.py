"""DrivingWorld's own decoding: the window read anew for every frame, and its samplers."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.models.driving import DrivingDraft, DrivingTransformer

__all__ = ["DrivingWorldSampling", "draw_frames", "read_window"]

_Method = Literal["greedy", "top_k", "top_p", "pk"]


@dataclass(frozen=True, kw_only=True)
class DrivingWorldSampling:
    """How DrivingWorld draws an id, mistakes included; `SamplingConfig` has none of them.

    Source: the released code of DrivingWorld (arXiv:2412.19505).
    """

    method: _Method = "top_k"
    """`greedy` takes the best id. `pk` is `top_k`, then `top_p`."""
    top_k: int = 30
    temperature_k: float = 1.0
    """Of `top_k`. The smallest logit that stays is looked up before it divides and compared
    afterwards, so at other values than 1 more or fewer ids stay than asked for, or none."""
    top_p: float = 0.8
    temperature_p: float = 1.0
    """Of `top_p`. In `pk` it divides probabilities that are taken for logits: what comes out is
    nearly even, and ids that `top_k` had ruled out are back."""

    def __post_init__(self) -> None:
        if self.method not in get_args(_Method):
            raise ConfigError(
                f"method must be one of {', '.join(get_args(_Method))}, got {self.method!r}"
            )
        if self.top_k < 1 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"top_k must be at least 1 and top_p above 0 and at most 1, got {self.top_k} and "
                f"{self.top_p}"
            )
        if not min(self.temperature_k, self.temperature_p) > 0.0:
            raise ConfigError(
                f"temperatures must be above 0, got {self.temperature_k} and {self.temperature_p}; "
                "method greedy needs none"
            )

    def probabilities(
        self, logits: Float[Tensor, "*leading codebook"]
    ) -> Float[Tensor, "*leading codebook"]:
        """Return what an id is drawn from.

        Raises:
            ConfigError: If no id stays; see `temperature_k`.
        """
        if self.method == "greedy":
            best = torch.zeros_like(logits)
            return best.scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        if self.method == "top_p":
            return _nucleus(logits / self.temperature_p, self.top_p)
        kept = self._largest(logits)
        if self.method == "top_k":
            return kept
        return _nucleus(kept / self.temperature_p, self.top_p)

    def _largest(self, logits: Tensor) -> Tensor:
        smallest = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        tempered = logits / self.temperature_k
        fails = tempered < smallest
        if bool(fails.all(dim=-1).any()):
            raise ConfigError(
                f"DrivingWorld's top_k keeps no id at temperature_k {self.temperature_k} here; use "
                "1.0, or SamplingConfig with another decoder"
            )
        return tempered.masked_fill(fails, float("-inf")).softmax(dim=-1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    # Not stable: of equal ones at the edge, those stay that upstream's sort puts first.
    ordered, order = logits.sort(dim=-1, descending=True)
    sums = ordered.softmax(dim=-1).cumsum(dim=-1)
    # The first id that reaches the sum stays too.
    over = torch.cat((torch.zeros_like(sums[..., :1]), sums[..., :-1]), dim=-1) > top_p
    kept = ordered.masked_fill(over, float("-inf")).softmax(dim=-1)
    return torch.zeros_like(kept).scatter(-1, order, kept)


@torch.no_grad()
def read_window(
    model: DrivingTransformer,
    visual_ids: Int[Tensor, "batch frame cell"],
    action_ids: Int[Tensor, "batch frame slot"],
    known_actions: Bool[Tensor, " batch"] | None = None,
) -> DrivingDraft:
    """Return the draft of the frame after a window, all of which is computed.

    The window's first frame counts as the first of all, whatever led to it: it has the first
    position in time and `DrivingConfig.first_action`. So each slide changes what every frame
    means, which is why nothing can be kept.

    Args:
        model: Reads windows of any length; DrivingWorld's has `DrivingConfig.window` frames.
        visual_ids: Of the window.
        action_ids: The action taken in each of its frames.
        known_actions: Which rows have actions; None: all.
    """
    visual_ids, action_ids = visual_ids.to(model.device), action_ids.to(model.device)
    states = model.encode_steps(visual_ids, action_ids, known_actions=known_actions)
    return model.draft(
        states[:, -1], visual_ids[:, -1], action_ids[:, -1], known_actions=known_actions
    )


@torch.no_grad()
def draw_frames(
    model: DrivingTransformer,
    visual_ids: Int[Tensor, "batch context cell"],
    action_ids: Int[Tensor, "batch action slot"],
    uniforms: Float[Tensor, "batch frame cell"],
    sampling: DrivingWorldSampling,
    known_actions: Bool[Tensor, " batch"] | None = None,
) -> Int[Tensor, "batch frame cell"]:
    """Return the frames after some given ones, as DrivingWorld draws them: in raster order.

    Within a frame keys and values are kept, which changes nothing: DrivingWorld computes the same
    ones anew for each cell.

    Args:
        model: Of DrivingWorld's kind.
        visual_ids: Of the given frames, as many as `DrivingConfig.window`.
        action_ids: Taken in every frame but the last one drawn.
        uniforms: One number in [0, 1) for each cell to draw, as `frame_uniforms` gives them.
        sampling: How ids are drawn.
        known_actions: Which rows have actions; None: all.

    Raises:
        ConfigError: If the numbers of frames and actions do not fit, or a sampler keeps no id.
    """
    context, frames = visual_ids.shape[1], uniforms.shape[1]
    if context != model.config.window:
        raise ConfigError(
            f"DrivingWorld's decoding begins with a whole window of {model.config.window} frames, "
            f"got {context}; a session takes any number"
        )
    if action_ids.shape[1] != context + frames - 1:
        raise ConfigError(
            f"{context} given frames and {frames} to draw need {context + frames - 1} actions, one "
            f"for each frame but the last, got {action_ids.shape[1]}"
        )
    ids, uniforms = visual_ids.to(model.device), uniforms.to(model.device)
    for number in range(frames):
        window = slice(number, number + context)
        draft = read_window(model, ids[:, window], action_ids[:, window], known_actions)
        drawn: list[Tensor] = []
        for cell in torch.arange(model.layout.num_cells, device=model.device).split(1):
            sums = sampling.probabilities(model.predict(draft, cell)).double().cumsum(dim=-1)
            target = uniforms[:, number, cell].to(sums)[..., None] * sums[..., -1:]
            picked = torch.searchsorted(sums, target, right=True)[..., 0]
            drawn.append(picked.clamp(max=sums.shape[-1] - 1))
            model.reveal(draft, cell, drawn[-1])
        ids = torch.cat((ids, torch.cat(drawn, dim=1)[:, None]), dim=1)
    return ids[:, context:]
