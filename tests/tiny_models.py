"""Dual encoders small enough for tests, saved the way `transformers` saves real ones (random weights)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mclip_fairseq.compat import shield_torchaudio

WORDS = [
    "a",
    "the",
    "photo",
    "of",
    "dog",
    "cat",
    "house",
    "tree",
    "car",
    "bird",
    "red",
    "blue",
    "green",
    "black",
    "white",
    "small",
]
IMAGE_SIZE = 32


def tiny_clip_directory(path: Path, seed: int = 0, dim: int = 16) -> Path:
    """A `CLIPModel` with CLIP's byte-level tokenizer (77 tokens) and 32 x 32 images."""
    shield_torchaudio()
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    text = {
        "vocab_size": len(pieces),
        "max_position_embeddings": 77,
        "bos_token_id": len(pieces) - 2,
        "eos_token_id": len(pieces) - 1,
        "pad_token_id": len(pieces) - 1,
    }
    config = CLIPConfig(text_config=_small(text), vision_config=_small(_vision()), projection_dim=dim)
    _save(path, CLIPModel, config, seed)
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(path)
    return path


def tiny_dual_encoder_directory(path: Path, seed: int = 0, dim: int = 12, words: Sequence[str] = WORDS) -> Path:
    """A `VisionTextDualEncoderModel` of a ViT and a BERT with one token per word (20 tokens)."""
    shield_torchaudio()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        PreTrainedTokenizerFast,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        ViTConfig,
    )

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    text = BertConfig(**_small({"vocab_size": len(vocabulary), "max_position_embeddings": 20}))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**_small(_vision())), text, projection_dim=dim
    )
    _save(path, VisionTextDualEncoderModel, config, seed)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    return path


def _vision() -> dict[str, Any]:
    return {"image_size": IMAGE_SIZE, "patch_size": 16}


def _small(options: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2} | options


def _save(path: Path, model: Any, config: Any, seed: int) -> None:
    from transformers import CLIPImageProcessorPil

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model(config).save_pretrained(path)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(path)


def tiny_wordpiece(path: Path, words: Sequence[str] = ("ein", "Hund", "Katze", "rot", "blau")) -> Path:
    """A WordPiece `vocab.txt` as mBERT's: specials, letters at both places of a word, and some words."""
    letters = [chr(code) for code in range(33, 127)] + list("äöüßéèêçàûôîçğışö猫犬")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{piece}\n" for piece in dict.fromkeys(pieces)), encoding="utf-8")
    return path
