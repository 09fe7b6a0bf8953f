"""How good what a decoder draws is: to the raster oracle, to the truth, to the player's actions."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import DataError, EnvironmentMissingError
from worldgen.evaluation.judges.action_following import (
    HELD_ACTIONS,
    HeldMotion,
    compare_held_actions,
    judge_held_actions,
    simulate_held_actions,
)
from worldgen.evaluation.judges.probe_data import tile_classes
from worldgen.evaluation.judges.probes import MotionProbe, TileProbe
from worldgen.evaluation.judges.tile_following import MOVES, TileRules, follow_tiles
from worldgen.evaluation.material import Material, held_rollouts, load_world_probes, prepare
from worldgen.evaluation.prediction import frame_quality
from worldgen.evaluation.rollout import Roller
from worldgen.evaluation.summary import trusted_judge
from worldgen.generation.decoding import Decoder, make_decoder
from worldgen.generation.sampling import SamplingConfig
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.pipeline import World

__all__ = ["QUALITIES", "ScoredDecoder", "WorldQuality"]

HELD_STEPS = 10
QUALITIES = {
    "log_likelihood": "mean natural logarithm of the probability that raster order gives each id",
    "psnr": "PSNR against the truth in dB, mean over clips and frames",
    "psnr_of_mean_error": "PSNR of the mean squared error of all clips and frames, in dB",
    "drift_db": "PSNR of the last quarter of a clip's frames minus that of the first",
    "action_following": "share of tried actions with their effect",
}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ScoredDecoder:
    """A decoder that also notes how probable raster order finds each frame that it drew.

    The oracle is the model itself, asked for every cell after all cells before it in raster order,
    at temperature 1 and with nothing left out, whatever the decoder draws with.
    """

    inner: Decoder
    log_likelihoods: list[float] = field(default_factory=list)
    """Mean over the cells of each frame of each sequence."""

    @property
    def name(self) -> str:
        """That of the decoder."""
        return self.inner.name

    @property
    def order(self) -> str:
        """That of the decoder."""
        return self.inner.order

    @property
    def sampling(self) -> SamplingConfig:
        """That of the decoder."""
        return self.inner.sampling

    def draw_frame(
        self, model: WorldModel, draft: FrameDraft, uniforms: Float[Tensor, "batch cell"]
    ) -> Int[Tensor, "batch cell"]:
        """Return the decoder's ids."""
        ids = self.inner.draw_frame(model, draft, uniforms)
        raster = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        log_probability = model.score(draft, ids, raster).double().log_softmax(dim=-1)
        each = log_probability.gather(-1, ids[..., None]).mean(dim=(1, 2))
        self.log_likelihoods.extend(each.tolist())
        return ids


class WorldQuality:
    """Measures decoders on the same test clips of one world, each with the same random numbers.

    Where there are no test clips, or nobody can render them, decoders dream from the world's starts
    and only `log_likelihood` is known; `note` says why.

    Args:
        world: To measure, on the device and in the precision of its networks.
        clips: Test clips, at most.
        horizon: Frames to predict in each.
        tell: Told about the progress.
    """

    def __init__(self, world: World, *, clips: int, horizon: int, tell: Tell) -> None:
        self._world, self._horizon, self._tell = world, horizon, tell
        self._material: Material | None = None
        self.note: str | None = None
        # Each decoder makes its own dreams; these first ones are only there because some must be.
        cheapest = make_decoder("whole_frame", world.model.layout, world.card.sampling)
        try:
            self._material = prepare(world, clips, None, tell, horizon=horizon, decoder=cheapest)
        except (DataError, EnvironmentMissingError) as error:
            self.note = f"only the likelihood of dreams from the world's starts: {error}"
        self.clips = clips if self._material is None else len(self._material.clips)
        self._probes, figures = load_world_probes(world)
        self._motion: MotionProbe | None = None
        self._simulated: Mapping[str, HeldMotion] | None = None
        name, _ = trusted_judge(figures, "yaw_change")
        judge = None if name is None else self._probes.get(name)
        if self._material is not None and isinstance(judge, MotionProbe):
            self._prepare_motion(self._material, judge)

    def _prepare_motion(self, material: Material, judge: MotionProbe) -> None:
        schema = self._world.action_tokenizer.schema
        if judge.config.num_frames > material.context or not set(HELD_ACTIONS) <= set(schema.named):
            return
        self._motion = judge
        if material.environment is not None:
            settings = {name: schema.action(schema.named[name]) for name in HELD_ACTIONS}
            self._simulated = simulate_held_actions(
                material.environment,
                material.clips.specs,
                settings,
                steps=HELD_STEPS,
                progress=self._tell,
            )

    def measure(self, decoder: Decoder) -> dict[str, Any]:
        """Return the figures named in `QUALITIES`, None where they cannot be known.

        Args:
            decoder: Of the world's grid.
        """
        scored = ScoredDecoder(decoder)
        figures: dict[str, Any] = dict.fromkeys(QUALITIES)
        if self._material is None:
            self._dream_from_starts(scored)
        else:
            material = self._material.drawn_by(scored, self._tell)
            figures |= self._against_the_truth(material)
            unscored = dataclasses.replace(material.roller, decoder=decoder)
            figures |= self._following(dataclasses.replace(material, roller=unscored))
        figures["log_likelihood"] = float(np.mean(scored.log_likelihoods))
        return figures

    def _dream_from_starts(self, decoder: Decoder) -> None:
        world, schema = self._world, self._world.action_tokenizer.schema
        start = world.starts[0]
        named = [schema.action(settings) for settings in schema.named.values()] or [schema.rest()]
        context = world.action_tokenizer.decode(
            start.action_ids.reshape(-1, world.action_tokenizer.num_slots).numpy()
        )
        taken = [named[step // 4 % len(named)] for step in range(self._horizon)]
        actions = np.concatenate((context, np.stack(taken)))
        roller = Roller(
            model=world.model,
            visual_tokenizer=world.tokenizer,
            action_tokenizer=world.action_tokenizer,
            decoder=decoder,
            seeds=range(self.clips),
        )
        roller.roll_out(
            np.repeat(start.visual_ids[None].numpy(), self.clips, axis=0),
            np.repeat(actions[None], self.clips, axis=0),
            progress=self._tell,
        )

    def _against_the_truth(self, material: Material) -> dict[str, Any]:
        quality = frame_quality(material.generated, material.truth).psnr
        quarter = max(1, quality.shape[1] // 4)
        return {
            "psnr": float(quality.mean()),
            "psnr_of_mean_error": float(-10 * np.log10((10.0 ** (-quality / 10)).mean())),
            "drift_db": float(quality[:, -quarter:].mean() - quality[:, :quarter].mean()),
        }

    def _following(self, material: Material) -> dict[str, Any]:
        if self._motion is not None:
            return self._held_actions(material, self._motion)
        for probe in self._probes.values():
            if isinstance(probe, TileProbe):
                return self._moves(material, probe)
        return {}

    def _held_actions(self, material: Material, judge: MotionProbe) -> dict[str, Any]:
        frames = held_rollouts(material, HELD_ACTIONS, HELD_STEPS, self._tell)
        compared = compare_held_actions(
            judge_held_actions(judge, frames, steps=HELD_STEPS), self._simulated
        )
        shares = {name: entry["share"] for name, entry in compared["shares"].items()}
        return _followed(shares, sum(entry["states"] for entry in compared["shares"].values()))

    def _moves(self, material: Material, probe: TileProbe) -> dict[str, Any]:
        """Try every move from every state: it must scroll where the way is free, else stay."""
        context = material.context
        true = tile_classes(material.clips.columns, probe.config, leading_axes=2)
        states = true[:, context - 1]
        named = self._world.action_tokenizer.schema.named
        moves = tuple(move for move in MOVES if move in named)
        if not moves:
            return {}
        frames = held_rollouts(material, moves, 1, self._tell)
        found = follow_tiles(
            np.concatenate([states for _ in moves]),
            np.concatenate([probe.read(frames[move][:, -1]) for move in moves]),
            np.repeat(moves, len(states)),
            TileRules.from_config(probe.config),
        )
        names = ("free_moves_scroll", "blocked_moves_stay")
        return _followed(
            {name: found[name]["share"] for name in names},
            sum(found[name]["cases"] for name in names),
        )


def _followed(shares: Mapping[str, float | None], cases: int) -> dict[str, Any]:
    """Return the mean of the shares that are known, and all of them."""
    known = [share for share in shares.values() if share is not None]
    return {
        "action_following": float(np.mean(known)) if known else None,
        "action_following_by_kind": dict(shares),
        "action_following_cases": cases,
    }
