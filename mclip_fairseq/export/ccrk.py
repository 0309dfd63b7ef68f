"""CCRK's published checkpoints as directories of this project, and our models in the released retrieval layout."""

from __future__ import annotations

from pathlib import Path

import torch

from mclip_fairseq.export.directory import save_directory
from mclip_fairseq.formats.ccrk import HEAD_DIM, load_released_ccrk, to_released
from mclip_fairseq.models.ccrk import CCRKModel
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.staging import staged

# The name that the released scripts look for.
RELEASED_NAME = "checkpoint_best.pth"


def convert_ccrk(checkpoint: Path, text_encoder: Path, output: Path, head_dim: int = HEAD_DIM) -> None:
    """Write a published checkpoint as a directory for `MultilingualCLIP.from_pretrained`.

    Args:
        checkpoint: see `load_released_ccrk`.
        text_encoder: directory with `dict.txt` and `sentencepiece.bpe.model` of XLM-R.
        output: directory to make.
        head_dim: width of an attention head of the text layers.
    """
    save_directory(load_released_ccrk(checkpoint, text_encoder, head_dim), output)


def write_released_ccrk(model: str, text_encoder: str, output: Path) -> None:
    """Write a `ccrk` model as `checkpoint_best.pth` for CCRK's own retrieval scripts.

    Args:
        model: training checkpoint, or directory of `mclip-export` or `mclip-convert ccrk`.
        text_encoder: directory with the tokenizer's files, if they have moved; empty otherwise.
        output: directory to make.

    Raises:
        UserError: the model is another one.
    """
    from mclip_fairseq.inference import MultilingualCLIP

    module = MultilingualCLIP.from_pretrained(model, device="cpu", text_encoder=text_encoder or None).tower.module
    if not isinstance(module, CCRKModel):
        raise UserError(f"{model}: is not a ccrk model; only these have the released layout")
    with staged(output) as staging:
        torch.save(to_released(module), staging / RELEASED_NAME)
