"""Label-smoothed cross entropy over large vocabularies, in chunks of rows that bound the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

KINDS = ("fairseq", "uniform")
# Logits computed at once: 256 MiB in float32, and 1 GiB on a GPU, where each chunk reads the table, and adds to its
# gradient, in the time of many rows.
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 2**26, 2**28


def label_smoothed_nll(
    logits: Tensor, target: Tensor, epsilon: float, ignore_index: int, kind: str = "fairseq"
) -> tuple[Tensor, Tensor]:
    """Label-smoothed negative log likelihood, summed over the targets that count.

    With V classes, `fairseq` is (1 - eps - eps/(V-1)) * nll + eps/(V-1) * sum_v -log p_v, as in fairseq's
    `label_smoothed_cross_entropy` today: the gold class gets 1 - eps in all. `uniform` is (1 - eps) * nll +
    eps/V * sum_v -log p_v (Szegedy et al. 2016; older fairseq and the released mCLIP). Probabilities are computed in
    at least float32; beyond `CHUNK_ELEMENTS` logits, rows are treated in chunks that backward computes once more.

    Args:
        logits: (N, V), any floating dtype.
        target: (N,) int64 class of each row, or `ignore_index`.
        epsilon: mass moved away from the gold class, 0 <= epsilon < 1.
        ignore_index: target of rows that do not count.
        kind: `fairseq` or `uniform`.

    Returns:
        0-d sums of the smoothed loss and of the plain negative log likelihood.

    Raises:
        ValueError: the kind is unknown or epsilon is out of range.
    """
    smoothing = _uniform_smoothing(epsilon, logits.shape[1], kind)

    def sums(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _sum_of_rows(rows, targets, smoothing, ignore_index)

    return _in_chunks(sums, logits, target, max(1, CHUNK_ELEMENTS // logits.shape[1]))


def chunked_linear_label_smoothed_nll(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    epsilon: float,
    ignore_index: int,
    kind: str = "fairseq",
    chunk_rows: int | None = None,
    fused: bool = True,
    counted: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`label_smoothed_nll` of `features @ weight.T`, of which no more than a chunk of rows ever exists.

    With `fused`, the gradient of a chunk is made in the forward pass, in place of its logits: one product for the
    logits, one for the gradient of the features and, if the table is trained, one for its own. Only the smoothed loss
    has a gradient. Rows that do not count are not multiplied at all.

    Args:
        features: (N, C), any floating dtype.
        weight: (V, C), output embedding.
        target: (N,) int64 class of each row, or `ignore_index`.
        epsilon: mass moved away from the gold class, 0 <= epsilon < 1.
        ignore_index: target of rows that do not count.
        kind: `fairseq` or `uniform`.
        chunk_rows: rows multiplied at once; None is as many as `CHUNK_ELEMENTS`, or on a GPU `GPU_CHUNK_ELEMENTS`,
            allow.
        fused: False computes chunks again in the backward pass, with less memory than all logits but more products.
        counted: how many targets count, where the caller knows it: a GPU need not be asked, and waited for.

    Returns:
        0-d sums of the smoothed loss and of the plain negative log likelihood.

    Raises:
        ValueError: the kind is unknown, or epsilon or chunk_rows is out of range.
    """
    smoothing = _uniform_smoothing(epsilon, len(weight), kind)
    if chunk_rows is None:
        chunk_rows = max(1, (GPU_CHUNK_ELEMENTS if weight.is_cuda else CHUNK_ELEMENTS) // len(weight))
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; give a positive number of rows")

    counts = target != ignore_index
    places = (counts.nonzero() if counted is None else torch.nonzero_static(counts, size=counted)).squeeze(1)
    rows, gold = features.index_select(0, places), target.index_select(0, places)
    compute = rows.dtype
    if torch.is_autocast_enabled(rows.device.type):
        compute = torch.get_autocast_dtype(rows.device.type)
    if fused and compute != torch.float16:
        with torch.autocast(rows.device.type, enabled=False):  # the table is cast once, not once a chunk
            loss, nll = _FusedLinear.apply(rows, weight, gold, smoothing, chunk_rows, compute)
        return loss, nll

    # Gradients in float16 need the loss scale, which only the backward pass knows: the chunks are computed again there.
    def sums(some: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _sum_of_rows(F.linear(some, weight), targets, smoothing, ignore_index)

    loss, nll = _in_chunks(sums, rows, gold, chunk_rows)
    return loss, nll.detach()


def _uniform_smoothing(epsilon: float, classes: int, kind: str) -> float:
    """The mass that both kinds spread evenly over all classes, the gold one included."""
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}; label smoothing takes a number from 0 up to, but not including, 1")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    # Over V-1 other classes eps/(V-1) each is the same as over all V, with the gold class's part added to eps.
    return epsilon * classes / (classes - 1) if kind == "fairseq" and epsilon else epsilon


def _sum_of_rows(logits: Tensor, target: Tensor, smoothing: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Sums over rows of (1 - smoothing) * nll + smoothing * mean_v -log p_v, and of nll."""
    log_p = F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nll = F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="sum")
    if not smoothing:
        return nll, nll
    spread = -log_p.mean(dim=1).masked_fill(target == ignore_index, 0.0).sum()
    return (1 - smoothing) * nll + smoothing * spread, nll


class _FusedLinear(torch.autograd.Function):
    """Sums over all rows, and the gradient of the smoothed one made beside them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, target: Tensor, smoothing: float, chunk_rows: int, compute: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(compute, torch.float32)
        table, features = weight.to(compute), rows.to(compute)
        loss, nll = rows.new_zeros((), dtype=wide), rows.new_zeros((), dtype=wide)
        of_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        # Chunks of equal size, so that the last is not a small one; their logits share one piece of memory.
        chunk_rows = even_size(len(rows), chunk_rows)
        products = features.new_empty(chunk_rows, len(table))
        for start in range(0, len(rows), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = torch.mm(features[chunk], table.T, out=products[: len(rows[chunk])]).to(wide)
            chunk_loss, chunk_nll = _sums_and_gradient(logits, target[chunk], smoothing)
            loss, nll = loss + chunk_loss, nll + chunk_nll
            gradient = logits.to(compute)
            if of_rows is not None:
                of_rows[chunk] = (gradient @ table).to(rows.dtype)
            if of_weight is not None and compute == weight.dtype:
                of_weight.addmm_(gradient.T, features[chunk])
            elif of_weight is not None:
                of_weight += (gradient.T @ features[chunk]).to(weight.dtype)
        ctx.gradients = of_rows, of_weight
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, of_weight = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.gradients)
        return of_rows, of_weight, None, None, None, None


def even_size(rows: int, most: int) -> int:
    """The size of as few chunks as need be, all but the last equally large."""
    return max(1, math.ceil(rows / max(1, math.ceil(rows / most))))


def _sums_and_gradient(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Sums of rows that all count, as `_sum_of_rows`; the logits are overwritten with the gradient of the first sum."""
    gold = target[:, None]
    gold_logit, mean = logits.gather(1, gold)[:, 0], logits.mean(1)
    largest = logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    log_total = (largest + total.log())[:, 0]
    nll = (log_total - gold_logit).sum()
    # d loss / d logit is p - smoothing / V, and 1 - smoothing less for the gold class.
    logits.div_(total).sub_(smoothing / logits.shape[1])
    logits.scatter_add_(1, gold, logits.new_full((1, 1), smoothing - 1).expand_as(gold))
    if not smoothing:
        return nll, nll
    return (1 - smoothing) * nll + smoothing * (log_total - mean).sum(), nll


def _in_chunks(
    sums: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], rows: Tensor, target: Tensor, chunk_rows: int
) -> tuple[Tensor, Tensor]:
    """Add up `sums` over chunks; of several, backward computes each again instead of keeping it."""
    if len(rows) <= chunk_rows:
        return sums(rows, target)
    # The logits of a chunk exist twice, in forward and again in backward, but never those of two chunks at once.
    parts = [
        checkpoint(sums, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(rows.split(chunk_rows), target.split(chunk_rows), strict=True)
    ]
    loss, nll = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    return loss, nll
