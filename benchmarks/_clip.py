"""A CLIP with random weights and JPEGs, for the benchmarks that encode images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mclip_fairseq.compat import shield_torchaudio

DISTINCT = 256
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def save_clip(folder: Path, tiny: bool = False) -> Path:
    """A directory of `transformers` with the sizes of CLIP ViT-B/32; its tokenizer reads bytes.

    Args:
        folder: to write.
        tiny: one narrow layer in each tower.
    """
    shield_torchaudio()
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(pieces) - 1
    ids = {"vocab_size": len(pieces), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    sizes = TINY if tiny else {}
    config = CLIPConfig(text_config=ids | sizes, vision_config=dict(sizes))
    CLIPModel(config).eval().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77).save_pretrained(
        folder
    )
    return folder


def save_photos(folder: Path, count: int, width: int = 500, height: int = 375, octaves: int = 1) -> list[Path]:
    """Blurred noise as JPEGs of quality 90; beyond DISTINCT of them, copies of the first ones.

    Args:
        folder: to create, with `N.jpg` in it.
        count: images.
        width: of each.
        height: of each.
        octaves: kinds of noise in an image; each has four times the detail of the one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for file in files[:DISTINCT]:
        noise = [rng.integers(0, 256, (12 * 4**octave, 16 * 4**octave, 3), dtype=np.uint8) for octave in range(octaves)]
        layers = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in noise]
        image = layers[0]
        for number, layer in enumerate(layers[1:], 2):
            image = Image.blend(image, layer, 1 / number)
        image.save(file, quality=90)
    for number, file in enumerate(files[DISTINCT:]):
        shutil.copyfile(files[number % DISTINCT], file)
    return files
