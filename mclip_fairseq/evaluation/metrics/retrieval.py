"""Image-text retrieval: ranks, recalls and nearest images, in bounded memory.

Every function takes text features ``(T, D)`` and image features ``(I, D)`` as torch tensors or numpy arrays
of any float type. Rows are L2-normalised here, in float64, so callers may pass raw or normalised features.
Two scores closer than ``TIE_TOLERANCE`` are a tie: float64 rounding stays far below it, real differences far
above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.storage.errors import UserError

Features = Tensor | np.ndarray
TIE_TOLERANCE = 1e-12
RECALL_AT = (1, 5, 10)
PROTOCOLS = ("strict", "released")
# Scores held at once (8 MiB as float64, several such blocks live at a time): small enough for a cache.
BLOCK_SCORES = 1 << 20
# Scores that float32 cannot tell from a threshold: beyond this share a whole block is computed in float64.
MOST_DOUBTFUL = 0.05
PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class RetrievalRanks:
    """0-based ranks of the best own item of every query; ties count against the query.

    Attributes:
        t2i: (T,) int64, foreign images that score at least as high as the caption's own image.
        i2t: (Q,) int64, foreign captions (strict) or foreign images (released) that do not score lower than
            the best own caption.
        i2t_images: (Q,) int64, the image index of each image query.
        t2i_tied: (T,) bool, whether the own image ties with a foreign one, so that the rank hangs on the tie
            policy.
        i2t_tied: (Q,) bool, the same for the image queries.
    """

    t2i: Tensor
    i2t: Tensor
    i2t_images: Tensor
    t2i_tied: Tensor
    i2t_tied: Tensor

    @property
    def ties(self) -> int:
        """Number of queries of both directions whose rank hangs on the tie policy."""
        return int(self.t2i_tied.sum()) + int(self.i2t_tied.sum())


def retrieval_metrics(
    text: Features, image: Features, text_to_image: Features | Sequence[int], protocol: str = "strict"
) -> dict[str, float]:
    """Recalls of both directions in percent.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        text_to_image: (T,) index into ``image`` of each caption's own image.
        protocol: "strict" or "released", see ``retrieval_ranks``.

    Returns:
        ``t2i_R@1 t2i_R@5 t2i_R@10 i2t_R@1 i2t_R@5 i2t_R@10 mean_recall`` in percent, and ``ties``, the
        number of queries (both directions) whose best own item ties with a foreign one. ``mean_recall`` is
        the mean of the six unrounded recalls (the released script rounds each to 0.1 first).

    Raises:
        UserError: as ``retrieval_ranks``.
    """
    return metrics_from_ranks(retrieval_ranks(text, image, text_to_image, protocol))


def metrics_from_ranks(ranks: RetrievalRanks) -> dict[str, float]:
    """Recalls in percent from ranks, under the keys of ``retrieval_metrics``."""
    metrics = {
        f"{direction}_R@{k}": 100.0 * (values < k).double().mean().item()
        for direction, values in (("t2i", ranks.t2i), ("i2t", ranks.i2t))
        for k in RECALL_AT
    }
    metrics["mean_recall"] = sum(metrics.values()) / len(metrics)
    metrics["ties"] = ranks.ties
    return metrics


def retrieval_ranks(
    text: Features, image: Features, text_to_image: Features | Sequence[int], protocol: str = "strict"
) -> RetrievalRanks:
    """Pessimistic 0-based ranks of both directions.

    "strict" is the protocol of CLIP_benchmark, big_vision and CCRK. t2i: rank of the caption's image among
    all I images. i2t: one query per image that has a caption, rank of its best own caption among all T
    captions. Images without a caption are distractors of t2i and no queries of i2t.

    "released" repeats the released mCLIP script (ACL 2023). Its gallery holds one row per caption, so images
    without a caption are left out; hits are counted by distinct image, so the i2t rank is the number of
    foreign *images* that own a caption scoring at least as high; each image is a query once per caption. The
    script looks at 100 hits only, which makes a difference for nothing but images with more than ten
    captions; that cut is not repeated.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        text_to_image: (T,) index into ``image`` of each caption's own image.
        protocol: "strict" or "released".

    Returns:
        The ranks, on the device of ``image``.

    Raises:
        UserError: when shapes do not fit, a feature is not finite, an index is out of range or nothing is
            given.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"Unknown retrieval protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
    text, image, own = _checked(text, image, text_to_image)
    if protocol == "strict":
        return _strict_ranks(text, _unit(image), own)
    captioned, own = own.unique(return_inverse=True)
    ranks = _released_ranks(text, _unit(image[captioned]), own)
    return RetrievalRanks(ranks.t2i, ranks.i2t, captioned[ranks.i2t_images], ranks.t2i_tied, ranks.i2t_tied)


def top_images(text: Features, image: Features, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` images nearest to each caption by cosine, best first.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        k: how many, at most I.

    Returns:
        Scores (T, k) float64 and image indices (T, k) int64.

    Raises:
        UserError: when shapes do not fit, a feature is not finite or ``k`` is not in 1..I.
    """
    text, image = _checked_features(text, image)
    if not 1 <= k <= len(image):
        raise UserError(f"Cannot take the top {k} of {len(image)} images: k must be between 1 and {len(image)}.")
    image = _unit(image)
    tops = [(_unit(text[rows]) @ image.T).topk(k, dim=1) for rows in _blocks(len(text), len(image))]
    return torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])


def _strict_ranks(text: Tensor, image: Tensor, own: Tensor) -> RetrievalRanks:
    """Ranks of captions among images and of captioned images among captions, in one pass over the scores."""
    own_score = _own_scores(text, image, own)
    best = _group_max(own_score, own, len(image))
    t2i_at_least, t2i_above = [], []
    i2t_at_least = torch.zeros_like(best, dtype=torch.long)
    i2t_above = torch.zeros_like(i2t_at_least)
    narrow = image.float() if _float32_is_exact_enough(image) else None
    for rows in _blocks(len(text), len(image)):
        unit = _unit(text[rows])
        scores = unit @ image.T if narrow is None else unit.float() @ narrow.T
        scores[torch.arange(len(scores), device=own.device), own[rows]] = -torch.inf  # only foreign items are counted
        at_least, above = _counts_of_pairs(scores, own_score[rows, None], 1, unit, image)
        t2i_at_least.append(at_least)
        t2i_above.append(above)
        at_least, above = _counts_of_pairs(scores, best[None], 0, unit, image)
        i2t_at_least += at_least
        i2t_above += above
    t2i, queries = torch.cat(t2i_at_least), own.unique()
    i2t = i2t_at_least[queries]
    return RetrievalRanks(t2i, i2t, queries, t2i != torch.cat(t2i_above), i2t != i2t_above[queries])


def _released_ranks(text: Tensor, image: Tensor, own: Tensor) -> RetrievalRanks:
    """Ranks by distinct image, one image query per caption; every image owns a caption."""
    strict = _strict_ranks(text, image, own)
    best = _group_max(_own_scores(text, image, own), own, len(image))
    unit_text = _unit(text)
    at_least, above = [], []
    for columns in _blocks(len(image), len(text)):
        scores = image[columns] @ unit_text.T
        by_image = scores.new_full((len(scores), len(image)), -torch.inf)
        by_image.scatter_reduce_(1, own.expand(len(scores), -1), scores, "amax")
        inside = torch.arange(len(scores), device=own.device)
        by_image[inside, inside + columns.start] = -torch.inf
        counts = _counts(by_image, best[columns, None], dim=1)
        at_least.append(counts[0])
        above.append(counts[1])
    ranks, optimistic = torch.cat(at_least)[own], torch.cat(above)[own]
    return RetrievalRanks(strict.t2i, ranks, own, strict.t2i_tied, ranks != optimistic)


def _counts(scores: Tensor, threshold: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """How many scores along ``dim`` are not below the threshold, and how many are above it."""
    return _count(scores >= threshold - TIE_TOLERANCE, dim), _count(scores > threshold + TIE_TOLERANCE, dim)


def _count(mask: Tensor, dim: int) -> Tensor:
    """int64 number of true values along ``dim``; bytes are added four times as fast as booleans."""
    return mask.view(torch.uint8).sum(dim, dtype=torch.int32).long()


def _float32_is_exact_enough(image: Tensor) -> bool:
    """Whether products in float32 are as exact as IEEE says: not on GPUs or CPUs that may round their factors."""
    return image.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"


def _counts_of_pairs(scores: Tensor, threshold: Tensor, dim: int, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """``_counts`` from float32 scores: what these leave in doubt is computed again in float64.

    Args:
        scores: (t, I) products, in float32 or float64; -inf where nothing is to be counted.
        threshold: float64, (t, 1) for dim 1 or (1, I) for dim 0.
        dim: as in ``_counts``.
        text: (t, D) float64 unit rows.
        image: (I, D) float64 unit rows.
    """
    if scores.dtype == torch.float64:
        return _counts(scores, threshold, dim)
    margin = (image.shape[1] + 4) * torch.finfo(torch.float32).eps
    limit = threshold.float()
    surely, perhaps = scores > limit + margin, scores >= limit - margin
    at_least = _count(surely, dim)
    doubts = _count(perhaps, dim) - at_least
    if doubts.sum() > scores.numel() * MOST_DOUBTFUL:
        exact = (text @ image.T).masked_fill_(scores == -torch.inf, -torch.inf)
        return _counts(exact, threshold, dim)
    doubtful = doubts.nonzero()[:, 0]
    close = (perhaps ^ surely).index_select(1 - dim, doubtful).nonzero()
    close[:, 1 - dim] = doubtful[close[:, 1 - dim]]
    above = at_least.clone()
    for pairs in close.split(PAIRS_AT_ONCE):
        row, column = pairs.unbind(1)
        exact = (text[row] * image[column]).sum(1)
        limit = threshold[row, 0] if dim == 1 else threshold[0, column]
        counted = row if dim == 1 else column
        at_least.index_add_(0, counted, (exact >= limit - TIE_TOLERANCE).long())
        above.index_add_(0, counted, (exact > limit + TIE_TOLERANCE).long())
    return at_least, above


def _own_scores(text: Tensor, image: Tensor, own: Tensor) -> Tensor:
    """(T,) score of each caption with its own image, computed block by block."""
    blocks = _blocks(len(text), text.shape[1])
    return torch.cat([(_unit(text[rows]) * image[own[rows]]).sum(1) for rows in blocks])


def _group_max(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """(count,) largest value of each group; infinite for groups without a value, which then count nothing."""
    largest = values.new_full((count,), -torch.inf).scatter_reduce_(0, groups, values, "amax")
    return largest.masked_fill(largest == -torch.inf, torch.inf)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_SCORES // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=-1)


def _checked(text: Features, image: Features, text_to_image: Features | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    text, image = _checked_features(text, image)
    own = _as_tensor(text_to_image)
    if own.shape != (len(text),) or own.is_floating_point() or own.dtype == torch.bool:
        raise UserError(
            f"text_to_image must hold one integer image index per caption, ({len(text)},), "
            f"got {tuple(own.shape)} {own.dtype}."
        )
    own = own.to(image.device, torch.long)
    outside = ((own < 0) | (own >= len(image))).nonzero()
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"Caption {row} names image {int(own[row])}, but there are {len(image)} images (indices 0 to "
            f"{len(image) - 1})."
        )
    return text, image, own


def _checked_features(text: Features, image: Features) -> tuple[Tensor, Tensor]:
    image = _as_matrix(image, "image")
    text = _as_matrix(text, "text").to(image.device)
    if text.shape[1] != image.shape[1]:
        raise UserError(
            f"Text features have {text.shape[1]} dimensions and image features {image.shape[1]}: both must "
            "come from one joint space."
        )
    return text, image


def _as_matrix(features: Features, name: str) -> Tensor:
    matrix = _as_tensor(features).detach()
    if matrix.device.type == "mps":  # has no float64
        matrix = matrix.cpu()
    if matrix.ndim != 2 or not matrix.numel():
        raise UserError(
            f"{name} features must be a matrix (items, dimensions) with at least one of each, got shape "
            f"{tuple(matrix.shape)}."
        )
    _check_finite(matrix, name)
    return matrix


def _check_finite(matrix: Tensor, name: str) -> None:
    for rows in _blocks(*matrix.shape):
        bad = (~matrix[rows].isfinite().all(1)).nonzero()
        if len(bad):
            raise UserError(
                f"The {name} feature of row {rows.start + int(bad[0])} is not finite: the model "
                "overflowed or the feature file is damaged."
            )


def _as_tensor(values: Features | Sequence[int]) -> Tensor:
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch warns about memory it may not write, as in a read-only memory map
    return torch.as_tensor(values)
