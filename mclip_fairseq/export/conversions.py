"""Published checkpoints as directories that other programs and this one read: what `mclip-convert` does."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.export.directory import save_directory
from mclip_fairseq.formats.altclip import load_altclip
from mclip_fairseq.formats.openai_clip import (
    Preprocessing,
    image_processor,
    open_clip_settings,
    pixels_along_an_edge,
    read_state_dict,
    to_clip_model,
)
from mclip_fairseq.formats.released import load_released, load_released_mte, mte_checkpoint
from mclip_fairseq.formats.xlmr import write_archive
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_loading import load_tokenizer
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.pieces import copy_tokenizer
from mclip_fairseq.storage.staging import staged


@dataclasses.dataclass(frozen=True)
class CLIPOptions:
    """How to read a CLIP under OpenAI's names.

    Attributes:
        trust: read a TorchScript archive, which can run code.
        activation: `quick_gelu` or `gelu`; empty: that of `open_clip_config.json` beside the checkpoint, or OpenAI's.
        head_width: columns of an attention head; 0: that of `open_clip_config.json`, or 64.
        resize: pixels of an image's shorter edge before the crop; 0: the model's own resolution.
        tokenizer: Hub name or directory of CLIP's tokenizer; empty: the model cannot encode text.
    """

    trust: bool = False
    activation: str = ""
    head_width: int = 0
    resize: int = 0
    tokenizer: str = ""


def convert_released(checkpoint: Path, xlmr: Path, output: Path, resize: int = 0, tokenizer: str = "") -> None:
    """Write a checkpoint of the released mCLIP as a directory for `MultilingualCLIP.from_pretrained`.

    Args:
        checkpoint: `mclip_base.pt` or `mclip_plus_base.pt`.
        xlmr: the XLM-R archive that the training started from.
        output: directory to make.
        resize: see `CLIPOptions`; the released code uses 248.
        tokenizer: see `CLIPOptions`.

    Raises:
        UserError: a file cannot be read, or holds other weights.
    """
    save_directory(load_released(checkpoint, xlmr, resize, load_tokenizer(tokenizer)), output)


def convert_altclip(source: str, output: Path) -> None:
    """Write a published AltCLIP as a directory for `MultilingualCLIP.from_pretrained`, as a model `altclip`.

    Args:
        source: Hub name or `transformers` directory.
        output: directory to make.

    Raises:
        UserError: a file cannot be read, or holds another model.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_directory(load_altclip(source, Path(folder)), output)


def convert_translation(checkpoint: Path, xlmr: Path, output: Path) -> None:
    """Write a translation model of the released code as a checkpoint for `fairseq-generate --task mte`.

    Args:
        checkpoint: of stage 1 or 2.
        xlmr: the XLM-R archive that the training started from.
        output: directory to make.

    Raises:
        UserError: a file cannot be read, or holds other weights.
    """
    model, cfg = load_released_mte(checkpoint, xlmr)
    with staged(output) as staging:
        torch.save(mte_checkpoint(model, cfg), staging / "checkpoint.pt")
        copy_tokenizer(xlmr, staging)


def convert_encoder(checkpoint: Path, xlmr: Path, output: Path) -> None:
    """Write an enhanced encoder (`mte_mclip.pt`) as an XLM-R archive that fairseq reads too.

    Args:
        checkpoint: the encoder's.
        xlmr: the XLM-R archive that the training started from, for dictionary and SentencePiece model.
        output: directory to make.

    Raises:
        UserError: a file cannot be read, or holds other weights.
    """
    write_archive(XLMREncoder.from_checkpoint(checkpoint, XLMRTokenizer(xlmr).dictionary), xlmr, output)


def convert_clip(checkpoint: Path, output: Path, options: CLIPOptions) -> None:
    """Write a CLIP under OpenAI's names as a `transformers` directory.

    Args:
        checkpoint: OpenAI's, or a state dict of open_clip.
        output: directory to make.
        options: how to read it.

    Raises:
        UserError: a file cannot be read, or holds other weights.
    """
    state = read_state_dict(checkpoint, options.trust)
    settings, pixels = open_clip_settings(checkpoint) or ({}, Preprocessing())
    settings |= {"activation": options.activation} if options.activation else {}
    settings |= {"head_width": options.head_width} if options.head_width else {}
    model = to_clip_model(state, str(checkpoint), **settings)
    processor = image_processor(pixels_along_an_edge(model), dataclasses.replace(pixels, resize=options.resize))
    tokenizer = load_tokenizer(options.tokenizer)
    clip = DualEncoderTeacher(model, processor, tokenizer, checkpoint.stem, None, source=str(checkpoint))
    with staged(output) as staging:
        clip.save(staging)
