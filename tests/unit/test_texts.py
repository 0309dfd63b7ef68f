"""Invisible characters, and queries of which a model knows no token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.search.query import check_query, unknown_words
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.texts import is_blank

EXPORTED = Path(__file__).resolve().parents[1] / "data/legacy/exported"


@pytest.mark.parametrize(
    "text",
    ["", " ", "\u200b", "\u00a0\u3000", "\u200d\u2060", "\ufe0f", "\u3164", "\u115f", "\x07", "\u202e", "\ufeff"],
)
def test_what_shows_nothing_is_an_empty_query(text: str) -> None:
    assert is_blank(text)
    with pytest.raises(UserError, match="the query is empty; say what the image shows"):
        check_query(text)


@pytest.mark.parametrize("text", ["a", "犬", "?!", "🦋", "❤️", "٣", "ก็", "e\u0301"])
def test_what_shows_something_is_not_blank(text: str) -> None:
    assert not is_blank(text)
    assert check_query(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Schmetter\u00adling", "Schmetterling"),
        ("but\u200bterfly", "butterfly"),
        ("“dog”", "dog"),
        ("„Hund“", "Hund"),
        ('"a dog"', "a dog"),
        ('5" pipe', '5" pipe'),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d🚒", "👩\u200d🚒"),
    ],
)
def test_a_word_stays_whole(text: str, cleaned: str) -> None:
    assert check_query(text) == cleaned


@pytest.mark.parametrize("text", ["a\0dog", "\ud800"])
def test_what_is_not_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not valid Unicode text"):
        check_query(text)


def test_training_and_inference_see_the_same_pieces(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "in").write_text("a do\u00adg\na dog\n\u200b\n", encoding="utf-8")
    model = EXPORTED / "sentencepiece.bpe.model"
    command = [
        sys.executable,
        str(root / "preprocess/encode.py"),
        "--model",
        str(model),
        "--output",
        str(tmp_path / "o"),
    ]
    subprocess.run(
        [*command, str(tmp_path / "in")], check=True, cwd=root, env={"PYTHONPATH": str(root), "PATH": "/bin"}
    )
    first, second, third = (tmp_path / "o/in").read_text(encoding="utf-8").splitlines()
    assert first == second != ""
    assert third == ""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MultilingualCLIP:
    return MultilingualCLIP.from_pretrained(EXPORTED, device="cpu")


def test_unknown_words_are_told_apart(model: MultilingualCLIP) -> None:
    (nothing, nothing_of), (some, some_of), (everything, all_of) = model.count_known(["貓🦋", "a 貓", "a"])
    assert (nothing, nothing_of > 0) == (0, True)
    assert 0 < some < some_of
    assert everything == all_of > 0
    first, second, third = unknown_words(model, ["貓🦋", "a 貓", "a"])
    assert first == "the model knows no part of '貓🦋', so these images say nothing about it"
    assert second == f"the model knows only {some} of the {some_of} parts of 'a 貓'"
    assert third == ""


def test_a_byte_level_tokenizer_knows_everything() -> None:
    clip = MultilingualCLIP.from_pretrained(EXPORTED / "teacher", device="cpu")
    ((known, total),) = clip.count_known(["貓 a"])
    assert known == total > 0


def test_soft_hyphens_do_not_change_a_vector(model: MultilingualCLIP) -> None:
    one, other = model.encode_text(["a dog on gras", "a d\u00adog on\u200b gra\u2060s"])
    assert one.equal(other)
