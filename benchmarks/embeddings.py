#!/usr/bin/env python3
"""Latency of `POST /v1/embeddings` of `mclip-search serve` under load.

The text encoder has the layers of XLM-R base (12 of 768, random weights). Each user sends a text of a few words every
half second; others send batches of 32 texts without a pause. Server and users share this machine's cores. Before that,
a batch is compared with the model alone, in medians of rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import search_server
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.search.index import SearchIndex

BATCH = 32


def client(port: int, number: int, until: float, texts: int, pause: float, seconds: list[float]) -> None:
    """Send requests of `texts` texts, with a `pause` between them, until a time; adds the seconds of each."""
    rng = np.random.default_rng(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.monotonic() < until:
        given, start = [search_server.question(rng) for _ in range(texts)], time.perf_counter()
        content = search_server.ask(connection, "/v1/embeddings", {"input": given})
        if len(content["data"]) != texts:
            raise RuntimeError(f"{len(content['data'])} vectors of {texts} texts")
        seconds.append(time.perf_counter() - start)
        time.sleep(pause)


def compare_batches(folder: Path) -> None:
    """A batch of texts sent to the server beside `encode_text`."""
    rng = np.random.default_rng(0)

    def alone(index: SearchIndex, model: MultilingualCLIP) -> None:
        model.encode_text([search_server.question(rng) for _ in range(BATCH)])

    def asked(connection: http.client.HTTPConnection) -> None:
        search_server.ask(connection, "/v1/embeddings", {"input": [search_server.question(rng) for _ in range(BATCH)]})

    print(f"{BATCH} texts")
    search_server.compare(folder, asked, alone)


def measure(port: int, users: int, batches: int, length: float) -> dict[str, list[float]]:
    """Seconds of every request of one text, and of every batch."""
    measured: dict[str, list[float]] = {"one text": [], f"{BATCH} texts": []}
    until = time.monotonic() + length
    kinds = [(1, search_server.PAUSE, "one text")] * users + [(BATCH, 0.0, f"{BATCH} texts")] * batches
    threads = [
        threading.Thread(target=client, args=(port, number, until, texts, pause, measured[name]))
        for number, (texts, pause, name) in enumerate(kinds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return measured


def table(measured: dict[str, list[float]], length: float) -> str:
    """Numbers and quantiles in milliseconds."""
    lines = ["| request | number | texts per second | p50 ms | p99 ms |", "| --- | --- | --- | --- | --- |"]
    for name, seconds in measured.items():
        if seconds:
            middle, late = 1000 * np.quantile(seconds, (0.5, 0.99))
            texts = len(seconds) * (BATCH if name != "one text" else 1) / length
            lines.append(f"| {name} | {len(seconds)} | {texts:.1f} | {middle:.0f} | {late:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table with and one without batches in the background."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8, help="users that send one text at a time (default 8)")
    parser.add_argument("--batches", type=int, default=2, help="clients that send batches (default 2)")
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement (default 20)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        search_server.prepare(Path(folder), 1000)
        compare_batches(Path(folder) / "index")
        command = [sys.executable, search_server.__file__, "--serve", str(Path(folder) / "index")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rsplit(":", 1)[1].split("/")[0])
            measure(port, options.users, 0, 2)  # warm up
            for batches in (0, options.batches):
                measured = measure(port, options.users, batches, options.seconds)
                print(f"\n{options.users} users, {batches} clients with batches; {os.cpu_count()} cores, ", end="")
                print(f"load {os.getloadavg()[0]:.1f}\n{table(measured, options.seconds)}")
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
