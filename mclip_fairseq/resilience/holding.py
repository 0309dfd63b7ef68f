"""One run holds its --save-dir: a second one is told who does, and a killed run leaves nothing behind.

The lock is a POSIX record lock on a file of the directory. The kernel gives it back when its process ends, however
that happens; processes that were forked from it do not keep it; and NFS passes it on to its server.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

import torch.distributed as dist

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import printable
from mclip_fairseq.storage.owners import host_name

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOCK = ".mclip_lock"
HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold a directory inside a `with` block; on a file system without locks, a warning says that nothing holds it.

    Raises:
        UserError: another run holds it, or it cannot be written to.
    """
    folder = Path(folder)
    with _open(folder) as stream:
        locked = _lock(stream, folder)
        if locked:
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {host_name()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            stream.flush()
        try:
            yield
        finally:
            if locked:
                with contextlib.suppress(OSError):  # the disk may be gone, and the run has its own error for that
                    stream.truncate(0)


def _open(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a+", encoding="utf-8")
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--save-dir {folder}: is not a directory; give another one") from error
    except OSError as error:
        raise UserError(f"--save-dir {folder}: cannot be written ({error.strerror}); give another one") from error


def _lock(stream: TextIO, folder: Path) -> bool:
    """Take the lock; False where there are none."""
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD_ELSEWHERE:
            stream.seek(0)
            holder = printable(stream.read(200)) or "another process"
            raise UserError(
                f"--save-dir {folder}: another run holds it ({holder}); wait for it to end, stop it, or give another "
                "--save-dir"
            ) from error
        if error.errno not in NO_LOCKS:
            raise UserError(f"--save-dir {folder}: cannot be locked ({error.strerror}); give another one") from error
        logger.warning("%s: its file system has no locks, so nothing keeps a second run out", folder)
        return False
    return True


@contextlib.contextmanager
def held_by_rank_zero(folder: str | Path, rank: int) -> Iterator[None]:
    """`held` on rank 0; every other rank waits for it, and raises its error as well.

    Args:
        folder: the directory.
        rank: of this process among all.
    """
    with contextlib.ExitStack() as stack:
        decided_by_rank_zero(lambda: stack.enter_context(held(folder)), rank)
        yield


def decided_by_rank_zero(decide: Callable[[], T], rank: int) -> T:
    """Let rank 0 decide, and pass its decision, or its error, to all ranks.

    Args:
        decide: called on rank 0; its answer must be picklable where there are several ranks.
        rank: of this process among all.

    Raises:
        UserError: on all ranks, where `decide` raises one on rank 0.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return decide()
    answer: list[T | str | None] = [None, None]
    if rank == 0:
        try:
            answer[0] = decide()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise UserError(str(answer[1]))
    return answer[0]  # type: ignore[return-value]
