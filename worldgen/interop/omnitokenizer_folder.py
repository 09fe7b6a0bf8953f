"""An OmniTokenizer checkpoint as a folder of ours: weights, and a record of what was imported."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import check_new_folder, file_hash, write_text
from worldgen.errors import CheckpointError, DataError
from worldgen.interop.files import ForeignCheckpoint, read_checkpoint
from worldgen.interop.omnitokenizer import (
    AttentionPath,
    ImportedOmniTokenizer,
    TemporalMode,
    import_omnitokenizer,
)
from worldgen.tokenizers.visual import OmniTokenizer, save_autoencoder, save_visual_tokenizer

__all__ = ["import_omnitokenizer_folder"]


def import_omnitokenizer_folder(
    checkpoint: Path,
    out: Path,
    *,
    arguments: Path | None = None,
    mode: TemporalMode = "upstream",
    attention: AttentionPath = "sdpa",
) -> ImportedOmniTokenizer:
    """Write `tokenizer.safetensors` or `autoencoder.safetensors`, `import.json` and `README.md`.

    Args:
        checkpoint: Upstream's `*.ckpt`, or its weights alone as `*.safetensors`.
        out: Folder to make; must not hold anything yet.
        arguments: JSON with upstream's arguments, where the checkpoint has none; they may stand
            under `args`.
        mode: As `import_omnitokenizer` takes it.
        attention: As `import_omnitokenizer` takes it.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or does not fit its arguments.
        DataError: If the folder holds something, or the JSON cannot be read.
    """
    check_new_folder(out)
    content = read_checkpoint(checkpoint)
    given = _stored_arguments(content) if arguments is None else _written_arguments(arguments)
    imported = import_omnitokenizer(
        content.tensors, given, checkpoint, mode=mode, attention=attention
    )
    record: dict[str, Any] = {
        "origin": "OmniTokenizer",
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_hash(checkpoint),
        "mode": mode,
        "attention": attention,
        "arguments": imported.arguments,
        "defaulted_arguments": imported.defaulted,
        "missing": [],
        "ignored": imported.ignored,
        "unexpected": imported.unexpected,
    }
    if isinstance(imported.network, OmniTokenizer):
        name = "tokenizer.safetensors"
        save_visual_tokenizer(out / name, imported.network, {"imported": record})
    else:
        name = "autoencoder.safetensors"
        save_autoencoder(out / name, imported.network, {"imported": record})
    write_text(out / "import.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "README.md", _card(record, name, imported))
    return imported


def _stored_arguments(content: ForeignCheckpoint) -> Mapping[str, Any]:
    stored = content.extras.get("hyper_parameters")
    if isinstance(stored, Mapping):
        stored = stored.get("args", stored)
    if isinstance(stored, argparse.Namespace):
        stored = vars(stored)
    if not isinstance(stored, Mapping):
        raise CheckpointError(
            f"{content.path} holds weights without the arguments they were trained with; give "
            "these as a JSON file with --arguments"
        )
    return stored


def _written_arguments(path: Path) -> Mapping[str, Any]:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the arguments in {path} ({error})") from error
    written = written.get("args", written) if isinstance(written, dict) else written
    if not isinstance(written, dict):
        raise DataError(f"{path} holds no JSON object; write each argument by its upstream name")
    return written


_MODES = {
    "upstream": (
        "Temporal convolutions read memory in the order of upstream's code, which mixes places "
        "and times. This gives upstream's numbers; codes of a frame depend on later frames, and "
        "clips cannot be taken piece by piece."
    ),
    "aligned": (
        "Temporal convolutions read each place along time, so that codes do not depend on later "
        "frames. Weights that upstream's code trained were trained for the other order: expect "
        "worse videos before further training. Images are the same in both."
    ),
}

_ATTENTION = {
    "sdpa": "No relative positions and no ALiBi in attention, as upstream on torch 2.1 and later.",
    "einsum_bias": "Relative positions and ALiBi in attention, as upstream on torch before 2.1.",
}


def _card(record: Mapping[str, Any], name: str, imported: ImportedOmniTokenizer) -> str:
    loader = "load_visual_tokenizer" if name.startswith("tokenizer") else "load_autoencoder"
    unexpected = ", ".join(f"`{entry}`" for entry in imported.unexpected) or "none"
    return f"""# Imported from OmniTokenizer

`{record["checkpoint"]}`, SHA-256 `{record["checkpoint_sha256"]}`.

- mode `{record["mode"]}`: {_MODES[record["mode"]]}
- attention `{record["attention"]}`: {_ATTENTION[record["attention"]]}
- names missing: none; ignored: {len(imported.ignored)}, listed in `import.json`; unexpected:
  {unexpected}
- arguments not in the checkpoint, with upstream's defaults:
  {", ".join(imported.defaulted) or "none"}

```python
from pathlib import Path

from worldgen.tokenizers.visual import {loader}

network = {loader}(Path("{name}"))
```
"""
