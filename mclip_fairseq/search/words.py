"""A bank of queries for users without captions: names of countries in many languages, which hardly any image shows.

The names are those of the Unicode CLDR (Unicode License v3), as the package babel (BSD-3-Clause) has them.
"""

from __future__ import annotations

from collections.abc import Sequence

from mclip_fairseq.search.bank import LEAST, MOST, Labelled
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra


def words_in(languages: Sequence[str]) -> list[Labelled]:
    """Names of countries in these languages.

    Raises:
        UserError: a language has no such list, or there are too many languages for a bank.
    """
    words = [Labelled(language, name) for language in dict.fromkeys(languages) for name in countries_in(language)]
    if len(words) > MOST:
        raise UserError(f"--words: {len(words)} words are more than the {MOST} of a bank; name fewer languages")
    return words


def countries_in(language: str) -> list[str]:
    """Names of countries in a language, such as `de` or `zh-Hant`, sorted.

    Raises:
        UserError: there is no list of them, or a short one.
    """
    babel = import_extra("babel", "search")
    try:
        territories = babel.Locale.parse(language.replace("-", "_")).territories
    except (ValueError, babel.UnknownLocaleError):
        territories = {}
    names = {name for code, name in territories.items() if len(code) == 2 and code.isalpha()}  # not continents
    if len(names) < LEAST:
        raise UserError(f"--words {language}: no words are known in it; give codes such as en de ja, or --bank FILE")
    return sorted(names)
