"""Processes that SIGKILL ends at a chosen step of what they write."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Audit events of Python that change a file system.
CHANGES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod"}


def is_change(event: str, arguments: tuple[Any, ...], below: Path) -> bool:
    """Whether an audit event changes something below a folder."""
    if event == "open":
        writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        return writes and str(arguments[0]).startswith(f"{below}/")
    if event in CHANGES:
        inside_a_removal = event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None)
        return inside_a_removal or str(arguments[0]).startswith(f"{below}/")
    return False


def is_killed(step: int, run: Callable[[], object], below: Path) -> bool:
    """Call a function in a process that is killed just before its n-th change of files; False if it ends before that.

    Args:
        step: n, from 1.
        run: ends with 0 or None if all is well.
        below: folder whose changes count.
    """
    child = os.fork()
    if child == 0:
        count, status = 0, 1

        def count_down(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if is_change(event, arguments, below):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count_down)
            status = int(bool(run()))
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def kill_everywhere(run: Callable[[], object], below: Path, stride: int = 1) -> Iterator[int]:
    """Kill a function at one change after the other, until it ends by itself; yields the step of each kill.

    Args:
        run: see `is_killed`.
        below: see `is_killed`.
        stride: 1: at every change; 3: at every third.
    """
    step = 1
    while is_killed(step, run, below):
        yield step
        step += stride
