"""Forward and backward of XLM-R over batches of texts of many lengths: groups of similar length, and one padded batch.

python -m benchmarks.mixed_lengths [--texts 512] [--pieces 2.6] [--layers 1] [--dim 128] [--batches 10] [--rounds 3]

Lengths are drawn from a geometric distribution, like those of names and keywords; `<s>` and `</s>` are added.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.models.mclip import MCLIPModelConfig
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, run_by_length, run_layers

PIECES, HEADS, LONGEST, PADDED = 32000, 4, 64, "one padded batch"


def draw_batch(texts: int, mean: float, padding_idx: int) -> Tensor:
    """(texts, longest) random ids."""
    lengths = torch.empty(texts).geometric_(1 / mean).long().clamp(max=LONGEST - 2) + 2
    tokens = torch.randint(4, PIECES, (texts, int(lengths.max())))
    return tokens.masked_fill(torch.arange(tokens.shape[1]) >= lengths[:, None], padding_idx)


def train_on(encode: Callable[[Any, Tensor], Tensor], encoder: XLMREncoder, batches: Sequence[Tensor]) -> None:
    """Encode each batch and go back through it."""
    for tokens in batches:
        encoder.zero_grad()
        encode(encoder.encoder.sentence_encoder, tokens).square().mean().backward()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=512, help="of a batch")
    parser.add_argument("--pieces", type=float, default=2.6, help="mean length of a text in pieces")
    parser.add_argument("--layers", type=int, default=1, help="of the encoder")
    parser.add_argument("--dim", type=int, default=128, help="width of the encoder")
    parser.add_argument("--batches", type=int, default=10, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is taken")
    options = parser.parse_args()
    torch.manual_seed(0)
    dictionary = Dictionary()
    for number in range(PIECES):
        dictionary.add_symbol(f"piece{number}")
    sizes: dict[str, Any] = {
        "encoder_layers": options.layers,
        "encoder_embed_dim": options.dim,
        "encoder_ffn_embed_dim": 2 * options.dim,
        "encoder_attention_heads": HEADS,
    }
    encoder = XLMREncoder.build("", MCLIPModelConfig(dropout=0.0, **sizes), dictionary)
    batches = [draw_batch(options.texts, options.pieces, encoder.padding_idx) for _ in range(options.batches)]
    real = sum(int(tokens.ne(encoder.padding_idx).sum()) for tokens in batches)
    padded = sum(tokens.numel() for tokens in batches)
    print(f"{len(batches)} batches of {options.texts} texts, {padded / real:.1f} times as long as their texts")
    ways = {
        "groups of similar length": partial(train_on, run_by_length, encoder, batches),
        PADDED: partial(train_on, run_layers, encoder, batches),
    }
    print_ratios(medians_of_rounds(ways, options.rounds), PADDED)


if __name__ == "__main__":
    main()
