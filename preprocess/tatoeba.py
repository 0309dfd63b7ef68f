#!/usr/bin/env python3
"""Tatoeba-112: up to 1,000 sentences in each of 112 languages with their English translations.

From the repository LASER (Artetxe and Schwenk, 2019), folder `data/tatoeba/v1`: `tatoeba.XXX-eng.XXX` and
`tatoeba.XXX-eng.eng`, with codes of three letters. Writes `test.XXX-eng.XXX` and `test.XXX-eng.eng`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from corpora.command import Options, start_parser
from corpora.files import check_same_length, load_lines
from corpora.output import Output
from corpora.sources import Sources, check_folder
from corpora.text import one_line

from mclip_fairseq.cli.main import run_main
from mclip_fairseq.storage.errors import UserError

SCRIPT = "tatoeba.py"
LANGUAGES = 112
MAX_SENTENCES = 1000
NOTES = (
    "Accuracy is that of the nearest neighbour by cosine, into and out of English.",
    "XTREME's Tatoeba is 36 of these languages.",
)


def pairs_of(folder: Path, chosen: Sequence[str] | None) -> list[str]:
    """Codes of all existing languages, or of the chosen ones.

    Raises:
        UserError: a file is missing.
    """
    existing = sorted(path.suffix[1:] for path in check_folder(folder).glob("tatoeba.*-eng.*") if path.suffix != ".eng")
    if not existing:
        raise UserError(f"{folder}: has no file tatoeba.XXX-eng.XXX; give the folder data/tatoeba/v1 of LASER")
    if missing := sorted(set(chosen or ()) - set(existing)):
        raise UserError(f"{folder}: has no tatoeba.{missing[0]}-eng.{missing[0]}; check --languages")
    return list(chosen or existing)


def make(options: Options) -> str:
    """Write everything; returns a summary for the user."""
    sources = Sources(options.checksums)
    languages = pairs_of(options.folder, options.languages)
    whole = options.expect_counts == "yes" and options.languages is None
    if whole and len(languages) != LANGUAGES:
        raise UserError(
            f"{options.folder}: has {len(languages)} languages, but {LANGUAGES} were published; download the rest, or "
            "give --expect-counts no"
        )
    counts: dict[str, int] = {}
    with Output(options.output, "Tatoeba-112") as output:
        for lang in languages:
            counts[lang] = copy_pair(options.folder, lang, sources, output)
            if options.expect_counts == "yes" and counts[lang] > MAX_SENTENCES:
                raise UserError(
                    f"{lang}: has {counts[lang]} sentences, but at most {MAX_SENTENCES} were published; download it "
                    "again"
                )
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
    sides = {path: load_lines(path) for path in paths}
    count = check_same_length(sides)
    for path, lines in sides.items():
        for place, line in lines:
            text = one_line(line)
            if not text:
                raise UserError(f"{place}: the sentence is empty; download the file again")
            output.write(f"test.{lang}-eng{path.suffix}", text, place)
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = start_parser(__doc__, SCRIPT)
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="data/tatoeba/v1 of LASER")
    parser.add_argument("--languages", nargs="+", metavar="XXX", help="languages to write (default: all in the folder)")
    options = parser.parse_args(argv)
    return run_main(SCRIPT, lambda: print(make(options)))


if __name__ == "__main__":
    sys.exit(main())
