"""Console scripts whose processes share their work when `torchrun` starts several of them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator


@contextlib.contextmanager
def joined_ranks() -> Iterator[tuple[bool, str | None]]:
    """Join the processes that `torchrun` has started; alone, nothing is joined.

    Only the first process prints. The others take the same steps, because every exchange needs all of them.

    Yields:
        whether this is the first process, and its device (`cuda:N` where the machine has GPUs for all of its
        processes); None where it runs alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True, None
        return
    import torch
    import torch.distributed as dist

    number = int(os.environ.get("LOCAL_RANK", "0"))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = f"cuda:{number}" if torch.cuda.device_count() >= beside else "cpu"
    dist.init_process_group("gloo")  # what is exchanged lies on the CPU
    first = dist.get_rank() == 0
    try:
        with contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO()):
            yield first, device
    finally:
        dist.destroy_process_group()
