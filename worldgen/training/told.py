"""What training clips are told beside frames and actions: texts, and frames seen before."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from worldgen.data.captions import NO_CAPTION, caption_indices, load_captions
from worldgen.data.episodes import Dataset
from worldgen.data.token_cache import TokenCache
from worldgen.errors import ConfigError, DataError
from worldgen.models.recall import recalled_of_episode
from worldgen.tokenizers.text import TextTokenizer

__all__ = ["captions_of_steps", "open_or_train_text_tokenizer", "recalled_of_steps"]


def open_or_train_text_tokenizer(
    datasets: Sequence[Dataset], vocabulary_size: int, given: Path | None
) -> TextTokenizer:
    """Return a given text tokenizer, or one trained on the captions of the recordings.

    Args:
        datasets: Recordings with captions.
        vocabulary_size: Ids that the model has room for.
        given: File of a text tokenizer; None: train one.

    Raises:
        CheckpointError: If the file is missing or damaged.
        DataError: If a recording has no captions.
        ConfigError: If the tokenizer has more ids than the model.
    """
    texts = [text for dataset in datasets for text in _texts(dataset)]
    if given is None:
        return TextTokenizer.train(texts, vocabulary_size)
    tokenizer = TextTokenizer.load(given)
    if tokenizer.vocabulary_size > vocabulary_size:
        raise ConfigError(
            f"the text tokenizer {given} has {tokenizer.vocabulary_size} ids, the model has room "
            f"for {vocabulary_size}; set model.text_vocabulary_size={tokenizer.vocabulary_size}"
        )
    return tokenizer


def captions_of_steps(
    datasets: Sequence[Dataset], split: str, tokenizer: TextTokenizer, length: int
) -> tuple[Int[Tensor, "caption token"], Int[np.ndarray, " step"]]:
    """Return the ids of all captions, the null prompt last, and each step's row of them, or -1.

    Args:
        datasets: In the order of their tokens; a step is a frame.
        split: "train", "validation" or "test".
        tokenizer: Of the texts.
        length: Ids that there is room for in front of a sequence.

    Raises:
        DataError: If a recording or its split has no captions.
        ConfigError: If a caption is too long.
    """
    rows: list[Tensor] = []
    numbers = []
    for dataset in datasets:
        indices = caption_indices(dataset, split)
        encoded = [tokenizer.encode(text, length) for text in _texts(dataset)]
        if not (indices != NO_CAPTION).any():
            raise DataError(
                f"no {split} frame of {dataset.folder} has a caption; {_advice(dataset)}"
            )
        numbers.append(np.where(indices == NO_CAPTION, -1, indices + len(rows)))
        rows += encoded
    return torch.stack([*rows, tokenizer.null(length)]).int(), np.concatenate(numbers)


def recalled_of_steps(tokens: TokenCache, after: int) -> Int[np.ndarray, " step"]:
    """Return for each step the earlier step of its episode that is like it, or -1.

    Args:
        tokens: Of a split.
        after: Only steps at least that much earlier are recalled.
    """
    recalled = np.full(len(tokens.visual_ids), -1, dtype=np.int64)
    bounds = list(zip(tokens.episode_starts[:-1], tokens.episode_starts[1:], strict=True))
    for start, stop in tqdm(bounds, desc="recall", unit=" episodes"):
        found = recalled_of_episode(np.asarray(tokens.visual_ids[start:stop]), after=after)
        recalled[start:stop] = np.where(found < 0, -1, found + start)
    return recalled


def _texts(dataset: Dataset) -> list[str]:
    table = load_captions(dataset)
    if table is None or not table.captions:
        raise DataError(f"{dataset.folder} has no captions; {_advice(dataset)}")
    return [caption.text for caption in table.captions]


def _advice(dataset: Dataset) -> str:
    return (
        f"write them with `python -m envs.caption {dataset.folder}`, or train without text: "
        "model.text_vocabulary_size=0"
    )
