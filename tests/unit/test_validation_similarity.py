"""`--valid-sts` on several ranks: each encodes its share, and all of them get the whole."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mclip_fairseq.tasks import validation_similarity
from mclip_fairseq.tasks.validation_similarity import SimilarityFile

pytest.importorskip("scipy")


class Lengths:
    """A model and its tokens in one: the vector of a sentence is of its length, and it counts what it encodes."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.sizes = np.array([len(text) for text in texts])
        self.encoded, self.padded = 0, 0

    def parameters(self) -> Any:
        return iter([torch.zeros(())])

    def batch(self, rows: npt.NDArray[np.int64]) -> Tensor:
        self.padded += len(rows) * int(self.sizes[rows].max())
        return torch.tensor([[len(self.texts[row]), len(set(self.texts[row]))] for row in rows])

    def pooled(self, name: str, tokens: Tensor) -> Tensor:
        self.encoded += len(tokens)
        return tokens.float()


def test_ranks_share_the_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["a", "ab", "aab", "abcd", "aaaa", "abab", "abcdef"]
    pairs = [(number % 5, words[number % 7], words[number * 3 % 5]) for number in range(11)]
    file = tmp_path / "sts.tsv"
    file.write_text("".join(f"{score}\t{first}\t{second}\n" for score, first, second in pairs), encoding="utf-8")
    monkeypatch.setattr(validation_similarity, "BATCH", 4)
    texts = [pair[1] for pair in pairs] + [pair[2] for pair in pairs]
    sts, alone, calls = SimilarityFile(file), Lengths(texts), []
    wanted = sts._spearman(alone, "first", alone, lambda: calls.append(0))  # type: ignore[arg-type]
    assert (alone.encoded, len(calls)) == (22, 7)
    assert alone.padded < 1.1 * alone.sizes.sum()

    values: dict[int, Any] = {}
    barrier = threading.Barrier(2)

    def on_rank(rank: int) -> tuple[float, int, int]:
        def all_ranks(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait()
            found = [values[0], values[1]]
            barrier.wait()
            return found

        model, turns = Lengths(texts), []
        ranks.update({threading.get_ident(): (slice(rank, None, 2), all_ranks)})
        return sts._spearman(model, "first", model, lambda: turns.append(0)), model.encoded, len(turns)  # type: ignore[arg-type]

    ranks: dict[int, Any] = {}
    monkeypatch.setattr(validation_similarity, "every_nth", lambda: ranks[threading.get_ident()][0])
    monkeypatch.setattr(
        validation_similarity, "objects_of_all_ranks", lambda value: ranks[threading.get_ident()][1](value)
    )
    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(on_rank, range(2)))
    assert [(spearman, turns) for spearman, _, turns in shares] == [(wanted, 4)] * 2
    assert sum(encoded for _, encoded, _ in shares) == 22
