"""OpenAI's names of a CLIP's weights, from those of `transformers`: the inverse of `formats.openai_clip.rename`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mclip_fairseq.formats.openai_clip import LAYER_PARTS, SINGLE, TRANSPOSED

BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
SPLIT = {f"self_attn.{letter}_proj": number for number, letter in enumerate("qkv")}


def to_openai(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `transformers.CLIPModel` with a ViT under OpenAI's names; names that it does not know are left out.

    Args:
        weights: name in `transformers` -> weight, or anything else of its shape.
    """
    single = {ours: theirs for theirs, ours in SINGLE.items()}
    transposed = {ours: theirs for theirs, ours in TRANSPOSED.items()}
    parts = {ours: theirs for theirs, ours in LAYER_PARTS.items()}
    state: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        block = BLOCK.fullmatch(name)
        if name in single:
            state[single[name]] = tensor
        elif name in transposed:
            state[transposed[name]] = tensor.T.contiguous()
        elif block:
            tower, layer, part, kind = block.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{layer}."
            if part in SPLIT:
                thirds.setdefault(f"{prefix}attn.in_proj_{kind}", {})[SPLIT[part]] = tensor
            else:
                state[f"{prefix}{parts[part]}.{kind}"] = tensor
    return state | {name: torch.cat([own[number] for number in range(3)]) for name, own in thirds.items()}
