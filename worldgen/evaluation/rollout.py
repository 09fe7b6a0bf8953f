"""Many clips continued at once: encode, roll out, predict a step ahead, decode."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, UInt8

from worldgen.errors import DataError
from worldgen.generation.decoding import Decoder
from worldgen.generation.random import frame_uniforms
from worldgen.models.base import WorldModel
from worldgen.records import to_float, to_uint8
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["Roller"]

_FRAMES_AT_ONCE = 128

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Roller:
    """Generates many clips as one batch; each row as if it were alone.

    Random numbers depend on a row's own seed and frame, so a row is what a session with that
    seed would show, up to the rounding of batched matrix products.
    """

    model: WorldModel
    visual_tokenizer: VisualTokenizer
    action_tokenizer: ActionTokenizer
    decoder: Decoder
    seeds: Sequence[int]
    """One per row; row i of every batch draws with the i-th."""
    clips_at_once: int = 32
    """Rows that share a cache; bounds the memory."""

    @torch.no_grad()
    def encode(
        self, frames: UInt8[np.ndarray, "clip time height width 3"]
    ) -> Int[np.ndarray, "clip time cell"]:
        """Return the visual tokens of frames, in raster order.

        Raises:
            DataError: If the frames do not have the tokenizer's size.
        """
        tokenizer = self.visual_tokenizer
        size = (tokenizer.frame_height, tokenizer.frame_width)
        if frames.shape[2:4] != size:
            raise DataError(
                f"the world sees frames of {size[0]} x {size[1]} pixels, got "
                f"{frames.shape[2]} x {frames.shape[3]}; use a recording of its own environment"
            )
        flat = rearrange(frames, "clip time h w rgb -> (clip time) h w rgb")
        parts = []
        for first in range(0, len(flat), _FRAMES_AT_ONCE):
            part = np.ascontiguousarray(flat[first : first + _FRAMES_AT_ONCE])
            parts.append(tokenizer.encode(to_float(torch.from_numpy(part))[:, None]).cpu())
        return rearrange(
            torch.cat(parts).numpy(),
            "(clip time) 1 row column -> clip time (row column)",
            clip=len(frames),
        )

    @torch.no_grad()
    def decode(
        self, ids: Int[np.ndarray, "clip time cell"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        """Return the frames of visual tokens."""
        grid = rearrange(
            torch.from_numpy(np.ascontiguousarray(ids)),
            "clip time (row column) -> (clip time) 1 row column",
            row=self.visual_tokenizer.rows,
        )
        parts = [
            to_uint8(self.visual_tokenizer.decode(grid[first : first + _FRAMES_AT_ONCE]))[
                :, 0
            ].cpu()
            for first in range(0, len(grid), _FRAMES_AT_ONCE)
        ]
        return rearrange(
            torch.cat(parts).numpy(), "(clip time) h w rgb -> clip time h w rgb", clip=len(ids)
        )

    def roll_out(
        self,
        context_ids: Int[np.ndarray, "clip context cell"],
        actions: np.ndarray,
        *,
        progress: Progress | None = None,
    ) -> Int[np.ndarray, "clip step cell"]:
        """Return the tokens that the world dreams after a context, one frame for each action left.

        Args:
            context_ids: Visual tokens of the context frames.
            actions: [clip, context - 1 + steps, group], the action taken in each frame, the
                context's own first.
            progress: Told about every step.
        """
        return self._generate(context_ids, actions, feed_back=True, progress=progress)

    def predict_next(
        self,
        ids: Int[np.ndarray, "clip time cell"],
        actions: np.ndarray,
        *,
        context: int,
        progress: Progress | None = None,
    ) -> Int[np.ndarray, "clip step cell"]:
        """Return predictions of frames `context` ... one step ahead, each after the true past.

        Args:
            ids: True visual tokens of whole clips.
            actions: [clip, time - 1, group].
            context: True frames before the first prediction.
            progress: Told about every step.
        """
        return self._generate(
            ids[:, : actions.shape[1]],
            actions,
            feed_back=False,
            first_drawn=context - 1,
            progress=progress,
        )

    @torch.no_grad()
    def _generate(
        self,
        given_ids: Int[np.ndarray, "clip time cell"],
        actions: np.ndarray,
        *,
        feed_back: bool,
        first_drawn: int | None = None,
        progress: Progress | None,
    ) -> Int[np.ndarray, "clip step cell"]:
        given = torch.from_numpy(np.ascontiguousarray(given_ids)).long()
        action_ids = torch.from_numpy(self.action_tokenizer.encode(actions)).long()
        first = given.shape[1] - 1 if first_drawn is None else first_drawn
        if len(self.seeds) < len(given):
            raise DataError(f"{len(given)} clips need as many seeds, got {len(self.seeds)}")
        rows: list[torch.Tensor] = []
        for start in range(0, len(given), self.clips_at_once):
            chunk = slice(start, min(start + self.clips_at_once, len(given)))
            drawn = []
            for step, ids in enumerate(
                self._frames(given[chunk], action_ids[chunk], self.seeds[chunk], first, feed_back)
            ):
                drawn.append(ids)
                if progress is not None:
                    progress(
                        f"clips {chunk.start + 1} to {chunk.stop} of {len(given)}, "
                        f"step {step + 1} of {actions.shape[1] - first}"
                    )
            rows.append(torch.stack(drawn, dim=1))
        return torch.cat(rows).cpu().numpy()

    def _frames(
        self,
        given: torch.Tensor,
        action_ids: torch.Tensor,
        seeds: Sequence[int],
        first: int,
        feed_back: bool,
    ) -> Iterator[torch.Tensor]:
        """Yield the drawn frame after each step from `first` on."""
        cache = self.model.new_cache(len(given))
        drawn = given[:, 0]
        for step in range(action_ids.shape[1]):
            dreamt = feed_back and step >= given.shape[1]
            current = drawn if dreamt else given[:, step]
            draft = self.model.observe(cache, current, action_ids[:, step])
            if step >= first:
                # Numbered as in a session: the last frame of the context is frame 0.
                frame = step - first + 1
                uniforms = frame_uniforms(seeds, [frame] * len(given), given.shape[-1])
                drawn = self.decoder.draw_frame(self.model, draft, uniforms)
                yield drawn
