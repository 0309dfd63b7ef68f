#!/usr/bin/env python3
"""Semantic textual similarity in English and other languages, as tables of score, sentence, sentence.

From the web sites of the shared tasks and the repositories that are named:

- --stsb DIR: STS-B (Cer et al., 2017), `sts-{train,dev,test}.csv` of `Stsbenchmark.tar.gz`: tab separated columns
  genre, file, year, id, score, sentences;
- --stsb-multi DIR: STS-B translated, `stsb-LANG-{train,dev,test}.csv` of the repository stsb-multi-mt (May, 2021),
  below DIR: comma separated, with quotes; its copy of the English is left out beside --stsb;
- --sts2017 DIR: STS 2017 (Cer et al.) with the extensions of sentence-transformers (Reimers and Gurevych, 2020),
  `STS.LANG-LANG.txt` of `STS2017-extended.zip`: tab separated sentence, sentence, score;
- --sts2017-tracks DIR: the original, `STS.input.trackN.LANG-LANG.txt` with `STS.gs.trackN.LANG-LANG.txt`, below DIR.

Writes `stsb.SPLIT.LANG.tsv` and `sts2017.test.LANG-LANG.tsv`.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import regex
from corpora.command import Options, guarded, start_parser
from corpora.files import fields, numbered_lines, quoted_fields, same_length
from corpora.output import Output
from corpora.sources import Sources, existing
from corpora.text import one_line

from mclip_fairseq.storage.errors import UserError

SCRIPT = "sts.py"
SPLITS = {"train": "train", "dev": "valid", "test": "test"}
STSB = {"train": 5749, "valid": 1500, "test": 1379}
# Some copies have other pairs of languages too, which come from elsewhere.
STS2017 = dict.fromkeys(
    ["ar-ar", "ar-en", "en-ar", "en-en", "es-es", "es-en", "en-tr", "tr-en", "en-de", "fr-en", "it-en", "nl-en"], 250
)
NOTES = (
    "Scores go from 0 to 5; report Pearson and Spearman of the cosine.",
    "The translations of STS-B are made by machine.",
    "Where STS-B itself was given, English is from there and the copy that stsb-multi-mt has is left out.",
    "Tracks 1 to 3, 5 and 6 of STS 2017 and the extensions have 250 pairs; track 4b is of another kind.",
)
Row = tuple[str, str, str, str]
Table = tuple[str, Iterator[Row], int | None]


def read_stsb(options: Options, sources: Sources) -> Iterator[Table]:
    """The English original."""
    for part, split in SPLITS.items():
        rows = fields(sources.file(options.stsb / f"sts-{part}.csv"), 7)
        yield f"stsb.{split}.en", ((place, row[4], row[5], row[6]) for place, row in rows), STSB[split]


def read_stsb_multi(options: Options, sources: Sources) -> Iterator[Table]:
    """All languages and splits that are there, but for English where the original is given."""
    for path in sorted(existing(options.stsb_multi).rglob("stsb-*-*.csv")):
        lang, _, part = path.stem.removeprefix("stsb-").rpartition("-")
        if part in SPLITS and not (lang == "en" and options.stsb is not None):
            rows = quoted_fields(sources.file(path), 3)
            yield f"stsb.{SPLITS[part]}.{lang}", ((p, row[2], row[0], row[1]) for p, row in rows), STSB[SPLITS[part]]


def read_sts2017(options: Options, sources: Sources) -> Iterator[Table]:
    """All pairs of languages that are there."""
    for path in sorted(existing(options.sts2017).glob("STS.??-??.txt")):
        rows = fields(sources.file(path), 3)
        pair = path.stem.removeprefix("STS.")
        yield f"sts2017.test.{pair}", ((p, row[2], row[0], row[1]) for p, row in rows), STS2017.get(pair)


def read_tracks(options: Options, sources: Sources) -> Iterator[Table]:
    """All tracks that are there."""
    folder = existing(options.sts2017_tracks)
    name = regex.compile(r"STS\.input\.(track(\w+)\.(\w\w-\w\w))\.txt")
    for path in sorted(folder.rglob("STS.input.track*.txt")):
        if (match := name.fullmatch(path.name)) is None:
            continue
        gold = next(iter(sorted(folder.rglob(f"STS.gs.{match[1]}.txt"))), path.with_name(f"STS.gs.{match[1]}.txt"))
        sides, scores = list(fields(sources.file(path), 2)), list(numbered_lines(sources.file(gold)))
        same_length({path: sides, gold: scores})
        rows = ((p, score, row[0], row[1]) for (p, row), (_, score) in zip(sides, scores, strict=True))
        second = ".4b" if match[2] == "4b" else ""
        yield f"sts2017.test.{match[3]}{second}", rows, STS2017.get(match[3])


READERS: dict[str, tuple[str, Callable[[Options, Sources], Iterator[Table]]]] = {
    "stsb": ("STS-B's folder stsbenchmark", read_stsb),
    "stsb_multi": ("data of stsb-multi-mt", read_stsb_multi),
    "sts2017": ("STS2017-extended", read_sts2017),
    "sts2017_tracks": ("folder that holds STS 2017's inputs and scores", read_tracks),
}


def write_table(name: str, rows: Iterator[Row], output: Output) -> int:
    """Write one table; returns the number of its rows.

    Raises:
        UserError: a score that is none, or an empty sentence.
    """
    count = 0
    for place, score, *sentences in rows:
        first, second = (one_line(sentence) for sentence in sentences)
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 5:
            raise UserError(f"{place}: {score!r} is no score from 0 to 5")
        if not (first and second):
            raise UserError(f"{place}: a sentence is empty")
        output.write(f"{name}.tsv", f"{value:g}\t{first}\t{second}")
        count += 1
    return count


def tables_of(options: Options, sources: Sources) -> Iterator[Table]:
    """All tables of the folders that are given.

    Raises:
        UserError: none is given, or one has no table.
    """
    given = [name for name in READERS if getattr(options, name) is not None]
    if not given:
        raise UserError(f"give at least one of {', '.join('--' + name.replace('_', '-') for name in READERS)}")
    for name in given:
        what, reader = READERS[name]
        tables = reader(options, sources)
        first = next(tables, None)
        if first is None:
            raise UserError(f"{getattr(options, name)}: has none of the files of {what}; --help names them")
        yield first
        yield from tables


def make(options: Options) -> str:
    """Run the command; returns what to tell the user."""
    sources = Sources(options.checksums)
    counts: dict[str, int] = {}
    with Output(options.output, "STS") as output:
        for name, rows, expected in tables_of(options, sources):
            if name in counts:
                raise UserError(f"{name} comes from two of the folders; give each set once")
            counts[name] = write_table(name, rows, output)
            if options.expect_counts == "yes" and expected is not None and counts[name] != expected:
                raise UserError(
                    f"{name}: {counts[name]} pairs where {expected} were published; if you use a part on purpose, give "
                    "--expect-counts no"
                )
        facts = {"script": f"preprocess/{SCRIPT}", "sources": sources.described()}
        output.finish(facts | {"tables": counts, "notes": list(NOTES)}, sources.paths)
    return "\n".join([f"{options.output}:", *(f"  {name}: {count} pairs" for name, count in counts.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = start_parser(__doc__, SCRIPT)
    for option, (what, _) in READERS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=Path, metavar="DIR", help=what)
    options = parser.parse_args(argv)
    return guarded(SCRIPT, lambda: make(options))


if __name__ == "__main__":
    sys.exit(main())
