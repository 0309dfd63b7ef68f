"""The everyday words that are asked of the quickstart's index."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mclip_fairseq.storage.errors import UserError
from tests.unit.test_quickstart_corpus import load


@pytest.fixture(scope="module")
def everyday() -> ModuleType:
    return load("everyday")


def test_each_concept_has_a_word_in_every_language(everyday: ModuleType) -> None:
    queries = everyday.read_words(everyday.WORDS)
    languages = {language for language, _, _ in queries}
    assert languages == {"en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar"}
    assert len(queries) == 42 * len(languages)
    assert all(word.strip() == word != "" and right for _, word, right in queries)
    assert ("de", "Hund", {"1f415", "1f436", "1f429", "1f9ae", "1f415-200d-1f9ba"}) in queries


def test_a_line_with_another_number_of_columns_is_refused(everyday: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "words.tsv"
    table.write_text("drawings\ten\tde\n1f436\tdog\n")
    with pytest.raises(UserError, match=r"words\.tsv, line 2: 2 columns instead of 3"):
        everyday.read_words(table)


def test_shares_are_of_words_and_the_mean_is_of_languages(everyday: ModuleType) -> None:
    right = {"en": [True, True], "de": [True, False], "fr": [True, True, True, False]}
    assert everyday.format_shares(right).split("\n")[-1] == "others  62.5, lowest 50.0"


def test_misses_are_named(
    everyday: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everyday, "read_words", lambda path: [("en", "dog", {"1f436"}), ("de", "Hund", {"1f436"})])
    monkeypatch.setattr(everyday, "search", lambda index, words: [{"1f436", "1f408"}, {"1f408", "1f40e"}])
    everyday.measure(Path("index"), Path("words"), True)
    assert capsys.readouterr().out.split("\n")[:3] == ["de Hund: 1f408 1f40e", "en     100.0", "de       0.0"]
