"""Processes that a test starts and signals: their descendants, their logs, and whether they are still alive."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.python_path import python_path
from tests.runs import HANG


def children(pid: int) -> list[int]:
    """All descendants of a process; fairseq starts its data workers in a thread."""
    names = [name for thread in Path(f"/proc/{pid}/task").glob("*/children") for name in thread.read_text().split()]
    return [one for child in map(int, names) for one in [child, *children(child)]]


def wait_for_children(count: int, process: subprocess.Popen[bytes]) -> list[int]:
    """All descendants of a process, once there are as many; data workers come and go with their epoch."""
    end = time.monotonic() + HANG
    while len(pids := children(process.pid)) < count and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    assert len(pids) >= count
    return pids


def obey_interrupts() -> None:
    """Undo what a shell does to programs started with `&`: they and their children ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: Sequence[object], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    path = {**os.environ, "PYTHONPATH": python_path(), **environment}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [*map(str, command)],
            stdout=stream,
            stderr=stream,
            env=path,
            start_new_session=True,
            preexec_fn=obey_interrupts,
        )


def wait_for(what: str, log: Path, process: subprocess.Popen[bytes], patience: float = HANG) -> str:
    """The log, once it contains some words."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if what in log.read_text(errors="replace"):
            return log.read_text(errors="replace")
        time.sleep(0.05)
    raise AssertionError(f"{what!r} is not in the log:\n{log.read_text(errors='replace')[-4000:]}")


def alive(processes: Sequence[int], patience: float = HANG) -> list[int]:
    """Those of the processes that are still alive after a while, which is over once none is."""
    end = time.monotonic() + patience
    while (left := [pid for pid in processes if "State:\tZ" not in status(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"
