"""A whole step of MTE's stage 2 beside version 0.2 and fairseq's stock criterion: tokens per second and memory.

    python -m benchmarks.mte_step [--tokens 1024] [--rounds 1] [--ways NAME ...] [--layers 12] [--profile]

XLM-R base and the published decoder with random weights, embeddings frozen, translation and contrast, AdamW.

- `ours`: the defaults.
- `checkpointed`: with `--checkpoint-activations`.
- `version-0.2`: fairseq's layers, and `--translation-gradient recomputed`.
- `stock`: fairseq's layers, all logits and their log softmax, as fairseq's label-smoothed criterion holds them.
- `stock-loss`: that criterion with the layers of `ours`.

The first step of each way gives its memory: what is in use at the peak (freed memory goes back to the system at once),
on top of the model and the optimizer's state. Seconds are medians of later rounds in which the ways take turns. It
needs Linux.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks._measure import (
    growth_during,
    medians_of_rounds,
    print_growth,
    print_ratios,
    print_table,
    return_freed_memory,
)
from benchmarks.gpu.models import dictionary, mte, optimizer_of, training_step, translation_batch
from mclip_fairseq.criterions.mte import MTECriterion
from mclip_fairseq.models.mte import MTEModel
from mclip_fairseq.models.recomputing import recompute
from mclip_fairseq.tasks.mte import MTETask, MTETaskConfig

OURS, CHECKPOINTED, EARLIER, STOCK, STOCK_LOSS = "ours", "checkpointed", "version-0.2", "stock", "stock-loss"
WAYS = (OURS, CHECKPOINTED, EARLIER, STOCK, STOCK_LOSS)
DEFAULT_WAYS = (OURS, EARLIER, STOCK)  # the models of all of them do not fit into 24 GiB
WARM_UP_TOKENS = 64  # of the step that makes the optimizer's state


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


def model_of(way: str, pieces: Dictionary, tiny: bool, layers: int) -> MTEModel:
    """The model with the layers of a way."""
    with ExitStack() as patches:
        if way in (EARLIER, STOCK):
            for module in ("mte", "xlmr_encoder"):
                patches.enter_context(patch(f"mclip_fairseq.models.{module}.keep_less"))
        model = mte(pieces, tiny, torch.device("cpu"), layers)
    if way == CHECKPOINTED:
        recompute([*model.encoder.xlmr.layers, *model.decoder.layers])
    return model


def print_shares(step: Callable[[], object], most: int = 12) -> None:
    """Print which operators take the most of a step's time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    operators = sorted(profiled.key_averages(), key=lambda one: -one.self_cpu_time_total)
    whole = sum(one.self_cpu_time_total for one in operators)
    rows = [[one.key, f"{100 * one.self_cpu_time_total / whole:.1f}", one.count] for one in operators[:most]]
    print_table(["operator", "% of the time", "calls"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="target tokens of the batch")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sentence")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of which the median is taken; 0: memory alone")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=DEFAULT_WAYS, help="the first is the base")
    parser.add_argument("--layers", type=int, default=12, help="of the encoder, and of the decoder")
    parser.add_argument("--pieces", type=int, default=250_002, help="rows of the token table")
    parser.add_argument("--tiny", action="store_true", help="narrow layers")
    parser.add_argument("--profile", action="store_true", help="also print what takes the time of the first way")
    options = parser.parse_args()
    torch.manual_seed(0)
    pieces = dictionary(options.pieces)
    batch, small = (
        translation_batch(pieces, tokens, options.length)
        for tokens in (options.tokens, max(WARM_UP_TOKENS, options.length))
    )
    task = MTETask(MTETaskConfig(data="none", save_dir="none", seed=1, langs="en,de,fr"), pieces)
    steps, growth = {}, {}
    for way in options.ways:
        model = model_of(way, pieces, options.tiny, options.layers)
        criterion = (Stock if way in (STOCK, STOCK_LOSS) else MTECriterion)(
            task, 0.1, 1.0, 2.0, 0.1, "sound", translation_gradient="recomputed" if way == EARLIER else "fused"
        )
        optimizer = optimizer_of(model)
        training_step(task, model, criterion, small, optimizer)()
        steps[way] = training_step(task, model, criterion, batch, optimizer)
        with return_freed_memory():
            growth[way] = growth_during(steps[way])
    base = options.ways[0]
    print(f"{batch['ntokens']} target tokens, {torch.get_num_threads()} threads")
    print_growth(growth, base)
    if options.rounds:
        measured = medians_of_rounds(steps, options.rounds, uncounted=0)
        print("target tokens per CPU second:", end=" ")
        print(", ".join(f"{name} {batch['ntokens'] / seconds.cpu:.1f}" for name, seconds in measured.items()))
        print_ratios(measured, base)
    if options.profile:
        print_shares(steps[base])


if __name__ == "__main__":
    main()
