"""The GPU computes what the CPU does: pooling, ranks, features, models in bfloat16, losses over ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.encoding import no_teacher
from benchmarks.gpu.models import caption_tokens, dictionary, mclip
from mclip_fairseq.cli.features import main as mclip_features
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.losses import global_info_nce
from mclip_fairseq.models.pooling import POOLING, pad_rows
from mclip_fairseq.storage.features import FeatureStore
from tests.runs import RANK, gloo_group, start_ranks


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling(name: str, side: str, device: torch.device) -> None:
    states, sizes = torch.randn(3, 5, 4), torch.tensor([[5], [2], [1]])
    padding = torch.arange(5)[None] >= sizes
    if side == "left":
        padding = padding.flip(1)
    pooled = POOLING[name](states.to(device), padding.to(device)).cpu()
    for row, kept, result in zip(states, ~padding, pooled, strict=True):
        own = row[kept]
        expected = {"mean": own.mean(0), "first": own[0], "last": own[-1]}[name]
        torch.testing.assert_close(result, expected)
    flat = states[~padding].to(device)
    padded = pad_rows(flat, padding.to(device)).cpu()
    assert torch.equal(padded, states.masked_fill(padding[..., None], 0))


@pytest.mark.parametrize("protocol", ["strict", "released"])
def test_ranks_are_exact(protocol: str, device: torch.device) -> None:
    """Against a plain count in float64; some captions tie."""
    image = F.normalize(torch.randn(40, 8), dim=1)
    own = torch.arange(120) % 40
    text = F.normalize(image[own] + torch.randn(120, 8), dim=1)
    text[60:80] = text[:20]
    ranks = retrieval_ranks(text.to(device), image.to(device), own.to(device), protocol)
    scores = F.normalize(text.double(), dim=1) @ F.normalize(image.double(), dim=1).T
    above = (scores >= scores.gather(1, own[:, None]) - 1e-12).sum(1) - 1
    assert torch.equal(ranks.t2i.cpu(), above)


def test_a_model_in_bfloat16_is_near_float32(device: torch.device) -> None:
    """Also texts of more than 256 tokens."""
    pieces = dictionary(300)
    module = mclip("base", pieces, True, device)
    tokens, _ = caption_tokens(12, 300, pieces)
    tower: Any = TrainedTower(module, SimpleNamespace(dictionary=pieces), "made-up", [], no_teacher)  # type: ignore[arg-type]
    full = MultilingualCLIP(tower, device).encode_text(tokens)
    half = MultilingualCLIP(tower, device, torch.bfloat16).encode_text(tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(12), rtol=0, atol=1e-6)
    assert (full * half).sum(1).min() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_features_in_lower_precision(dtype: str, photos: Path, tmp_path: Path) -> None:
    """From JPEGs on: cosines with the features of the CPU in float32 above 0.999."""
    command = ["--model", str(photos / "teacher"), "--images", str(photos / "images"), "--batch-size", "16"]
    assert mclip_features([*command, "--output", str(tmp_path / dtype), "--dtype", dtype, "--device", "cuda"]) == 0
    found, exact = FeatureStore.open(tmp_path / dtype), FeatureStore.open(photos / "features")
    rows = np.arange(40)
    one, other = (torch.from_numpy(np.asarray(store.take(rows), np.float32)) for store in (found, exact))
    assert F.cosine_similarity(one, other).min() > 0.999


def share_of_loss(rank: int, world: int, store: str, device: str) -> None:
    """One of two processes with one device: the loss and the gradient of its rows."""
    torch.manual_seed(0)
    x, y = (F.normalize(torch.randn(6, 8), dim=1).to(device).requires_grad_() for _ in range(2))
    whole = global_info_nce(x, y, 20.0).loss
    expected = torch.autograd.grad(whole, x)[0]
    rows = slice(0, 4) if rank == 0 else slice(4, 6)
    with gloo_group(rank, world, store):
        one, other = (side.detach()[rows].requires_grad_() for side in (x, y))
        loss = global_info_nce(one, other, 20.0).loss
        loss.backward()
        total = loss.detach().cpu()
        torch.distributed.all_reduce(total)
    torch.testing.assert_close(total, whole.detach().cpu())
    assert one.grad is not None
    torch.testing.assert_close(one.grad, expected[rows])


@pytest.mark.distributed
def test_two_processes_share_one_device(device: torch.device, tmp_path: Path) -> None:
    start_ranks("share_of_loss", 2, (str(tmp_path / "store"), device.type), file=__file__)


def test_float16_gradients_survive_the_loss_scale(device: torch.device) -> None:
    """A gradient below what float16 holds, scaled by 2^12 as --fp16 does."""
    x, y = (F.normalize(torch.randn(4, 8), dim=1).to(device, torch.float16).requires_grad_() for _ in range(2))
    loss: Callable[[Tensor, Tensor], Tensor] = lambda a, b: global_info_nce(a, b, 20.0).loss * 1e-6  # noqa: E731
    (scaled,) = torch.autograd.grad(loss(x, y) * 2**12, x)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(loss(wide, y.detach().double()), wide)
    torch.testing.assert_close(scaled.double() / 2**12, exact, rtol=0.01, atol=1e-10)


if __name__ == RANK:
    name, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[name](*values)
