"""From logits to frames: random numbers, sampling, decoders, sessions and their logs."""

from worldgen.generation.decoding import (
    Decoder,
    ScheduleDecoder,
    decoder_names,
    make_decoder,
)
from worldgen.generation.log import RolloutLog
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.session import Session, Start
from worldgen.generation.speculative import WithDraftModel

__all__ = [
    "Decoder",
    "RolloutLog",
    "SamplingConfig",
    "ScheduleDecoder",
    "Session",
    "Start",
    "WithDraftModel",
    "decoder_names",
    "make_decoder",
]
