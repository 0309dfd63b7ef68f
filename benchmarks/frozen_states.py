"""A TriKD step with token states of the frozen encoder read from disk, compared with one that computes them.

    python -m benchmarks.frozen_states [--layers 12] [--dim 768] [--batch 64]

Defaults: XLM-R base with the projector of the paper, random weights, captions of 8 to 24 tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor

from benchmarks._measure import print_table, seconds_of
from mclip_fairseq.data.states import TokenStates
from mclip_fairseq.losses import symmetric_info_nce
from mclip_fairseq.models.projectors import XProjector
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args

PIECES, CAPTIONS, SHORTEST, LONGEST = 1000, 512, 8, 24


def encoder_of(layers: int, dim: int) -> XLMREncoder:
    """A frozen XLM-R with random weights."""
    dictionary = Dictionary()
    for number in range(PIECES):
        dictionary.add_symbol(f"piece{number}")
    dictionary.add_symbol("<mask>")
    sizes = Namespace(
        encoder_layers=layers,
        encoder_embed_dim=dim,
        encoder_ffn_embed_dim=4 * dim,
        encoder_attention_heads=dim // 64,
        encoder_max_positions=512,
        dropout=0.1,
        attention_dropout=0.1,
    )
    encoder = XLMREncoder(xlmr_args(sizes), dictionary)
    encoder.freeze("all")
    return encoder.eval()


def step(projector: XProjector, states: Tensor, padding: Tensor, image: Tensor) -> None:
    """Forward and backward of the projector and the loss."""
    text = F.normalize(projector(states, padding)[:, 0], dim=1)
    symmetric_info_nce(text, image, scale=20.0).backward()
    projector.zero_grad(set_to_none=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the encoder")
    parser.add_argument("--dim", type=int, default=768, help="width of the encoder")
    parser.add_argument("--batch", type=int, default=64, help="captions per batch")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = encoder_of(options.layers, options.dim)
    heads = options.dim // 64
    projector = XProjector(
        layers=2, dim=options.dim, ffn_dim=4 * options.dim, heads=heads, dropout=0.1, attention_dropout=0.0
    )
    sizes = rng.integers(SHORTEST, LONGEST, CAPTIONS)
    rows = rng.choice(CAPTIONS, options.batch, replace=False)
    tokens = torch.full((options.batch, int(sizes[rows].max())), encoder.encoder.dictionary.pad())
    for place, size in enumerate(sizes[rows]):
        tokens[place, :size] = torch.from_numpy(rng.integers(4, PIECES, size))
    image = F.normalize(torch.randn(options.batch, options.dim), dim=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "states.npy"
        np.save(file, rng.standard_normal((int(sizes.sum()), options.dim), dtype=np.float32).astype(np.float16))
        stored = TokenStates(np.load(file, mmap_mode="r", allow_pickle=False), sizes)

        def computed() -> None:
            step(projector, encoder(tokens), tokens.eq(encoder.encoder.dictionary.pad()), image)

        ways = {
            "read": seconds_of(lambda: stored.batch(rows)),
            "step on stored states": seconds_of(lambda: step(projector, *stored.batch(rows), image)),
            "step that computes them": seconds_of(computed),
        }
    shortest = ways["step on stored states"]
    print(f"{options.layers} layers of {options.dim}, batch {options.batch}, {torch.get_num_threads()} threads")
    print_table(["", "milliseconds", "ratio"], [[k, f"{1000 * v:.0f}", f"{v / shortest:.2f}"] for k, v in ways.items()])


if __name__ == "__main__":
    main()
