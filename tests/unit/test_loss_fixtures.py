"""The numbers of the reference programs, composed from our functions: losses and gradients to 1e-5."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses import chunked_linear_label_smoothed_nll, label_smoothed_nll, symmetric_info_nce
from tests.parity import Fixture, load_fixture, same


@pytest.fixture(scope="module")
def load(shared_dir: Path) -> Any:
    return partial(load_fixture, shared_dir)


def leaves(fixture: Fixture) -> dict[str, Tensor]:
    return {name: fixture[name].clone().requires_grad_() for name in ("x_text", "image", "clip_text")}


def trikd_terms(
    inputs: dict[str, Tensor], theta: Tensor, tt_scale: float, language: str, **options: Any
) -> tuple[Tensor, Tensor]:
    """Image-text and text-text term; away from English the reference puts images instead of English texts."""
    text, image, clip_text = (F.normalize(inputs[name], dim=1) for name in ("x_text", "image", "clip_text"))
    itc = symmetric_info_nce(text, image, theta.exp().clamp(max=100), **options)
    return itc, symmetric_info_nce(text, clip_text if language == "en" else image, tt_scale, **options)


@pytest.mark.parametrize("language", ["en", "other"])
@pytest.mark.parametrize("scale", ["released", "paper"])
def test_trikd(load: Any, scale: str, language: str) -> None:
    fixture = load("trikd_loss.npz")
    tt_scale = float(fixture[f"tt_scale_{scale}"])
    for i, start in enumerate(fixture["theta"]):
        inputs, theta = leaves(fixture), start.float().requires_grad_()
        itc, ttc = trikd_terms(inputs, theta, tt_scale, language)
        losses = {"sim": itc + 0.1 * ttc, "vanilla": itc + 0.1 * ttc, "noit": ttc, "nott": itc}
        for variant, loss in losses.items():
            key = f"{variant}_{scale}_{language}"
            same(loss, fixture[f"loss_{key}"][i])
            (slope,) = torch.autograd.grad(loss, theta, retain_graph=True, allow_unused=True)
            same(torch.zeros(()) if slope is None else slope, fixture[f"grad_theta_{key}"][i])
        same(itc, fixture["itc"][i])
        if i < 2:
            losses["sim"].backward()
            for name, leaf in inputs.items():
                wanted = fixture[f"grad_{name}_sim_{scale}_{language}"][i]
                same(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, wanted)
    assert theta.exp() > 100  # the last one is in the clamp


@pytest.mark.parametrize("language", ["en", "other"])
@pytest.mark.parametrize("scale", ["released", "paper"])
@pytest.mark.parametrize("ids", ["rep", "uniq"])
def test_finetuning_with_several_captions_per_image(load: Any, ids: str, scale: str, language: str) -> None:
    fixture = load("coco_loss.npz")
    image_ids = fixture["image_ids"].flatten() if ids == "rep" else torch.arange(len(fixture["image_ids"]))
    positives = image_ids[:, None] == image_ids
    if ids == "rep":
        assert torch.equal(positives.sum(1), fixture["positives_per_row"])
    tt_scale, key = float(fixture[f"tt_scale_{scale}"]), f"{scale}_{language}_{ids}"
    for (i, start), reduction in itertools.product(enumerate(fixture["theta"]), ("sum", "mean")):
        inputs, theta = leaves(fixture), start.float().requires_grad_()
        itc, ttc = trikd_terms(inputs, theta, tt_scale, language, positives=positives, reduction=reduction)
        loss = itc + 0.1 * ttc
        same(loss, fixture[f"loss_{reduction}_{key}"][i])
        if reduction == "mean":
            same(itc, fixture[f"it_mean_{key}"][i])
            same(ttc, fixture[f"ttc_mean_unweighted_{key}"])
            continue
        loss.backward()
        assert theta.grad is not None
        same(theta.grad, fixture[f"grad_theta_sum_{key}"][i])
        if i == 0 and f"grad_x_text_sum_{key}" in fixture:
            for name, leaf in inputs.items():
                wanted = fixture[f"grad_{name}_sum_{key}"][0]
                same(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, wanted)


def mean_pool(states: Tensor, tokens: Tensor) -> Tensor:
    """Mean over the positions that are not padding (1) of (length, batch, dim) states, normalised."""
    counts = (tokens != 1).T[..., None]
    return F.normalize((states * counts).sum(0) / counts.sum(0), dim=1)


@pytest.mark.parametrize("side", ["leftpad", "rightpad"])
def test_mte(load: Any, side: str) -> None:
    fixture = load("mte_contrastive.npz")
    tokens, sentences = int(fixture["ntokens"]), int(fixture["nsentences"])
    leaf = {name: fixture[name].clone().requires_grad_() for name in ("enc_src", "enc_tgt", "logits")}
    source = mean_pool(leaf["enc_src"], fixture[f"src_tokens_{side}"])
    target = mean_pool(leaf["enc_tgt"], fixture["hyp_src_tokens"])
    for tau, wanted in zip(fixture["taus"], fixture[f"ctl_{side}"], strict=True):
        same(symmetric_info_nce(source, target, 1 / float(tau)), wanted)
    contrast = symmetric_info_nce(source, target, 1 / 0.1)
    logits, gold = leaf["logits"].flatten(0, 1), fixture["target"].flatten()
    for j, epsilon in enumerate(fixture["epsilons"].tolist()):
        smoothed, nll = label_smoothed_nll(logits, gold, epsilon, 1, "uniform")
        same(smoothed / tokens, fixture["ce_smoothed"][j])
        same(nll / tokens, fixture["nll"])
        identity = torch.eye(logits.shape[1])
        same(chunked_linear_label_smoothed_nll(logits, identity, gold, epsilon, 1, "uniform", 5)[0], smoothed.detach())
        for i, weight in enumerate(fixture["lambdas"].tolist()):
            total = smoothed / tokens + weight * contrast / sentences
            same(total, fixture[f"total_{side}"][i, j])
            if side == "leftpad" and weight == 2 and epsilon == pytest.approx(0.1):
                for (name, tensor), grad in zip(
                    leaf.items(), torch.autograd.grad(total, list(leaf.values()), retain_graph=True), strict=True
                ):
                    assert tensor.shape == grad.shape
                    same(grad, fixture[f"grad_{name}_lambda2_leftpad"])
