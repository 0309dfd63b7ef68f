"""Re-ranking: the nearest k by cosine are sorted by a model that sees text and image together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.evaluation.metrics.inputs import Features, as_tensor, check_choice
from mclip_fairseq.evaluation.metrics.retrieval import RetrievalRanks
from mclip_fairseq.storage.errors import UserError

ORDERS = ("similarity", "released")
OUTSIDE = -100.0  # the released score of an item beyond the nearest k
# Pairs passed to the scorer at once, which splits them into batches; a pair costs two int64 here.
PAIRS_AT_ONCE = 1 << 16

ScorePairs = Callable[[Tensor, Tensor], Tensor | np.ndarray]


def rerank(similarity: Features, score_pairs: ScorePairs, k: int, beyond: str = "similarity") -> Tensor:
    """Ranks of all images for every text, the nearest k by matching score (CCRK, Nie et al. 2024).

    The k most similar images of a text come first, in the order of their matching scores, and the rest follow. Of two
    equal scores the more similar image comes first, of two equal similarities the one with the lower index. For images
    as queries, pass the transposed matrix and a scorer with exchanged arguments. Several processes share the
    work by rows: each calls this for its slice of the texts.

    Args:
        similarity: (T, I), any floating dtype, larger is nearer.
        score_pairs: called with int64 rows (n,) and columns (n,) of `similarity`, grouped by rows; returns (n,)
            matching scores, larger is better.
        k: candidates of each text; with I or more, all images are ranked by matching score, with 0 none.
        beyond: order of the rest: `similarity`, or `released` as in the released code: all of them score
            -100, numpy's unstable sort orders them, and a candidate below -100 comes after them.

    Returns:
        (T, I) int64, 0-based, a permutation in every row, on the device of `similarity`.

    Raises:
        UserError: a matching score is not finite, or the order is unknown.
    """
    check_choice("order of the items beyond k", beyond, ORDERS)
    similarity = as_tensor(similarity)
    texts, images = similarity.shape
    order = similarity.sort(dim=1, descending=True, stable=True).indices
    k = min(k, images)
    candidates = order[:, :k]
    rows = torch.arange(texts, device=order.device).repeat_interleave(k)
    scores = _scores(score_pairs, rows, candidates.flatten()).view(texts, k)
    if beyond == "released":
        full = np.full((texts, images), OUTSIDE, dtype=scores.cpu().numpy().dtype)
        np.put_along_axis(full, candidates.cpu().numpy(), scores.cpu().numpy(), axis=1)
        order = torch.from_numpy(np.argsort(full, axis=1)[:, ::-1].copy()).to(order.device)
    else:
        # Stable, so that equal scores keep the order of the cosine.
        best = scores.sort(dim=1, descending=True, stable=True).indices
        order[:, :k] = candidates.gather(1, best)
    ranks = torch.empty_like(order)
    return ranks.scatter_(1, order, torch.arange(images, device=order.device).expand(texts, -1))


def ranks_of_own(text_to_image: Tensor, image_to_text: Tensor, own: Tensor) -> RetrievalRanks:
    """Pick each query's best own item from the ranks of all items, for recalls by `metrics_from_ranks`.

    Args:
        text_to_image: (T, I) ranks of the images for every text, as `rerank` returns them.
        image_to_text: (I, T) ranks of the texts for every image.
        own: (T,) int64, the image of each text.

    Returns:
        ranks of both directions; images without a caption are not queries. The ranks of `rerank` hold no ties.
    """
    t2i = text_to_image.gather(1, own[:, None])[:, 0]
    best = torch.full((len(image_to_text),), len(own), device=own.device)
    best.scatter_reduce_(0, own, image_to_text[own, torch.arange(len(own), device=own.device)], "amin")
    queries = own.unique()
    i2t = best[queries]
    return RetrievalRanks(t2i, i2t, queries, torch.zeros_like(t2i, dtype=torch.bool), torch.zeros_like(i2t).bool())


def _scores(score_pairs: ScorePairs, rows: Tensor, columns: Tensor) -> Tensor:
    if not len(rows):  # k = 0; a model may need at least one pair
        return torch.zeros(0, device=rows.device)
    parts = [
        as_tensor(score_pairs(one, two))
        for one, two in zip(rows.split(PAIRS_AT_ONCE), columns.split(PAIRS_AT_ONCE), strict=True)
    ]
    scores = torch.cat(parts).to(rows.device)
    # A score that is not a number would sort as the best.
    if not scores.isfinite().all():
        place = int((~scores.isfinite()).nonzero()[0])
        raise UserError(
            f"the matching score of text {int(rows[place])} and image {int(columns[place])} is not finite: the model "
            "overflowed; score in float32"
        )
    return scores
