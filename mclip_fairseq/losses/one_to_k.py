"""The contrast of CCRK between an image and its K captions in as many languages."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mclip_fairseq.losses.contrastive import ContrastiveOutput, sum_of_rows, widen
from mclip_fairseq.losses.gather import gather_offset, gather_rows, gather_sizes
from mclip_fairseq.losses.tiled import Layout, choose_block_rows, tiled_sums


def one_to_k_info_nce(
    image: Tensor, text: Tensor, scale: Tensor | float, divisor: Tensor | float | None = None
) -> Tensor:
    """1-to-K contrastive loss (CCRK, Nie et al. 2024) of B images with K captions each.

    With the logits S = scale * cosines, (B, B K):

    - image -> text: mean over images of the **sum** over their K captions of -log softmax(S); the other K - 1 stay in
      the denominator,
    - text -> image: mean over captions of -log softmax(S^T) at their image,
    - the loss is half of the sum of both, over the divisor.

    Args:
        image: (B, D), L2-normalised, any floating dtype; computed in at least float32, also under autocast.
        text: (B, K, D), L2-normalised captions of each image.
        scale: multiplies the cosine (1 / temperature).
        divisor: None divides by K (published; it also shrinks text -> image by K), 0 leaves the sum, another number
            divides by it.

    Returns:
        0-d, float32 or float64. Zero for B = 0, with a graph. With K = 1 it is `symmetric_info_nce`.

    Raises:
        ValueError: shapes do not fit.
    """
    return global_one_to_k_info_nce(image, text, scale, divisor, gather=False).loss


def global_one_to_k_info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    divisor: Tensor | float | None = None,
    *,
    gather: bool = True,
    group: dist.ProcessGroup | None = None,
    block_rows: int | None = None,
) -> ContrastiveOutput:
    """This rank's share of `one_to_k_info_nce` over the images of all ranks.

    The shares add up to the loss of the union, the gradients of all ranks to its gradient (the released code gives
    the towers 1 / ranks of it). Every rank must call it and run backward through it, even with zero rows.

    Args:
        image: (b, D), images of this rank; b may differ over ranks.
        text: (b, K, D); K is the same on all ranks.
        scale: as in `one_to_k_info_nce`; the same on all ranks.
        divisor: as in `one_to_k_info_nce`.
        gather: False leaves the other ranks out, as without a process group.
        group: process group; None is the default one.
        block_rows: captions whose logits exist at once; 0 for all of them. None lets the size decide, as in
            `global_info_nce`. The same on all ranks.

    Returns:
        the loss, the number of own images, the images whose best text is one of their own (`hits_xy`), and the
        captions whose best image is their own (`hits_yx`, of b K).

    Raises:
        ValueError: shapes do not fit.
    """
    _check(image, text)
    captions = text.shape[1]
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = widen(image, text, scale)
        sizes = gather_sizes(image, group) if gather else [len(image)]
        images, offset = sum(sizes), gather_offset(sizes, group) if gather else 0
        groups = torch.arange(images, device=image.device)
        own = groups[offset : offset + len(image)]
        own_of_text = own.repeat_interleave(captions)
        block_rows = choose_block_rows(block_rows, [size * captions for size in sizes], images)
        if block_rows:
            # Captions are the rows: then only images are sent to other ranks.
            layout = Layout(sizes, block_rows, "sum", gather, group, one_positive=True)
            t2i, i2t, hits_t2i, hits_i2t = tiled_sums(text.flatten(0, 1), image, scale, own_of_text, own, layout)
        else:
            rows = torch.cat([image[:, None], text], dim=1)
            if gather:
                rows, _ = gather_rows(rows, group, sizes)  # one collective for both, in both passes
            all_image, all_text = rows[:, 0], rows[:, 1:].flatten(0, 1)
            positives = own[:, None] == groups.repeat_interleave(captions)
            i2t, hits_i2t = sum_of_rows(scale * image @ all_text.T, 0, positives, "sum")
            t2i, hits_t2i = sum_of_rows(
                scale * text.flatten(0, 1) @ all_image.T, 0, own_of_text[:, None] == groups, "sum"
            )
        loss = (i2t + t2i / captions) / (2 * max(images, 1))
    return ContrastiveOutput(loss / divisor_of(captions, divisor), len(image), hits_i2t, hits_t2i)


def divisor_of(captions: int, divisor: Tensor | float | None) -> Tensor | float:
    """The number that the sum over K captions is divided by, for every value of the option."""
    if divisor is None:
        return captions
    return divisor if divisor else 1.0


def _check(image: Tensor, text: Tensor) -> None:
    if image.dim() != 2 or text.dim() != 3 or (len(text), text.shape[2]) != tuple(image.shape) or not text.shape[1]:
        raise ValueError(f"image and text are {tuple(image.shape)} and {tuple(text.shape)}; give (B, D) and (B, K, D)")
