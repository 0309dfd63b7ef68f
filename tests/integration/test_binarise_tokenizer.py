"""`preprocess/binarise.py --tokenizer`: captions with the ids of a Hugging Face tokenizer."""

import shutil
from pathlib import Path

import binarise
import numpy as np
import pytest

from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary
from tests.tiny_data import write
from tests.tiny_models import tiny_clip_directory, tiny_wordpiece

CAPTIONS = ["ein Hund", "", "Katze [SEP] rot", "blau " * 90]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for split in ("train", "valid"):
        write(tmp_path / "text" / f"{split}.de", CAPTIONS)
    return tmp_path / "text"


def command(text: Path, tokenizer: Path, output: Path, *more: str) -> int:
    return binarise.main(["--pieces", str(text), "--tokenizer", str(tokenizer), "--output", str(output), *more])


def test_the_ids_are_the_tokenizers(text: Path, tmp_path: Path) -> None:
    vocabulary, output = tiny_wordpiece(tmp_path / "vocab.txt"), tmp_path / "data"
    assert command(text, vocabulary, output, "--captions", "de") == 0
    tokens = FlatTokens.from_prefix(output / "train.de-None.de", data_dictionary(output), 77)
    expected = PieceTokenizer.from_pretrained(vocabulary)(CAPTIONS)
    assert np.array_equal(tokens.batch(np.arange(4)).numpy(), expected.numpy())
    assert (tokens.empty.tolist(), tokens.truncated) == ([1], 1)
    # The copy of the tokenizer beside the ids is the tokenizer.
    assert np.array_equal(PieceTokenizer.from_pretrained(output / "tokenizer")(CAPTIONS).numpy(), expected.numpy())
    assert {file.name for file in output.iterdir()} >= {"valid.de-None.de.bin", "valid.de-None.de.idx"}


def test_after_a_kill_the_same_call_succeeds(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary, output = tiny_wordpiece(tmp_path / "vocab.txt"), tmp_path / "data"

    def half(self: PieceTokenizer, path: Path) -> None:
        (path / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    def after_one(self: PieceTokenizer, texts: list[str], calls: list[int] = []) -> list[list[int]]:  # noqa: B006
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return pieces(self, texts)

    pieces = PieceTokenizer.pieces
    for name, dies in (("save", half), ("pieces", after_one)):
        with monkeypatch.context() as patch:
            patch.setattr(PieceTokenizer, name, dies)
            assert command(text, vocabulary, output, "--captions", "de") == 130
        assert command(text, vocabulary, output, "--captions", "de") == 0, capsys.readouterr().err
        assert len(PieceTokenizer.from_pretrained(output / "tokenizer")(CAPTIONS)) == len(CAPTIONS)
        shutil.rmtree(output)


def test_another_language_may_be_added_but_not_another_tokenizer(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    assert command(text, tiny_wordpiece(tmp_path / "vocab.txt"), output, "--captions", "de") == 0
    write(text / "train.fr", ["un chien"])
    assert command(text, tmp_path / "vocab.txt", output, "--captions", "fr", "--splits", "train") == 0
    clip = tiny_clip_directory(tmp_path / "clip")
    assert command(text, clip, output, "--captions", "fr", "--splits", "train") == 2
    assert "holds captions with the ids of another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [(("--captions", "ja"), "has none of"), (("--pairs", "en-de"), "name their languages with --captions")],
)
def test_what_cannot_be_made_is_refused(
    more: tuple[str, ...], message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(text, tiny_wordpiece(tmp_path / "vocab.txt"), tmp_path / "data", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
