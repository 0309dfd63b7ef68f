"""The fused label-smoothed loss of `mte` beside fairseq's stock criterion and the plain chunks: time and memory.

    python -m benchmarks.translation_loss [--tokens 512] [--classes 250002] [--dim 768] [--rounds 3]

Forward and backward from decoder states, with the token table frozen as in stage 2. The stock criterion holds all
logits and their log softmax; the plain chunks compute the logits of each chunk again in backward. Medians of rounds in
which the ways take turns; memory is the growth of a fresh process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import growth_in_child, medians_of_rounds, print_ratios, print_table
from mclip_fairseq.losses import chunked_linear_label_smoothed_nll, smoothing

OURS, PAD = "fused", 1


def inputs_of(tokens: int, classes: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder states, token table and targets."""
    torch.manual_seed(0)
    return torch.randn(tokens, dim), torch.randn(classes, dim).div_(dim**0.5), torch.randint(2, classes, (tokens,))


def fused(features: Tensor, table: Tensor, target: Tensor) -> Tensor:
    """Ours."""
    return chunked_linear_label_smoothed_nll(features, table, target, 0.1, PAD)[0]


def stock(features: Tensor, table: Tensor, target: Tensor) -> Tensor:
    """As fairseq's criterion and model compute it."""
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    log_p = F.log_softmax(F.linear(features, table).float(), dim=-1)
    loss: Tensor = label_smoothed_nll_loss(log_p, target[:, None], 0.1, ignore_index=PAD)[0]
    return loss


def chunks(features: Tensor, table: Tensor, target: Tensor) -> Tensor:
    """Chunks of logits that autograd computes once more."""

    def sums(rows: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
        return smoothing._sum_of_rows(F.linear(rows, table), some, 0.1, PAD)

    return smoothing._in_chunks(sums, features, target, smoothing.CHUNK_ELEMENTS // len(table))[0]


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {OURS: fused, "stock": stock, "plain chunks": chunks}


def step(way: str, features: Tensor, table: Tensor, target: Tensor) -> Tensor:
    """Gradient of the states."""
    leaf = features.detach().requires_grad_()
    return torch.autograd.grad(WAYS[way](leaf, table, target), leaf)[0]


def only(way: str, tokens: int, classes: int, dim: int) -> None:
    """One step in a process of its own."""
    step(way, *inputs_of(tokens, classes, dim))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="target tokens of the batch")
    parser.add_argument("--classes", type=int, default=250_002, help="rows of the token table")
    parser.add_argument("--dim", type=int, default=768, help="width of the states")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is taken")
    options = parser.parse_args()
    sizes = (options.tokens, options.classes, options.dim)
    inputs = inputs_of(*sizes)
    measured = medians_of_rounds({way: partial(step, way, *inputs) for way in WAYS}, options.rounds)
    print(f"{options.tokens} tokens, {options.classes} x {options.dim} table, {torch.get_num_threads()} threads")
    print_ratios(measured, OURS)
    table = options.classes * options.dim * 4 / 2**20
    growth = {way: growth_in_child(only, way, *sizes) - table for way in WAYS}
    rows = [[way, f"{mib:.0f}", f"{mib / growth[OURS]:.2f}"] for way, mib in growth.items()]
    print_table(["", "MiB beside the table", "ratio"], rows)


if __name__ == "__main__":
    main()
