"""Steps of TriKD and MTE at published sizes, and of the optimizers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.measuring import PRECISIONS, Report, Sizes, products
from benchmarks.gpu.models import (
    caption_batch,
    dictionary,
    mclip,
    mte,
    text_columns,
    to_device,
    training_step,
    translation_batch,
)
from mclip_fairseq.criterions.mte import MTECriterion
from mclip_fairseq.criterions.trikd import TriKDCriterion, TriKDCriterionConfig
from mclip_fairseq.data.columns import Column
from mclip_fairseq.losses import smoothing
from mclip_fairseq.models.mclip import MCLIPModel
from mclip_fairseq.optim.mclip_lamb import Lamb
from mclip_fairseq.tasks.mte import MTETask, MTETaskConfig
from mclip_fairseq.tasks.trikd import TriKDTask, TriKDTaskConfig

# Reads of parameter, gradient and two moments, and writes of all but the gradient.
PASSES = 7
CHUNKS = (2**26, 2**28, 2**30)


def autocast_of(precision: str) -> str:
    """The value of --autocast."""
    return "bfloat16" if precision == "bf16" else "none"


def trikd(report: Report, size: Sizes) -> None:
    """Stage 2 on one GPU: text encoder frozen, its states computed in the step, cached, or kept on the device."""
    pieces = dictionary(size.entries)
    for arch in ("base", "large"):
        model = mclip(arch, pieces, size.tiny, report.device)
        for kind, captions in text_columns(model, size, pieces).items():
            bring(report, f"{arch}, {kind}, {size.batch} captions", captions, size.batch)
            batch = to_device(caption_batch(size, model.feature_dim, captions), report.device)
            for precision in PRECISIONS if kind != "kept states" else PRECISIONS[-1:]:
                cfg = TriKDTaskConfig(data="none", save_dir="none", seed=1, autocast=autocast_of(precision))
                task = TriKDTask(cfg, [pieces])
                criterion = TriKDCriterion(task, TriKDCriterionConfig())
                step = training_step(task, model, criterion, batch)
                with products(precision):
                    what = f"{arch}, {kind}, {size.batch} captions, {precision}"
                    report.add_work("trikd", what, precision, step, pairs=size.batch)
        optimizers(report, arch, model)
        del model


def bring(report: Report, what: str, captions: Column, rows: int) -> None:
    """How long a worker puts the captions of a batch together, and how long they take to the device."""
    numbers = np.arange(rows)
    made = report.seconds(lambda: captions.batch(numbers))
    batch = {
        name: value.pin_memory() if report.on_gpu and isinstance(value, Tensor) else value
        for name, value in captions.batch(numbers).items()
    }
    copied = report.seconds(lambda: to_device(batch, report.device))
    report.add("trikd", f"{what}, to the device", worker_ms=1000 * made, copy_ms=1000 * copied)


def optimizers(report: Report, arch: str, model: MCLIPModel) -> None:
    """A step of each optimizer on the projectors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    moved = sum(parameter.numel() * parameter.element_size() for parameter in trained) * PASSES
    for name, optimizer in {
        "fused_adamw": torch.optim.AdamW(trained, lr=1e-5, fused=True),
        "mclip_lamb": Lamb(trained, lr=1e-5),
    }.items():
        took = report.seconds(optimizer.step)
        report.add("optimizer", f"{name}, {arch} projectors", ms=1000 * took, gb_s_of_7_passes=moved / took / 1e9)


def mte_stage2(report: Report, size: Sizes) -> None:
    """Translation and contrast over the whole token table, with different chunks of the loss."""
    pieces = dictionary(size.entries)
    model = mte(pieces, size.tiny, report.device)
    batch = to_device(translation_batch(pieces, size.target_tokens, 16 if size.tiny else 32), report.device)
    kept = smoothing.GPU_CHUNK_ELEMENTS
    for precision in PRECISIONS:
        cfg = MTETaskConfig(data="none", save_dir="none", seed=1, langs="en,de,fr", autocast=autocast_of(precision))
        task = MTETask(cfg, pieces)
        step = training_step(task, model, MTECriterion(task, 0.1, 1.0, 2.0, 0.1, "sound"), batch)
        for elements in CHUNKS if precision == "bf16" and report.on_gpu else CHUNKS[1:2]:
            smoothing.GPU_CHUNK_ELEMENTS = elements
            what = f"base, {batch['ntokens']} target tokens, {elements >> 20} Mi logits at once, {precision}"
            try:
                with products(precision):
                    report.add_work("mte", what, precision, step, tokens=batch["ntokens"])
            finally:
                smoothing.GPU_CHUNK_ELEMENTS = kept
