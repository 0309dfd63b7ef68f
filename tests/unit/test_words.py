"""Names of countries as a bank of queries."""

from __future__ import annotations

import pytest

pytest.importorskip("babel", reason="babel is not installed (pip install mclip_fairseq[search])")

from mclip_fairseq.search.words import countries_in, words_in
from mclip_fairseq.storage.errors import UserError


def test_countries_have_their_names_in_many_languages() -> None:
    for language, (japan, europe) in {
        "en": ("Japan", "Europe"),
        "de": ("Japan", "Europa"),
        "ja": ("日本", "ヨーロッパ"),
        "ar": ("اليابان", "أوروبا"),
        "zh-Hant": ("日本", "歐洲"),
        "pt_BR": ("Japão", "Europa"),
    }.items():
        names = countries_in(language)
        assert japan in names
        assert europe not in names  # a continent
        assert 200 < len(names) == len(set(names)) < 300


def test_each_language_counts_once() -> None:
    words = words_in(["de", "fr", "de"])
    assert [word.language for word in words] == ["de"] * len(countries_in("de")) + ["fr"] * len(countries_in("fr"))
    assert {word.image for word in words} == {""}


@pytest.mark.parametrize("language", ["xx", "", "german", "../de", "de-XX-1", "\0"])
def test_a_language_without_words_is_refused(language: str) -> None:
    with pytest.raises(UserError, match="no words are known in it; give codes such as en de ja, or --bank FILE"):
        words_in([language])


def test_too_many_languages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mclip_fairseq.search.words.MOST", 300)
    with pytest.raises(UserError, match="are more than the 300 of a bank; name fewer languages"):
        words_in(["en", "de"])
