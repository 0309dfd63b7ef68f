#!/usr/bin/env python3
"""Tatoeba-112: up to 1,000 sentences in each of 112 languages with their English translations.

From the repository LASER (Artetxe and Schwenk, 2019), folder `data/tatoeba/v1`: `tatoeba.XXX-eng.XXX` and
`tatoeba.XXX-eng.eng`, with codes of three letters. Writes `test.XXX-eng.XXX` and `test.XXX-eng.eng`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from corpora.command import Options, guarded, start_parser
from corpora.files import held_lines, same_length
from corpora.output import Output
from corpora.sources import Sources, existing
from corpora.text import one_line

from mclip_fairseq.storage.errors import UserError

SCRIPT = "tatoeba.py"
LANGUAGES = 112
MOST = 1000
NOTES = (
    "Accuracy is that of the nearest neighbour by cosine, into English and out of it.",
    "XTREME's Tatoeba is the 36 of these languages that XTREME has.",
)


def pairs_of(folder: Path, chosen: Sequence[str] | None) -> list[str]:
    """Codes of the languages that are there, or of those chosen."""
    there = sorted(path.suffix[1:] for path in existing(folder).glob("tatoeba.*-eng.*") if path.suffix != ".eng")
    if not there:
        raise UserError(f"{folder}: has no file tatoeba.XXX-eng.XXX; give the folder data/tatoeba/v1 of LASER")
    if missing := sorted(set(chosen or ()) - set(there)):
        raise UserError(f"{folder}: has no tatoeba.{missing[0]}-eng.{missing[0]}")
    return list(chosen or there)


def make(options: Options) -> str:
    """Run the command; returns what to tell the user."""
    sources = Sources(options.checksums)
    languages = pairs_of(options.folder, options.languages)
    whole = options.expect_counts == "yes" and options.languages is None
    if whole and len(languages) != LANGUAGES:
        raise UserError(f"{options.folder}: {len(languages)} languages where {LANGUAGES} were published")
    counts: dict[str, int] = {}
    with Output(options.output, "Tatoeba-112") as output:
        for lang in languages:
            counts[lang] = copy_pair(options.folder, lang, sources, output)
            if options.expect_counts == "yes" and counts[lang] > MOST:
                raise UserError(f"{lang}: {counts[lang]} sentences where {MOST} at most were published")
        facts = {"script": f"preprocess/{SCRIPT}", "sources": sources.described()}
        pairs = {f"{lang}-eng": count for lang, count in counts.items()}
        output.finish(facts | {"pairs": pairs, "notes": list(NOTES)}, sources.paths)
    return f"{options.output}: {len(languages)} languages, {sum(counts.values())} sentences"


def copy_pair(folder: Path, lang: str, sources: Sources, output: Output) -> int:
    """Write both sides of a language; returns the number of sentences.

    Raises:
        UserError: a sentence is empty, or the sides differ in length.
    """
    paths = [sources.file(folder / f"tatoeba.{lang}-eng.{side}") for side in (lang, "eng")]
    sides = {path: held_lines(path) for path in paths}
    count = same_length(sides)
    for path, lines in sides.items():
        for place, line in lines:
            if not line.strip():
                raise UserError(f"{place}: the sentence is empty")
            output.write(f"test.{lang}-eng{path.suffix}", one_line(line))
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = start_parser(__doc__, SCRIPT)
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="data/tatoeba/v1 of LASER")
    parser.add_argument("--languages", nargs="+", metavar="XXX", help="which to take (all that are there)")
    options = parser.parse_args(argv)
    return guarded(SCRIPT, lambda: make(options))


if __name__ == "__main__":
    sys.exit(main())
