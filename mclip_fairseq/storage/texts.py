"""Characters of texts that nobody sees."""

from __future__ import annotations

import re
import unicodedata

# Soft hyphens, zero-width spaces and byte order marks split a word that a reader sees whole. Zero-width joiners and
# non-joiners are left alone: they belong to the spelling of Persian, of Indic scripts and of emoji.
SPLITTERS = re.compile("[\u00ad\u200b\u2060\ufeff]")
# What is drawn as nothing although its category is another one: fillers, joiners of marks, variation selectors.
FILLERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)

# Half of a character: text that was decoded wrongly.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def without_splitters(text: str) -> str:
    """A text without characters that split words invisibly."""
    return text if text.isascii() else SPLITTERS.sub("", text)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, controls, format characters and fillers."""
    if text.isascii() and text.isprintable():
        return not text.strip()
    return all(unicodedata.category(letter)[0] in "ZC" for letter in FILLERS.sub("", text))
