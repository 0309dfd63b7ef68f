"""Re-ranking 1,000 images and 5,000 captions with k 128: time and memory.

python -m benchmarks.reranking [--images 1000] [--captions 5000] [--k 128] [--pairs 64] [--arch base] [--whole]

Some pairs are scored and timed, beside the model alone in rounds in which both take turns. The whole takes (captions +
images) x k of them: its time is extrapolated from these, in proportion to their number. With --whole, which --arch tiny
makes bearable, all of them are scored and timed, as `mclip-evaluate` does it. The states of all captions and images are
held in either case.
"""

from __future__ import annotations

import argparse
import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from benchmarks._measure import medians_of_rounds, peak_mib, print_ratios, print_table
from mclip_fairseq.encoding.matching import STATE_BATCH, PairScorer
from mclip_fairseq.evaluation.benchmarks.reranking import reranked_languages
from mclip_fairseq.models.ccrk import CCRKModel, ccrk_base, ccrk_tiny
from mclip_fairseq.models.ccrk_options import CCRKModelConfig

LENGTH = 20  # tokens of a caption
WORDS = 1000  # the token table takes no part in re-ranking


class Stored:
    """A model whose states are made up: they cost nothing, and are as large as real ones.

    Args:
        module: the model.
        tokens: states of an image.
    """

    can_match = True

    def __init__(self, module: CCRKModel, tokens: int) -> None:
        self.module = module
        self.tokens = tokens

    def text_states(self, texts: Any) -> tuple[Tensor, Tensor]:
        """States of texts of LENGTH tokens."""
        return torch.randn(len(texts), LENGTH, self.module.text_encoder.dim), torch.zeros(
            len(texts), LENGTH, dtype=torch.bool
        )

    def image_states(self, images: Any) -> Tensor:
        """States of images."""
        return torch.randn(len(images), self.tokens, self.module.image_tower.dim)

    @torch.inference_mode()
    def match_states(self, text: Tensor, padding: Tensor, image: Tensor) -> Tensor:
        """The model's own scores."""
        scores: Tensor = self.module.match_states(text.float(), padding, image.float())[:, 1]
        return scores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="size of the gallery")
    parser.add_argument("--captions", type=int, default=5000, help="captions")
    parser.add_argument("--k", type=int, default=128, help="candidates of each query")
    parser.add_argument("--pairs", type=int, default=64, help="pairs that are measured")
    parser.add_argument(
        "--image-tokens", type=int, default=145, help="states of an image: 145 at 384 pixels, 50 at 224"
    )
    parser.add_argument("--arch", choices=("base", "tiny"), default="base", help="size of the model")
    parser.add_argument("--whole", action="store_true", help="score all pairs of both directions, once")
    options = parser.parse_args()
    dictionary = Dictionary()
    for number in range(WORDS):
        dictionary.add_symbol(f"w{number}")
    cfg: Any = Namespace()
    {"base": ccrk_base, "tiny": ccrk_tiny}[options.arch](cfg)  # it sets what is not set yet
    cfg = Namespace(**(vars(CCRKModelConfig()) | vars(cfg)))
    module = CCRKModel.build_model(cfg, Namespace(source_dictionary=dictionary)).eval()
    model = Stored(module, options.image_tokens)
    before = peak_mib()
    images = model.image_states(range(options.images)).half()
    scorer = PairScorer(model, ["text"] * options.captions, images)
    held = sum(state.nbytes for state in scorer.text) / 2**20, images.nbytes / 2**20
    pairs = both_ways(options)
    print(f"{options.images} images, {options.captions} captions, k {options.k}, {torch.get_num_threads()} threads")
    if options.whole:
        figures = whole(scorer, options)
        print(f"measured: all {pairs} pairs, with the ranks of both directions")
    else:
        texts, columns = (torch.randint(0, limit, (options.pairs,)) for limit in (options.captions, options.images))
        plain = partial(in_batches, model, texts, columns, images)
        measured = medians_of_rounds({"scores": lambda: scorer(texts, columns), "model alone": plain}, rounds=1)
        print_ratios(measured, "model alone")
        spent = measured["scores"]
        figures = [spent.cpu * pairs / options.pairs, spent.wall * pairs / options.pairs]
        print(f"measured: {options.pairs} pairs; the hours of all {pairs} pairs are extrapolated from them")
    print_table(
        [
            *("CPU ms per pair", "CPU hours", "hours"),
            *("MiB of text states", "MiB of image states", "more MiB at the peak"),
        ],
        [
            [
                f"{1000 * figures[0] / pairs:.2f}",
                *(f"{seconds / 3600:.3f}" for seconds in figures),
                f"{held[0]:.0f}",
                f"{held[1]:.0f}",
                f"{peak_mib() - before:.0f}",
            ]
        ],
    )


def in_batches(model: Stored, texts: Tensor, columns: Tensor, images: Tensor) -> None:
    """Score pairs whose states are at hand, `STATE_BATCH` at a time."""
    text, padding = model.text_states(texts)
    for rows in torch.arange(len(texts)).split(STATE_BATCH):
        model.match_states(text[rows], padding[rows], images[columns[rows]])


def both_ways(options: argparse.Namespace) -> int:
    """Pairs that are scored: the k nearest, or all where there are fewer, of every caption and every image."""
    return options.captions * min(options.k, options.images) + options.images * min(options.k, options.captions)


def whole(scorer: PairScorer, options: argparse.Namespace) -> list[float]:
    """CPU and clock seconds of re-ranking all captions and images, whose features are made up."""
    text, image = torch.randn(options.captions, 16), torch.randn(options.images, 16)
    own = torch.arange(options.captions) % options.images
    cpu, wall = time.process_time(), time.perf_counter()
    reranked_languages({"xx": text}, image, {"xx": own}, {"xx": scorer}, options.k, captioned_only=False)
    return [time.process_time() - cpu, time.perf_counter() - wall]


if __name__ == "__main__":
    main()
