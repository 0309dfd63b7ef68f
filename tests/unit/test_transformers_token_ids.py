"""Where the token ids of `transformers` are ours, and the text on which they are known not to be (README says so)."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.tokenizer import XLMRTokenizer

SOUND = (
    "một con chó trên bãi biển",
    "강아지",
    "スナップリング",
    "ein Schmetterling",
    "浜辺の犬",
    "قلب أحمر",
    "a dog, 2 cats!",
)
# Decomposed letters, half-width katakana with voicing marks, and a control character that Python counts as a space.
OTHER = (
    unicodedata.normalize("NFD", "một con chó trên bãi biển"),
    unicodedata.normalize("NFD", "강아지"),
    "ｽﾅｯﾌﾟﾘﾝｸﾞ",
    "a\x1fdog",
)


@pytest.fixture(scope="module")
def both(shared_dir: Path) -> tuple[XLMRTokenizer, Any]:
    shield_torchaudio()
    from transformers import XLMRobertaTokenizer

    folder = shared_dir / "data" / "xlmr_tokenizer"
    return XLMRTokenizer(folder), XLMRobertaTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", SOUND)
def test_composed_text_has_equal_ids(text: str, both: tuple[XLMRTokenizer, Any]) -> None:
    ours, theirs = both
    assert ours(text)[0].tolist() == theirs(unicodedata.normalize("NFC", text))["input_ids"]


@pytest.mark.parametrize("text", OTHER)
def test_known_differences(text: str, both: tuple[XLMRTokenizer, Any]) -> None:
    """Ours are SentencePiece's own; theirs are equal once the text is composed."""
    ours, theirs = both
    assert ours(text)[0].tolist() != theirs(text)["input_ids"]
    composed = unicodedata.normalize("NFKC", text).replace("\x1f", " ")
    assert ours(text)[0].tolist() == theirs(composed)["input_ids"]
    pieces = ours.processor.encode(" ".join(text.split()), out_type=str)
    assert ours(text)[0].tolist()[1:-1] == [ours.dictionary.index(piece) for piece in pieces]
