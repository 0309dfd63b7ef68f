#!/usr/bin/env python3
"""Ask a search index of the quickstart everyday words, such as `Schmetterling`, in 14 languages.

    examples/quickstart/everyday.py runs/quickstart/index

Prints, for each language, the share of words with a right drawing among the first five. A line of everyday.tsv has the
code points of the right drawings of a concept, then a word or two per language, spelled as usual.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

WORDS = Path(__file__).with_name("everyday.tsv")
SHOWN = 5  # a right drawing is among so many
INVISIBLE = "-fe0f"  # a code point that asks for colours; not every name of a drawing has it


def read_words(path: Path) -> list[tuple[str, str, set[str]]]:
    """Language, word and right drawings of every query.

    Raises:
        UserError: a line does not have as many columns as the first.
    """
    header, *rows = (line.split("\t") for line in read_lines(path))
    queries = []
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} columns instead of {len(header)}")
        right = {code.replace(INVISIBLE, "") for code in row[0].split()}
        queries += [(language, word, right) for language, word in zip(header[1:], row[1:], strict=True)]
    return queries


def search(index: Path, words: Sequence[str]) -> list[set[str]]:
    """The code points of the first drawings that each word finds.

    Raises:
        UserError: the search fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        queries = Path(folder) / "queries"
        queries.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        command = ["mclip-search", "query", str(index), "--queries", str(queries), "-k", str(SHOWN), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip())
    answers = json.loads(done.stdout)["answers"]
    return [{PurePosixPath(hit["id"]).stem.replace(INVISIBLE, "") for hit in answer["results"]} for answer in answers]


def format_shares(right: Mapping[str, Sequence[bool]]) -> str:
    """A line per language, and the mean of all but English."""
    shares = {language: 100 * sum(each) / len(each) for language, each in right.items()}
    others = [share for language, share in shares.items() if language != "en"]
    lines = [f"{language:6} {share:5.1f}" for language, share in shares.items()]
    return "\n".join([*lines, f"others {sum(others) / len(others):5.1f}, lowest {min(others):.1f}"])


def measure(index: Path, words: Path, show_misses: bool) -> None:
    """Ask all words and print the shares."""
    queries = read_words(words)
    right: dict[str, list[bool]] = {}
    for (language, word, allowed), found in zip(queries, search(index, [word for _, word, _ in queries]), strict=True):
        right.setdefault(language, []).append(bool(found & allowed))
        if show_misses and not right[language][-1]:
            print(f"{language} {word}: {' '.join(sorted(found))}")
    print(format_shares(right))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("index", type=Path, help="search index, such as runs/quickstart/index")
    parser.add_argument(
        "--words", type=Path, default=WORDS, help="words to ask (default: everyday.tsv, beside this file)"
    )
    parser.add_argument("--misses", action="store_true", help="also list the words that find no right drawing")
    options = parser.parse_args(argv)
    return run_main("everyday.py", lambda: measure(options.index, options.words, options.misses))


if __name__ == "__main__":
    sys.exit(main())
