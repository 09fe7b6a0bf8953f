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
from worldgen.generation.told import Told
from worldgen.models.base import WorldModel
from worldgen.models.conditions import stack_conditions
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
    seed would show, up to the rounding of batched matrix products. Worlds that read text are given
    none, the null prompt.
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
    ) -> Int[np.ndarray, "clip step cell"]:
        """Return the visual tokens of clips, in raster order, a grid for each step.

        A tokenizer of clips may need a few frames more at the end: the last one, repeated.

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
        if not tokenizer.single_frames:
            return self._encode_clips(frames)
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

    def _encode_clips(
        self, frames: UInt8[np.ndarray, "clip time height width 3"]
    ) -> Int[np.ndarray, "clip step cell"]:
        tokenizer = self.visual_tokenizer
        parts = [
            torch.stack(
                tokenizer.encode_clips(
                    [to_float(torch.from_numpy(clip)) for clip in self._filled(chunk)]
                )
            ).cpu()
            for chunk in self._chunks(frames)
        ]
        return rearrange(torch.cat(parts).numpy(), "clip step r c -> clip step (r c)")

    def _filled(
        self, frames: UInt8[np.ndarray, "clip time height width 3"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        missing = -(frames.shape[1] - 1) % self.visual_tokenizer.frames_per_latent
        return np.concatenate((frames, *[frames[:, -1:]] * missing), axis=1)

    def _chunks(self, clips: np.ndarray) -> Iterator[np.ndarray]:
        """Yield as many clips at a time as may share the memory."""
        for first in range(0, len(clips), self.clips_at_once):
            yield clips[first : first + self.clips_at_once]

    def _grids(self, ids: Int[np.ndarray, "clip step cell"]) -> torch.Tensor:
        return rearrange(
            torch.from_numpy(np.ascontiguousarray(ids)),
            "clip step (row column) -> clip step row column",
            row=self.visual_tokenizer.rows,
        )

    @torch.no_grad()
    def decode(
        self, ids: Int[np.ndarray, "clip step cell"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        """Return the frames of visual tokens, of whole clips from their beginning."""
        if not self.visual_tokenizer.single_frames:
            parts = [
                to_uint8(self.visual_tokenizer.decode(self._grids(chunk))).cpu()
                for chunk in self._chunks(ids)
            ]
            return torch.cat(parts).numpy()
        grid = rearrange(self._grids(ids), "clip time row column -> (clip time) 1 row column")
        parts = [
            to_uint8(self.visual_tokenizer.decode(grid[first : first + _FRAMES_AT_ONCE]))[
                :, 0
            ].cpu()
            for first in range(0, len(grid), _FRAMES_AT_ONCE)
        ]
        return rearrange(
            torch.cat(parts).numpy(), "(clip time) h w rgb -> clip time h w rgb", clip=len(ids)
        )

    def decode_after(
        self, past: Int[np.ndarray, "clip past cell"], ids: Int[np.ndarray, "clip step cell"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        """Return the frames of visual tokens that follow others.

        Args:
            past: Tokens from the beginning of the clip, at least one grid.
            ids: Those that follow.
        """
        if self.visual_tokenizer.single_frames:
            return self.decode(ids)
        frames = self.decode(np.concatenate((past, ids), axis=1))
        return frames[:, self.visual_tokenizer.num_frames(past.shape[1]) :]

    @torch.no_grad()
    def decode_each_after(
        self, true: Int[np.ndarray, "clip past cell"], ids: Int[np.ndarray, "clip step cell"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        """Return the frames of visual tokens, each grid after the true past instead of the others.

        Args:
            true: Tokens of whole clips; the last grid stands in the same place as the last of
                `ids`.
            ids: For example from `predict_next`.
        """
        if self.visual_tokenizer.single_frames:
            return self.decode(ids)
        parts = []
        for past, predicted in zip(self._chunks(true), self._chunks(ids), strict=True):
            stream = self.visual_tokenizer.decoder_stream()
            given = past.shape[1] - predicted.shape[1]
            stream.push(self._grids(past[:, :given]))
            frames = []
            for step in range(predicted.shape[1]):
                frames.append(stream.fork().push(self._grids(predicted[:, step : step + 1])))
                stream.push(self._grids(past[:, given + step : given + step + 1]))
            parts.append(to_uint8(torch.cat(frames, dim=1)).cpu())
        return torch.cat(parts).numpy()

    def roll_out(
        self,
        context_ids: Int[np.ndarray, "clip context cell"],
        actions: np.ndarray,
        *,
        progress: Progress | None = None,
    ) -> Int[np.ndarray, "clip step cell"]:
        """Return the tokens that the world dreams after a context, as long as there are actions.

        Args:
            context_ids: Visual tokens of the context.
            actions: [clip, context - 1 + steps, group], the action taken in each frame, the
                context's own first. Where the last grid stands for more frames than there are
                actions, the last action is held.
            progress: Told about every step.
        """
        return self._generate(context_ids, actions, feed_back=True, progress=progress)

    def predict_next(
        self,
        ids: Int[np.ndarray, "clip step cell"],
        actions: np.ndarray,
        *,
        context: int,
        progress: Progress | None = None,
    ) -> Int[np.ndarray, "clip step cell"]:
        """Return predictions of what follows the context one step ahead, each after the true past.

        Args:
            ids: True visual tokens of whole clips.
            actions: [clip, time - 1, group].
            context: True frames before the first prediction.
            progress: Told about every step.

        Raises:
            ConfigError: If no whole number of grids stands for the context.
        """
        return self._generate(
            ids[:, : self.model.layout.num_steps(actions.shape[1])],
            actions,
            feed_back=False,
            first_drawn=self.visual_tokenizer.num_latents(context) - 1,
            progress=progress,
        )

    @torch.no_grad()
    def _generate(
        self,
        given_ids: Int[np.ndarray, "clip given cell"],
        actions: np.ndarray,
        *,
        feed_back: bool,
        first_drawn: int | None = None,
        progress: Progress | None,
    ) -> Int[np.ndarray, "clip step cell"]:
        given = torch.from_numpy(np.ascontiguousarray(given_ids)).long()
        action_ids = self.model.layout.actions_of_steps(
            torch.from_numpy(self.action_tokenizer.encode(actions)).long()
        )
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
                        f"step {step + 1} of {action_ids.shape[1] - first}"
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
        """Yield the drawn grid after each step from `first` on."""
        told, noise_level = Told.of(self.model), self.decoder.sampling.context_noise
        told.check(self.decoder.sampling)
        cache = self.model.new_cache(len(given))
        drawn = given[:, 0]
        # Two bytes an id where they fit: frames are compared with all before them.
        dtype = np.uint16 if self.model.codebook_size <= 2**16 else np.int32
        seen = np.empty((len(given), action_ids.shape[1], given.shape[-1]), dtype)
        for step in range(action_ids.shape[1]):
            dreamt = feed_back and step >= given.shape[1]
            current = drawn if dreamt else given[:, step]
            seen[:, step] = current.cpu().numpy()
            conditions = stack_conditions(
                [told.conditions(row[: step + 1], noise_level if dreamt else 0) for row in seen]
            )
            draft = self.model.observe(cache, current, action_ids[:, step], conditions)
            if step >= first:
                # Numbered as in a session: the last grid of the context is number 0.
                number = step - first + 1
                uniforms = frame_uniforms(seeds, [number] * len(given), given.shape[-1])
                drawn = self.decoder.draw_frame(self.model, draft, uniforms)
                yield drawn
