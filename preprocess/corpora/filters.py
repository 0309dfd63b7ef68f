"""Which pairs of a parallel corpus are kept, and why the others are not."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corpora.files import decode
from corpora.scripts import measure, script_share
from corpora.text import clean_text, fold_text

EXAMPLES = 3
DUPLICATE = "duplicate"
REASONS = {
    "empty": "a side is empty",
    "too short": "a side has fewer words than --min-words",
    "too long": "a side has more words than --max-words or a word longer than --max-word",
    "ratio": "a side has more than --max-ratio times as many words as the other",
    "copy": "both sides are the same text",
    "no letters": "a side has no letters",
    "script": "less than --min-script of a side's letters are in the script of its language",
    "held out": "a side is in one of the --exclude files",
    DUPLICATE: "the pair occurred before, up to case, width, spaces and punctuation",
}


@dataclass(frozen=True)
class Rules:
    """Which pairs are kept.

    Attributes:
        scripts: of the source and of the target, as in `corpora.scripts`.
        min_words: fewest words of a side.
        max_words: most words of a side; scripts without spaces count characters.
        max_word: most characters of a word.
        max_ratio: most words of the longer side per word of the shorter.
        min_script: least share of letters in the script of the language.
        held_out: keys of sentences that must not occur on either side.
    """

    scripts: tuple[str, str]
    min_words: int = 1
    max_words: int = 250
    max_word: int = 100
    max_ratio: float = 3.0
    min_script: float = 0.5
    held_out: frozenset[int] = frozenset()


class RawPair(NamedTuple):
    """A pair as it is in its file."""

    source: bytes
    target: bytes


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of one input, for one worker."""

    name: str
    first: int
    pairs: list[RawPair]


@dataclass
class FilteredChunk:
    """The result of filtering a chunk.

    Attributes:
        source: kept lines, each with its line end.
        target: likewise.
        keys: (kept,) uint64 keys of the kept pairs.
        dropped: reason -> pairs.
        examples: (reason, place, source, target) of dropped pairs: a few per reason, or all.
    """

    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, str, str]] = field(default_factory=list)


def key_of(text: str) -> int:
    """A 64-bit hash of a text; among a billion pairs, 0.03 are expected to be dropped because of a collision."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def drop_reason(source: str, target: str, rules: Rules) -> str | None:
    """Why a cleaned pair is dropped: the first of `REASONS` that holds, or None."""
    if not source or not target:
        return "empty"
    (source_words, source_longest), (target_words, target_longest) = measure(source), measure(target)
    words = source_words, target_words
    if min(words) < rules.min_words:
        return "too short"
    if max(words) > rules.max_words or max(source_longest, target_longest) > rules.max_word:
        return "too long"
    if max(words) > rules.max_ratio * min(words):
        return "ratio"
    if source == target:
        return "copy"
    shares = [script_share(text, scripts) for text, scripts in zip((source, target), rules.scripts, strict=True)]
    if None in shares:
        return "no letters"
    if any(share is not None and share < rules.min_script for share in shares):
        return "script"
    return None


def filter_chunk(chunk: Chunk, rules: Rules, all_examples: bool) -> FilteredChunk:
    """Clean and filter every pair of a chunk; `Duplicates` finds repetitions across chunks."""
    filtered = FilteredChunk()
    # A dict is an ordered set. Repetitions within the chunk are found here, so that a corpus that repeats one line a
    # million times costs one key per chunk.
    keys: dict[int, None] = {}
    for number, pair in enumerate(chunk.pairs, chunk.first):
        place = f"{chunk.name}, line {number}"
        source, target = (clean_text(decode(side, place)) for side in pair)
        reason = drop_reason(source, target, rules)
        sides = fold_text(source), fold_text(target)
        key = key_of("\t".join(sides))
        if reason is None and rules.held_out and not rules.held_out.isdisjoint(map(key_of, sides)):
            reason = "held out"
        if reason is None and key in keys:
            reason = DUPLICATE
        if reason is None:
            filtered.source.append(source + "\n")
            filtered.target.append(target + "\n")
            keys[key] = None
            continue
        filtered.dropped[reason] += 1
        if all_examples or filtered.dropped[reason] <= EXAMPLES:
            filtered.examples.append((reason, place, source, target))
    filtered.keys = np.array(list(keys), dtype=np.uint64)
    return filtered


def filter_with(rules: Rules, all_examples: bool) -> "partial[FilteredChunk]":
    """`filter_chunk` as a function of the chunk alone, for worker processes."""
    return partial(filter_chunk, rules=rules, all_examples=all_examples)
