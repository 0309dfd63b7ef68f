"""The losses alone: how far they are from float64, and what the contrast costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.measuring import Report, Sizes, products
from mclip_fairseq.losses import chunked_linear_label_smoothed_nll, global_info_nce

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DIM, SCALE = 768, 20.0


def exactness(report: Report, size: Sizes) -> None:
    """Relative errors of value and gradient against float64 on the CPU, from the same rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    first, second = (F.normalize(torch.randn(96, 64, generator=generator), dim=1) for _ in range(2))
    group = torch.arange(96) // 3
    states, table = torch.randn(300, 64, generator=generator), torch.randn(1000, 64, generator=generator) / 8
    target = torch.randint(2, 1000, (300,), generator=generator)
    target[torch.rand(300, generator=generator) < 0.2] = 1

    def translation(x: Tensor, y: Tensor) -> Tensor:
        return chunked_linear_label_smoothed_nll(x, y, target.to(x.device), 0.1, 1, chunk_elements=64_000)[0]

    losses: dict[str, tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
        "contrast": (first, second, lambda x, y: global_info_nce(x, y, SCALE, ids=group.to(x.device)).loss),
        "contrast in blocks": (
            first,
            second,
            lambda x, y: global_info_nce(x, y, SCALE, ids=group.to(x.device), block_rows=32).loss,
        ),
        "translation": (states, table, translation),
        "translation with a trained table": (states, table, lambda x, y: translation(x, y.detach().requires_grad_())),
    }
    for name, (x, y, loss) in losses.items():
        for dtype in DTYPES:
            value, slope = errors(x.to(dtype), y.to(dtype), loss, report.device)
            report.add("exactness", f"{name}, {str(dtype).removeprefix('torch.')}", value=value, gradient=slope)


def errors(x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], where: torch.device) -> tuple[float, float]:
    """How far value and gradient of x are from those of float64 on the CPU, relative to these."""
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (where, x.dtype)):
        leaf = x.to(device, dtype).requires_grad_()
        value = loss(leaf, y.to(device, dtype))
        results.append((value.item(), torch.autograd.grad(value, leaf)[0].double().cpu()))
    (exact, exact_slope), (found, slope) = results
    return abs(found - exact) / abs(exact), float((slope - exact_slope).norm() / exact_slope.norm())


def contrast(report: Report, size: Sizes) -> None:
    """Forward and backward of large batches, each pair its own positive or in groups of two."""
    for rows in size.contrast:
        x, y = (F.normalize(torch.randn(rows, DIM, device=report.device), dim=1).requires_grad_() for _ in range(2))
        scale = torch.tensor(SCALE, device=report.device, requires_grad=True)
        for ids in (None, torch.arange(rows, device=report.device) // 2):
            for precision in ("fp32", "tf32"):

                def step(ids: Tensor | None = ids, x: Tensor = x, y: Tensor = y, scale: Tensor = scale) -> None:
                    torch.autograd.grad(global_info_nce(x, y, scale, ids=ids).loss, (x, y, scale))

                what = f"{rows} rows{', in groups' if ids is not None else ''}, {precision}"
                try:
                    with products(precision):
                        gib = report.peak_gib(step)
                        report.add("contrast", what, ms=1000 * report.seconds(step), gib=gib)
                except torch.OutOfMemoryError:
                    report.add("contrast", what, error="out of memory")
                    torch.cuda.empty_cache()


def ceilings(report: Report, size: Sizes) -> None:
    """A large matrix product in each precision, and a copy: what the device can do at best."""
    n = size.matmul
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        if name != "fp16" or report.on_gpu:
            report.ceiling[name] = product(report, n, dtype, name)
    report.ceiling["fp32"] = product(report, n, torch.float32, "fp32")
    for name, tflops in report.ceiling.items():
        report.add("ceiling", f"product of matrices of {n} x {n}, {name}", tflops=tflops)
    source = torch.zeros(size.copied, dtype=torch.uint8, device=report.device)
    copy = torch.empty_like(source)
    report.add("ceiling", "copy on the device", gb_s=2 * size.copied / report.seconds(lambda: copy.copy_(source)) / 1e9)


def product(report: Report, n: int, dtype: torch.dtype, precision: str) -> float:
    """TFLOP/s of a product of two (n, n) matrices."""
    a, b = (torch.randn(n, n, device=report.device).to(dtype) for _ in range(2))
    with products(precision):
        return 2 * n**3 / report.seconds(lambda: a @ b) / 1e12
