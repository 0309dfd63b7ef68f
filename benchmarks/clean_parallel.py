#!/usr/bin/env python3
"""Speed and memory of `preprocess/parallel.py` on synthetic corpora of two sizes; memory must not grow with the size.

A third of the pairs are repetitions, and a few are damaged like text from the web. The peak is that of the largest
process, as reported by the system. The smallest corpus is also cleaned by a plain loop that compares lengths and keeps
one of equal pairs, in rounds in which both take turns.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.storage.machine import cores

SCRIPT = Path(__file__).resolve().parents[1] / "preprocess" / "parallel.py"
WORDS = {
    "a": "ein",
    "the": "der",
    "dog": "Hund",
    "cat": "Katze",
    "house": "Häuser",
    "runs": "läuft",
    "sleeps": "schläft",
    "under": "unter",
    "over": "über",
    "green": "grün",
    "people": "Menschen",
    "near": "nahe",
    "water": "Wasser",
}
SIZES = (300_000, 1_200_000)
SOURCE, TARGET = list(WORDS), list(WORDS.values())
DAMAGE = ("<b>{}</b>", "{} &amp; so", "{}\u2028", "schÃ¶n {}")


def make_corpus(folder: Path, pairs: int) -> None:
    """Write both sides."""
    chance = random.Random(0)
    with (
        (folder / "x.en").open("w", encoding="utf-8") as source,
        (folder / "x.de").open("w", encoding="utf-8") as target,
    ):
        for number in range(pairs):
            # A sentence is generated from its number, so that no list of sentences is needed.
            sentence = random.Random(chance.randrange(number + 1) if number % 3 == 2 else number)
            words = [sentence.randrange(len(SOURCE)) for _ in range(sentence.randrange(5, 25))]
            form = DAMAGE[number % len(DAMAGE)] if number % 20 == 0 else "{}"
            source.write(" ".join(SOURCE[word] for word in words) + f" {words[0]}\n")
            target.write(form.format(" ".join(TARGET[word] for word in words)) + "\n")


def measure(folder: Path, workers: int) -> tuple[float, float, float]:
    """Wall-clock seconds, CPU seconds, and peak MiB of the largest process."""
    command = [
        sys.executable,
        str(SCRIPT),
        "--languages",
        "en",
        "de",
        "--moses",
        str(folder / "x.en"),
        str(folder / "x.de"),
    ]
    command += ["--output", str(folder / "out"), "--workers", str(workers)]
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    if status:
        raise RuntimeError("parallel.py failed")
    return (
        time.monotonic() - start,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2),
    )


def plain_loop(folder: Path) -> None:
    """Keep the first of equal pairs whose sides are of similar length."""
    seen: set[tuple[str, str]] = set()
    with (
        (folder / "x.en").open(encoding="utf-8") as source,
        (folder / "x.de").open(encoding="utf-8") as target,
        (folder / "plain.en").open("w", encoding="utf-8") as english,
        (folder / "plain.de").open("w", encoding="utf-8") as german,
    ):
        for pair in zip(map(str.strip, source), map(str.strip, target), strict=False):
            words = sorted(len(side.split()) for side in pair)
            if pair not in seen and 0 < words[1] <= 3 * words[0]:
                seen.add(pair)
                english.write(f"{pair[0]}\n")
                german.write(f"{pair[1]}\n")


def compare(pairs: int, workers: int) -> None:
    """Print what both ways take."""
    with tempfile.TemporaryDirectory() as name:
        make_corpus(Path(name), pairs)
        ways = {
            "plain loop": lambda: plain_loop(Path(name)),
            "parallel.py": lambda: measure(Path(name), workers),
        }
        print(f"{pairs} pairs")
        print_ratios(medians_of_rounds(ways, rounds=1, uncounted=0), "plain loop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=SIZES, metavar="N", help="sizes of the corpora")
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes (default: all cores)")
    options = parser.parse_args(argv)
    rows = []
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_corpus(folder, pairs)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
            seconds, busy, peak = measure(folder, options.workers)
            kept = json.loads((folder / "out" / "train.en-de.json").read_text(encoding="utf-8"))["kept"]
            rows.append((pairs, size, kept, seconds, 2 * pairs / seconds, 2 * pairs / busy, peak))
    print(f"{options.workers} processes, {platform.machine()}, Python {platform.python_version()}\n")
    print("| pairs | MiB | kept | seconds | lines/s | lines/s per core | peak MiB per process |")
    print("|---|---|---|---|---|---|---|")
    for pairs, size, kept, seconds, speed, core, peak in rows:
        print(f"| {pairs} | {size:.0f} | {kept} | {seconds:.1f} | {speed:.0f} | {core:.0f} | {peak:.0f} |")
    compare(min(options.pairs), options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
