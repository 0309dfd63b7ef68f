"""Helpers for the benchmarks: time and peak memory of a piece of work, and a table."""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


class Seconds(NamedTuple):
    """Time of one piece of work: of all cores together, and on the clock."""

    cpu: float
    wall: float


def timed(work: Callable[[], object]) -> Seconds:
    """Time of a piece of work, with the processes that it starts and waits for."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    return Seconds(cpu_seconds() - cpu, time.perf_counter() - wall)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def medians_of_rounds(
    ways: Mapping[str, Callable[[], object]], rounds: int = 3, uncounted: int = 1
) -> dict[str, Seconds]:
    """Median seconds of each way, taken in turn, so that all of them meet the same disturbances.

    Args:
        ways: what is measured.
        rounds: that count.
        uncounted: rounds before them.
    """
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for number in range(-uncounted, rounds):
        for name, work in ways.items():
            seconds = timed(work)
            if number >= 0:
                times[name].append(seconds)
    return {
        name: Seconds(statistics.median(one.cpu for one in some), statistics.median(one.wall for one in some))
        for name, some in times.items()
    }


def medians_and_growth(
    ways: Mapping[str, Callable[[], object]], rounds: int = 3, uncounted: int = 1
) -> tuple[dict[str, Seconds], dict[str, float]]:
    """`medians_of_rounds`, and how many MiB memory grew at its peak in the last round of each way (`growth_during`)."""
    growth: dict[str, float] = {}

    def watched(name: str) -> None:
        growth[name] = growth_during(ways[name])

    return medians_of_rounds({name: partial(watched, name) for name in ways}, rounds, uncounted), growth


def growth_in_child(work: Callable[..., object], *arguments: Any) -> float:
    """How many MiB the peak memory of a fresh process grows while it calls a module's function."""
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        return pool.submit(_growth, work, arguments).result()


def _growth(work: Callable[..., object], arguments: tuple[Any, ...]) -> float:
    before = _peak_since_start()
    work(*arguments)
    return _peak_since_start() - before


def _peak_since_start() -> float:
    """`peak_mib` without what the parent held when it started this process, which Linux counts there."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_mib()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def growth_during(work: Callable[[], object]) -> float:
    """How many MiB the memory of this process grows at its peak during a piece of work, on Linux.

    Memory that was freed before is returned to the system, so that using it again counts.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = _peak_since_start()
    work()
    return _peak_since_start() - before


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Let malloc return memory of 64 KiB and more as soon as it is freed, so that a peak is what was in use at once.

    Otherwise it keeps holes between what is in use, a quarter of the whole for `mte_step`. This costs time.
    """
    libc, mmap_threshold, largest = ctypes.CDLL(None), -3, 2**25  # glibc's name of the setting, and its default limit
    libc.mallopt(mmap_threshold, 2**16)
    try:
        yield
    finally:
        libc.mallopt(mmap_threshold, largest)


def peak_mib() -> float:
    """The peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_ratios(measured: Mapping[str, Seconds], base: str) -> None:
    """Print the seconds of each way, and how many times as long as `base` it takes."""
    one = measured[base]
    rows = [
        [name, f"{s.cpu:.3f}", f"{s.cpu / one.cpu:.2f}", f"{s.wall:.3f}", f"{s.wall / one.wall:.2f}"]
        for name, s in measured.items()
    ]
    print_table(["", "CPU s", "ratio", "wall s", "ratio"], rows)


def print_growth(growth: Mapping[str, float], base: str) -> None:
    """Print the MiB of each way, and how many times those of `base` they are."""
    rows = [[name, f"{mib:.0f}", f"{mib / growth[base]:.2f}"] for name, mib in growth.items()]
    print_table(["", "MiB at the peak", "ratio"], rows)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
