"""Decoders by their names."""

from collections.abc import Callable

from worldgen.errors import ConfigError
from worldgen.generation.grouped import GroupedJacobiDecoder, code_vectors
from worldgen.generation.jacobi import JacobiDecoder
from worldgen.generation.refinement import RefinementDecoder
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.scheduled import Decoder, ScheduleDecoder
from worldgen.generation.speculative import SpeculativeDecoder
from worldgen.layout import SequenceLayout
from worldgen.schedule import make_schedule, schedule_names
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["Decoder", "ScheduleDecoder", "decoder_names", "make_decoder"]

_Make = Callable[[str, SequenceLayout, SamplingConfig, VisualTokenizer | None], Decoder]


def decoder_names() -> tuple[str, ...]:
    """Return the names that `make_decoder` accepts, without what may stand behind a colon."""
    return (*schedule_names(), *_DECODERS)


def make_decoder(
    name: str,
    layout: SequenceLayout,
    sampling: SamplingConfig,
    tokenizer: VisualTokenizer | None = None,
) -> Decoder:
    """Return the decoder of that name for a grid.

    Exact, with raster's ids: `jacobi` and `jacobi:window` guess that nothing changes;
    `speculative:decoder` lets a small model guess by a decoder, raster if none is named. Near
    raster: `grouped:count` is jacobi on so many groups of codes, 64 by default. Of their own:
    `refine:rounds` and `refine:rounds:temperature`, and the orders of
    `worldgen.schedule.make_schedule`.

    Args:
        name: Of the decoder.
        layout: Gives the grid.
        sampling: How ids are drawn from logits.
        tokenizer: Only `grouped` needs it: its codes are grouped.

    Raises:
        ConfigError: If the name is unknown, what stands behind the colon is not allowed, or the
            tokenizer is missing.
    """
    kind, _, rest = name.partition(":")
    if kind in _DECODERS:
        return _DECODERS[kind](rest, layout, sampling, tokenizer)
    if kind not in schedule_names():
        raise ConfigError(
            f"unknown decoder or decoding order {name!r}; choose one of "
            f"{', '.join(decoder_names())}"
        )
    schedule = make_schedule(name, layout.rows, layout.columns)
    return ScheduleDecoder(schedule=schedule, sampling=sampling)


def _jacobi(
    rest: str, layout: SequenceLayout, sampling: SamplingConfig, tokenizer: VisualTokenizer | None
) -> Decoder:
    window = _positive(rest, f"jacobi:{rest}") if rest else None
    return JacobiDecoder(sampling=sampling, window=window)


def _speculative(
    rest: str, layout: SequenceLayout, sampling: SamplingConfig, tokenizer: VisualTokenizer | None
) -> Decoder:
    drafter = make_decoder(rest or "raster", layout, sampling, tokenizer)
    return SpeculativeDecoder(drafter=drafter, sampling=sampling)


def _grouped(
    rest: str, layout: SequenceLayout, sampling: SamplingConfig, tokenizer: VisualTokenizer | None
) -> Decoder:
    count = _positive(rest, f"grouped:{rest}") if rest else 64
    if tokenizer is None:
        raise ConfigError(
            f"decoder 'grouped:{count}' groups the codes of a visual tokenizer; give make_decoder "
            "the tokenizer, as sessions of a world do"
        )
    return GroupedJacobiDecoder.of(code_vectors(tokenizer), count, sampling)


def _refine(
    rest: str, layout: SequenceLayout, sampling: SamplingConfig, tokenizer: VisualTokenizer | None
) -> Decoder:
    rounds, colon, temperature = rest.partition(":")
    count = _positive(rounds, f"refine:{rest}") if rest else 4
    if not colon:
        return RefinementDecoder(rounds=count, sampling=sampling)
    try:
        confidence_temperature = float(temperature)
    except ValueError:
        raise ConfigError(
            f"decoder 'refine:{rest}' needs a number, the confidence temperature, after the second "
            "colon, for example refine:4:0.5"
        ) from None
    return RefinementDecoder(
        rounds=count, sampling=sampling, confidence_temperature=confidence_temperature
    )


_DECODERS: dict[str, _Make] = {
    "refine": _refine,
    "jacobi": _jacobi,
    "speculative": _speculative,
    "grouped": _grouped,
}


def _positive(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"decoder {name!r} needs a positive integer after the colon")
    return int(text)
