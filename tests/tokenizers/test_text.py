"""Sentences to ids: padding, what makes no difference, files of others, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from worldgen.errors import CheckpointError, ConfigError
from worldgen.tokenizers.text import TextTokenizer

SENTENCES = ("water to the north", "a tree beside you", "facing west", "a tree to the west")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(SENTENCES, 300)


def _words(*words: str) -> Tokenizer:
    """Return a tokenizer of whole words, as somebody else may have made it."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_every_sentence_comes_back_from_its_ids(tokenizer: TextTokenizer) -> None:
    for text in (*SENTENCES, "a diamond, 日本 ünd <pad>"):
        ids = tokenizer.encode(text, 64)
        assert ids.shape == (64,)
        assert ids.dtype == torch.int64
        assert tokenizer.decode(ids) == text


def test_padding_stands_behind_the_sentence_and_nowhere_in_it(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("<pad> water <pad>", 40)
    length = int((ids != 0).sum())
    assert 0 < length < 40
    assert (ids[:length] > 0).all()
    assert (ids[length:] == 0).all()
    assert torch.equal(tokenizer.null(5), torch.zeros(5, dtype=torch.int64))


def test_ids_stay_below_the_size_of_the_vocabulary(tokenizer: TextTokenizer) -> None:
    everything = "".join(chr(code) for code in range(32, 2000))
    assert tokenizer.encode(everything, 8000).max() < tokenizer.vocabulary_size <= 300


def test_capitals_spaces_and_final_marks_make_no_difference(tokenizer: TextTokenizer) -> None:
    plain = tokenizer.encode("water to the north", 20)
    assert torch.equal(tokenizer.encode("  Water\n to  the North. ", 20), plain)
    assert not torch.equal(tokenizer.encode("water, to the north", 20), plain)


def test_a_word_has_the_same_ids_wherever_it_stands(tokenizer: TextTokenizer) -> None:
    alone = tokenizer.encode("west", 8)
    (size,) = alone.nonzero().shape[:1]
    assert torch.equal(tokenizer.encode("facing west", 8)[1 : 1 + size], alone[:size])


def test_more_merges_make_fewer_tokens() -> None:
    few, many = TextTokenizer.train(SENTENCES, 257), TextTokenizer.train(SENTENCES, 320)
    text = "a tree to the west"
    assert int((few.encode(text, 32) != 0).sum()) > int((many.encode(text, 32) != 0).sum())
    assert few.vocabulary_size == 257


def test_a_saved_tokenizer_is_the_same_one(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "text.json")
    loaded = TextTokenizer.load(tmp_path / "text.json")
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    for text in SENTENCES:
        assert torch.equal(loaded.encode(text, 40), tokenizer.encode(text, 40))
    assert [path.name for path in tmp_path.iterdir()] == ["text.json"]


def test_a_file_whose_first_id_is_a_word_has_its_ids_moved_up(tmp_path: Path) -> None:
    _words("tree", "water", "[UNK]").save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.vocabulary_size == 4
    assert tokenizer.encode("tree water lava", 5).tolist() == [1, 2, 3, 0, 0]
    assert tokenizer.decode(tokenizer.encode("water tree", 4)) == "water tree"
    tokenizer.save(tmp_path / "again.json")
    assert TextTokenizer.load(tmp_path / "again.json").encode("tree", 2).tolist() == [1, 0]


@pytest.mark.parametrize("padding", ["[PAD]", "nothing"])
def test_a_file_whose_first_id_is_padding_keeps_its_ids(tmp_path: Path, padding: str) -> None:
    words = _words(padding, "tree", "[UNK]")
    words.enable_padding(pad_id=0, pad_token=padding, length=9)
    words.enable_truncation(1)
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.vocabulary_size == 3
    assert tokenizer.encode("tree tree", 3).tolist() == [1, 1, 0]
    tokenizer.save(tmp_path / "again.json")
    assert TextTokenizer.load(tmp_path / "again.json").encode("tree", 2).tolist() == [1, 0]


def test_an_empty_sentence_and_one_that_is_too_long_are_refused(tokenizer: TextTokenizer) -> None:
    for text in ("", "  \n", "..."):
        with pytest.raises(ConfigError, match="is empty; say what is to be seen"):
            tokenizer.encode(text, 8)
    with pytest.raises(ConfigError, match=r"is no Unicode \(.* at character 3\)"):
        tokenizer.encode("a \udcff", 8)
    with pytest.raises(ConfigError, match=r"takes \d+ tokens, there is room for 3; say it in"):
        tokenizer.encode("a tree beside you and another one", 3)


def test_what_is_no_tokenizer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match="no text tokenizer at"):
        TextTokenizer.load(path)
    for content in (b"", b"{}", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"[1, 2"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a tokenizer file"):
            TextTokenizer.load(path)
    Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(CheckpointError, match="knows no words"):
        TextTokenizer.load(path)


def test_there_must_be_something_to_learn_from_and_room_for_the_bytes() -> None:
    with pytest.raises(ConfigError, match="no sentence to learn from"):
        TextTokenizer.train(["", " "], 300)
    with pytest.raises(ConfigError, match="vocabulary_size=256; use 257 or more"):
        TextTokenizer.train(SENTENCES, 256)


def test_without_the_library_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="pip install tokenizers"):
        TextTokenizer.train(SENTENCES, 300)
    with pytest.raises(ConfigError, match="the extra text"):
        TextTokenizer.load(tmp_path / "text.json")
