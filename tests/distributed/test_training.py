"""Two gloo processes of `fairseq-train` against one process over the same global batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.runs import train_on_ranks

pytestmark = pytest.mark.distributed
Train = Callable[..., str]

COMMON = [
    *("--optimizer", "sgd", "--lr", "0.05", "--clip-norm", "0", "--max-epoch", "1"),
    *("--dropout", "0", "--attention-dropout", "0", "--disable-validation", "--no-progress-bar"),
    # The order by length is kept, so that one process meets in one batch what two meet in two.
    *("--curriculum", "9", "--required-batch-size-multiple", "1", "--log-format", "simple", "--log-interval", "1"),
]


def task_options(corpus: Path, task: str) -> list[str]:
    """The command line of one task on the tiny corpus, without batch size."""
    if task == "mte":
        return [
            *(str(corpus / "mte"), "--task", "mte", "--langs", "en,de,fr", "--lang-pairs", "en-de"),
            *("--arch", "mte_tiny", "--criterion", "mte", "--contrastive-weight", "2", *COMMON),
        ]
    if task == "teacher_learning":
        return [
            *(str(corpus / "captions"), "--task", "trikd", "--langs", "en", "--arch", "teacher_learning_tiny"),
            *("--text-features", str(corpus / "features" / "text"), "--criterion", "teacher_learning", *COMMON),
            *("--image-features", str(corpus / "features" / "image"), "--lr", "0.5"),
        ]
    if task == "distillation":
        return [
            *(str(corpus / "captions"), "--task", "distillation", "--langs", "en", "--arch", "teacher_learning_tiny"),
            *("--text-features", str(corpus / "features" / "text"), "--criterion", "distillation", *COMMON),
            *("--mse-weight", "0.5", "--cosine-weight", "0.3", "--contrastive-weight", "2", "--lr", "0.5"),
            *("--image-features", str(corpus / "features" / "image"), "--distillation-scale-init", "4.48"),
        ]
    if task == "image_text":
        return [
            *(str(corpus / "captions"), "--task", "image_text", "--langs", "en", "--freeze-text", "none"),
            *("--image-features", str(corpus / "features" / "image"), "--criterion", "image_text", *COMMON),
            *("--text-features", str(corpus / "features" / "text"), "--arch", "mclip_tiny"),
            *("--positives", "image", "--contrast-direction", "released"),
        ]
    return [
        *(
            str(corpus / "captions"),
            "--task",
            "trikd",
            "--langs",
            "en",
            "--freeze-text",
            "none",
            "--arch",
            "mclip_tiny",
        ),
        *("--image-features", str(corpus / "features" / "image"), "--text-features", str(corpus / "features" / "text")),
        *("--criterion", "trikd", "--text-text-weight", "0.5", "--positives", "image", *COMMON),
    ]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has trained."""
    state = load_checkpoint(folder / "checkpoint_last.pt")
    return {name: tensor for name, tensor in state["model"].items() if tensor.is_floating_point()}


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of any parameter."""
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one if one[name].numel())


def test_two_processes_equal_one(run_train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
    """With an uneven last step of 9 and 5 rows, and with one of 4 rows and a dummy."""
    tasks = ("mte", "trikd", "teacher_learning", "distillation", "image_text")
    cases = [(task, batch_size) for task in tasks for batch_size in (9, 10)]
    runs = []
    for task, size in cases:
        common = [*task_options(tiny_corpus, task), "--save-dir"]
        runs.append([*common, tmp_path / f"{task}{size}-two", "--batch-size", size])
        run_train(*common, tmp_path / f"{task}{size}-one", "--batch-size", 2 * size)
    for log in train_on_ranks(2, runs, tmp_path):
        assert all(output.endswith("exit status 0\n") for output in log), log
    for task, size in cases:
        one, two = (parameters(tmp_path / f"{task}{size}-{count}") for count in ("one", "two"))
        assert largest_difference(one, two) < 1e-5, (task, size)


def test_the_comparison_can_fail(run_train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
    """Negatives of one rank only, as accumulation gives them, are another loss."""
    common = [*task_options(tiny_corpus, "trikd"), "--save-dir"]
    run_train(*common, tmp_path / "one", "--batch-size", 18)
    run_train(*common, tmp_path / "two", "--batch-size", 9, "--update-freq", 2)
    assert largest_difference(parameters(tmp_path / "one"), parameters(tmp_path / "two")) > 1e-4
