"""A TriKD step on cached token states, compared with the plain formula and with a step that computes the states.

    python -m benchmarks.frozen_states [--layers 12] [--dim 768] [--batch 64] [--rounds 5]

The plain formula transforms every token in every layer of the projector and keeps one, as the released code does.
Defaults: XLM-R base with the projector of the paper, random weights, captions of 8 to 24 tokens. Medians of rounds in
which the ways take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor

from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.data.states import TokenStates
from mclip_fairseq.losses import symmetric_info_nce
from mclip_fairseq.models.pooling import pad_rows, pool_last
from mclip_fairseq.models.projectors import XProjector
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args

OURS = "step on cached states"
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


def padded(stored: TokenStates, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Cached states as the model gets them, and their padding."""
    states, padding = stored.batch(rows)
    return pad_rows(states, padding).float(), padding


def all_positions(projector: XProjector, states: Tensor, padding: Tensor) -> Tensor:
    """The plain formula of `projector`."""
    for layer in projector.layers:
        states = layer(states.transpose(0, 1), encoder_padding_mask=padding).transpose(0, 1)
    return pool_last(states, padding)


def step(projector: XProjector, project: Callable[..., Tensor], image: Tensor, *states: Tensor) -> None:
    """Forward and backward of the projector and the loss."""
    symmetric_info_nce(F.normalize(project(*states), dim=1), image, scale=20.0).backward()
    projector.zero_grad(set_to_none=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the encoder")
    parser.add_argument("--dim", type=int, default=768, help="width of the encoder")
    parser.add_argument("--batch", type=int, default=64, help="captions per batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is taken")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = encoder_of(options.layers, options.dim)
    heads = options.dim // 64
    projector = XProjector(
        layers=2, dim=options.dim, ffn_dim=4 * options.dim, heads=heads, dropout=0.3, attention_dropout=0.1
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

        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: step(projector, projector, image, *padded(stored, rows)),
            "the same, all positions": lambda: step(
                projector, partial(all_positions, projector), image, *padded(stored, rows)
            ),
            "step that computes the states": lambda: step(
                projector, projector, image, encoder(tokens), tokens.eq(encoder.encoder.dictionary.pad())
            ),
            "reading the states": lambda: padded(stored, rows),
        }
        measured = medians_of_rounds(ways, options.rounds)
    print(f"{options.layers} layers of {options.dim}, batch {options.batch}, {torch.get_num_threads()} threads")
    print_ratios(measured, OURS)


if __name__ == "__main__":
    main()
