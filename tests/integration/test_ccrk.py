"""CCRK from training to retrieval: pre-training, fine-tuning, resuming, two ranks, and matching in inference."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.ccrk_models import parallel_corpus, training_options
from tests.runs import difference, losses_of, state_of

Train = Callable[..., str]


@pytest.fixture(scope="module")
def corpus(photos: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parallel_corpus(photos, tiny_corpus, tmp_path_factory.mktemp("parallel") / "captions")


@pytest.fixture(scope="module")
def options(corpus: Path, photos: Path, tiny_corpus: Path) -> Callable[..., list[str]]:
    return lambda folder, *more: training_options(corpus, photos, tiny_corpus / "tokenizer", folder, *more)


@pytest.fixture(scope="module")
def trained(
    options: Callable[..., list[str]], run_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A pre-training of three epochs with two of three languages per image, and its log."""
    folder = tmp_path_factory.mktemp("ccrk")
    choose = ("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric")
    log = run_train(*options(folder, "--max-epoch", 3, "--captions-per-image", 2, "--log-interval", 1, *choose))
    return folder / "checkpoint_last.pt", log


def test_pre_training_logs_all_three_losses_and_retrieval(trained: tuple[Path, str]) -> None:
    first, *_, last = losses_of(trained[1]).values()
    for name in ("contrast_loss", "matching_loss", "masked_words_loss"):
        assert 0 < float(last[name]) < 1.5 * float(first[name])
    assert float(last["masked_words_loss"]) < float(first["masked_words_loss"])
    lines = [line for line in trained[1].splitlines() if "| valid |" in line and "{" in line]
    valid = json.loads(lines[-1][lines[-1].index("{") :])
    assert {"valid_mean_recall_de", "valid_masked_words_loss", "valid_matching_accuracy"} <= valid.keys()
