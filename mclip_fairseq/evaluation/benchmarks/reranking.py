"""Retrieval whose nearest items are put in order again by a model that looks at text and image together (CCRK)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.evaluation.metrics.languages import are_aligned, summarise_ranks
from mclip_fairseq.evaluation.metrics.rerank import rerank
from mclip_fairseq.evaluation.metrics.retrieval import RetrievalRanks
from mclip_fairseq.losses.gather import every_nth, objects_of_all_ranks

# Rows of a similarity matrix at once.
ROWS = 512
ScorePairs = Callable[[Tensor, Tensor], Tensor]


def reranked_languages(
    text: Mapping[str, Tensor],
    image: Tensor,
    own: Mapping[str, Tensor],
    score_pairs: Mapping[str, ScorePairs],
    k: int,
    captioned_only: bool,
    folds: Tensor | None = None,
) -> dict[str, Any]:
    """As `evaluate_languages`, with the nearest k of every query in the order of their matching scores.

    Several processes share the queries: each scores every n-th block of rows, and all get the whole result.

    Args:
        text: language -> (T, D) caption features.
        image: (I, D) image features.
        own: language -> (T,) int64, index into `image` of each caption's own image.
        score_pairs: language -> scorer, called with int64 rows (n,) of its captions and (n,) of the images.
        k: candidates of each query.
        captioned_only: search only the images that a language's captions name.
        folds: (I,) int64, the fold of each image, -1 for an image in none; each fold is searched by itself.

    Returns:
        what `evaluate_languages` returns, and `k`.
    """
    ranks = {}
    for language, features in text.items():
        images = own[language].unique() if captioned_only else torch.arange(len(image))
        parts = [images] if folds is None else [images[folds[images] == fold] for fold in folds.unique() if fold >= 0]
        ranks[language] = [
            reranked(features, image, own[language], part, score_pairs[language], k) for part in parts if len(part)
        ]
    return {"k": k} | summarise_ranks(ranks, aligned=folds is None and are_aligned(own))


def reranked(text: Tensor, image: Tensor, own: Tensor, images: Tensor, score: ScorePairs, k: int) -> RetrievalRanks:
    """Ranks of the best own items among some of the images and their captions.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        own: (T,) int64 index into `image`.
        images: ascending rows of `image` to search, and whose captions are the queries.
        score: see `reranked_languages`.
        k: candidates of each query.
    """
    texts = torch.isin(own, images).nonzero()[:, 0]
    place = torch.searchsorted(images, own[texts])
    similarity = _unit(text[texts]) @ _unit(image[images]).T

    def text_queries(rows: Tensor) -> Tensor:
        ranks = rerank(similarity[rows], lambda at, to: score(texts[rows[at]], images[to]), k)
        return ranks.gather(1, place[rows, None])[:, 0]

    def image_queries(rows: Tensor) -> Tensor:
        ranks = rerank(similarity.T[rows], lambda at, to: score(texts[to], images[rows[at]]), k)
        return ranks.masked_fill(rows[:, None] != place[None], len(texts)).amin(dim=1)

    queries = place.unique()
    t2i = _in_blocks(torch.arange(len(texts)), text_queries)
    i2t = _in_blocks(queries, image_queries)
    # Of equal scores the one nearer by cosine is first, so that no rank depends on how ties are broken.
    untied = torch.zeros(len(texts), dtype=torch.bool), torch.zeros(len(queries), dtype=torch.bool)
    return RetrievalRanks(t2i, i2t, queries, *untied)


def _in_blocks(rows: Tensor, ranks: Callable[[Tensor], Tensor]) -> Tensor:
    """The ranks of all rows, block by block, each block on one of the processes."""
    own_blocks = every_nth()
    processes = own_blocks.step or 1
    blocks = list(enumerate(rows.split(max(1, min(ROWS, len(rows) // processes)))))
    own = {number: ranks(block) for number, block in blocks[own_blocks]}
    every: dict[int, Tensor] = {}
    for part in objects_of_all_ranks(own):
        every |= part
    return torch.cat([every[number] for number, _ in blocks])


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=1)
