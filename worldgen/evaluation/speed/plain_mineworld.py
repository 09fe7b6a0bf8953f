"""A plain reading of MineWorld's design, which the decoders are measured against.

Written from a description of the design, without the library's cache and order of calls: the cache
is as long as the sequence can become and every query is compared with all of it, keys and values are
repeated for every query head, every fed token is read out, and a loop on the host takes each drawn
id from the device. It shares its weights' numbers with the library's model and gives its ids.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from worldgen.generation.mineworld import mineworld_sampling
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.models.next_token import NextTokenTransformer
from worldgen.nn.rotary import apply_rotary

__all__ = ["PlainMineWorld"]


class PlainMineWorld:
    """One sequence of MineWorld's transformer, as its interactive program runs it.

    The release wraps the passes in `torch.compile`; this does not, and neither does what it is
    compared with.

    Source: the released code of MineWorld (arXiv:2504.08388).

    Args:
        model: Gives the weights.
        num_frames: Frames that the sequence can hold.
        sampling: How ids are drawn.
    """

    def __init__(
        self, model: NextTokenTransformer, num_frames: int, sampling: SamplingConfig
    ) -> None:
        self.layout, self.codebook_size = model.layout, model.codebook_size
        self.sampling = mineworld_sampling(sampling)
        self.length = num_frames * model.layout.tokens_per_step
        self.attention = model.block_config.attention
        self.epsilon = model.block_config.norm_epsilon
        self.tensors = dict(model.state_dict())
        self.depth = len(model.windows)
        self.device = model.device
        kv_heads, width = self.attention.num_key_value_heads, self.attention.head_width
        shape = (self.depth, self.length, kv_heads, width)
        self.keys = torch.zeros(shape, dtype=model.readout.weight.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)
        everything = torch.ones(self.length, self.length, dtype=torch.bool, device=self.device)
        self.mask = everything.tril()
        self.cosine, self.sine = model.rotary(torch.arange(self.length))
        self.calls = 0
        """Passes made so far."""

    def read_context(
        self, visual_ids: Int[Tensor, "frame cell"], action_ids: Int[Tensor, "action slot"]
    ) -> None:
        """Read frames and the actions between them, from position 0.

        Args:
            visual_ids: Ids in `[0, codebook_size)`.
            action_ids: Ids in `[0, action_vocabulary_size)`, of every frame but the last.
        """
        ids: list[int] = []
        for number, frame in enumerate(visual_ids.tolist()):
            ids += frame
            if number < len(action_ids):
                ids += (action_ids[number] + self.codebook_size).tolist()
        self._forward(ids, list(range(len(ids))))

    @torch.no_grad()
    def draw_frame(
        self,
        frame: int,
        action_ids: Int[Tensor, " slot"],
        uniforms: Float[Tensor, " cell"],
        window: int | None = None,
    ) -> list[int]:
        """Return the ids of a frame, drawn after those that were read or drawn before it.

        Args:
            frame: Its number in the sequence, at least 1.
            action_ids: Taken in the frame before, in `[0, action_vocabulary_size)`.
            uniforms: One number in [0, 1) per cell.
            window: Calls by which a row starts after the one above; none for raster order.
        """
        first = frame * self.layout.tokens_per_step
        slots = self.layout.num_action_tokens
        opening = (action_ids + self.codebook_size).tolist()
        logits = self._forward(opening, list(range(first - slots, first)))
        numbers = uniforms.to(self.device)
        columns, cells = self.layout.columns, self.layout.num_cells
        drawn: list[list[int]] = [[] for _ in range(self.layout.rows)]
        drawn[0].append(self._draw(logits[-1:], numbers[:1])[0])
        call = 0
        while len(drawn[-1]) < columns:
            call += 1
            rows, ids, positions = [], [], []
            for row in range(self.layout.rows):
                column = len(drawn[row])
                if window is None:
                    active = column < columns and (row == 0 or len(drawn[row - 1]) == columns)
                else:
                    active = column < columns and call >= row * window
                if not active:
                    continue
                rows.append(row)
                # The end of the row above, or what stands in for it, opens a row.
                ids.append(drawn[row][-1] if column else drawn[row - 1][-1])
                positions.append(first + row * columns + column - 1)
                if window is None:
                    break
            logits = self._forward(ids, positions)
            places = [row * columns + len(drawn[row]) for row in rows]
            for row, chosen in zip(rows, self._draw(logits, numbers[places]), strict=True):
                drawn[row].append(chosen)
        self._forward(drawn[-1][-1:], [first + cells - 1])
        return [chosen for row in drawn for chosen in row]

    def _draw(self, logits: Tensor, uniforms: Tensor) -> list[int]:
        chosen = draw(logits[:, : self.codebook_size], uniforms, self.sampling)
        return [int(each.item()) for each in chosen]

    @torch.no_grad()
    def _forward(
        self, ids: Sequence[int], positions: Sequence[int]
    ) -> Float[Tensor, "token vocabulary"]:
        self.calls += 1
        place = torch.tensor(positions, device=self.device)
        stream = F.embedding(
            torch.tensor(ids, device=self.device), self.tensors["embedding.weight"]
        )
        rotary = self.cosine[place], self.sine[place]
        for layer in range(self.depth):
            name = f"blocks.{layer}"
            normed = self._norm(f"{name}.attention_norm", stream)
            projected = self._linear(f"{name}.attention.query_key_value", normed)
            mixed = self._attend(layer, projected, place, rotary)
            stream = stream + self._linear(f"{name}.attention.output", mixed)
            normed = self._norm(f"{name}.feed_forward_norm", stream)
            gate, up = self._linear(f"{name}.gate_up", normed).chunk(2, dim=-1)
            stream = stream + self._linear(f"{name}.down", F.silu(gate) * up)
        return self._linear("readout", self._norm("norm", stream))

    def _attend(
        self, layer: int, projected: Tensor, place: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "token width"]:
        heads, kv_heads = self.attention.num_heads, self.attention.num_key_value_heads
        split = rearrange(
            projected, "token (head width) -> head token width", width=self.attention.head_width
        )
        query, key, value = split.split((heads, kv_heads, kv_heads))
        self.keys[layer, place] = rearrange(
            apply_rotary(key, rotary), "head token width -> token head width"
        )
        self.values[layer, place] = rearrange(value, "head token width -> token head width")
        # Every slot, for every query head.
        keys, values = (
            rearrange(part[layer], "slot head width -> head slot width").repeat_interleave(
                heads // kv_heads, dim=0
            )
            for part in (self.keys, self.values)
        )
        with sdpa_kernel(SDPBackend.MATH):
            mixed = F.scaled_dot_product_attention(
                apply_rotary(query, rotary)[None], keys[None], values[None], self.mask[place]
            )
        return rearrange(mixed, "1 head token width -> token (head width)")

    def _linear(self, name: str, value: Tensor) -> Tensor:
        return F.linear(value, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _norm(self, name: str, value: Tensor) -> Tensor:
        wide = value.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.epsilon)
        normed: Tensor = self.tensors[f"{name}.weight"] * (wide * scale).to(value.dtype)
        return normed
