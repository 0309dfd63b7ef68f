"""Work on all cores with results in order and memory that does not grow with the input."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mclip_fairseq.storage.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 3
# What a worker process calls; sent to it once, for it may hold a lot.
_work: list[Callable[[Any], Any]] = []


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(function: Callable[[Any], Any]) -> None:
    _work.append(function)


def _call(item: Any) -> Any:
    return _work[-1](item)


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` over processes; items are taken only as fast as results are.

    Args:
        function: of a module, so that processes find it.
        items: taken one by one.
        workers: processes; 1 works in this one.

    Raises:
        UserError: a process died, usually because memory ran out.
    """
    if workers == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(function,)) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(_call, item))
                if len(pending) >= AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError("a worker process was ended by the system; give fewer --workers") from error
        finally:
            # An error must not wait for what is queued.
            pool.shutdown(wait=False, cancel_futures=True)
