"""The three programs of `preprocess/parallel.sh` on a made-up corpus, beside `fairseq-preprocess`: lines per second.

    python -m benchmarks.preprocessing [--pairs 100000] [--workers N] [--rounds 1]

The start of each program is included. A line is a sentence of either language. `fairseq-preprocess` reads the same
pieces as binarise.py and writes the same bytes, which is checked. Medians of rounds in which the programs take turns;
CPU seconds are those of all processes of a program.
"""

from __future__ import annotations

import argparse
import filecmp
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

from benchmarks._measure import Seconds, medians_of_rounds, print_table
from mclip_fairseq.storage.machine import cores

ROOT = Path(__file__).resolve().parents[1]
PEER = "fairseq-preprocess"
WORDS, VOCABULARY = 20_000, 4000
SYLLABLES = {"en": "ba co di fe gu ha lo me ni pu ra se th wi", "de": "bä cht dö ein fü ge hä ich kö lie mü sch ung zü"}


def write_corpus(folder: Path, pairs: int) -> list[Path]:
    """Sentences of 5 to 24 made-up words, the frequent ones as frequent as in a natural language."""
    chance = random.Random(0)
    weights = list(accumulate(1 / (rank + 2) for rank in range(WORDS)))
    sizes = [chance.randrange(5, 25) for _ in range(pairs)]
    files = []
    for lang, syllables in SYLLABLES.items():
        words = ["".join(chance.choices(syllables.split(), k=chance.randrange(1, 5))) for _ in range(WORDS)]
        files.append(folder / f"corpus.{lang}")
        text = (" ".join(chance.choices(words, cum_weights=weights, k=size)) + "\n" for size in sizes)
        files[-1].write_text("".join(text), encoding="utf-8")
    return files


def run(*command: object) -> None:
    """Run a program, and show what it wrote if it fails."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout)


def script(name: str, *arguments: object) -> Callable[[], None]:
    """A program of `preprocess/`."""
    return partial(run, sys.executable, ROOT / "preprocess" / f"{name}.py", *arguments)


def programs(folder: Path, corpus: list[Path], workers: int) -> dict[str, Callable[[], None]]:
    """What is measured, in the order in which one needs the other; makes the tokenizer that they use."""
    raw, pieces, tokenizer = (folder / name for name in ("raw", "pieces", "tokenizer"))
    sample = folder / "sample"
    sample.write_text("".join(line for file in corpus for line in file.open(encoding="utf-8").readlines()[:3000]))
    script("train_tokenizer", "--vocabulary", VOCABULARY, "--output", tokenizer, sample)()
    shared = ("--workers", workers)
    dictionary = tokenizer / "dict.txt"
    cleaned = [raw / f"train.en-de.{lang}" for lang in SYLLABLES]
    pair = ("--source-lang", "en", "--target-lang", "de", "--joined-dictionary")
    places = ("--trainpref", pieces / "train.en-de", "--srcdict", dictionary, "--destdir", folder / "theirs")
    return {
        "parallel.py": script("parallel", "--languages", *SYLLABLES, "--moses", *corpus, "--output", raw, *shared),
        "encode.py": script(
            *("encode", "--model", tokenizer / "sentencepiece.bpe.model", "--output", pieces), *shared, *cleaned
        ),
        "binarise.py": script(
            *("binarise", "--pieces", pieces, "--dictionary", dictionary, "--pairs", "en-de"),
            *("--output", folder / "ours", *shared),
        ),
        PEER: partial(run, Path(sys.executable).with_name(PEER), *pair, *places, *shared),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs of sentences")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: all cores)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of which the median is taken")
    options = parser.parse_args()
    print(f"{options.pairs} pairs, {options.workers} processes; ratios to the lines per second of {PEER}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = programs(folder, write_corpus(folder, options.pairs), options.workers)
        measured = medians_of_rounds(ways, options.rounds, uncounted=0)
        for file in (folder / "ours").iterdir():
            assert filecmp.cmp(file, folder / "theirs" / file.name, shallow=False), file.name
    print_speeds(measured, 2 * options.pairs)


def print_speeds(measured: Mapping[str, Seconds], lines: int) -> None:
    """Print lines per second, and how many times those of PEER they are."""
    header, rows = ["", "CPU s", "lines/CPU s", "ratio", "wall s", "lines/s", "ratio"], []
    for name, one in measured.items():
        row = [name]
        for seconds, peer in zip(one, measured[PEER], strict=True):
            row += [f"{seconds:.1f}", f"{lines / seconds:,.0f}", f"{peer / seconds:.2f}"]
        rows.append(row)
    print_table(header, rows)


if __name__ == "__main__":
    main()
