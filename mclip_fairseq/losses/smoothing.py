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
# With a frozen table on a CPU: 8 MiB, which the caches hold.
CACHED_ELEMENTS = 2**21


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
    chunk_elements: int | None = None,
    fused: bool = True,
    counted: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`label_smoothed_nll` of `features @ weight.T`, of which no more than a chunk ever exists.

    With `fused`, gradients are made in the forward pass: one product for the logits, one for the gradient of the
    features and, if the table is trained, one for its own. Chunks are some classes of all rows if the table is frozen
    and all classes of some rows otherwise. Only the smoothed loss has a gradient. Rows that do not count are not
    multiplied at all.

    Args:
        features: (N, C), any floating dtype.
        weight: (V, C), output embedding.
        target: (N,) int64 class of each row, or `ignore_index`.
        epsilon: mass moved away from the gold class, 0 <= epsilon < 1.
        ignore_index: target of rows that do not count.
        kind: `fairseq` or `uniform`.
        chunk_elements: logits that exist at once; None is `CHUNK_ELEMENTS` or, on a GPU, `GPU_CHUNK_ELEMENTS`, and on
            a CPU `CACHED_ELEMENTS` if the table is frozen.
        fused: False computes chunks again in the backward pass, with less memory than all logits but more products.
        counted: how many targets count, where the caller knows it: a GPU need not be asked, and waited for.

    Returns:
        0-d sums of the smoothed loss and of the plain negative log likelihood.

    Raises:
        ValueError: the kind is unknown, or epsilon or chunk_elements is out of range.
    """
    smoothing = _uniform_smoothing(epsilon, len(weight), kind)
    if chunk_elements is not None and chunk_elements < 1:
        raise ValueError(f"chunk_elements is {chunk_elements}; give a positive number of logits")

    counts = target != ignore_index
    places = (counts.nonzero() if counted is None else torch.nonzero_static(counts, size=counted)).squeeze(1)
    rows, gold = features.index_select(0, places), target.index_select(0, places)
    compute = rows.dtype
    if torch.is_autocast_enabled(rows.device.type):
        compute = torch.get_autocast_dtype(rows.device.type)
    if fused and compute != torch.float16:
        with torch.autocast(rows.device.type, enabled=False):  # the table is cast once, not once a chunk
            loss, nll = _FusedLinear.apply(rows, weight, gold, smoothing, chunk_elements, compute)
        return loss, nll

    # Gradients in float16 need the loss scale, which only the backward pass knows: the chunks are computed again there.
    def sums(some: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _sum_of_rows(F.linear(some, weight), targets, smoothing, ignore_index)

    elements = _default_elements(weight, cached=False) if chunk_elements is None else chunk_elements
    loss, nll = _in_chunks(sums, rows, gold, max(1, elements // len(weight)))
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
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        target: Tensor,
        smoothing: float,
        elements: int | None,
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        rows_needed, table_needed = ctx.needs_input_grad[:2]
        features, table = rows.to(compute), weight.to(compute)
        if elements is None:
            elements = _default_elements(weight, cached=not table_needed)
        if table_needed:
            of_weight = torch.zeros_like(weight)
            loss, nll, of_rows = _by_rows(features, table, target, smoothing, elements, of_weight)
        else:
            of_weight = None
            loss, nll, of_rows = _by_classes(features, table, target, smoothing, elements, rows_needed)
        ctx.gradients = (of_rows.to(rows.dtype) if rows_needed else None), of_weight
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, of_weight = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.gradients)
        return of_rows, of_weight, None, None, None, None


def _default_elements(weight: Tensor, cached: bool) -> int:
    if weight.is_cuda:
        return GPU_CHUNK_ELEMENTS
    return CACHED_ELEMENTS if cached else CHUNK_ELEMENTS


def _by_rows(
    rows: Tensor, table: Tensor, target: Tensor, smoothing: float, elements: int, of_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, and the gradients of the smoothed one, for all classes of some rows at a time.

    Args:
        rows: (N, C).
        table: (V, C), of the same dtype.
        target: (N,) classes, which all count.
        smoothing: mass that is spread over all classes.
        elements: logits that exist at once.
        of_weight: (V, C), gets the gradient of the table added.

    Returns:
        the smoothed sum, that of the negative log likelihoods, and the (N, C) gradient of the rows.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    loss, nll, of_rows = rows.new_zeros((), dtype=wide), rows.new_zeros((), dtype=wide), torch.empty_like(rows)
    # Chunks of equal size, so that the last is not a small one; their logits share one piece of memory.
    size = even_size(len(rows), max(1, elements // len(table)))
    products = rows.new_empty(size, len(table))
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        logits = torch.mm(rows[chunk], table.T, out=products[: len(rows[chunk])]).to(wide)
        chunk_loss, chunk_nll = _sums_and_gradient(logits, target[chunk], smoothing)
        loss, nll = loss + chunk_loss, nll + chunk_nll
        gradient = logits.to(rows.dtype)
        of_rows[chunk] = gradient @ table
        if of_weight.dtype == rows.dtype:
            of_weight.addmm_(gradient.T, rows[chunk])
        else:
            of_weight += (gradient.T @ rows[chunk]).to(of_weight.dtype)
    return loss, nll, of_rows


def _by_classes(
    rows: Tensor, table: Tensor, target: Tensor, smoothing: float, elements: int, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_by_rows` returns, for some classes of all rows at a time: the table is read once.

    As in FlashAttention (arXiv 2205.14135), sums of exponentials are kept relative to the largest logit so far. With
    `gradient` False, the gradient is not made.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    largest = rows.new_full((len(rows), 1), -torch.inf, dtype=wide)
    total, mixture = torch.zeros_like(largest), torch.zeros_like(rows, dtype=wide)
    table_sum = table.new_zeros(table.shape[1], dtype=wide)
    for classes in table.split(max(1, elements // max(1, len(rows)))):
        logits = (rows @ classes.T).to(wide)
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        shrink, exponentials = (before - largest).exp_(), logits.sub_(largest).exp_()
        total.mul_(shrink).add_(exponentials.sum(1, keepdim=True))
        table_sum += classes.sum(0, dtype=wide)
        if gradient:
            mixture.mul_(shrink).add_(exponentials.to(rows.dtype) @ classes)
    gold = table.index_select(0, target).to(wide)
    log_total = (largest + total.log())[:, 0]
    gold_logit = (rows.to(wide) * gold).sum(1).to(rows.dtype).to(wide)  # rounded as the others are
    nll = (log_total - gold_logit).sum()
    mean = rows.to(wide) @ table_sum / len(table)
    loss = (1 - smoothing) * nll + smoothing * (log_total - mean).sum()
    # d loss / d logit is p - smoothing / V, and 1 - smoothing less for the gold class.
    of_rows = mixture.div_(total).sub_(gold, alpha=1 - smoothing).sub_(table_sum, alpha=smoothing / len(table))
    return loss, nll, of_rows


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
