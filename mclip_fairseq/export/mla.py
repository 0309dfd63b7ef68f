"""Writes an `mla` as one directory; `mclip_fairseq.formats.mla` says what is in it and reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.export.directory import MODULES, SENTENCE_TRANSFORMERS_MODULE
from mclip_fairseq.export.hugging_face import WEIGHTS_METADATA, auto_settings, write_code
from mclip_fairseq.export.onnx import Paths, RecallData, write_towers
from mclip_fairseq.formats.mla import (
    CLIP,
    SIZES,
    TOKENIZER,
    VERSION,
    MLATower,
    make_tower,
    merge_published,
    model_of,
    round_as_released,
    split_published,
    to_published,
)
from mclip_fairseq.formats.openai_clip import read_state_dict
from mclip_fairseq.formats.saved import CONFIG, FORMAT
from mclip_fairseq.formats.towers import Tower
from mclip_fairseq.models.mla_options import ENGLISH
from mclip_fairseq.models.mla_parts import WEIGHTS
from mclip_fairseq.models.mla_portable import ImagePath
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import write_json
from mclip_fairseq.storage.staging import staged

SHARED_WEIGHTS = ("embedding.", "embedding_linear.")


def load_published(
    checkpoint: Path,
    acquirers: Path | None,
    vocabulary: Path,
    bpe: str = "",
    resize: int = 0,
    rounded: bool = False,
    trust: bool = False,
) -> MLATower:
    """Published MLA files as a tower.

    Args:
        checkpoint: with CLIP's weights and, unless `acquirers` is given, the acquirers.
        acquirers: file whose acquirers, table and linear map are taken instead.
        vocabulary: mBERT's `vocab.txt`, or its directory or Hub name.
        bpe: CLIP's tokenizer, directory or Hub name; empty: English text is refused.
        resize: pixels of an image's shorter edge before the crop; 0: CLIP's resolution.
        rounded: round the layers of `checkpoint` to half, as the released code does when it reads one.
        trust: read a TorchScript archive, which can run code.

    Raises:
        UserError: a file cannot be read, or holds other weights.
    """
    state = read_state_dict(checkpoint, trust)
    if rounded:
        state = round_as_released(state)
    if acquirers is not None:
        state = merge_published(state, read_state_dict(acquirers))
    tokenizer = PieceTokenizer.from_pretrained(vocabulary)
    clip_tokenizer = PieceTokenizer.from_pretrained(bpe).tokenizer if bpe else None
    published = split_published(state, str(acquirers or checkpoint))
    model = model_of(published, str(checkpoint), tokenizer.dictionary.eos(), clip_tokenizer, resize)
    return make_tower(model, tokenizer, checkpoint.stem)


def save_directory(tower: MLATower, output: Path, into: bool = False, card: str = "") -> None:
    """Write a model with everything that inference needs, and that training can start from (--base).

    Args:
        tower: the model; of a view, only its language is written.
        output: directory to make; it must be empty or absent.
        into: the directory may hold other files already, which stay.
        card: of the model, for its README.md; empty writes none.

    Raises:
        UserError: the directory holds something, or the tower has no tokenizer.
    """
    tokenizer = tower.tokenizers["other"]
    if tokenizer is None:
        raise UserError(f"{tower.name}: has no tokenizer for its languages; pass it as --text-tokenizer")
    if tower.language == ENGLISH:
        raise UserError("English is CLIP itself; take the folder clip/ of a directory that was exported without it")
    if not into and output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; give a new directory")
    with staged(output) as staging:
        write_files(tower, tokenizer, staging, card)


def write_files(tower: MLATower, tokenizer: PieceTokenizer, output: Path, card: str) -> None:
    """Write all files of a directory; see `save_directory`."""
    module = tower.module
    english = tower.tokenizers[ENGLISH]
    clip = DualEncoderTeacher(
        module.clip,
        module.transform.processor,
        None if english is None else english.tokenizer,
        CLIP,  # it lies beside its model, under a name of its own
        None,
    )
    clip.save(output / CLIP)
    module.freeze()  # the teacher's frame has frozen CLIP
    tokenizer.save(output / TOKENIZER)
    languages = [tower.language] if tower.language else module.languages
    kept = (*SHARED_WEIGHTS, *(f"acquirers.{language}." for language in languages))
    own = {name: tensor for name, tensor in module.own_weights().items() if name.startswith(kept)}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    save_file(stored, output / WEIGHTS, WEIGHTS_METADATA)
    write_code(output)
    config = {
        **auto_settings(),
        "format": FORMAT,
        "architecture": module.registered_name(),
        "version": VERSION,
        "model": {name: getattr(module.cfg, name) for name in SIZES} | {"acquirers": ",".join(languages)},
        "language": tower.language or None,
        "identity": {"text_encoder": None, "teacher": clip.identity},
    }
    if tower.language:
        (output / MODULES).write_text(json.dumps([SENTENCE_TRANSFORMERS_MODULE], indent=2) + "\n", encoding="utf-8")
    if card:
        (output / "README.md").write_text(card, encoding="utf-8")
    write_json(output / CONFIG, config)  # last: a directory without it is not finished


def write_onnx(tower: MLATower, output: Path, data: RecallData | None = None) -> dict[str, Any]:
    """Write both towers of one language as ONNX and compare them with torch; see `mclip_fairseq.export.onnx`.

    Args:
        tower: the view of a language, on the CPU.
        output: directory to make.
        data: captions in this language and their images, on which an int8 text tower is measured; None: no int8.

    Returns:
        the report, which is also written.

    Raises:
        UserError: the view has no language, the captions are in another one, onnx is not installed, or the numbers are
            not those of torch.
    """
    others = {name.partition("=")[0] for name in data.captions} - {tower.language} if data else set()
    if others:
        raise UserError(
            f"--captions: {min(others)} is not the exported language; give --captions {tower.language}=FILE"
        )
    tokens = tower.tokenizer(["ein Hund am Strand, der im Sand gräbt", "a dog", ""])
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=int(tower.max_tokens))}
    image = ImagePath(tower.module).eval()
    paths = Paths(tower.module.portable_path(tower.language), image, [tokens, tokens[:1]], axes)
    return write_towers(tower, paths, output, data)


def save_published(tower: Tower, output: Path) -> None:
    """Write a model as the released code stores it: one state dict that its `acquirer_ckpt` and `clip_ckpt` read.

    Args:
        tower: the model; its CLIP has a ViT.
        output: file to write.

    Raises:
        UserError: another model.
    """
    if not isinstance(tower, MLATower):
        raise UserError(f"{tower.name}: is not an mla; give a checkpoint of it, or a directory of mclip-convert mla")
    state: dict[str, Tensor] = to_published(tower.module)
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, output)
