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
from corpora.text import bare, mend

EXAMPLES = 3
DUPLICATE = "duplicate"
REASONS = {
    "empty": "a side is empty",
    "too short": "a side has fewer words than --min-words",
    "too long": "a side has more words than --max-words or a word longer than --max-word",
    "ratio": "a side has more than --max-ratio times the words of the other",
    "copy": "both sides are the same text",
    "no letters": "a side has no letter",
    "script": "less than --min-script of a side's letters are in its language's script",
    "held out": "a side is in one of the files of --exclude",
    DUPLICATE: "the pair was there before, but for case, width, spaces and punctuation",
}


@dataclass(frozen=True)
class Rules:
    """What a pair must be like to be kept.

    Attributes:
        scripts: of the source and of the target, as `corpora.scripts` has them.
        min_words: of a side.
        max_words: of a side; scripts without spaces count characters.
        max_word: characters of a word.
        max_ratio: words of the longer side per word of the shorter.
        min_script: share of letters in the language's script.
        held_out: keys of sentences that must not be on either side.
    """

    scripts: tuple[str, str]
    min_words: int = 1
    max_words: int = 250
    max_word: int = 100
    max_ratio: float = 3.0
    min_script: float = 0.5
    held_out: frozenset[int] = frozenset()


class RawPair(NamedTuple):
    """A pair as a file has it."""

    source: bytes
    target: bytes


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of one input, for one worker."""

    name: str
    first: int
    pairs: list[RawPair]


@dataclass
class Judged:
    """What became of a chunk.

    Attributes:
        source: kept lines, each with its end.
        target: likewise.
        keys: (kept,) of the pairs.
        dropped: reason -> pairs.
        examples: (reason, place, source, target) of dropped pairs, a few of each reason or all.
    """

    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, str, str]] = field(default_factory=list)


def key_of(text: str) -> int:
    """A number that equal texts share, 64 bits: at a billion pairs, 0.03 of them are dropped wrongly."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def why_dropped(source: str, target: str, rules: Rules) -> str | None:
    """The reason for which a mended pair is dropped, the first of `REASONS` that holds, or None."""
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


def judge(chunk: Chunk, rules: Rules, all_examples: bool) -> Judged:
    """Mend and judge every pair of a chunk; it finds the duplicates within the chunk, `Duplicates` the others."""
    judged = Judged()
    # In the order of the pairs; a corpus of one line a million times then costs one key per chunk.
    keys: dict[int, None] = {}
    for number, pair in enumerate(chunk.pairs, chunk.first):
        place = f"{chunk.name}, line {number}"
        source, target = (mend(decode(side, place)) for side in pair)
        reason = why_dropped(source, target, rules)
        sides = bare(source), bare(target)
        key = key_of("\t".join(sides))
        if reason is None and rules.held_out and not rules.held_out.isdisjoint(map(key_of, sides)):
            reason = "held out"
        if reason is None and key in keys:
            reason = DUPLICATE
        if reason is None:
            judged.source.append(source + "\n")
            judged.target.append(target + "\n")
            keys[key] = None
            continue
        judged.dropped[reason] += 1
        if all_examples or judged.dropped[reason] <= EXAMPLES:
            judged.examples.append((reason, place, source, target))
    judged.keys = np.array(list(keys), dtype=np.uint64)
    return judged


def judge_with(rules: Rules, all_examples: bool) -> "partial[Judged]":
    """`judge` as a function of the chunk alone, for worker processes."""
    return partial(judge, rules=rules, all_examples=all_examples)
