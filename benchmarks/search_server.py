#!/usr/bin/env python3
"""Latency of the page when 20 people search 100,000 images at once.

The text encoder has the layers of XLM-R base (12 of 768, random weights), the index is exact with 512 dimensions, and
the images are JPEGs of 640 x 480. Each user sends a new question every half second and, after each answer, loads the
first eight images, as a browser does. Server and users share this machine's cores. Before that, questions one after the
other are compared with the model and the index alone, in medians of rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import medians_of_rounds, print_ratios
from benchmarks._search import build_made_up, make_features
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.formats.towers import OneTextPath
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.server import make_server, serve
from mclip_fairseq.storage.errors import UserError

DIM, PICTURES, SHOWN, PAUSE, MAX_TOKENS = 512, 200, 8, 0.5, 64
QUESTIONS, ALONE = 10, "without the server"
WORDS = "a the dog cat beach house red small ein Hund am Strand une plage rouge 浜辺 犬 كلب شاطئ собака море"


class LikeXLMR(OneTextPath):
    """A tower as slow as XLM-R base; its vocabulary, which costs no time, is smaller."""

    def __init__(self) -> None:
        shield_torchaudio()
        from transformers import XLMRobertaConfig, XLMRobertaModel

        torch.manual_seed(0)
        encoder = XLMRobertaModel(XLMRobertaConfig(vocab_size=4096), add_pooling_layer=False)
        self.module = torch.nn.ModuleDict({"encoder": encoder, "projection": torch.nn.Linear(768, DIM)})
        self.name, self.dim, self.languages = "like XLM-R base", DIM, ["en"]

    @property
    def transform(self) -> Any:
        """None: it reads texts only."""
        raise UserError("the model has no image tower")

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """About one token per three bytes, as SentencePiece gives."""
        pieces = [[0, *(5 + byte for byte in text.encode()[::3][: MAX_TOKENS - 2]), 2] for text in texts]
        width = max(map(len, pieces))
        return {"tokens": torch.tensor([row + [1] * (width - len(row)) for row in pieces])}

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """It knows all of them."""
        return [(count, count) for count in map(len, texts)]

    def token_mask(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(n, length) bool, False at pads."""
        return inputs["tokens"].ne(1)

    def encode_text(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(n, dim), not normalised."""
        mask = inputs["tokens"].ne(1).long()
        states = self.module["encoder"](input_ids=inputs["tokens"], attention_mask=mask).last_hidden_state
        projected: torch.Tensor = self.module["projection"](states[:, 0])
        return projected


def prepare(folder: Path, images: int) -> None:
    """Image files and an index of `images` rows, several of which share a file."""
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480)).save(folder / f"{number}.jpg", quality=85)
    features = make_features(folder / "features", images, DIM)
    ids = (features / "ids.txt").read_text(encoding="utf-8").split()
    lines = "".join(f"{name}\t{row % PICTURES}.jpg\n" for row, name in enumerate(ids))
    (folder / "pictures.tsv").write_text(lines, encoding="utf-8")
    build_made_up(features, folder / "index", "exact", DIM, images_root=folder / "pictures.tsv")


def question(rng: np.random.Generator) -> str:
    """A few words and a number, so that no answer is known already."""
    return " ".join([*rng.choice(WORDS.split(), rng.integers(2, 7)), str(rng.integers(10**6))])


def ask(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content: dict[str, Any] = json.loads(answer.read())
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {content}")
    return content


def compare(
    folder: Path,
    asked: Callable[[http.client.HTTPConnection], object],
    alone: Callable[[SearchIndex, MultilingualCLIP], object],
) -> None:
    """Print what requests take beside the same work without a server, all in this process, so that its CPU time counts.

    Args:
        folder: of the index.
        asked: sends the requests.
        alone: does the work.
    """
    tower: Any = LikeXLMR()
    index, model = SearchIndex.open(folder), MultilingualCLIP(tower, "cpu")
    server = make_server(index, model)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=120)

        def over_http() -> None:
            connection.close()  # the server has ended it if the other way took long
            asked(connection)

        try:
            ways: dict[str, Callable[[], object]] = {ALONE: partial(alone, index, model), "over HTTP": over_http}
            print_ratios(medians_of_rounds(ways), ALONE)
        finally:
            connection.close()
            server.should_exit = True
            thread.join()


def compare_searches(folder: Path) -> None:
    """Questions to the page beside the text encoder and the index."""
    rng = np.random.default_rng(0)

    def alone(index: SearchIndex, model: MultilingualCLIP) -> None:
        for _ in range(QUESTIONS):
            index.searcher(model.encode_text([question(rng)]).numpy(), SHOWN)

    def asked(connection: http.client.HTTPConnection) -> None:
        for _ in range(QUESTIONS):
            ask(connection, "/search", {"query": question(rng)})

    print(f"{QUESTIONS} questions, one after the other")
    compare(folder, asked, alone)


def user(port: int, number: int, until: float, searches: list[float], pictures: list[float]) -> None:
    """Search and load images until the time is over."""
    rng = np.random.default_rng(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    time.sleep(PAUSE * number / 20)
    while time.monotonic() < until:
        text, start = question(rng), time.perf_counter()
        results = ask(connection, "/search", {"query": text})["results"]
        searches.append(time.perf_counter() - start)
        for hit in results[:SHOWN]:
            start = time.perf_counter()
            connection.request("GET", f"/thumb/{hit['picture']}")
            connection.getresponse().read()
            pictures.append(time.perf_counter() - start)
        time.sleep(PAUSE)


def measure(port: int, users: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every search and of every image."""
    searches: list[float] = []
    pictures: list[float] = []
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=user, args=(port, n, until, searches, pictures)) for n in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"search": searches, "picture": pictures}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; status 1 when the 95th percentile of the searches is a second or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="images in the index (default 100000)")
    parser.add_argument("--users", type=int, default=20, help="users at once (default 20)")
    parser.add_argument("--seconds", type=float, default=30, help="length of the measurement (default 30)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        tower: Any = LikeXLMR()
        serve(SearchIndex.open(options.serve), MultilingualCLIP(tower, "cpu"), "127.0.0.1", 0)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.images)
        compare_searches(Path(folder) / "index")
        command = [sys.executable, __file__, "--serve", str(Path(folder) / "index")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rsplit(":", 1)[1].split("/")[0])
            measure(port, options.users, 3)  # warm up
            measured = measure(port, options.users, options.seconds)
        finally:
            server.terminate()
            server.wait()
    print(f"{options.users} users, {options.images} images, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| request | number | per second | median ms | 95 % ms | longest ms |\n| --- | --- | --- | --- | --- | --- |")
    for name, seconds in measured.items():
        middle, late = 1000 * np.quantile(seconds, (0.5, 0.95))
        row = f"{len(seconds)} | {len(seconds) / options.seconds:.1f} | {middle:.0f} | {late:.0f}"
        print(f"| {name} | {row} | {1000 * max(seconds):.0f} |")
    return int(np.quantile(measured["search"], 0.95) >= 1)


if __name__ == "__main__":
    sys.exit(main())
