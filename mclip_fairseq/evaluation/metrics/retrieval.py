"""Image-text retrieval: ranks, recalls and nearest images, in bounded memory.

Every function takes text features (T, D) and image features (I, D) as torch tensors or numpy arrays of any float type.
Rows are L2-normalised here, in float64, so callers may pass raw or normalised features. Two scores closer than
`TIE_TOLERANCE` are a tie: rounding in float64 stays far below it, real differences are far above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mclip_fairseq.evaluation.metrics.inputs import Features, check_choice, feature_matrices, image_indices
from mclip_fairseq.evaluation.metrics.protocols import PROTOCOLS
from mclip_fairseq.storage.errors import UserError

TIE_TOLERANCE = 1e-12
RECALL_AT = (1, 5, 10)
# Scores held at once: 8 MiB as float64. Several blocks are in use at a time, and they should fit into the CPU cache.
BLOCK_SCORES = 1 << 20
# A block with a larger share of scores that float32 cannot tell from the threshold is computed in float64 as a whole.
MOST_DOUBTFUL = 0.05
# Doubtful scores computed at once in float64, each from two rows of D numbers.
PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class RetrievalRanks:
    """0-based ranks of the best own item of every query; ties count against the query.

    Attributes:
        t2i: (T,) int64, number of foreign images that score at least as high as the caption's own image.
        i2t: (Q,) int64, number of foreign captions (strict) or foreign images (the others) that score at least as high
            as the best own caption.
        i2t_images: (Q,) int64, the image index of each image query.
        t2i_tied: (T,) bool, whether the own image ties with a foreign one, so the rank depends on how ties are broken.
        i2t_tied: (Q,) bool, the same for the image queries.
    """

    t2i: Tensor
    i2t: Tensor
    i2t_images: Tensor
    t2i_tied: Tensor
    i2t_tied: Tensor

    @property
    def ties(self) -> int:
        """Number of queries, in both directions, whose rank depends on how ties are broken."""
        return int(self.t2i_tied.sum()) + int(self.i2t_tied.sum())


def retrieval_metrics(
    text: Features, image: Features, text_to_image: Features | Sequence[int], protocol: str = "strict"
) -> dict[str, float]:
    """Recalls of both directions in percent.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        text_to_image: (T,) index into `image` of each caption's own image.
        protocol: "strict", "released" or "caption_max", see `retrieval_ranks`.

    Returns:
        `t2i_R@1 t2i_R@5 t2i_R@10 i2t_R@1 i2t_R@5 i2t_R@10 mean_recall` in percent, and `ties`, the number of queries
        (both directions) whose best own item ties with a foreign one. `mean_recall` is the mean of the six unrounded
        recalls (the released script rounds each to 0.1 first).

    Raises:
        UserError: as `retrieval_ranks`.
    """
    return metrics_from_ranks(retrieval_ranks(text, image, text_to_image, protocol))


def metrics_from_ranks(ranks: RetrievalRanks) -> dict[str, float]:
    """Recalls in percent from ranks, under the keys of `retrieval_metrics`."""
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

    "strict" is the protocol of CLIP_benchmark, big_vision and CCRK. t2i: rank of the caption's image among all I
    images. i2t: one query per image that has a caption, rank of its best own caption among all T captions. Images
    without a caption are distractors of t2i and not queries of i2t.

    "released" repeats the released mCLIP script (ACL 2023). Its gallery holds one row per caption, so images without a
    caption are left out. It counts hits by distinct image, so the i2t rank is the number of foreign images that own a
    caption scoring at least as high. Each image is a query once per caption. The script looks at 100 hits only, which
    matters only for images with more than ten captions; that limit is not repeated.

    "caption_max" is CLIP4Clip's and MLA's: as "released", with each image a query once. An image is found as soon as
    its best caption is, so recalls from images are higher than with "strict". Images without a caption are left out.
    Where scores tie, MLA's code counts one row for each tied position; here ties count against the query, as always.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        text_to_image: (T,) index into `image` of each caption's own image.
        protocol: "strict", "released" or "caption_max".

    Returns:
        the ranks, on the device of `image`.

    Raises:
        UserError: shapes do not fit, a feature is not finite, an index is out of range, or a side is empty.
    """
    check_choice("retrieval protocol", protocol, PROTOCOLS)
    text, image = feature_matrices(text, image)
    own = image_indices(text_to_image, len(text), image)
    if protocol == "strict":
        ranks = _ranks(text, _unit(image), own, by_image=False)
        queries = own.unique()
        return RetrievalRanks(ranks.t2i, ranks.i2t[queries], queries, ranks.t2i_tied, ranks.i2t_tied[queries])
    captioned, own = own.unique(return_inverse=True)
    ranks = _ranks(text, _unit(image[captioned]), own, by_image=True)
    # An image is a query once per caption, or once.
    queries = torch.arange(len(captioned), device=own.device) if protocol == "caption_max" else own
    return RetrievalRanks(*(ranks.t2i, ranks.i2t[queries], captioned[queries], ranks.t2i_tied, ranks.i2t_tied[queries]))


def top_images(text: Features, image: Features, k: int) -> tuple[Tensor, Tensor]:
    """The `k` images nearest to each caption by cosine, best first.

    Args:
        text: (T, D) caption features.
        image: (I, D) image features.
        k: how many, at most I.

    Returns:
        scores (T, k) float64 and image indices (T, k) int64.

    Raises:
        UserError: shapes do not fit, a feature is not finite, or `k` is not in 1..I.
    """
    text, image = feature_matrices(text, image)
    if not 1 <= k <= len(image):
        raise UserError(f"cannot take the top {k} of {len(image)} images; k must be between 1 and {len(image)}")
    image = _unit(image)
    tops = [(_unit(text[rows]) @ image.T).topk(k, dim=1) for rows in _blocks(len(text), len(image))]
    return torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])


def _ranks(text: Tensor, image: Tensor, own: Tensor, by_image: bool) -> RetrievalRanks:
    """Ranks of captions among images and of all images among captions, in one pass over the scores.

    Args:
        text: (T, D) features.
        image: (I, D) float64 unit rows.
        own: (T,) int64 row of each caption's own image.
        by_image: rank an image among foreign images, each with its best caption, instead of among captions.
    """
    own_score = _own_scores(text, image, own)
    best = _group_max(own_score, own, len(image))
    t2i_at_least = torch.zeros_like(own)
    t2i_above = torch.zeros_like(own)
    i2t_at_least = torch.zeros_like(best, dtype=torch.long)
    i2t_above = torch.zeros_like(i2t_at_least)
    narrow = image.float() if _float32_is_exact_enough(image) else None
    # Captions of one image stand together, in one block.
    order = own.argsort(stable=True) if by_image else torch.arange(len(own), device=own.device)
    for rows in _blocks_of_groups(own[order], len(image)) if by_image else _blocks(len(own), len(image)):
        captions = order[rows]
        unit = _unit(text[captions])
        scores = unit @ image.T if narrow is None else unit.float() @ narrow.T
        # Only foreign items are counted. Hiding a caption's own image hides, in the image's column, its own captions.
        scores[torch.arange(len(scores), device=own.device), own[captions]] = -torch.inf
        # A caption's rank is complete within a block of captions; an image's is summed over all blocks.
        block = Block(scores, unit, image)
        t2i_at_least[captions], t2i_above[captions] = _counts_in_two_precisions(block, own_score[captions, None], 1)
        at_least, above = _counts_in_two_precisions(
            Block.best_of(block, own[captions]) if by_image else block, best[None], 0
        )
        i2t_at_least += at_least
        i2t_above += above
    # The pessimistic and the optimistic rank differ exactly where a foreign item ties.
    ties = t2i_at_least != t2i_above, i2t_at_least != i2t_above
    return RetrievalRanks(t2i_at_least, i2t_at_least, torch.arange(len(image), device=own.device), *ties)


class Block:
    """Scores of some captions, or groups of captions, with all images, and the way to their exact values.

    Args:
        scores: (t, I) products, in float32 or float64; -inf where nothing is to be counted.
        text: (captions, D) float64 unit rows.
        image: (I, D) float64 unit rows.
        first: (t,) int64 first caption of each row; None where the rows are captions.
        sizes: (t,) int64 how many captions follow from there.
    """

    def __init__(
        self, scores: Tensor, text: Tensor, image: Tensor, first: Tensor | None = None, sizes: Tensor | None = None
    ) -> None:
        self.scores, self.text, self.image, self.first, self.sizes = scores, text, image, first, sizes

    @classmethod
    def best_of(cls, block: Block, groups: Tensor) -> Block:
        """The best score of each group of captions.

        Args:
            block: of captions.
            groups: (t,) int64, the captions of a group one after another.
        """
        _, sizes = groups.unique_consecutive(return_counts=True)
        first = sizes.cumsum(0) - sizes
        return cls(_best_of_groups(block.scores, first, sizes), block.text, block.image, first, sizes)

    def exact(self) -> Tensor:
        """All scores in float64."""
        scores = self.text @ self.image.T
        if self.first is not None and self.sizes is not None:
            scores = _best_of_groups(scores, self.first, self.sizes)
        return scores.masked_fill_(self.scores == -torch.inf, -torch.inf)

    def exact_pairs(self, row: Tensor, column: Tensor) -> Tensor:
        """(pairs,) float64 scores of some rows with some images."""
        image = self.image[column]
        if self.first is None or self.sizes is None:
            return (self.text[row] * image).sum(1)
        best = image.new_full((len(row),), -torch.inf)
        for number in range(int(self.sizes.max())):
            # A smaller group repeats its last caption.
            caption = self.first[row] + self.sizes[row].sub(1).clamp(max=number)
            best = torch.maximum(best, (self.text[caption] * image).sum(1))
        return best


def _best_of_groups(scores: Tensor, first: Tensor, sizes: Tensor) -> Tensor:
    """(groups, I) largest score of rows that stand together."""
    best = scores[first]
    for number in range(1, int(sizes.max())):
        larger = (sizes > number).nonzero()[:, 0]
        best[larger] = torch.maximum(best[larger], scores[first[larger] + number])
    return best


def _counts(scores: Tensor, threshold: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """How many scores along `dim` are not below the threshold, and how many are above it."""
    return _count(scores >= threshold - TIE_TOLERANCE, dim), _count(scores > threshold + TIE_TOLERANCE, dim)


def _count(mask: Tensor, dim: int) -> Tensor:
    """int64 number of true values along `dim`; bytes are added four times as fast as booleans."""
    return mask.view(torch.uint8).sum(dim, dtype=torch.int32).long()


def _float32_is_exact_enough(image: Tensor) -> bool:
    """Whether float32 products round as IEEE 754 says: not on GPUs, nor where CPUs may round the factors (bfloat16)."""
    return image.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"


def _counts_in_two_precisions(block: Block, threshold: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`_counts` of the exact scores, for about the price of float32.

    A float32 product of two unit rows is off by less than a known margin. A score further than that from the threshold
    is counted as it is; the few closer ones are computed again in float64.

    Args:
        block: the scores. The best of a group is off by no more than the scores it is taken from.
        threshold: float64, (t, 1) for dim 1 or (1, I) for dim 0.
        dim: the dimension that is counted along.
    """
    scores = block.scores
    if scores.dtype == torch.float64:
        return _counts(scores, threshold, dim)
    # A dot product of D terms in any order of summation is off by at most D u |x||y| to first order (Higham, Accuracy
    # and Stability of Numerical Algorithms, section 3.1), here |x||y| = 1 and u = eps / 2. Rounding both factors and
    # the threshold to float32 adds 3 u at most. (D + 4) eps is twice that, and far more than TIE_TOLERANCE.
    margin = (block.image.shape[1] + 4) * torch.finfo(torch.float32).eps
    limit = threshold.float()
    surely, perhaps = scores > limit + margin, scores >= limit - margin
    at_least = _count(surely, dim)
    doubts = _count(perhaps, dim) - at_least
    # Nearly equal scores everywhere, as of a collapsed model: one float64 product is faster than picking pairs.
    if doubts.sum() > scores.numel() * MOST_DOUBTFUL:
        return _counts(block.exact(), threshold, dim)
    # Most queries have no doubtful score: look for pairs only in the rows (or columns) of those that do.
    doubtful = doubts.nonzero()[:, 0]
    close = (perhaps ^ surely).index_select(1 - dim, doubtful).nonzero()
    close[:, 1 - dim] = doubtful[close[:, 1 - dim]]  # from a place in the selection back to one in the block
    above = at_least.clone()
    for pairs in close.split(PAIRS_AT_ONCE):
        row, column = pairs.unbind(1)
        exact = block.exact_pairs(row, column)
        limit = threshold[row, 0] if dim == 1 else threshold[0, column]
        query = row if dim == 1 else column
        at_least.index_add_(0, query, (exact >= limit - TIE_TOLERANCE).long())
        above.index_add_(0, query, (exact > limit + TIE_TOLERANCE).long())
    return at_least, above


def _own_scores(text: Tensor, image: Tensor, own: Tensor) -> Tensor:
    """(T,) score of each caption with its own image, computed block by block."""
    blocks = _blocks(len(text), text.shape[1])
    return torch.cat([(_unit(text[rows]) * image[own[rows]]).sum(1) for rows in blocks])


def _group_max(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """(count,) largest value of each group; infinite for an empty group, so that no score reaches it."""
    largest = values.new_full((count,), -torch.inf).scatter_reduce_(0, groups, values, "amax")
    return largest.masked_fill(largest == -torch.inf, torch.inf)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Ranges of rows with at most `BLOCK_SCORES` values of `width` columns each."""
    step = max(1, BLOCK_SCORES // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _blocks_of_groups(groups: Tensor, width: int) -> Iterator[slice]:
    """`_blocks` of sorted groups that are not divided; a group larger than a block is a block of its own."""
    ends = groups.unique_consecutive(return_counts=True)[1].cumsum(0).cpu()
    step, start = max(1, BLOCK_SCORES // width), 0
    while start < len(groups):
        fitting = int(torch.searchsorted(ends, start + step, right=True))
        # The first end beyond `start` if none fits.
        end = int(ends[fitting - 1]) if fitting else 0
        end = end if end > start else int(ends[int(torch.searchsorted(ends, start, right=True))])
        yield slice(start, end)
        start = end


def _unit(features: Tensor) -> Tensor:
    """The rows as float64 of length one."""
    return torch.nn.functional.normalize(features.double(), dim=-1)
