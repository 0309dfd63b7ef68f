"""Models with random weights, made-up batches, and training steps as a run takes them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor

from benchmarks.gpu.measuring import Sizes
from mclip_fairseq.data.columns import Column, StateColumn, TokenColumn
from mclip_fairseq.data.parallel import ParallelDataset
from mclip_fairseq.data.states import TokenStates
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.models.mclip import MCLIPModel, MCLIPModelConfig
from mclip_fairseq.models.mte import MTEModel, MTEModelConfig
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.optim.fused_adamw import FusedAdamW, FusedAdamWConfig
from mclip_fairseq.tasks.sampled import SampledTask

SHORTEST = 8
NARROW = {
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
}


def dictionary(entries: int) -> Dictionary:
    """A dictionary of made-up pieces, `<mask>` last."""
    made = Dictionary()
    for number in range(entries - len(made) - 1):
        made.add_symbol(f"piece{number}")
    made.add_symbol("<mask>")
    return made


def mclip(arch: str, pieces: Dictionary, tiny: bool, device: torch.device) -> MCLIPModel:
    """The model `mclip_base` or `mclip_large` with a frozen text encoder, on the device."""
    sizes: dict[str, int] = {}
    if tiny:
        sizes = NARROW | {"projector_ffn_embed_dim": 128, "projector_attention_heads": 4}
    elif arch == "large":
        sizes = {"encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096}
        sizes |= {"encoder_attention_heads": 16, "projector_ffn_embed_dim": 4096, "projector_attention_heads": 16}
    cfg = MCLIPModelConfig(teacher_dim=768 if arch == "large" else 512, **sizes)  # type: ignore[arg-type]
    return MCLIPModel(cfg, XLMREncoder.build("", cfg, pieces), None, {}).to(device)


def mte(pieces: Dictionary, tiny: bool, device: torch.device, layers: int = 12) -> MTEModel:
    """The model `mte_base` of stage 2, whose embeddings are frozen, on the device, or one of fewer layers."""
    narrow = {"encoder_layers": layers, "decoder_layers": layers}
    if tiny:
        narrow = NARROW | {"decoder_layers": 1, "decoder_ffn_embed_dim": 64, "decoder_attention_heads": 4}
    cfg = MTEModelConfig(freeze_text="embeddings", **narrow)  # type: ignore[arg-type]
    task = SimpleNamespace(source_dictionary=pieces, langs=["en", "de", "fr"])
    return MTEModel.build_model(cfg, task).to(device)


def caption_tokens(rows: int, longest: int, pieces: Dictionary) -> tuple[Tensor, np.ndarray]:
    """(rows, longest) ids of captions of SHORTEST tokens and more, right-padded, and their (rows,) sizes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(min(SHORTEST, longest), longest + 1, rows)
    sizes[0] = longest
    tokens = torch.from_numpy(rng.integers(pieces.nspecial, len(pieces) - 1, (rows, longest)))
    column, length = torch.arange(longest)[None], torch.from_numpy(sizes)[:, None]
    tokens = tokens.masked_fill(column >= length, pieces.pad())
    tokens[:, 0] = pieces.bos()
    return tokens.scatter_(1, length - 1, pieces.eos()), sizes


def text_columns(model: MCLIPModel, size: Sizes, pieces: Dictionary) -> dict[str, Column]:
    """A batch's captions as token ids, as cached token states, and as places of states that the model keeps."""
    tokens, sizes = caption_tokens(size.batch, size.longest, pieces)
    dim = model.text_encoder.dim
    states = np.random.default_rng(0).standard_normal((int(sizes.sum()), dim), dtype=np.float32).astype(np.float16)
    cached, kept = (TokenStates(states, sizes.astype(np.int64)) for _ in range(2))
    kept.kept_from = model.kept_states.add("made-up", states)
    sentences = [row[1:length] for row, length in zip(tokens, sizes, strict=True)]
    flat = FlatTokens.from_sentences(sentences, pieces, None)
    return {"tokens": TokenColumn(flat), "cached states": StateColumn(cached), "kept states": StateColumn(kept)}


def caption_batch(size: Sizes, teacher_dim: int, captions: Column) -> dict[str, Any]:
    """A batch of the task `trikd`, on the CPU.

    Args:
        size: captions.
        teacher_dim: width of the features.
        captions: one of `text_columns`.
    """
    net_input: dict[str, Any] = {name: torch.randn(size.batch, teacher_dim) for name in FEATURES}
    net_input |= captions.batch(np.arange(size.batch))
    numbers = torch.arange(size.batch)
    return {
        "net_input": net_input,
        "id": numbers,
        "group": numbers.clone(),
        "nsentences": size.batch,
        "ntokens": size.batch,
    }


def translation_batch(pieces: Dictionary, target_tokens: int, length: int) -> dict[str, Any]:
    """A batch of the task `mte`, on the CPU: sentences of `length` tokens, `<s>` and `</s>` included."""
    rows = target_tokens // length
    ids = torch.randint(pieces.nspecial, len(pieces) - 1, (2, rows, length - 2))
    source, target = (FlatTokens.from_sentences(list(side), pieces, None) for side in ids)
    return ParallelDataset(source, target, 1, 2).rows(np.arange(rows))


FEATURES = ("image_features", "teacher_text")


def to_device(value: Any, device: torch.device) -> Any:
    """The tensors of nested dicts, on a device."""
    if isinstance(value, dict):
        return {name: to_device(entry, device) for name, entry in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def optimizer_of(model: torch.nn.Module) -> FusedAdamW:
    """AdamW of what a model trains."""
    return FusedAdamW(FusedAdamWConfig(lr=[1e-5]), [one for one in model.parameters() if one.requires_grad])


def training_step(
    task: SampledTask,
    model: torch.nn.Module,
    criterion: torch.nn.Module,
    sample: dict[str, Any],
    optimizer: FusedAdamW | None = None,
) -> Callable[[], object]:
    """A step as fairseq's trainer takes it, less its log: forward, checks, backward, norm of the gradient, AdamW.

    Args:
        task: whose `train_step` is called.
        model: to train.
        criterion: the loss.
        sample: a batch on the device.
        optimizer: None makes one.
    """
    optimizer = optimizer or optimizer_of(model)
    criterion.train()

    def step() -> None:
        _, sample_size, _ = task.train_step(sample, model, criterion, optimizer, 0)
        optimizer.multiply_grads(1 / sample_size)
        optimizer.clip_grad_norm(1.0)
        task.optimizer_step(optimizer, model, 0)
        optimizer.zero_grad()

    return step
