"""What the GPU benchmark measures: time, memory, waits and arithmetic of a piece of work."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = ("fp32", "tf32", "bf16")
# A measurement takes about this many seconds, and at least this many runs.
SECONDS, LEAST_RUNS, MOST_RUNS = 1.0, 3, 20


@dataclass(frozen=True)
class Sizes:
    """How large the work is.

    Attributes:
        tiny: one narrow layer instead of published models.
        matmul: edge of the matrices whose product is the ceiling.
        copied: bytes of the copy on the device.
        entries: of the token table.
        batch: captions of a TriKD step.
        longest: tokens of the longest caption.
        target_tokens: of an MTE step.
        contrast: rows of the contrast.
        texts: encoded at once.
        images: encoded at once.
        photos: JPEGs of the features.
        gallery: images of the retrieval, each with five captions.
    """

    tiny: bool = False
    matmul: int = 8192
    copied: int = 2**32
    entries: int = 250_002
    batch: int = 2048
    longest: int = 32
    target_tokens: int = 8192
    contrast: tuple[int, ...] = (16_384, 32_768, 65_536)
    texts: int = 4096
    images: int = 512
    photos: int = 4096
    gallery: int = 5000


TINY = Sizes(
    tiny=True,
    matmul=128,
    copied=2**20,
    entries=300,
    batch=8,
    longest=12,
    target_tokens=64,
    contrast=(64,),
    texts=16,
    images=4,
    photos=6,
    gallery=20,
)


class Report:
    """Measures on one device, and keeps the figures, each of which it prints at once.

    Args:
        device: the GPU, or the CPU.

    Attributes:
        on_gpu: whether it is a GPU.
        rows: one dict per figure or group of figures.
        ceiling: precision -> measured TFLOP/s of a large matrix product.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.rows: list[dict[str, Any]] = []
        self.ceiling: dict[str, float] = {}

    def add(self, section: str, what: str, **figures: Any) -> None:
        """Print and keep a line."""
        self.rows.append({"section": section, "what": what, **figures})
        shown = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        )
        print(f"{section:<10} {what:<48} {shown}", flush=True)

    def add_work(self, section: str, what: str, precision: str, work: Callable[[], object], **per_run: float) -> None:
        """Measure a training step or the like in all ways and add a line.

        Args:
            section: of the line.
            what: is measured.
            precision: whose ceiling it is compared with.
            work: the step.
            **per_run: how much of something one run does; given as `NAME_s`, per second.
        """
        try:
            took = self.seconds(work)
            ahead = self.seconds_back_to_back(work)
            tflops = flops(work) / ahead / 1e12
            figures: dict[str, Any] = {"ms": 1000 * took, "ms_back_to_back": 1000 * ahead}
            figures |= {f"{name}_s": amount / ahead for name, amount in per_run.items()}
            figures |= {"tflops": tflops, "gib": self.peak_gib(work)}
            if precision in self.ceiling:  # the section `ceilings` may not have run
                figures["share"] = tflops / self.ceiling[precision]
            places = self.waits(work)
            figures |= {"waits": len(places), "at": ",".join(sorted(set(places)))}
        except torch.OutOfMemoryError:
            figures = {"error": "out of memory"}
            torch.cuda.empty_cache()
        self.add(section, what, **figures)

    def synchronise(self) -> None:
        """Wait until the GPU has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Median time of runs, each closed by a wait for the GPU; two runs that do not count come first."""
        times = []
        for number in range(2 + MOST_RUNS):
            start = time.perf_counter()
            work()
            self.synchronise()
            if number >= 2:
                times.append(time.perf_counter() - start)
            if len(times) >= LEAST_RUNS and sum(times) > SECONDS:
                break
        return sorted(times)[len(times) // 2]

    def seconds_back_to_back(self, work: Callable[[], object]) -> float:
        """Mean time of runs without a wait in between: the CPU may prepare the next while the GPU is busy."""
        self.synchronise()
        start = time.perf_counter()
        for number in range(1, MOST_RUNS + 1):
            work()
            if number >= LEAST_RUNS and time.perf_counter() - start > SECONDS:
                break
        self.synchronise()
        return (time.perf_counter() - start) / number

    def peak_gib(self, work: Callable[[], object]) -> float:
        """The most memory of the GPU that tensors take during a run, those before it included; 0 on a CPU."""
        if not self.on_gpu:
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.synchronise()
        return float(torch.cuda.max_memory_allocated() / 2**30)

    def waits(self, work: Callable[[], object]) -> list[str]:
        """Where the CPU waits for the GPU during a run: `file:line`, once for each time; empty on a CPU."""
        if not self.on_gpu:
            work()
            return []
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]


def flops(work: Callable[[], object]) -> float:
    """Operations of the matrix products of a run."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """How float32 matrix products are computed: in TF32 for `tf32`, else in full precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """`products`, with autocast for `bf16`: what inference does."""
    with products(name), torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
        yield
