"""Sentence similarity while two encoders are trained, to keep the better one and to choose checkpoints by."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.batching import batch_cost, batches_by_tokens
from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.evaluation.benchmarks.files import read_table, real_numbers
from mclip_fairseq.evaluation.metrics.similarity import similarity_correlations
from mclip_fairseq.losses.gather import every_nth, objects_of_all_ranks
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

BATCH = 256
Tokenizer = XLMRTokenizer | PieceTokenizer


class SimilarityFile:
    """Pairs of sentences with human scores.

    Args:
        path: of `preprocess/sts.py`: score, sentence, sentence.

    Raises:
        UserError: it is missing or malformed, or scipy is missing.
    """

    def __init__(self, path: Path) -> None:
        rows = read_table(path, 3)
        self.scores = real_numbers(path, [row[0] for row in rows])
        self.sides = [[row[1] for row in rows], [row[2] for row in rows]]
        import_extra("scipy.stats", "evaluate")  # fail now, before a step is taken

    @torch.no_grad()
    def choose(self, model: Any, between_batches: Callable[[], None]) -> dict[str, float]:
        """Measure both encoders and let the model use the better one; the second where they are equal.

        Each rank encodes its share of the sentences; every rank must call this.

        Args:
            model: a `ContrastiveTensionModel`; it is put into eval mode, and back.
            between_batches: called before each batch.

        Returns:
            `sts_spearman` of the better one, `sts_spearman_first` and `sts_spearman_second`, times 100.
        """
        place = model.cfg.text_tokenizer or model.cfg.text_encoder
        if not place:
            raise UserError("--valid-sts needs a tokenizer; give --text-tokenizer")
        longest = min(512, model.max_positions())
        tokenizer: Tokenizer
        if model.cfg.text_config:
            tokenizer = PieceTokenizer.from_pretrained(place, longest)
        else:
            tokenizer = XLMRTokenizer(place, longest)
        tokens = tokenizer.flat([*self.sides[0], *self.sides[1]])
        training = model.training
        model.eval()
        try:
            spearman = {name: self._spearman(model, name, tokens, between_batches) for name in ("first", "second")}
        finally:
            model.train(training)
        better = "first" if spearman["first"] > spearman["second"] else "second"
        model.use(better)
        return {"sts_spearman": spearman[better]} | {f"sts_spearman_{name}": value for name, value in spearman.items()}

    def _spearman(self, model: Any, name: str, tokens: FlatTokens, between_batches: Callable[[], None]) -> float:
        device = next(model.parameters()).device
        plan = list(batches_by_tokens(tokens.sizes, batch_cost(device), BATCH))
        mine, ranks = plan[every_nth()], len(objects_of_all_ranks(None))
        vectors: list[Tensor] = []
        for turn in range(math.ceil(len(plan) / ranks)):
            between_batches()  # as often on every rank
            vectors += [model.pooled(name, tokens.batch(rows).to(device)).float() for rows in mine[turn : turn + 1]]
        share = (np.concatenate(mine), torch.cat(vectors).cpu()) if mine else None
        numbers, parts = zip(*filter(None, objects_of_all_ranks(share)), strict=True)
        in_order = torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(numbers)))]
        first, second = in_order.chunk(2)
        return similarity_correlations(first, second, self.scores)[0]["spearman"]
