"""A whole step of MTE's stage 2 with the translation loss made in three ways: tokens per second and memory.

    python -m benchmarks.mte_step [--tokens 1024] [--length 32] [--rounds 1] [--tiny]

XLM-R base and the published decoder with random weights, embeddings frozen, translation and contrast, AdamW. `fused` is
the default, `recomputed` is `--translation-gradient recomputed`, as version 0.2 computed, and `stock` holds all logits
and their log softmax, as fairseq's label-smoothed criterion does; all else is the same. Medians of rounds in which the
ways take turns, after one that does not count; memory is what a step needs at its peak on top of the model and the
optimizer's state, and needs Linux.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import medians_and_growth, print_growth, print_ratios
from benchmarks.gpu.models import dictionary, mte, training_step, translation_batch
from mclip_fairseq.criterions.mte import MTECriterion
from mclip_fairseq.tasks.mte import MTETask, MTETaskConfig

OURS = "fused"


class Stock(MTECriterion):
    """With the translation loss of fairseq's `label_smoothed_cross_entropy`."""

    def translation_loss(self, features: Tensor, weight: Tensor, target: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """As fairseq's model and criterion compute it."""
        from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

        log_p = F.log_softmax(F.linear(features, weight).float(), dim=-1).flatten(0, 1)
        loss, nll = label_smoothed_nll_loss(
            log_p, target.view(-1, 1), self.label_smoothing, ignore_index=self.padding_idx
        )
        return loss, nll


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="target tokens of the batch")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sentence")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of which the median is taken")
    parser.add_argument("--tiny", action="store_true", help="one narrow layer and 300 pieces")
    options = parser.parse_args()
    torch.manual_seed(0)
    pieces = dictionary(300 if options.tiny else 250_002)
    model = mte(pieces, options.tiny, torch.device("cpu"))
    batch = translation_batch(pieces, options.tokens, options.length)
    task = MTETask(MTETaskConfig(data="none", save_dir="none", seed=1, langs="en,de,fr"), pieces)
    weights = (0.1, 1.0, 2.0, 0.1, "sound")
    criterions = {
        OURS: MTECriterion(task, *weights),
        "recomputed": MTECriterion(task, *weights, translation_gradient="recomputed"),
        "stock": Stock(task, *weights),
    }
    steps = {name: training_step(task, model, criterion, batch) for name, criterion in criterions.items()}
    measured, growth = medians_and_growth(steps, options.rounds)
    print(
        f"{batch['ntokens']} target tokens, {torch.get_num_threads()} threads; target tokens per CPU second:", end=" "
    )
    print(", ".join(f"{name} {batch['ntokens'] / seconds.cpu:.1f}" for name, seconds in measured.items()))
    print_ratios(measured, OURS)
    print_growth(growth, OURS)


if __name__ == "__main__":
    main()
