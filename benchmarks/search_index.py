#!/usr/bin/env python3
"""Build and search an index of a million vectors of 512 dimensions, compared with calling faiss directly.

Each step runs in its own process, so that peak memory is measured per step. `--vectors 100000` takes seconds instead of
minutes; `--kinds exact ivf hnsw sq8 pq` measures all kinds. After that, one process asks both, in medians of rounds in
which they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import medians_of_rounds, print_ratios
from benchmarks._search import build_made_up, made_up, make_features
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.kinds import Searcher, factory_string, faiss, new_index, training_rows
from mclip_fairseq.search.settings import KINDS, IndexSettings
from mclip_fairseq.storage.features import FeatureStore

DIM, K, SINGLE, BATCH = 512, 10, 50, 256
COLUMNS = (
    *("kind", "program", "build s", "peak GiB", "on disk GiB", "open s", "peak GiB", "ms/query", "ms batched"),
    "recall@10",
)


def blocks(features: FeatureStore) -> Iterator[np.ndarray]:
    """Normalised float32 vectors, as a short script would read them."""
    for start in range(0, len(features), 65536):
        rows = features.take(np.arange(start, min(start + 65536, len(features)))).astype(np.float32)
        faiss().normalize_L2(rows)
        yield rows


def build_ours(folder: Path, kind: str) -> dict[str, Any]:
    """`mclip-search build`."""
    build_made_up(folder / "features", folder / f"ours-{kind}", kind, DIM)
    manifest = json.loads((folder / f"ours-{kind}" / "index.json").read_text(encoding="utf-8"))
    return {"recall": (manifest["recall"] or {}).get("recall_at_k", 1.0)}


def build_faiss(folder: Path, kind: str) -> dict[str, Any]:
    """The same index without ids, hashes, resuming or recall."""
    features = FeatureStore.open(folder / "features", verify=False)
    index = new_index(factory_string(IndexSettings(kind), DIM, len(features)), DIM)
    if not index.is_trained:
        rows = features.take(training_rows(index, len(features))).astype(np.float32)
        faiss().normalize_L2(rows)
        index.train(rows)
    for rows in blocks(features):
        index.add(rows)
    faiss().write_index(index, str(folder / f"faiss-{kind}"))
    return {}


def query_ours(folder: Path, kind: str) -> dict[str, Any]:
    """`SearchIndex`, hashes verified."""
    start = time.perf_counter()
    index = SearchIndex.open(folder / f"ours-{kind}")
    return {"open": time.perf_counter() - start} | ask(index.searcher)


def query_faiss(folder: Path, kind: str) -> dict[str, Any]:
    """Faiss's index read into memory, searched with the same effort."""
    start = time.perf_counter()
    index = faiss().read_index(str(folder / f"faiss-{kind}"))
    seconds = time.perf_counter() - start
    effort = json.loads((folder / f"ours-{kind}" / "index.json").read_text(encoding="utf-8"))["effort"]
    return {"open": seconds} | ask(Searcher(index, kind, effort))


def ask(search: Callable[[np.ndarray, int], Any]) -> dict[str, float]:
    """Milliseconds of a query by itself (median) and in a batch."""
    queries = made_up(BATCH, DIM, seed=10**6)
    faiss().normalize_L2(queries)
    search(queries[:1], K)
    seconds = []
    for number in range(SINGLE):
        start = time.perf_counter()
        search(queries[number : number + 1], K)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    search(queries, K)
    batched = (time.perf_counter() - start) / BATCH
    return {"single": 1000 * float(np.median(seconds)), "batched": 1000 * batched}


def compare(folder: Path, kind: str) -> None:
    """Print what the same queries take of both programs in rounds in which they take turns."""
    ours = SearchIndex.open(folder / f"ours-{kind}")
    plain = Searcher(faiss().read_index(str(folder / f"faiss-{kind}")), kind, ours.manifest["effort"])
    queries = made_up(BATCH, DIM, seed=10**6)
    faiss().normalize_L2(queries)

    def one_by_one(search: Callable[[np.ndarray, int], Any]) -> None:
        for number in range(SINGLE):
            search(queries[number : number + 1], K)

    programs = {"faiss": plain, "mclip-search": ours.searcher}
    ways: dict[str, Callable[[], object]] = {
        f"{name}, one by one": partial(one_by_one, search) for name, search in programs.items()
    }
    ways |= {f"{name}, in a batch": partial(search, queries, K) for name, search in programs.items()}
    print(f"{kind}: {SINGLE} queries one by one, {BATCH} in a batch")
    measured = medians_of_rounds(ways)
    for base in ("faiss, one by one", "faiss, in a batch"):
        print_ratios({name: one for name, one in measured.items() if name.endswith(base.split(",")[1])}, base)


STEPS = {"build_ours": build_ours, "build_faiss": build_faiss, "query_ours": query_ours, "query_faiss": query_faiss}


def in_process(step: str, folder: Path, kind: str) -> dict[str, Any]:
    """Run a step in its own process, which also measures its seconds and its peak memory."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--kinds", kind]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def run_step(options: argparse.Namespace) -> dict[str, Any]:
    """Run one step, in the process that `in_process` started."""
    start = time.perf_counter()
    measured = STEPS[options.step](options.folder, options.kinds[0])
    measured["seconds"] = time.perf_counter() - start
    measured["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return measured


def size_of(path: Path) -> float:
    """GiB of a file, or of the files of a folder."""
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files) / 2**30


def measure(folder: Path, kind: str) -> Iterator[list[str]]:
    """The two rows of a kind."""
    for program in ("ours", "faiss"):
        made, asked = (in_process(f"{step}_{program}", folder, kind) for step in ("build", "query"))
        numbers = [made["seconds"], made["peak"], size_of(folder / f"{program}-{kind}")]
        numbers += [asked["open"], asked["peak"], asked["single"], asked["batched"]]
        recall = f"{made['recall']:.3f}" if "recall" in made else ""
        yield [kind, "mclip-search" if program == "ours" else "faiss", *(f"{n:.2f}" for n in numbers), recall]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="default 1000000")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=["exact", "ivf"], help="default exact ivf")
    parser.add_argument(
        "--folder", type=Path, help="where to write the files, about 8 GiB per million (default: temporary)"
    )
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step:
        print(json.dumps(run_step(options)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start = time.perf_counter()
        make_features(Path(folder) / "features", options.vectors, DIM)
        print(
            f"{options.vectors} vectors of {DIM} dimensions on {os.cpu_count()} cores; features made in "
            f"{time.perf_counter() - start:.0f} s; peak memory of an idle process with the same imports is "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
        )
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
        for kind in options.kinds:
            for row in measure(Path(folder), kind):
                print(f"| {' | '.join(row)} |", flush=True)
        for kind in options.kinds:
            compare(Path(folder), kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
