"""Two gloo processes of `fairseq-train` against one process over the same global batches."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mclip_fairseq.compat import allow_checkpoint_globals, load_checkpoint

allow_checkpoint_globals()
pytestmark = pytest.mark.distributed
Run = Callable[..., subprocess.CompletedProcess[str]]

COMMON = [
    *("--optimizer", "sgd", "--lr", "0.05", "--clip-norm", "0", "--max-epoch", "1"),
    *("--dropout", "0", "--attention-dropout", "0", "--disable-validation", "--cpu", "--no-progress-bar"),
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


def train(run: Run, options: list[str], folder: Path, processes: int, batch_size: int) -> dict[str, torch.Tensor]:
    """Train one epoch; returns the parameters."""
    plugin = Path(__file__).resolve().parents[2] / "mclip_fairseq"
    arguments = [*options, "--user-dir", str(plugin), "--batch-size", str(batch_size), "--save-dir", str(folder)]
    if processes == 1:
        run("fairseq-train", *arguments)
    else:
        run(
            "torchrun",
            *("--standalone", "--nproc-per-node", processes, "-m", "fairseq_cli.train"),
            *(*arguments, "--distributed-backend", "gloo", "--distributed-world-size", processes),
            *("--ddp-backend", "legacy_ddp"),
        )
    state = load_checkpoint(folder / "checkpoint_last.pt")
    return {name: tensor for name, tensor in state["model"].items() if tensor.is_floating_point()}


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of any parameter."""
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one if one[name].numel())


@pytest.mark.parametrize("task", ["mte", "trikd"])
@pytest.mark.parametrize(
    ("batch_size", "what"), [(9, "uneven last step: 9 and 5 rows"), (10, "dummy last step: 4 rows and none")]
)
def test_two_processes_equal_one(
    fairseq_cli: Run, tiny_corpus: Path, tmp_path: Path, task: str, batch_size: int, what: str
) -> None:
    options = task_options(tiny_corpus, task)
    one = train(fairseq_cli, options, tmp_path / "one", 1, 2 * batch_size)
    two = train(fairseq_cli, options, tmp_path / "two", 2, batch_size)
    assert largest_difference(one, two) < 1e-5, what


def test_the_comparison_can_fail(fairseq_cli: Run, tiny_corpus: Path, tmp_path: Path) -> None:
    """Negatives of one rank only, as accumulation gives them, are another loss."""
    options = task_options(tiny_corpus, "trikd")
    one = train(fairseq_cli, options, tmp_path / "one", 1, 18)
    accumulated = train(fairseq_cli, [*options, "--update-freq", "2"], tmp_path / "two", 1, 9)
    assert largest_difference(one, accumulated) > 1e-4
