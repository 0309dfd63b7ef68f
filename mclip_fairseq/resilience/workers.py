"""Data workers that neither take a run down with them nor outlive it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from typing import Any

import torch.utils.data

from mclip_fairseq.resilience import signals

_shielded: list[int] = []
_closing: list[weakref.ref[Any]] = []
_counted: weakref.WeakSet[Any] = weakref.WeakSet()


def shield_worker() -> None:
    """`shield` a data worker; does nothing in the trainer itself."""
    if torch.utils.data.get_worker_info() is not None:
        owner = multiprocessing.parent_process()  # with a fork server, this is not the parent process
        shield(os.getppid() if owner is None or owner.pid is None else owner.pid)


def shield_forked() -> None:
    """`shield` a child right after its fork: it inherits our handler, which would swallow SIGTERM."""
    if signals.listening():
        _shielded.clear()
        shield(os.getppid())  # multiprocessing still names the parent of the process that forked


def shield(trainer: int) -> None:
    """Let this process obey only the SIGTERM of its trainer.

    A scheduler signals every process of a job. If a worker died of that, the trainer could not finish its last step.

    Args:
        trainer: process id of the trainer.
    """
    if _shielded:
        return
    _shielded.append(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A handler does not learn who sent a signal, but a thread that waits for a blocked one does.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_obey, args=(trainer,), daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shield_forked)


def _obey(trainer: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
        pass
    os._exit(0)


def close_workers_at_exit(trainer: Any, iterator: Any) -> None:
    """End the workers of a trainer's iterators before torch waits five seconds for each of them.

    Args:
        trainer: fairseq's trainer.
        iterator: the one it trains on; a second call with the same one does nothing.
    """
    if iterator is None or iterator in _counted:
        return
    _counted.add(iterator)
    _closing[:] = [weakref.ref(trainer), weakref.ref(iterator)]
    # torch registers its own clean-up whenever workers start, and the function registered last runs first.
    atexit.unregister(close_remaining)
    atexit.register(close_remaining)


def close_remaining() -> None:
    """End the workers of the last run, as happens at the end of the process."""
    trainer, iterator = (reference() for reference in _closing) if _closing else (None, None)
    cached = list(getattr(getattr(trainer, "task", None), "dataset_to_epoch_iter", {}).values())
    for source in [iterator, *cached]:
        close_workers(source)


def discard(iterator: Any) -> None:
    """End the loader processes of an epoch iterator that is not used again, and close their pipes.

    Its parts refer to each other, so without this they would stay until the garbage collector runs.

    Args:
        iterator: fairseq's, or None.
    """
    close_workers(iterator)
    for part in ("_cur_epoch_itr", "_next_epoch_itr", "dataloader"):
        if hasattr(iterator, part):
            setattr(iterator, part, None)


def close_workers(iterator: Any) -> None:
    """End the loader processes of an epoch iterator.

    Args:
        iterator: fairseq's, of one epoch or of several.
    """
    running = getattr(getattr(iterator, "dataloader", None), "_iterator", None)
    shut_down = getattr(running, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
