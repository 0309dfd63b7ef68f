"""Texts for a model with a text path per language: the language is named, or guessed by the script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mclip_fairseq.storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# How the Unicode names of a script's letters begin -> languages to try, the likeliest first. Japanese before Chinese:
# only Japanese has kana, and a text of it has Chinese characters, too.
SCRIPTS = {
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "HANGUL": ("ko",),
    "CJK": ("zh", "ja"),
    "CYRILLIC": ("ru", "uk", "bg", "sr"),
    "ARABIC": ("ar", "fa", "ur"),
    "HEBREW": ("he",),
    "GREEK": ("el",),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "BENGALI": ("bn",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
    "GEORGIAN": ("ka",),
    "ARMENIAN": ("hy",),
}


def guess_language(text: str, languages: Sequence[str]) -> str:
    """The language of a text by its script; English for Latin letters, which say nothing about the language.

    Args:
        text: a query.
        languages: of the model.

    Raises:
        UserError: the model has no language of this script.
    """
    scripts = {unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()}
    for script, candidates in SCRIPTS.items():
        if script in scripts:
            chosen = next((language for language in candidates if language in languages), None)
            if chosen is None:
                raise UserError(f"the model has no language of this script; it has {', '.join(languages)}")
            return chosen
    return "en" if "en" in languages else languages[0]


def encode_texts(model: Any, texts: Sequence[str], languages: Sequence[str] = (), batch_size: int = 256) -> Tensor:
    """Encode texts, each in its language where the model reads each in its own way.

    Args:
        model: a `MultilingualCLIP`.
        texts: checked queries.
        languages: one per text, empty where it is not known; none at all is the same.
        batch_size: texts at a time.

    Returns:
        (texts, dim) float32, L2-normalised.

    Raises:
        UserError: a language that the model does not have.
    """
    if getattr(model, "reads_any_language", True):
        encoded: Tensor = model.encode_text(list(texts), batch_size=batch_size)
        return encoded
    import torch

    named = list(languages) or [""] * len(texts)
    own = [given or guess_language(text, model.languages) for text, given in zip(texts, named, strict=True)]
    out = torch.zeros(len(texts), model.dim)
    for language in dict.fromkeys(own):
        rows = [row for row, chosen in enumerate(own) if chosen == language]
        view = model.for_language(language)
        out[rows] = view.encode_text([texts[row] for row in rows], batch_size=batch_size)
    return out
