"""Thousands of updates of a small run with data workers, checkpoints and validation, to detect leaks.

Prints memory, open files, threads and child processes at intervals. The exit status is 1 if memory or open files in the
last quarter exceed those in the second quarter (the first is warm-up) by more than the tolerance. Tensors from loader
processes are open files too, as many as the batch buffer holds; they are counted separately.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "preprocess")]

from fairseq_cli import train  # noqa: E402

from mclip_fairseq.tasks.sampled import SampledTask  # noqa: E402
from tests import tiny_data  # noqa: E402

MEMORY_TOLERANCE = 0.02
SHARED = "/dev/shm/torch_"
# Update, MB, open files, tensors in the buffer, threads, workers, their MB.
Sample = tuple[int, float, int, int, int, int, float]


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(name) for file in files for name in file.read_text().split()]


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def open_files(pid: int) -> list[str]:
    """Targets of the file descriptors of a process."""
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in the meantime
            targets.append(os.readlink(link))
    return targets


class Watch:
    """Samples this process every `interval` updates."""

    def __init__(self, interval: int) -> None:
        self.interval, self.samples, self.begin = interval, list[Sample](), time.monotonic()

    def look(self, update: int) -> None:
        """Take a sample and print it."""
        pid = os.getpid()
        files, workers = open_files(pid), children(pid)
        shared = sum(name.startswith(SHARED) for name in files)
        counts = (len(files) - shared, shared, threading.active_count(), len(workers))
        self.samples.append((update, resident(pid), *counts, sum(map(resident, workers))))
        widths = (7, 8, 6, 7, 7, 7, 11, 7)
        cells = zip((*self.samples[-1], time.monotonic() - self.begin), widths, strict=True)
        line = " | ".join(f"{round(value):{width}}" for value, width in cells)
        print(f"| {line} |", file=sys.stderr, flush=True)

    def grew(self) -> str:
        """What grew from the second quarter to the last; "" if nothing did."""
        quarter = max(len(self.samples) // 4, 1)
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        memory = [mean(sample[1] for sample in part) for part in (early, late)]
        files = [max(sample[2] for sample in part) for part in (early, late)]
        print(f"memory {memory[0]:.1f} -> {memory[1]:.1f} MB, open files {files[0]} -> {files[1]}", file=sys.stderr)
        if memory[1] > memory[0] * (1 + MEMORY_TOLERANCE):
            return "memory"
        return "open files" if files[1] > files[0] else ""


def options(corpus: Path, folder: Path, updates: int, workers: int) -> list[str]:
    """A run of TriKD on three languages that saves and validates often."""
    values = [
        *("fairseq-train", corpus / "captions", "--user-dir", ROOT / "mclip_fairseq", "--task", "trikd", "--cpu"),
        *("--langs", ",".join(tiny_data.LANGS), "--arch", "mclip_tiny", "--criterion", "trikd", "--freeze-text"),
        *("none", "--image-features", corpus / "features" / "image", "--text-features", corpus / "features" / "text"),
        *("--sampling-temperature", 5, "--optimizer", "fused_adamw", "--lr", 0.0001, "--batch-size", 8),
        *("--max-update", updates, "--num-workers", workers, "--save-dir", folder, "--save-interval-updates", 500),
        *("--keep-interval-updates", 2, "--no-epoch-checkpoints", "--log-interval", 1000, "--log-format", "none"),
    ]
    return [str(value) for value in values]


def main() -> int:
    """Train, and sample at intervals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=5000, help="updates to train")
    parser.add_argument("--workers", type=int, default=2, help="data workers")
    arguments = parser.parse_args()
    watch, step = Watch(max(arguments.updates // 20, 1)), SampledTask.optimizer_step

    def watched(self: Any, optimizer: Any, model: Any, update_num: int) -> None:
        step(self, optimizer, model, update_num)
        if (update_num + 1) % watch.interval == 0:
            watch.look(update_num + 1)

    SampledTask.optimizer_step = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        corpus = tiny_data.make_text(Path(name))
        tiny_data.make_captions(corpus)
        print("|  update |   RSS MB |  files | tensors | threads | workers | their RSS MB | seconds |", file=sys.stderr)
        sys.argv = options(corpus, corpus / "run", arguments.updates, arguments.workers)
        train.cli_main()
    grown = watch.grew()
    print(f"{grown} grew" if grown else "flat", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
