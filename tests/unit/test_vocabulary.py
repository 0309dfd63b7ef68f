"""A Hugging Face tokenizer's own ids, on disk and in batches."""

from pathlib import Path

import pytest
import torch

from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.data.tokens import data_dictionary
from mclip_fairseq.data.vocabulary import VOCABULARY
from mclip_fairseq.storage.errors import UserError
from tests.mla_fixture import load
from tests.tiny_models import tiny_clip_directory, tiny_wordpiece


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> PieceTokenizer:
    return PieceTokenizer.from_pretrained(tiny_wordpiece(tmp_path_factory.mktemp("wordpiece") / "vocab.txt"))


def test_ids_are_those_of_the_released_code(shared_dir: Path) -> None:
    inputs = load(shared_dir)["inputs"]
    folder = shared_dir / "fixtures/mla/data_example/pretrained_model/bert-base-multilingual-cased"
    for source in (folder, folder / "vocab.txt"):
        tokenizer = PieceTokenizer.from_pretrained(source)
        for lang in ("de", "fr", "zh"):
            assert torch.equal(tokenizer(inputs["texts"][lang]), inputs[f"mbert_ids_{lang}"])
        assert int(tokenizer(inputs["double_sep_text"]["de"]).eq(102).sum()) == 1


def test_special_tokens_in_a_caption_are_text(wordpiece: PieceTokenizer, tmp_path: Path) -> None:
    bpe = PieceTokenizer.from_pretrained(tiny_clip_directory(tmp_path / "clip"))
    for tokenizer, text in ((wordpiece, "Hund [SEP] Katze [CLS] [PAD]"), (bpe, "a <|endoftext|> b <|startoftext|>")):
        ids = tokenizer(text)[0].tolist()
        assert [ids.count(tokenizer.dictionary.bos()), ids.count(tokenizer.dictionary.eos())] == [1, 1]
        assert ids[0] == tokenizer.dictionary.bos()
        assert ids[-1] == tokenizer.dictionary.eos()


def test_long_texts_keep_their_end_and_empty_ones_are_start_and_end(wordpiece: PieceTokenizer) -> None:
    ids = wordpiece(["Hund " * 100, ""])
    assert ids.shape == (2, 77)
    eos = wordpiece.dictionary.eos()
    assert int(ids[0, 76]) == eos
    assert ids[1, :3].tolist() == [wordpiece.dictionary.bos(), eos, wordpiece.dictionary.pad()]
    assert wordpiece([]).shape == (0, 2)


def test_a_vocabulary_is_read_as_it_was_written(wordpiece: PieceTokenizer, tmp_path: Path) -> None:
    wordpiece.dictionary.save_vocabulary(tmp_path / VOCABULARY)
    read = data_dictionary(tmp_path)
    assert read.symbols == wordpiece.dictionary.symbols
    assert (read.bos(), read.pad(), read.eos(), read.unk()) == (2, 0, 3, 1)
    assert read.index("Hund") == wordpiece.tokenizer.convert_tokens_to_ids("Hund")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list"),
        ('{"symbols": ["a"], "bos": 0, "pad": 0, "eos": 7, "unk": 0}', "eos is 7, but there are 1 symbols"),
        ('{"symbols": ["a", "a"], "bos": 0, "pad": 0, "eos": 0, "unk": 0}', "not distinct strings"),
        ('{"symbols": ["a"], "bos": 0, "pad": 0, "eos": 0}', "unk is missing"),
    ],
)
def test_a_damaged_vocabulary_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / VOCABULARY).write_text(content)
    with pytest.raises(UserError, match=message):
        data_dictionary(tmp_path)


def test_a_tokenizer_without_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as a tokenizer"):
        PieceTokenizer.from_pretrained(tmp_path)
