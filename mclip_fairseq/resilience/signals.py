"""SIGTERM and SIGUSR1 ask a run to finish its step, save and end; SLURM sends them before it takes a machine away."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from mclip_fairseq.losses.gather import several_ranks, sum_over_ranks

logger = logging.getLogger(__name__)
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
_received: list[int] = []
_before: dict[int, Any] = {}
_listeners: list[int] = []


def listen() -> None:
    """Note signals from now on; nothing changes outside the main thread, the only one that may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        return
    _listeners.append(1)
    if _before:
        return
    for number in SIGNALS:
        _before[number] = signal.signal(number, _note)


def listen_no_more() -> None:
    """Restore the previous handlers once the last listener is gone."""
    if threading.current_thread() is not threading.main_thread() or not _listeners:
        return
    _listeners.pop()
    if _listeners:
        return
    for number, handler in _before.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    _before.clear()
    _received.clear()


def listening() -> bool:
    """Whether a run of this process, or of the one it was forked from, notes signals."""
    return bool(_listeners)


@contextlib.contextmanager
def forwarded() -> Iterator[None]:
    """Forward signals to the processes that this one starts, and wait for them to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _forward(number: int, frame: FrameType | None) -> None:
    children = multiprocessing.active_children()
    if not children:  # nobody would notice the signal
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for process in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, number)


def _note(number: int, frame: FrameType | None) -> None:
    # No logging here: the signal may have come in the middle of a log line.
    _received.append(number)


def asked_to_stop(device: torch.device | str = "cpu") -> str:
    """Name of the signal that some rank has received, else empty. Every rank must call this, and all get one answer.

    Args:
        device: of a tensor that the process group can sum.
    """
    counts = [float(_received.count(number)) for number in SIGNALS]
    if several_ranks():  # one rank alone does not make its GPU wait
        counts = sum_over_ranks(torch.tensor(counts, device=device)).tolist()
    return next((signal.Signals(n).name for n, count in zip(SIGNALS, counts, strict=True) if count), "")
