"""OmniTokenizer's discriminators: their configuration and names in ours."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from worldgen.errors import CheckpointError
from worldgen.interop.files import ForeignState
from worldgen.tokenizers.losses.discriminators import PatchDiscriminator, PatchDiscriminatorConfig

__all__ = ["discriminator_config", "discriminator_state"]


def discriminator_config(
    arguments: Mapping[str, Any], dimensions: Literal[2, 3]
) -> PatchDiscriminatorConfig:
    """Return the configuration of upstream's image (2) or video (3) discriminator.

    Args:
        arguments: Upstream's, under upstream's names; what is missing has upstream's default.
        dimensions: Of the convolutions.

    Raises:
        CheckpointError: If the discriminator is one that upstream itself cannot build or run.
    """
    for name, known in (("norm_type", "batch"), ("activation_in_disc", "leaky_relu")):
        if arguments.get(name, known) != known:
            raise CheckpointError(
                f"OmniTokenizer's discriminators are read with {name} {known!r}, "
                f"got {arguments[name]!r}; import the tokenizer without its discriminators"
            )
    return PatchDiscriminatorConfig(
        dimensions=dimensions,
        base_width=arguments.get("disc_channels", 64),
        num_halvings=arguments.get("disc_layers", 3),
        normalisation="batch",
        normalised_output=dimensions == 3,
        input_noise=bool(arguments.get("apply_noise", False)),
    )


def discriminator_state(
    state: ForeignState, prefix: str, config: PatchDiscriminatorConfig
) -> dict[str, Tensor]:
    """Return a discriminator's state under our names, for `load_state_dict`.

    Upstream numbers the parts of a stage. The stages that halve the resolution, the first left
    out, hold an unused blur at 0, so that their convolution is 1 and their normalisation 2;
    elsewhere these are 0 and 1.

    Args:
        state: Of the checkpoint; what is missing is told by its `finish`.
        prefix: `image_discriminator.` or `video_discriminator.`.
        config: As `discriminator_config` returns it.
    """
    ours = PatchDiscriminator(config).state_dict()
    return {
        name: state.take(prefix + _upstream_name(name, config.num_halvings), tensor.shape)
        for name, tensor in ours.items()
    }


def _upstream_name(name: str, num_halvings: int) -> str:
    if not name.startswith("stages."):
        return name
    _, stage, part, entry = name.split(".", 3)
    number = {"convolution": 0, "normalisation": 1}[part]
    if 1 <= int(stage) < num_halvings:
        number += 1
    return f"model{stage}.{number}.{entry}"
