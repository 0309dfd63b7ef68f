"""Cleaning of texts: one line each for what people wrote, repairs for what comes from the web."""

import unicodedata
from functools import cache
from itertools import pairwise
from typing import Any

import regex

from mclip_fairseq.storage.extras import import_extra

# Known elements only: "a <b and c> d" is not markup.
MARKUP = regex.compile(
    r"<!--.{0,500}?-->|</?(?:a|b|br|div|em|font|g|h[1-6]|hr|i|img|li|ol|p|ref|script|seg|small|span|strong|style|sub|sup"
    r"|t[bdrh]|table|u|ul|x)\b[^<>]{0,300}>",
    regex.IGNORECASE,
)
SURROGATE = regex.compile("[\ud800-\udfff]")
NOT_WORD = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
# Spaces, controls, and what renders as nothing: zero-width characters, variation selectors, fillers.
INVISIBLE = regex.compile(r"[\s\p{Z}\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}]*+")
# No markup, entity, control or formatting character, and no line break: nothing to repair but mojibake.
CLEAR = regex.compile(r"[^&<>\p{C}\p{Zl}\p{Zp}]*+")
POS_TAG = regex.compile(r":[A-Za-z]{1,4}$")


@cache
def ftfy_config() -> Any:
    """What ftfy may repair: quotes and widths belong to the language, and the text encoder normalises widths itself."""
    return import_extra("ftfy", "prepare").TextFixerConfig(
        unescape_html=True, uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, explain=False
    )


def one_line(text: str) -> str:
    """The text with each run of white space (tabs and all line breaks too) as one space; "" if nothing is visible."""
    # JSON may hold lone surrogates, which UTF-8 cannot encode.
    if not text.isascii() and SURROGATE.search(text) is not None:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = " ".join(text.replace("\ufeff", "").split())
    plain = text.isascii() and text.isprintable()
    return "" if not plain and INVISIBLE.fullmatch(text) is not None else text


def clean_text(text: str) -> str:
    """Text from the web without markup, entities, mojibake and control characters, in NFC, on one line.

    Raises:
        UserError: ftfy is not installed.
    """
    # ftfy is slow, and most text has nothing to repair.
    if CLEAR.fullmatch(text) is None or not (text.isascii() or is_sound(text)):
        # Once before and once after ftfy, because entities may hide markup.
        fix = import_extra("ftfy", "prepare").fix_text
        text = MARKUP.sub(" ", fix(MARKUP.sub(" ", text), ftfy_config()))
    return one_line(text)


def is_sound(text: str) -> bool:
    """Whether a text is in NFC and shows no trace of a wrong encoding."""
    is_bad = import_extra("ftfy.badness", "prepare").is_bad
    return unicodedata.is_normalized("NFC", text) and not is_bad(text)


def fold_text(text: str) -> str:
    """A key that texts share if they differ only in case, width, spaces and punctuation."""
    if text.isascii():
        return NOT_WORD.sub("", text.lower())
    return NOT_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())


def join_segmented(text: str) -> str:
    """Rejoin segmented Chinese text: `一 只 狗`, or `一:m 只:q 狗:n` with part-of-speech tags."""
    words = [POS_TAG.sub("", word) for word in text.split()]
    joined = words[0] if words else ""
    for before, word in pairwise(words):
        joined += f" {word}" if before[-1:].isascii() and word[:1].isascii() else word
    return joined


def looks_tagged(text: str) -> bool:
    """Whether every word carries a part-of-speech tag."""
    words = text.split()
    return len(words) > 1 and all(POS_TAG.search(word) for word in words)
