"""The scripts of languages, and how much of a text is in a script."""

from functools import cache

import regex

from mclip_fairseq.storage.errors import UserError

LATIN = (
    "af an ast az br bs ca ceb co cs cy da de en eo es et eu fi fil fo fr fy ga gd gl ha haw hr ht hu ia id ig io is "
    "it jv ku la lb lt lv mg mi ms mt nb nds nl nn no nov ny oc om pl pt quz rm ro rw sk sl sm sn so sq st su sv sw tk "
    "tl tr uz vi vo wa war xh yo zsm zu"
)
OTHER = {
    "Arabic": "ar arz fa ps sd ug ur ckb",
    "Armenian": "hy",
    "Bengali": "as bn",
    "Cyrillic": "ab av ba be bg cv kk ky mhr mk mn os ru sah tg tt uk",
    "Devanagari": "hi mr ne sa mai bho",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Han": "zh yue wuu",
    "Han Hiragana Katakana": "ja",
    "Hangul Han": "ko",
    "Hebrew": "he yi",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Latin Cyrillic": "sr sh",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Oriya": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Tibetan": "bo dz",
}
SCRIPTS = dict.fromkeys(LATIN.split(), "Latin")
SCRIPTS |= {lang: scripts for scripts, langs in OTHER.items() for lang in langs.split()}
LETTER = regex.compile(r"\p{L}")
# Scripts without spaces between words: a character counts as a word.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
NO_SPACES = regex.compile(f"[{SPACELESS}]")
WORD = regex.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")


def scripts_of(language: str, extra: dict[str, str]) -> str:
    """The Unicode scripts of a language, separated by spaces.

    Args:
        language: its code; `-` or `_` starts a region.
        extra: language -> scripts, from the user.

    Raises:
        UserError: the language is unknown.
    """
    table = SCRIPTS | extra
    for code in (language, language.replace("-", "_").split("_")[0]):
        if code in table:
            return table[code]
    raise UserError(f"the script of {language!r} is unknown; give it, as in --scripts {language}=Latin")


@cache
def letters_in(scripts: str) -> regex.Pattern[str]:
    """A pattern for letters in any of the scripts.

    Raises:
        UserError: Unicode has no such script.
    """
    return compile_scripts(scripts, "[[{}]&&\\p{{L}}]")


@cache
def only_in(scripts: str) -> regex.Pattern[str]:
    """A pattern for texts whose letters are all in the scripts."""
    return compile_scripts(scripts, "[{}\\P{{L}}]*+")


def compile_scripts(scripts: str, pattern: str) -> regex.Pattern[str]:
    """Compile a pattern with the scripts inserted."""
    try:
        return regex.compile(pattern.format("".join(rf"\p{{Script={name}}}" for name in scripts.split())), regex.V1)
    except regex.error as error:
        raise UserError(
            f"{scripts!r} names a script that Unicode does not have ({error}); give names such as Latin or Cyrillic"
        ) from error


def script_share(text: str, scripts: str) -> float | None:
    """The share of letters in one of the scripts, from 0 to 1; None for a text without letters."""
    if LETTER.search(text) is None:
        return None
    # The usual case, and much faster than counting.
    if only_in(scripts).fullmatch(text) is not None:
        return 1.0
    return len(letters_in(scripts).findall(text)) / len(LETTER.findall(text))


def measure(text: str) -> tuple[int, int]:
    """Number of words, and characters of the longest; in scripts without spaces, a character is a word."""
    words = text.split() if text.isascii() or NO_SPACES.search(text) is None else WORD.findall(text)
    return len(words), max(map(len, words), default=0)
