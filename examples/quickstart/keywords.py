"""Keywords of emoji in many languages, and a dictionary of them that is found by counting.

The Unicode CLDR lists keywords for every emoji in every language, but does not say which of them translate each other.
A word and its translation describe the same emoji, so a word is paired with the English words whose sets of emoji are
most like its own.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import read_json

# A word -> the keys of the concepts that it describes.
Uses = Mapping[str, frozenset[str]]
# A word -> the English words that it learns from, some of them more than once.
Pairs = dict[str, list[str]]

REMEDY = "examples/quickstart/fetch_keywords.sh fetches it"
# Pairs of less overlap (Dice coefficient) are seldom translations.
LEAST_OVERLAP = 0.5
# An English keyword is kept if this many languages have a word for it, so that fads (143, bestest) are left out.
LEAST_LANGUAGES = 3
# A word that describes many concepts counts as often as this, at most.
MOST_LINES = 4
# Words for half of everything (face, animal) describe no drawing.
MOST_CONCEPTS = 40


def read_annotations(folder: Path, language: str) -> dict[str, list[str]]:
    """Emoji -> keywords, from the package cldr-annotations-full.

    Args:
        folder: holds LANGUAGE/annotations.json.
        language: its code.

    Raises:
        UserError: the file is missing or has another layout.
    """
    path = folder / language / "annotations.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; {REMEDY}")
    content: Any = read_json(path)
    for _ in range(2):
        content = check_fields(path, content, {"annotations": dict[str, Any]}, REMEDY)["annotations"]
    for entry in content.values():
        check_fields(path, entry, {"default": list[Any] | None}, REMEDY)
    return {emoji: [str(word) for word in entry.get("default") or []] for emoji, entry in content.items()}


def overlap(first: Collection[str], second: Collection[str], shared: int) -> float:
    """Dice coefficient of two sets with this many elements in common."""
    return 2 * shared / (len(first) + len(second))


def uses(words: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Turn concept -> words round."""
    found: dict[str, set[str]] = {}
    for key, described in words.items():
        for word in described:
            found.setdefault(word, set()).add(key)
    return {word: frozenset(keys) for word, keys in found.items()}


def closest(words: Uses, english: Uses, preferred: Collection[str]) -> Pairs:
    """Each word's English words: for every concept it describes, the nearest word that describes this, too.

    So a word with two meanings has two translations, and one that describes many concepts counts more.

    Args:
        words: in one language.
        english: candidates.
        preferred: win among candidates of equal overlap.
    """
    describing: dict[str, list[str]] = {}
    for word, keys in english.items():
        for key in keys:
            describing.setdefault(key, []).append(word)
    pairs = {}
    for word, keys in words.items():
        shared = Counter(candidate for key in keys for candidate in describing.get(key, []))
        scores = {candidate: overlap(keys, english[candidate], count) for candidate, count in shared.items()}
        near = {candidate for candidate, score in scores.items() if score >= LEAST_OVERLAP}
        found = sorted(
            max(candidates, key=lambda candidate: (scores[candidate], candidate in preferred, candidate))
            for key in keys
            if (candidates := near.intersection(describing.get(key, [])))
        )
        count = min(len(found), MOST_LINES)
        if found:
            pairs[word] = [found[len(found) * place // count] for place in range(count)]
    return pairs


def dictionary(by_language: Mapping[str, Uses], names: Collection[str]) -> tuple[list[str], dict[str, Pairs]]:
    """Pair the words of all languages with English ones.

    Args:
        by_language: language -> words; `en` is English.
        names: English names, which are candidates whatever other languages say, and win among equals.

    Returns:
        the English names and words that describe few enough concepts, and language -> word -> English words. English
        itself has the words that are left out there, such as coffee, with the nearest of the others, hot beverage.
    """
    english = by_language["en"]
    others = {language: words for language, words in by_language.items() if language != "en"}
    spoken = Counter(
        word for words in others.values() for word in set().union(*closest(words, english, names).values())
    )
    kept = {word: keys for word, keys in english.items() if word in names or spoken[word] >= LEAST_LANGUAGES}
    rest = {word: keys for word, keys in english.items() if word not in kept}
    pairs = {language: closest(words, kept, names) for language, words in {"en": rest, **others}.items()}
    return sorted(word for word, keys in kept.items() if len(keys) <= MOST_CONCEPTS), pairs
