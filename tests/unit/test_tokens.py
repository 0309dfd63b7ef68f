"""Flat tokens against the slow and obvious way."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary, load_dictionary

SENTENCES = [[5, 6, 7, 8, 2], [2], [9, 2], [4, 4, 4, 4, 4, 4, 4, 2]]


@pytest.fixture
def dictionary() -> Dictionary:
    dictionary = Dictionary()
    for letter in "abcdefghij":
        dictionary.add_symbol(letter)
    return dictionary


def slow_batch(sentences: list[list[int]], bos: bool, limit: int | None) -> torch.Tensor:
    rows = []
    for sentence in sentences:
        body = sentence[:-1] if limit is None else sentence[:-1][: limit - 2]
        rows.append(([0] if bos else []) + body + [2])
    width = max(map(len, rows))
    return torch.tensor([row + [1] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("limit", [None, 4])
def test_batch_equals_slow_padding(dictionary: Dictionary, bos: bool, limit: int | None) -> None:
    flat = FlatTokens.from_sentences([torch.tensor(s) for s in SENTENCES], dictionary, limit)
    rows = [3, 0, 1, 1, 2]
    assert torch.equal(flat.batch(np.array(rows), bos), slow_batch([SENTENCES[i] for i in rows], bos, limit))
    assert flat.sizes.tolist() == [len(slow_batch([s], True, limit)[0]) for s in SENTENCES]
    assert flat.truncated == (0 if limit is None else 2)


def test_reads_what_fairseq_preprocess_wrote(tiny_corpus: Path) -> None:
    dictionary = data_dictionary(tiny_corpus / "captions")
    flat = FlatTokens.from_prefix(tiny_corpus / "captions" / "train.de-None.de", dictionary)
    lines = (tiny_corpus / "pieces" / "train.de").read_text(encoding="utf-8").splitlines()
    assert len(flat) == len(lines)
    for number in (0, 17, 103):
        ids = flat.batch(np.array([number]))[0].tolist()
        assert [dictionary[i] for i in ids] == ["<s>", *lines[number].split(), "</s>"]


def test_other_processes_map_the_same_file(tiny_corpus: Path) -> None:
    """Pickled whole, and after a selection, without a token in the pickle."""
    whole = FlatTokens.from_prefix(tiny_corpus / "mte" / "train.en-de.de", data_dictionary(tiny_corpus / "mte"))
    part = whole.select(np.array([5, 3, 90]))
    for flat in (whole, part):
        pickled = pickle.dumps(flat)
        assert len(pickled) < len(whole.values) * whole.values.itemsize
        again = pickle.loads(pickled)
        assert isinstance(again.values, np.memmap)
        rows = np.arange(len(flat))
        assert torch.equal(again.batch(rows), flat.batch(rows))
    held = FlatTokens.from_sentences([torch.tensor(s) for s in SENTENCES], data_dictionary(tiny_corpus / "mte"))
    assert torch.equal(pickle.loads(pickle.dumps(held)).batch(np.arange(4)), held.batch(np.arange(4)))


def test_missing_files_and_foreign_ids_are_named(tiny_corpus: Path, dictionary: Dictionary) -> None:
    with pytest.raises(ValueError, match="not found"):
        FlatTokens.from_prefix(tiny_corpus / "nothing", dictionary)
    with pytest.raises(ValueError, match=r"holds id \d+ but the dictionary has 14"):
        FlatTokens.from_prefix(tiny_corpus / "captions" / "train.de-None.de", dictionary)


def test_dictionaries_must_agree(tmp_path: Path, tiny_corpus: Path) -> None:
    for lang in ("de", "en"):
        (tmp_path / f"dict.{lang}.txt").write_text("a 1\nb 1\n")
    assert len(data_dictionary(tmp_path)) == 4 + 2 + 1
    (tmp_path / "dict.fr.txt").write_text("b 1\na 1\n")
    with pytest.raises(ValueError, match="differs"):
        data_dictionary(tmp_path)
    with pytest.raises(ValueError, match="no dictionary"):
        load_dictionary(tmp_path / "nowhere")
    xlmr = load_dictionary(tiny_corpus / "tokenizer")
    assert xlmr.index("<mask>") == len(xlmr) - 1


def test_a_dictionary_of_another_tokenizer_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    for file in (tiny_corpus / "tokenizer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    XLMRTokenizer(tmp_path)
    (tmp_path / "dict.txt").write_text("".join(f"of_another_{i} 1\n" for i in range(50)))
    with pytest.raises(ValueError, match=r"only 0 of the 51 entries of dict.txt are pieces"):
        XLMRTokenizer(tmp_path)
