"""What is done to a text: nothing but one line for what people wrote, mending for what came from the web."""

import unicodedata
from itertools import pairwise

import ftfy
import regex
from ftfy.badness import is_bad

# Known elements only: "a <b and c> d" is no markup.
MARKUP = regex.compile(
    r"<!--.{0,500}?-->|</?(?:a|b|br|div|em|font|g|h[1-6]|hr|i|img|li|ol|p|ref|script|seg|small|span|strong|style|sub|sup"
    r"|t[bdrh]|table|u|ul|x)\b[^<>]{0,300}>",
    regex.IGNORECASE,
)
SURROGATE = regex.compile("[\ud800-\udfff]")
NOT_WORD = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
# No markup, entity, control or formatting character, and no line break: nothing that mending changes but mojibake.
CLEAR = regex.compile(r"[^&<>\p{C}\p{Zl}\p{Zp}]*+")
POS_TAG = regex.compile(r":[A-Za-z]{1,4}$")
# Quotes and widths belong to the language; the text encoder's own normalisation folds widths.
MENDING = ftfy.TextFixerConfig(
    unescape_html=True, uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, explain=False
)


def one_line(text: str) -> str:
    """The text with every run of white space, of any kind of line break and tab too, as one space."""
    # JSON may hold them, UTF-8 may not.
    if not text.isascii() and SURROGATE.search(text) is not None:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(text.replace("\ufeff", "").split())


def mend(text: str) -> str:
    """Text from the web without markup, entities, mojibake and control characters, in NFC, on one line."""
    if CLEAR.fullmatch(text) is None or not (text.isascii() or is_whole(text)):
        # Before and after, for entities may hide markup.
        text = MARKUP.sub(" ", ftfy.fix_text(MARKUP.sub(" ", text), MENDING))
    return one_line(text)


def is_whole(text: str) -> bool:
    """Whether a text is in NFC and shows no trace of a wrong encoding."""
    return unicodedata.is_normalized("NFC", text) and not is_bad(text)


def bare(text: str) -> str:
    """What two texts share that differ in case, width, spaces and punctuation only."""
    if text.isascii():
        return NOT_WORD.sub("", text.lower())
    return NOT_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())


def join_segmented(text: str) -> str:
    """A segmented Chinese text (`一 只 狗`, or `一:m 只:q 狗:n` with tags) as it is written."""
    words = [POS_TAG.sub("", word) for word in text.split()]
    joined = words[0] if words else ""
    for before, word in pairwise(words):
        joined += f" {word}" if before[-1:].isascii() and word[:1].isascii() else word
    return joined


def looks_tagged(text: str) -> bool:
    """Whether every word carries a part-of-speech tag."""
    words = text.split()
    return len(words) > 1 and all(POS_TAG.search(word) for word in words)
