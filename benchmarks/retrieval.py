"""Recall of 25,000 captions in each of three languages against 5,000 images, compared with one plain matrix product.

python -m benchmarks.retrieval [--images 5000] [--captions-per-image 5] [--dim 512] [--rounds 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import medians_and_growth, print_growth, print_ratios
from mclip_fairseq.evaluation import retrieval_metrics

LANGUAGES, PLAIN = 3, "float64 products alone, all scores in memory"


def evaluate(texts: list[Tensor], image: Tensor, own: Tensor, protocol: str) -> None:
    """Compute the recalls of every language."""
    for text in texts:
        retrieval_metrics(text, image, own, protocol)


def products(texts: list[Tensor], image: Tensor) -> list[Tensor]:
    """Compute the scores alone."""
    return [text.double() @ image.double().T for text in texts]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="size of the gallery")
    parser.add_argument("--captions-per-image", type=int, default=5, help="captions per image and language")
    parser.add_argument("--dim", type=int, default=512, help="columns of the features")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of which the median is taken")
    options = parser.parse_args()
    torch.manual_seed(0)
    image = F.normalize(torch.randn(options.images, options.dim), dim=1)
    own = torch.arange(options.images).repeat_interleave(options.captions_per_image)
    texts = [F.normalize(image[own] + 2 * torch.randn(len(own), options.dim), dim=1) for _ in range(LANGUAGES)]
    work: dict[str, Callable[[], object]] = {
        protocol: partial(evaluate, texts, image, own, protocol) for protocol in ("strict", "released")
    }
    work[PLAIN] = partial(products, texts, image)
    print(f"{options.images} images, {len(own)} captions, {LANGUAGES} languages, {torch.get_num_threads()} threads")
    measured, growth = medians_and_growth(work, options.rounds, uncounted=0)
    print_ratios(measured, PLAIN)
    print_growth(growth, PLAIN)


if __name__ == "__main__":
    main()
