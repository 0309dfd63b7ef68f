"""Re-ranking 1,000 images and 5,000 captions with k 128: time and memory, measured on some of the pairs.

python -m benchmarks.reranking [--images 1000] [--captions 5000] [--k 128] [--pairs 64] [--arch base]

Some pairs are scored and timed. The whole takes (captions + images) x k of them: its time is not measured, but
extrapolated from these, in proportion to their number. The states of all captions and images are held, as in a run.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from benchmarks._measure import peak_mib, print_table, seconds_of
from mclip_fairseq.encoding.matching import PairScorer
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
    texts, columns = (torch.randint(0, limit, (options.pairs,)) for limit in (options.captions, options.images))
    seconds = seconds_of(lambda: scorer(texts, columns), repeat=2) / options.pairs
    pairs = (options.captions + options.images) * options.k
    print(f"{options.images} images, {options.captions} captions, k {options.k}, {torch.get_num_threads()} threads")
    print(f"measured: {options.pairs} pairs; the hours of all {pairs} pairs are extrapolated from them")
    print_table(
        [
            *("ms per pair (measured)", "hours (extrapolated)"),
            *("MiB of text states", "MiB of image states", "more MiB at the peak"),
        ],
        [
            [
                f"{1000 * seconds:.2f}",
                f"{pairs * seconds / 3600:.2f}",
                f"{held[0]:.0f}",
                f"{held[1]:.0f}",
                f"{peak_mib() - before:.0f}",
            ]
        ],
    )


if __name__ == "__main__":
    main()
