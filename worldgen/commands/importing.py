"""What the commands do that import checkpoints of others."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worldgen.card_text import card_as_markdown
from worldgen.checkpoint import check_new_folder, write_folder, write_text
from worldgen.commands.output import note
from worldgen.generation import SamplingConfig, Start
from worldgen.pipeline import (
    WorldCard,
    save_world,
)

if TYPE_CHECKING:
    from worldgen.interop.drivingworld_files import DrivingWorldStart, ImportedDrivingWorld
    from worldgen.interop.mineworld_files import ImportedMineWorld, MineWorldStart

__all__ = ["COMMANDS"]


def _import_commavq(arguments: Namespace) -> int:
    from worldgen.interop.commavq import import_commavq_folder

    import_commavq_folder(arguments.out, decoder=arguments.decoder, encoder=arguments.encoder)
    alone = arguments.encoder is None
    print(f"written to {arguments.out}" + ("; without an encoder it only shows ids" * alone))
    return 0


def _import_drivingworld(arguments: Namespace) -> int:
    from worldgen.interop.drivingworld_files import FRAMES_PER_SECOND, import_drivingworld

    check_new_folder(arguments.out)
    imported = import_drivingworld(arguments.tokenizer, arguments.model, settings=arguments.config)
    starts = (
        [imported.plain_start()]
        if arguments.starts is None
        else list(imported.starts(arguments.starts))
    )
    for start in starts:
        for remark in start.notes:
            note(remark)
    sizes = imported.transformer.config
    card = WorldCard(
        name=arguments.out.resolve().name,
        title=f"DrivingWorld ({arguments.model.stem})",
        description=(
            f"Driving, imported from checkpoints of DrivingWorld (arXiv:2412.19505): {sizes.rows} x "
            f"{sizes.columns} visual tokens and ego motion as {sizes.num_action_tokens} tokens a "
            f"frame, {sizes.window} frames remembered."
        ),
        frames_per_second=FRAMES_PER_SECOND,
        action_schema=imported.schema.to_json(),
        decoders=("raster",),
        sampling=SamplingConfig(top_k=30),
        training={
            "imported": imported.record,
            "starts": [start.description for start in starts],
        },
        limits=(
            "Reversing and standing still cannot be said: the slowest motion is half a bin ahead.",
            "Motion is metres and degrees in 0.2 s; at other rates it means another speed.",
            f"After {sizes.window} frames all that are in sight have the last position in time, "
            "which upstream's weights were not trained with.",
        ),
    )

    _write_world(arguments.out, card, imported, starts)
    print(f"it begins with {'; '.join(start.description for start in starts)}")
    if arguments.starts is None:
        print("clips of driving are a better beginning: give a folder of them with --starts")
    print(f"world written; play it with: worldgen play --world {arguments.out}")
    return 0


def _import_mineworld(arguments: Namespace) -> int:
    from worldgen.interop.mineworld_files import import_mineworld

    check_new_folder(arguments.out)
    imported = import_mineworld(
        arguments.config,
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        tokenizer_config=arguments.tokenizer_config,
        frame_height=arguments.height,
        frame_width=arguments.width,
    )
    if arguments.start is None:
        start = imported.plain_start()
    else:
        start = imported.start(arguments.start, arguments.start_actions)
    layout, frames = imported.transformer.layout, imported.transformer.windows[0]
    card = WorldCard(
        name=arguments.out.resolve().name,
        title=f"MineWorld ({arguments.config.stem})",
        description=(
            f"Minecraft, imported from a checkpoint of MineWorld (arXiv:2504.08388): "
            f"{layout.rows} x {layout.columns} visual tokens and {layout.num_action_tokens} action "
            f"tokens a frame, {frames} frames remembered."
        ),
        frames_per_second=20.0,
        action_schema=imported.schema.to_json(),
        decoders=("diagonal", "diagonal:2", "diagonal:4", "raster"),
        sampling=SamplingConfig(top_p=0.8),
        training={"imported": imported.record, "start": start.description},
        limits=(
            "Frames are drawn from what was drawn before them, exactly; MineWorld's own code "
            "attends to places that it has not written yet, so its frames differ in detail.",
            "Two keys of one group (forward and back, say) count as none, and the inventory, "
            "swapping hands and escape cannot be said.",
        ),
    )

    _write_world(arguments.out, card, imported, [start])
    print(f"it begins with {start.description}")
    if arguments.start is None:
        print("a picture or a recording of the game is a better beginning: give one with --start")
    print(f"world written; play it with: worldgen play --world {arguments.out}")
    return 0


def _write_world(
    out: Path,
    card: WorldCard,
    imported: "ImportedDrivingWorld | ImportedMineWorld",
    starts: "Sequence[DrivingWorldStart | MineWorldStart]",
) -> None:
    """Write an imported world, its weights in the types in which they came."""

    def write(folder: Path) -> None:
        tokenizer_type, model_type = imported.types
        save_world(
            folder,
            card=card,
            tokenizer=imported.tokenizer.to(tokenizer_type),
            model=imported.transformer.to(model_type),
            starts=[
                Start(visual_ids=start.visual_ids, action_ids=start.action_ids) for start in starts
            ],
            metadata={"imported": imported.record},
        )
        write_text(folder / "card.md", card_as_markdown(card))

    write_folder(out, write)


def _import_omnitokenizer(arguments: Namespace) -> int:
    from worldgen.interop.omnitokenizer_folder import import_omnitokenizer_folder

    imported = import_omnitokenizer_folder(
        arguments.checkpoint,
        arguments.out,
        arguments=arguments.arguments,
        mode=arguments.mode,
        attention=arguments.attention,
    )
    if imported.unexpected:
        print(
            f"worldgen: {len(imported.unexpected)} names are no part of the tokenizer and unknown: "
            f"{', '.join(imported.unexpected)}",
            file=sys.stderr,
        )
    print(
        f"written to {arguments.out}; {len(imported.ignored)} names of no use here are listed in "
        "its import.json"
    )
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "import commavq": _import_commavq,
    "import drivingworld": _import_drivingworld,
    "import mineworld": _import_mineworld,
    "import omnitokenizer": _import_omnitokenizer,
}
