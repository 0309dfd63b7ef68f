"""Image-text matching with hard negatives, and masked words: the two other losses of CCRK."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses.contrastive import like
from mclip_fairseq.losses.gather import share_of_mean

LEAST = 1e-5  # added to every probability by the released code, so that no foreign item is impossible
KINDS = (0, 1, 2)


class HardNegativeWeights(NamedTuple):
    """What hard pairs are drawn by; weights of a row need not add up to 1.

    Attributes:
        positive: (B, K), for each image its own captions.
        image: (B K, B), for each caption the images; zero for its own.
        text: (B, B K), for each image the captions; zero for its own.
    """

    positive: Tensor
    image: Tensor
    text: Tensor


class MatchingPairs(NamedTuple):
    """Pairs to be matched: (image, own text), then (hard image, own text), then (image, hard text).

    Attributes:
        image: (n,) int64, rows of the images.
        text: (n,) int64, rows of the flattened (B K) captions.
        labels: (n,) int64, 1 where both belong together, else 0.
    """

    image: Tensor
    text: Tensor
    labels: Tensor


@torch.no_grad()
def hard_negative_weights(
    image: Tensor, text: Tensor, scale: Tensor | float, kind: int, ids: Tensor | None = None
) -> HardNegativeWeights:
    """Weights by which CCRK draws a positive caption, a hard image and a hard caption (Nie et al. 2024).

    With S = scale * cosines (B, B K), P = softmax(S) + 1e-5 over captions, and Q = softmax(S^T) + 1e-5 over images:
    a foreign image has the weight Q, a foreign caption the weight P, and an own caption the weight
    max(P) + 1e-5 - P, so that captions less similar to their image come up more often.

    Args:
        image: (B, D), L2-normalised, any floating dtype.
        text: (B, K, D), L2-normalised.
        scale: multiplies the cosine (1 / temperature).
        kind: of the positive: 0 uniform; 1 from P (published default); 2 from S in place of P.
        ids: (B,) integers; items of equal id are not negatives of each other (fine-tuning). None: each image is alone.

    Returns:
        the three matrices, float32 or float64, without gradient.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(map(str, KINDS))}")
    images, captions = text.shape[:2]
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
        logits = like(image, scale, dtype) * (image.to(dtype) @ text.to(dtype).flatten(0, 1).T)
        by_image, by_text = logits.softmax(dim=1) + LEAST, logits.T.softmax(dim=1) + LEAST
    ids = torch.arange(images, device=image.device) if ids is None else ids
    own = ids[:, None] == ids.repeat_interleave(captions)
    rows = torch.arange(images, device=image.device)
    positive = torch.ones_like(logits[:, :captions])
    if kind and images:
        scores = logits if kind == 2 else by_image
        own_captions = scores.view(images, images, captions)[rows, rows]  # of the image itself, not of an equal id
        positive = scores.max() + LEAST - own_captions
    return HardNegativeWeights(positive, by_text.masked_fill(own.T, 0.0), by_image.masked_fill(own, 0.0))


def draw_matching_pairs(
    weights: HardNegativeWeights, generator: torch.Generator | None = None, own: slice = slice(None)
) -> MatchingPairs:
    """Draw one own caption, one hard image for it and one hard caption for each image.

    An image that has no foreign image or caption in the batch (a batch of one image; the released code fails there)
    has no negative pair.

    Args:
        weights: what `hard_negative_weights` returns.
        generator: on the device of the weights; None is torch's own.
        own: the images whose pairs are wanted. All are drawn, so that ranks with equal generators and weights draw
            together what one process would draw.

    Returns:
        at most 3 pairs for each image, in the order of the released code; rows are those of the weights.
    """
    images, captions = weights.positive.shape
    rows = torch.arange(images, device=weights.positive.device)
    text = rows * captions + _draw(weights.positive, generator)[0]
    hard_image, image_exists = _draw(weights.image[text], generator)
    hard_text, text_exists = _draw(weights.text, generator)
    rows, text, hard_image, image_exists = rows[own], text[own], hard_image[own], image_exists[own]
    hard_text, text_exists = hard_text[own], text_exists[own]
    # All at once: a GPU is waited for where the number of pairs is asked.
    kept = torch.cat([torch.ones_like(image_exists), image_exists, text_exists]).nonzero()[:, 0]
    image_rows, text_rows = torch.cat([rows, hard_image, rows]), torch.cat([text, text, hard_text])
    return MatchingPairs(image_rows[kept], text_rows[kept], (kept < len(rows)).long())


def matching_loss(
    logits: Tensor, labels: Tensor, *, gather: bool = False, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Cross entropy of match (1) and mismatch (0), mean over pairs.

    Args:
        logits: (n, 2), any floating dtype; computed in at least float32. Column 1 stands for a match.
        labels: (n,) int64.
        gather: True returns this rank's share of the mean over the pairs of all ranks; every rank must then call it.
        group: process group; None is the default one.

    Returns:
        0-d. Zero without pairs, with a graph.
    """
    return _mean_cross_entropy(logits, labels, -100, gather, group)


def masked_word_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    *,
    gather: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Cross entropy of masked words, mean over all masked positions: captions with more of them weigh more.

    Args:
        logits: (n, V) or (B, slots, V), any floating dtype; computed in at least float32.
        labels: (n,) or (B, slots) int64, the word, or `ignore_index` in slots that are not used.
        ignore_index: label that does not count.
        gather: True returns this rank's share of the mean over the words of all ranks; every rank must then call it.
        group: process group; None is the default one.

    Returns:
        0-d. Zero without a masked word, with a graph.
    """
    return _mean_cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index, gather, group)


def _mean_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, gather: bool, group: dist.ProcessGroup | None
) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
        return share_of_mean(total, (labels != ignore_index).sum(), gather, group)


def _draw(weights: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One column for each row, and whether the row had any to draw from."""
    weights = weights.nan_to_num(0.0, 0.0, 0.0)  # of a batch that is not finite, which is found after this
    exists = weights.sum(dim=1) > 0
    if not len(weights):  # multinomial takes no empty matrix
        return exists.long(), exists
    drawn = torch.multinomial(weights + ~exists[:, None], 1, generator=generator)
    return drawn[:, 0], exists
