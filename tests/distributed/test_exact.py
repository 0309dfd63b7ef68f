"""Over 2 and 4 gloo ranks: the loss and the gradients of one process over the union, whatever the ranks hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests import runs
from tests.runs import HANG, free_ports, start_ranks, state_of, train_on_ranks

pytestmark = pytest.mark.distributed
Train = Callable[..., str]
# Rows per rank; a negative number -n is a dummy batch of n rows, which must not count.
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(4, 4), (5, 2), (3, -4), (-2, 1)],
    4: [(3, 3, 3, 3), (5, 1, 4, 2), (3, -2, -2, 2), (1, -1, -1, -1)],
}
WIDTH, WORDS = 6, 12


class Toy(nn.Module):
    """The interface of `MCLIPModel` and `MTEModel` with next to no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, dtype=torch.float64)
        self.project = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.log_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, **given: Any) -> Any:
        return self.translate(**given) if "prev_output_tokens" in given else self.embed(**given)

    def embed(self, text: Tensor, image: Tensor, teacher: Tensor | None = None) -> dict[str, Tensor | None]:
        """As `MCLIPModel.forward`."""
        joint = lambda features: F.normalize(self.project(features), dim=1)  # noqa: E731
        return {
            "text": F.normalize(self.words(text).mean(1), dim=1),
            "image": joint(image),
            "teacher_text": None if teacher is None else joint(teacher),
            "scale": self.log_scale.exp(),
        }

    def translate(self, src_tokens: Tensor, prev_output_tokens: Tensor, contrast_tokens: Tensor, **flags: Any) -> Any:
        """As `MTEModel.forward` with `features_only`."""
        pooled = [self.project(self.words(tokens).mean(1)) for tokens in (src_tokens, contrast_tokens)]
        extra = {"source_pooled": pooled[0], "target_pooled": pooled[1], "output_weight": self.words.weight}
        return self.project(self.words(prev_output_tokens)), extra


def rows_of(task: str, count: int, seed: int, with_teacher: bool) -> dict[str, Any]:
    """A batch of one language."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, WORDS, (2, count, 3), generator=generator)
    floats = torch.randn(2, count, WIDTH, generator=generator, dtype=torch.float64)
    if task == "mte":
        inputs = {"src_tokens": tokens[0], "prev_output_tokens": tokens[1]}
    else:
        inputs = {"text": tokens[0], "image": floats[0], **({"teacher": floats[1]} if with_teacher else {})}
    groups = torch.randint(0, 4, (count,), generator=generator)
    head = {"id": torch.arange(count), "nsentences": count, "ntokens": 3 * count, "group": groups}
    return {**head, "net_input": inputs, "target": tokens[1]}


def union(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch of all rows; inputs that only some batches have are left out."""
    names = set.intersection(*(set(batch["net_input"]) for batch in batches))
    inputs = {name: torch.cat([batch["net_input"][name] for batch in batches]) for name in names}
    tensors = {name: torch.cat([batch[name] for batch in batches]) for name in ("id", "group", "target")}
    numbers = {name: sum(batch[name] for batch in batches) for name in ("nsentences", "ntokens")}
    return {**tensors, **numbers, "net_input": inputs}


def criterion_of(task: str, image_text: float = 1.0, text_text: float = 0.5) -> Any:
    """A criterion of ours, without fairseq's configuration."""
    from mclip_fairseq.criterions.mte import MTECriterion
    from mclip_fairseq.criterions.trikd import TriKDCriterion, TriKDCriterionConfig

    vocabulary = SimpleNamespace(bos=lambda: 0, pad=lambda: 1)
    owner = SimpleNamespace(target_dictionary=vocabulary)
    if task == "mte":
        return MTECriterion(owner, 0.1, 1.0, 2.0, 0.1, "sound")
    weights: dict[str, Any] = {"image_text_weight": image_text, "text_text_weight": text_text}
    return TriKDCriterion(owner, TriKDCriterionConfig(**weights, text_text_scale=9.0, positives="image"))


def expected_loss(task: str, model: nn.Module, batches: list[dict[str, Any]]) -> Tensor:
    """The summed loss of one process over all rows; only the batches with a teacher text have the text-text term."""
    if task == "mte":
        return criterion_of(task).eval()(model, union(batches))[0]
    whole = union(batches)
    loss = criterion_of(task, text_text=0.0).eval()(model, whole)[0]
    with_teacher = [batch for batch in batches if "teacher" in batch["net_input"]]
    if with_teacher:
        part = union(with_teacher)
        text = criterion_of(task, image_text=0.0).eval()(model, part)[0]
        loss = loss + text * whole["nsentences"] / part["nsentences"]
    return loss


def gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


def error_of(task: str, sizes: tuple[int, ...], rank: int, mark_dummies: bool = True) -> float:
    """Largest distance of mean loss and gradients over the ranks from those of one process."""
    torch.manual_seed(0)
    model = Toy()
    # Ranks 0 and 2 hold English with teacher texts, the others a language without.
    batches = [rows_of(task, abs(size), 10 + n, n % 2 == 0) for n, size in enumerate(sizes)]
    counted = [batch for batch, size in zip(batches, sizes, strict=True) if size > 0]
    reference = expected_loss(task, model, counted)
    reference.backward()
    wanted = gradient(model)
    model.zero_grad()
    dummy = sizes[rank] < 0 and mark_dummies
    loss, weight, _ = criterion_of(task).train()(model, {**batches[rank], "is_dummy": dummy})
    if sizes[rank] < 0:
        loss = loss * 0
    loss.backward()
    total, value = gradient(model), loss.detach().clone()
    weights = torch.tensor(float(weight))
    for tensor in (total, value, weights):
        dist.all_reduce(tensor)
    if mark_dummies:
        assert float(weights) == sum(batch["ntokens" if task == "mte" else "nsentences"] for batch in counted)
    distance = max(float((total - wanted).abs().max()), float((value - reference.detach()).abs()))
    return distance / max(float(weights), 1.0)


def check(rank: int, world: int, store: str) -> None:
    """One rank: every split of every task, and what an unmarked dummy would do."""
    torch.set_num_threads(1)
    patience = timedelta(seconds=HANG)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience)
    for task in ("mte", "trikd"):
        for sizes in SPLITS[world]:
            error = error_of(task, sizes, rank)
            assert error < 2e-6, (task, sizes, error)  # mte computes the pooled rows in float32
    assert error_of("trikd", SPLITS[world][2], rank, mark_dummies=False) > 1e-3
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_languages_and_dummies_on_different_ranks(world: int, tmp_path: Path) -> None:
    start_ranks("check", world, (str(tmp_path / "store"),), file=__file__)


def options(corpus: Path, task: str) -> list[object]:
    """One epoch over one language in the order of length, in which one process meets in one batch what ranks share."""
    common = [
        *("--optimizer", "sgd", "--lr", "0.05", "--clip-norm", "0", "--max-epoch", "1", "--update-freq", "4"),
        *("--dropout", "0", "--attention-dropout", "0", "--disable-validation", "--curriculum", "9"),
        *("--required-batch-size-multiple", "1", "--num-workers", "0", "--no-progress-bar", "--log-interval", "1"),
        *("--log-format", "json"),
    ]
    if task == "mte":
        return [
            *(corpus / "mte", "--task", "mte", "--langs", "en,de,fr", "--lang-pairs", "en-de", "--arch", "mte_tiny"),
            *("--criterion", "mte", "--contrastive-weight", "2", *common),
        ]
    features = ("--image-features", corpus / "features" / "image", "--text-features", corpus / "features" / "text")
    return [
        *(corpus / "captions", "--task", "trikd", "--langs", "en", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *(*features, "--freeze-text", "none", "--text-text-weight", "0.5", "--positives", "image", *common),
    ]


def furthest(one: Path, two: Path) -> float:
    """Largest distance between the parameters that two runs saved."""
    a, b = (state_of(folder)["model"] for folder in (one, two))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point() and a[name].numel())


def forget_dummies(rank: int, world: int, *arguments: Any) -> None:
    """One rank that leaves dummy batches to fairseq."""
    from mclip_fairseq.data.sampling import TemperatureSampledDataset

    collater = TemperatureSampledDataset.collater
    TemperatureSampledDataset.collater = (  # type: ignore[method-assign]
        lambda self, samples: collater(self, samples) if len(samples) else {}
    )
    runs.train(rank, world, *arguments)


@pytest.mark.slow
def test_accumulation_with_an_empty_last_shard(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """104 rows in batches of 20 over four ranks are 26 batches and two dummies in the last of two updates."""
    for task in ("mte", "trikd"):
        log = run_train(*options(tiny_corpus, task), "--batch-size", "20", "--save-dir", tmp_path / task)
        assert list(runs.losses_of(log)) == [1, 2]
    ranks = [
        [*options(tiny_corpus, task), "--batch-size", "5", "--save-dir", tmp_path / f"{task}-four"]
        for task in ("mte", "trikd")
    ]
    train_on_ranks(4, ranks, tmp_path)
    for task in ("mte", "trikd"):
        assert furthest(tmp_path / task, tmp_path / f"{task}-four") < 1e-5
    # The negative control: fairseq's dummies make a rank forget the weight of its other batches of the update.
    naive = [*map(str, [*ranks[1][:-1], tmp_path / "naive", *runs.GLOO, "--distributed-world-size", "4"])]
    start_ranks("forget_dummies", 4, ([naive], free_ports(1), str(tmp_path)), file=__file__)
    assert furthest(tmp_path / "trikd", tmp_path / "naive") > 1e-4


if __name__ == runs.RANK:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    function, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[function](*values)
