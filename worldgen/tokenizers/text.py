"""Sentences to ids and back: byte-pair encoding in a Hugging Face `tokenizer.json`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from worldgen.checkpoint import write_atomically
from worldgen.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PADDING_ID", "TextTokenizer"]

PADDING_ID = 0
"""Stands behind a sentence that is shorter than its place; a sentence of nothing else is none."""

_PADDING = "<pad>"
_PADDING_NAMES = (_PADDING, "[PAD]", "<|pad|>", "<|padding|>")
_BYTES = 256


class TextTokenizer:
    """Turns a sentence into ids of one vocabulary, of which 0 is padding.

    Reads any `tokenizer.json` of the `tokenizers` library. Where that file's id 0 is a word and not
    padding, all its ids are moved up by one. Special tokens that are written out in a sentence are
    text like any other, and none are added around it.

    Args:
        tokenizer: Of the `tokenizers` library; truncation and padding of its own are switched off.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        padding = tokenizer.padding
        named_padding = tokenizer.id_to_token(PADDING_ID) in _PADDING_NAMES
        pads_with_zero = padding is not None and padding["pad_id"] == PADDING_ID
        self._shift = 0 if named_padding or pads_with_zero else 1
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Else the text "<pad>" would be padding.
        tokenizer.encode_special_tokens = True
        # Ids need not be counted without gaps.
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self._vocabulary_size = max(ids) + 1 + self._shift

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> "TextTokenizer":
        """Return a byte-level byte-pair encoding learned from sentences, on this machine alone.

        Merges as in "Neural Machine Translation of Rare Words with Subword Units"
        (arXiv:1508.07909), over bytes, so that every sentence has ids. Capital letters, spaces at
        the ends and in a row, and the marks at the end of a sentence make no difference.

        Args:
            texts: Sentences, for example the captions of a recording.
            vocabulary_size: Most ids: padding, the 256 bytes and the merges; fewer where the
                sentences have no more to merge.

        Raises:
            ConfigError: If the vocabulary is smaller than 257, there is no sentence, or the
                library is missing.
        """
        library = _library()
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

        if vocabulary_size <= _BYTES:
            raise ConfigError(
                f"text: vocabulary_size={vocabulary_size}; use {_BYTES + 1} or more, for padding "
                f"and the {_BYTES} bytes"
            )
        sentences = [text for text in texts if text.strip()]
        if not sentences:
            raise ConfigError(
                "text: no sentence to learn from; caption the recording: python -m envs.caption"
            )
        tokenizer = library.Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFKC(),
                normalizers.Lowercase(),
                normalizers.Replace(library.Regex(r"\s+"), " "),
                normalizers.Replace(library.Regex(r"[\s.,;:!?]+$"), ""),
                normalizers.Strip(),
            ]
        )
        # A space in front of the first word too: the same word has the same ids everywhere.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[_PADDING],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sentences, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Return the tokenizer of a `tokenizer.json`, one's own or another's.

        Raises:
            CheckpointError: If the file is missing or is no such file.
            ConfigError: If the library is missing.
        """
        library = _library()
        if not path.is_file():
            raise CheckpointError(f"no text tokenizer at {path}; give a tokenizer.json")
        try:
            tokenizer = library.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        # The library raises plain Exception for what it cannot read.
        except Exception as error:
            raise CheckpointError(
                f"{path} is not a tokenizer file ({error}); give a tokenizer.json as the "
                "tokenizers library writes it"
            ) from error
        if tokenizer.get_vocab_size(with_added_tokens=True) == 0:
            raise CheckpointError(f"{path} knows no words; give a tokenizer.json that was trained")
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write the `tokenizer.json`; `load` returns the same tokenizer again."""
        if self._shift == 0:
            # Says that id 0 is padding, whatever it is called.
            self._tokenizer.enable_padding(
                pad_id=PADDING_ID, pad_token=self._tokenizer.id_to_token(PADDING_ID) or _PADDING
            )
        try:
            write_atomically(path, lambda temporary: self._tokenizer.save(str(temporary)))
        finally:
            self._tokenizer.no_padding()

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, padding among them."""
        return self._vocabulary_size

    def encode(self, text: str, length: int) -> Int[Tensor, " token"]:
        """Return the ids of a sentence, int64 `[length]`, padded with 0 behind.

        Args:
            text: One sentence or a few.
            length: Ids that there is room for.

        Raises:
            ConfigError: If the sentence is empty, takes more than `length` ids, or is no Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text {_shortened(text)} is no Unicode ({error.reason} at character "
                f"{error.start + 1}); write it in UTF-8"
            ) from error
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise ConfigError(
                f"the text {text!r} is empty; say what is to be seen, or leave the text out"
            )
        if len(ids) > length:
            raise ConfigError(
                f"the text {_shortened(text)} takes {len(ids)} tokens, there is room for {length}; "
                "say it in fewer words"
            )
        encoded = self.null(length)
        encoded[: len(ids)] = torch.tensor(ids, dtype=torch.int64) + self._shift
        return encoded

    def decode(self, ids: Int[Tensor, " token"]) -> str:
        """Return the sentence of ids, without the padding."""
        words = [int(token) - self._shift for token in ids if token != PADDING_ID]
        return str(self._tokenizer.decode(words, skip_special_tokens=False)).strip()

    def null(self, length: int) -> Int[Tensor, " token"]:
        """Return the prompt that says nothing, int64 `[length]` of padding."""
        return torch.full((length,), PADDING_ID, dtype=torch.int64)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "text needs the tokenizers library: pip install tokenizers, or the extra text"
        ) from error
    return tokenizers


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
