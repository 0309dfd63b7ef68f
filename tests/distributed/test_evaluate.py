"""`mclip-evaluate` as two processes of torchrun, which share the pairs that are re-ranked."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ccrk_models import parallel_corpus, training_options
from tests.runs import RANK, free_ports, start_ranks
from tests.tiny_data import sentences, write

pytestmark = pytest.mark.distributed
Train = Callable[..., str]


def evaluate_on_rank(rank: int, world: int, command: list[str], port: int, folder: str) -> None:
    """One of the processes; it counts the pairs that it scores, and keeps what it prints."""
    from mclip_fairseq.cli.evaluate import main
    from mclip_fairseq.encoding.matching import PairScorer

    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in here.items()})
    scored, score = [0], PairScorer.__call__

    def counted(self, texts, images):  # type: ignore[no-untyped-def]
        scored[0] += len(texts)
        return score(self, texts, images)

    PairScorer.__call__ = counted  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(command) == 0
    write(Path(folder) / f"rank{rank}", [str(scored[0]), str(len(said.getvalue()))])


def test_two_processes_share_the_pairs_and_report_once(
    run_train: Train, photos: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from mclip_fairseq.cli.evaluate import main

    corpus = parallel_corpus(photos, tiny_corpus, tmp_path / "captions")
    run_train(
        *training_options(corpus, photos, tiny_corpus / "tokenizer", tmp_path / "run", "--max-update", 1),
        "--disable-validation",
    )
    for lang in ("en", "de"):
        write(tmp_path / f"{lang}.txt", sentences(lang)[:12])
    write(tmp_path / "ids.txt", [f"img{number}.png" for number in range(12)])
    captions = [f"{lang}={tmp_path / lang}.txt" for lang in ("en", "de")]
    command = ["--model", str(tmp_path / "run" / "checkpoint_last.pt"), "--captions", *captions, "--rerank", "4"]
    command += ["--ids", str(tmp_path / "ids.txt"), "--images", str(photos / "images"), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "one")]) == 0
    arguments = ([*command, "--output", str(tmp_path / "two")], *free_ports(1), str(tmp_path))
    start_ranks("evaluate_on_rank", 2, arguments, file=__file__)
    one, two = (json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in ("one", "two"))
    assert one["reranked"] == two["reranked"]
    assert one["results"] == two["results"]
    counts = [(tmp_path / f"rank{rank}").read_text("utf-8").split() for rank in range(2)]
    assert [int(scored) for scored, _ in counts] == [2 * 24 * 4 // 2] * 2  # half of the pairs of both languages each
    assert [int(said) > 0 for _, said in counts] == [True, False]


if __name__ == RANK:
    name, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[name](*values)
