#!/usr/bin/env python3
"""Semantic textual similarity in English and other languages, as tables of score, sentence, sentence.

From the web sites of the shared tasks, or the repository named below:

- --stsb DIR: STS-B (Cer et al., 2017), `sts-{train,dev,test}.csv` of `Stsbenchmark.tar.gz`: tab separated columns
  genre, file, year, id, score, sentences;
- --stsb-multi DIR: STS-B translated, `stsb-LANG-{train,dev,test}.csv` of the repository stsb-multi-mt (May, 2021),
  anywhere in DIR: comma separated, with quotes; its copy of the English is skipped if --stsb is given;
- --sts2017 DIR: STS 2017 (Cer et al.) with the extensions of sentence-transformers (Reimers and Gurevych, 2020),
  `STS.LANG-LANG.txt` of `STS2017-extended.zip`: tab separated sentence, sentence, score;
- --sts2017-tracks DIR: the original, `STS.input.trackN.LANG-LANG.txt` and `STS.gs.trackN.LANG-LANG.txt`, anywhere in
  DIR;
- --sts-years DIR: STS 2012 to 2016 in English, a folder for each year below DIR that has `12` or `2012` (and so on) in
  its name: `STS.input.SET.txt` with `STS.gs.SET.txt` (2016: `STS2016.input.SET.txt`), tab separated sentences; pairs
  without a score, which the organisers did not judge, are left out and counted;
- --sick DIR: SICK-R (Marelli et al., 2014), `SICK_{train,trial,test_annotated}.txt`.

Writes `stsb.SPLIT.LANG.tsv`, `sts2017.test.LANG-LANG.tsv`, `stsYY.test.SET.tsv` and `sick.SPLIT.en.tsv`.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import regex
from corpora.command import Options, start_parser
from corpora.files import check_same_length, csv_rows, numbered_lines, table_rows
from corpora.output import Output
from corpora.sources import Sources, check_folder
from corpora.text import one_line

from mclip_fairseq.cli.main import run_main
from mclip_fairseq.storage.errors import UserError

SCRIPT = "sts.py"
SPLITS = {"train": "train", "dev": "valid", "test": "test"}
STSB = {"train": 5749, "valid": 1500, "test": 1379}
# Some copies include further language pairs from elsewhere.
STS2017 = dict.fromkeys(
    ["ar-ar", "ar-en", "en-ar", "en-en", "es-es", "es-en", "en-tr", "tr-en", "en-de", "fr-en", "it-en", "nl-en"], 250
)
# STS 2012 to 2016: the pairs that have a score. SMT of 2013 is not public.
YEARS = {
    "12": {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "surprise.OnWN": 750, "surprise.SMTnews": 399},
    "13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "14": {
        **{"deft-forum": 450, "deft-news": 300, "headlines": 750, "images": 750},
        **{"OnWN": 750, "tweet-news": 750},
    },
    "15": {"answers-forums": 375, "answers-students": 750, "belief": 375, "headlines": 750, "images": 750},
    "16": {
        **{"answer-answer": 254, "headlines": 249, "plagiarism": 230, "postediting": 244},
        "question-question": 209,
    },
}
SICK = {
    "SICK_train.txt": ("train", 4500),
    "SICK_trial.txt": ("valid", 500),
    "SICK_test_annotated.txt": ("test", 4927),
}
NOTES = (
    "Scores range from 0 to 5; report Pearson and Spearman of the cosine.",
    "The translations of STS-B are machine translations.",
    "If STS-B itself was given, English comes from there and the copy in stsb-multi-mt is skipped.",
    "Tracks 1 to 3, 5 and 6 of STS 2017 and the extensions have 250 pairs; track 4b is of a different kind.",
)
Row = tuple[str, str, str, str]
Table = tuple[str, Iterator[Row], int | None]


def read_stsb(options: Options, sources: Sources) -> Iterator[Table]:
    """The English original."""
    for part, split in SPLITS.items():
        rows = table_rows(sources.file(options.stsb / f"sts-{part}.csv"), 7)
        yield f"stsb.{split}.en", ((place, row[4], row[5], row[6]) for place, row in rows), STSB[split]


def read_stsb_multi(options: Options, sources: Sources) -> Iterator[Table]:
    """All existing languages and splits, except English if the original is given."""
    for path in sorted(check_folder(options.stsb_multi).rglob("stsb-*-*.csv")):
        lang, _, part = path.stem.removeprefix("stsb-").rpartition("-")
        if part in SPLITS and not (lang == "en" and options.stsb is not None):
            rows = csv_rows(sources.file(path), 3)
            yield f"stsb.{SPLITS[part]}.{lang}", ((p, row[2], row[0], row[1]) for p, row in rows), STSB[SPLITS[part]]


def read_sts2017(options: Options, sources: Sources) -> Iterator[Table]:
    """All existing language pairs."""
    for path in sorted(check_folder(options.sts2017).glob("STS.??-??.txt")):
        rows = table_rows(sources.file(path), 3)
        pair = path.stem.removeprefix("STS.")
        yield f"sts2017.test.{pair}", ((p, row[2], row[0], row[1]) for p, row in rows), STS2017.get(pair)


def read_tracks(options: Options, sources: Sources) -> Iterator[Table]:
    """All existing tracks."""
    folder = check_folder(options.sts2017_tracks)
    name = regex.compile(r"STS\.input\.(track(\w+)\.(\w\w-\w\w))\.txt")
    for path in sorted(folder.rglob("STS.input.track*.txt")):
        if (match := name.fullmatch(path.name)) is None:
            continue
        gold = next(iter(sorted(folder.rglob(f"STS.gs.{match[1]}.txt"))), path.with_name(f"STS.gs.{match[1]}.txt"))
        sides, scores = list(table_rows(sources.file(path), 2)), list(numbered_lines(sources.file(gold)))
        check_same_length({path: sides, gold: scores})
        rows = ((p, score, row[0], row[1]) for (p, row), (_, score) in zip(sides, scores, strict=True))
        second = ".4b" if match[2] == "4b" else ""
        yield f"sts2017.test.{match[3]}{second}", rows, STS2017.get(match[3])


def read_years(options: Options, sources: Sources) -> Iterator[Table]:
    """STS 2012 to 2016: all existing sets, without the pairs that have no score."""
    root = check_folder(options.sts_years)
    for year, expected in YEARS.items():
        of_year = regex.compile(rf"(?<!\d)(20)?{year}(?!\d)")
        inputs = sorted(root.rglob("STS*.input.*.txt"))
        for path in (path for path in inputs if of_year.search(str(path.relative_to(root)))):
            prefix, _, name = path.stem.partition(".input.")
            if name not in expected:
                continue
            gold = path.with_name(f"{prefix}.gs.{name}.txt")
            sides, scores = list(table_rows(sources.file(path), 2)), list(numbered_lines(sources.file(gold)))
            check_same_length({path: sides, gold: scores})
            rows = [
                (p, score, row[0], row[1]) for (p, row), (_, score) in zip(sides, scores, strict=True) if score.strip()
            ]
            print(f"sts{year}.test.{name}: {len(sides) - len(rows)} pairs have no score", file=sys.stderr)
            yield f"sts{year}.test.{name}", iter(rows), expected[name]


def read_sick(options: Options, sources: Sources) -> Iterator[Table]:
    """SICK-R: the relatedness scores, from 1 to 5."""
    for name, (split, expected) in SICK.items():
        path = check_folder(options.sick) / name
        if path.is_file():
            rows = [(place, row[3], row[1], row[2]) for place, row in table_rows(sources.file(path), 4)]
            yield f"sick.{split}.en", iter(rows[1:]), expected  # the first line names the columns


READERS: dict[str, tuple[str, Callable[[Options, Sources], Iterator[Table]]]] = {
    "stsb": ("STS-B's folder stsbenchmark", read_stsb),
    "stsb_multi": ("data of stsb-multi-mt", read_stsb_multi),
    "sts2017": ("STS2017-extended", read_sts2017),
    "sts2017_tracks": ("folder that holds STS 2017's inputs and scores", read_tracks),
    "sts_years": ("folder that holds STS 2012 to 2016, a folder for each year", read_years),
    "sick": ("folder of SICK", read_sick),
}


def write_table(name: str, rows: Iterator[Row], output: Output) -> int:
    """Write one table; returns the number of its rows.

    Raises:
        UserError: an invalid score, or an empty sentence.
    """
    count = 0
    for place, score, *sentences in rows:
        first, second = (one_line(sentence) for sentence in sentences)
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 5:
            raise UserError(f"{place}: {score!r} is not a score from 0 to 5; download the file again")
        if not (first and second):
            raise UserError(f"{place}: a sentence is empty; download the file again")
        output.write(f"{name}.tsv", f"{value:g}\t{first}\t{second}")
        count += 1
    return count


def tables_of(options: Options, sources: Sources) -> Iterator[Table]:
    """All tables of the given folders.

    Raises:
        UserError: no folder is given, or one has no table.
    """
    names = [name for name in READERS if getattr(options, name) is not None]
    if not names:
        raise UserError(f"give at least one of {', '.join('--' + name.replace('_', '-') for name in READERS)}")
    for name in names:
        what, reader = READERS[name]
        tables = reader(options, sources)
        first = next(tables, None)
        if first is None:
            raise UserError(f"{getattr(options, name)}: has no file of {what}; --help names them")
        yield first
        yield from tables


def make(options: Options) -> str:
    """Write everything; returns a summary for the user."""
    sources = Sources(options.checksums)
    counts: dict[str, int] = {}
    with Output(options.output, "STS") as output:
        for name, rows, expected in tables_of(options, sources):
            if name in counts:
                raise UserError(f"{name}: comes from two of the folders; give each set once")
            counts[name] = write_table(name, rows, output)
            if options.expect_counts == "yes" and expected is not None and counts[name] != expected:
                raise UserError(
                    f"{name}: has {counts[name]} pairs, but {expected} were published; if you use a part on purpose, "
                    "give "
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
    return run_main(SCRIPT, lambda: print(make(options)))


if __name__ == "__main__":
    sys.exit(main())
