"""The contrast in blocks of rows beside the plain one, which holds all logits: time, memory, and how they differ.

python -m benchmarks.contrast [--rows 8192] [--dim 768] [--rounds 3] [--large 65536]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import growth_in_child, medians_of_rounds, print_table
from mclip_fairseq.losses import global_info_nce
from mclip_fairseq.losses.tiled import BLOCK_ELEMENTS

SCALE = 50.0
CHECKED_ROWS = 2048  # the plain way in float64 is slow


def ways(rows: int) -> dict[str, int]:
    """Rows of logits at once."""
    return {"all logits": 0, "blocks of rows": max(1, BLOCK_ELEMENTS // rows)}


def features(rows: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of made-up unit vectors that are nearer to each other than to others, and a scale."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(rows, dim, generator=generator) for _ in range(2))
    y = F.normalize(noise.mul_(4).add_(x), dim=1)
    return F.normalize(x, dim=1).requires_grad_(), y.requires_grad_(), torch.tensor(SCALE, requires_grad=True)


def step(x: Tensor, y: Tensor, scale: Tensor, *, block_rows: int | None) -> list[Tensor]:
    """The loss and its gradients."""
    loss = global_info_nce(x, y, scale, block_rows=block_rows).loss
    return [loss.detach(), *torch.autograd.grad(loss, (x, y, scale))]


def step_of_size(rows: int, dim: int, block_rows: int | None) -> None:
    """A step on its own features, which count as memory."""
    step(*features(rows, dim), block_rows=block_rows)


def largest_errors(rows: int, dim: int, block_rows: int) -> tuple[float, float]:
    """Distance of value and of gradients from the plain way in float64, as a share of the largest entry of each."""
    leaves = features(rows, dim)
    exact = step(*(leaf.detach().double().requires_grad_() for leaf in leaves), block_rows=0)
    found = step(*leaves, block_rows=block_rows)
    value, *slopes = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))
    return value, max(slopes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="pairs of the comparison; its double in blocks only")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=0, help="also the memory of this many pairs (65536: minutes)")
    options = parser.parse_args()
    memory = {
        way: growth_in_child(step_of_size, options.rows, options.dim, block_rows)
        for way, block_rows in ways(options.rows).items()
    }
    larger = [size for size in (2 * options.rows, options.large) if size]
    more = {rows: growth_in_child(step_of_size, rows, options.dim, ways(rows)["blocks of rows"]) for rows in larger}
    leaves = features(options.rows, options.dim)
    steps = {way: partial(step, *leaves, block_rows=block_rows) for way, block_rows in ways(options.rows).items()}
    times = medians_of_rounds(steps, options.rounds)
    plain, table = times["all logits"], []
    for way, (cpu, wall) in times.items():
        ratios = f"{plain.cpu / cpu:.2f}", f"{plain.wall / wall:.2f}"
        table.append([way, options.rows, f"{cpu:.2f}", ratios[0], f"{wall:.2f}", ratios[1], f"{memory[way]:.0f}"])
    table += [["blocks of rows", rows, "", "", "", "", f"{mib:.0f}"] for rows, mib in more.items()]
    print(f"{options.dim} dimensions, forward and backward, {torch.get_num_threads()} threads, {options.rounds} rounds")
    header = ["logits", "pairs", "CPU seconds", "times as fast", "wall seconds", "times as fast", "MiB with features"]
    print_table(header, table)
    checked = min(options.rows, CHECKED_ROWS)
    print(f"from float64, {checked} pairs, as a share of the largest entry:")
    for way, block_rows in (("all logits", 0), ("blocks of rows", checked // 8)):
        value, slope = largest_errors(checked, options.dim, block_rows)
        print(f"{way}: value {value:.1e}, gradients {slope:.1e}")


if __name__ == "__main__":
    main()
