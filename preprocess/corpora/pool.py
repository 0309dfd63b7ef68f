"""Map over all cores, with results in order and memory that does not grow with the input."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from mclip_fairseq.storage.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 3
# What a worker process calls; sent to it once, because it may be large.
_work: list[Callable[[Any], Any]] = []


def _start(function: Callable[[Any], Any]) -> None:
    _work.append(function)


def _call(item: Any) -> Any:
    return _work[-1](item)


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` over processes; items are consumed only as fast as results are.

    Args:
        function: defined at module level, so that processes can import it.
        items: consumed one by one.
        workers: number of processes; 1 works in this one, and so does a single item.

    Raises:
        UserError: a process died, usually because memory ran out.
    """
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if workers == 1 or len(first) < 2:
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
            raise UserError(
                "the system ended a worker process, probably because memory ran out; give fewer --workers"
            ) from error
        finally:
            # An error must not wait for the queue.
            pool.shutdown(wait=False, cancel_futures=True)
