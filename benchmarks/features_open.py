"""A feature directory of three million rows: how long opening it takes, and how much memory sampling from it needs.

The shards are sparse files, so the directory needs almost no disk space. Prints a table; the exit status is 1 if
opening takes a second or more (including verification of files that were verified before), or if memory grows with the
number of rows read. Before that, random rows are compared with those of numpy's memory map of a single file as large.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.storage import files
from mclip_fairseq.storage.feature_files import FORMAT, VERSION, shard_name
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import file_sha256

SHARD_ROWS = 1 << 19


def make_zeros(path: Path, rows: int, dim: int) -> None:
    """A sparse `.npy` file of float16."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)})
        stream.truncate(stream.tell() + rows * dim * 2)


def make_directory(folder: Path, rows: int, dim: int) -> None:
    """A finished feature directory whose values are all zero."""
    (folder / "ids.txt").write_text("".join(f"{row:012d}.jpg\n" for row in range(rows)))
    shards = []
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        count, path = min(SHARD_ROWS, rows - start), folder / shard_name(number)
        make_zeros(path, count, dim)
        shards.append({"file": path.name, "rows": count, "sha256": file_sha256(path)})
    manifest = {
        **{"format": FORMAT, "version": VERSION, "teacher": {"name": "zeros"}, "modality": "image", "dim": dim},
        **{"count": rows, "dtype": "float16", "normalized": False, "shards": shards},
        "ids_sha256": file_sha256(folder / "ids.txt"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def compare(folder: Path, rows: int, batches: int, batch: int) -> None:
    """Print what batches of random rows take beside numpy."""
    store = FeatureStore.open(folder, verify=False)
    make_zeros(folder / "whole.npy", rows, store.dim)
    whole = np.load(folder / "whole.npy", mmap_mode="r", allow_pickle=False)

    def sample(take: Callable[[np.ndarray], np.ndarray]) -> None:
        draw = np.random.default_rng(0)
        for _ in range(batches):
            take(draw.integers(0, rows, batch))

    print(f"{batches} batches of {batch} random rows")
    ways = {"numpy": lambda: sample(whole.__getitem__), "FeatureStore": lambda: sample(store.take)}
    print_ratios(medians_of_rounds(ways), "numpy")


def own_memory() -> float:
    """Anonymous memory of this process in MB; mapped file pages do not count, because the system can reclaim them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def row(what: str, seconds: float) -> None:
    """Print one line of the table."""
    print(f"| {what:<48} | {seconds:9.3f} | {own_memory():10.0f} |", flush=True)


def measure(folder: Path, batches: int, batch: int) -> bool:
    """Print the table; returns whether both promises hold."""
    print(f"| {'step':<48} | {'seconds':>9} | {'own MB':>10} |\n|{'-' * 50}|{'-' * 11}|{'-' * 12}|")
    row("start", 0.0)
    opening = {}
    for what, verify in (("verify all hashes and ids", True), ("verify again", True), ("verify nothing", False)):
        begin = time.perf_counter()
        store = FeatureStore.open(folder, verify)
        opening[what] = time.perf_counter() - begin
        row(f"open {len(store):,} rows, {what}", opening[what])
    begin = time.perf_counter()
    copied = len(pickle.dumps(store))
    row(f"hand to a data worker: {copied} bytes", time.perf_counter() - begin)
    draw, memory = np.random.default_rng(0), []
    for half in ("first", "second"):
        begin = time.perf_counter()
        for _ in range(batches // 2):
            store.take(draw.integers(0, len(store), batch))
        row(f"{half} {batches // 2} batches of {batch} random rows", time.perf_counter() - begin)
        memory.append(own_memory())
    return max(opening["verify again"], opening["verify nothing"]) < 1.0 and memory[1] - memory[0] < 20


def main() -> int:
    """Make the directory, measure, remove it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_000_000, help="rows of the directory")
    parser.add_argument("--dim", type=int, default=512, help="columns")
    parser.add_argument("--batches", type=int, default=400, help="batches to sample")
    parser.add_argument("--batch-size", type=int, default=512, help="rows per batch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["MCLIP_CACHE"] = cache
        make_directory(Path(folder), options.rows, options.dim)
        time.sleep(files.SETTLED_NS / 1e9)  # what was written just now is not remembered
        compare(Path(folder), options.rows, options.batches, options.batch_size)
        return 0 if measure(Path(folder), options.batches, options.batch_size) else 1


if __name__ == "__main__":
    sys.exit(main())
