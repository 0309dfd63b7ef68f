"""Batch requests for one model: those that arrive while it is busy are computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

MAX_BATCH = 32
MAX_WAITING = 256


class Busy(Exception):
    """Too many items are waiting."""


class Batcher:
    """Collects items and hands them to a function in batches; one batch is computed at a time.

    Args:
        function: items -> results, in the same order; runs in the executor.
        executor: runs the function.
        most: items of a batch.
    """

    def __init__(
        self, function: Callable[[Sequence[Any]], Sequence[Any]], executor: Executor, most: int = MAX_BATCH
    ) -> None:
        self.function, self.executor, self.most = function, executor, most
        self.waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, item: Any) -> Any:
        """The result of one item.

        Raises:
            Busy: too many items are waiting.
        """
        if len(self.waiting) >= MAX_WAITING:
            raise Busy
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting[: self.most], self.waiting[self.most :]
            # Requests that were cancelled meanwhile need no result.
            batch = [(item, future) for item, future in batch if not future.cancelled()]
            items = [item for item, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self.executor, self.function, items)
            except Exception as error:  # one failure must not stop the loop for later requests
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
