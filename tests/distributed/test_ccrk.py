"""CCRK on two gloo processes against one process over the same global batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.ccrk_models import (
    PinnedCriterion,
    archive,
    checkpoint,
    parallel_batch,
    parallel_corpus,
    released_model,
    training_options,
)
from tests.distributed.test_training import COMMON, largest_difference, parameters
from tests.runs import train_on_ranks

pytestmark = pytest.mark.distributed
Train = Callable[..., str]
ALL = ("--langs", "en,de,fr")
# Pairs of an image and a caption, some of which are equal: 104 captions of 40 images.
TUNED = ("--langs", "en", "--mode", "finetune", "--crop-area", "0.5")
LOCAL = (*ALL, "--local-negatives")  # another loss on two ranks, as in the released code


def test_two_processes_equal_one(run_train: Train, photos: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """All three terms, with an uneven last step of 9 and 5 images, and with one of 4 images and a dummy.

    Negatives of one rank show that the comparison can fail.
    """
    corpus = parallel_corpus(photos, tiny_corpus, tmp_path / "captions")
    cases: list[tuple[str, tuple[str, ...], int]] = [("local", LOCAL, 9)]
    cases += [(name, terms, size) for name, terms in (("all", ALL), ("tuned", TUNED)) for size in (9, 10)]
    runs = []
    for name, terms, size in cases:
        common = training_options(corpus, photos, tiny_corpus / "tokenizer", tmp_path)
        common += [*COMMON, "--drop-path", "0", *terms, "--save-dir"]
        at = common.index("--fresh-lr-multiplier")
        del common[at : at + 2]  # of the other optimizer
        runs.append([*common, tmp_path / f"{name}{size}-two", "--batch-size", size])
        run_train(*common, tmp_path / f"{name}{size}-one", "--batch-size", 2 * size)
    for log in train_on_ranks(2, runs, tmp_path):
        assert all(output.endswith("exit status 0\n") for output in log), log
    for name, _, size in cases:
        one, two = (parameters(tmp_path / f"{name}{size}-{count}") for count in ("one", "two"))
        assert (largest_difference(one, two) < 1e-5) == (name != "local"), (name, size)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
def test_torch_ddp_finds_no_parameter_unused(
    weights: tuple[float, float, float], shared_dir: Path, tmp_path: Path
) -> None:
    """Everything lies in one forward pass: DDP waits for a gradient of each parameter, and gets it in every step."""
    state = checkpoint(shared_dir, "ccrk_tiny.pt")
    module = released_model(state["model"], archive(shared_dir, tmp_path / "xlmr"))
    names = ("contrast_weight", "matching_weight", "masked_words_weight")
    criterion = PinnedCriterion(([0, 3, 6, 9], [1, 2, 3, 0], [4, 7, 10, 1]), **dict(zip(names, weights, strict=True)))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(module)
        for _ in range(3):  # the second forward pass complains of what the first backward pass has left out
            criterion.eval().outcome(model, parallel_batch(state["fixture"]["inputs"])).loss.backward()
        assert all(weight.grad is not None for weight in module.parameters())
        model.zero_grad()
        unused = model(text_tokens=torch.zeros(1, 3, dtype=torch.long), pixel_values=torch.zeros(1, 3, 128, 128))
        unused["text"].sum().backward()  # without the anchor, the fusion encoder is left out
        with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
            criterion.outcome(model, parallel_batch(state["fixture"]["inputs"]))
    finally:
        dist.destroy_process_group()
