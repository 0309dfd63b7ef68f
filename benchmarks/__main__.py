"""All benchmarks, one after the other, some with less work than by default, and the seconds that each takes.

    python -m benchmarks [NAME ...]

`python -m benchmarks.NAME` runs one of them with its defaults, and its `--help` says what it measures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks._measure import Seconds, print_table, timed

# Chosen for less than 15 minutes in all on 2 cores.
LESS_WORK = {
    "clean_parallel": "--pairs 100000 400000",
    "contrast": "--rounds 1",
    "embeddings": "--seconds 8",
    "encode_text": "--rounds 1",
    "features": "--images 32",
    "frozen_states": "--rounds 3",
    "mte_step": "--tokens 256",
    "reranking": "--pairs 32",
    "search_index": "--vectors 100000",
    "search_server": "--images 20000 --seconds 10",
    "soak": "--updates 1000",
    "translation_loss": "--tokens 268 --rounds 1",
}
NAMES = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))


def run(name: str, failed: list[str]) -> None:
    """Run a benchmark in a process of its own, and note its name if it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *LESS_WORK.get(name, "").split()]
    print(f"== {' '.join(command[2:])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        failed.append(name)


def main() -> int:
    """Run the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"default: {' '.join(NAMES)}")
    failed: list[str] = []
    times = {name: timed(partial(run, name, failed)) for name in parser.parse_args().names or NAMES}
    total = Seconds(*map(sum, zip(*times.values(), strict=True)))
    rows = [[name, f"{one.cpu:.0f}", f"{one.wall:.0f}"] for name, one in {**times, "total": total}.items()]
    print_table(["", "CPU s", "wall s"], rows)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
