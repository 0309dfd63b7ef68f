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
from typing import TypeVar

import torch.distributed as dist

from mclip_fairseq.storage import locks
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import printable
from mclip_fairseq.storage.owners import host_name

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOCK = ".mclip_lock"
# Directories that this process holds -> the handle of the lock file, for `check_still_held`.
_handles: dict[Path, int] = {}


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold a directory inside a `with` block; on a file system without locks, a warning says that nothing holds it.

    Raises:
        UserError: another run holds it, or it cannot be written to.
    """
    folder = Path(folder)
    _take(folder)
    try:
        yield
    finally:
        handle = _handles.pop(folder, None)
        if handle is not None:
            with contextlib.suppress(OSError):  # the disk may be gone, and the run has its own error for that
                os.ftruncate(handle, 0)
            os.close(handle)


def check_still_held(folder: str | Path) -> None:
    """Hold a directory again if it was removed while this process held it: another run may have begun in its place.

    Args:
        folder: where this process is about to write; nothing is done for one that it does not hold or that is missing.

    Raises:
        UserError: another run holds it now.
    """
    folder = Path(folder)
    if folder not in _handles or not folder.is_dir() or _is_the_same_file(_handles[folder], folder / LOCK):
        return
    logger.warning("%s: was removed or replaced while this run held it; the run continues in the new one", folder)
    os.close(_handles.pop(folder))
    _take(folder)


def _is_the_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def _take(folder: Path) -> None:
    """Lock a directory, and write into the lock file who holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = locks.open_own(folder / LOCK)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--save-dir {folder}: is not a directory; give another one") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"--save-dir {folder}: its {LOCK} is a link to another file; remove the link") from error
        raise UserError(f"--save-dir {folder}: cannot be written ({error.strerror}); give another one") from error
    try:
        if _lock(handle, folder):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {host_name()}, since {time.strftime('%F %T')}\n".encode())
    except OSError as error:
        os.close(handle)
        raise UserError(f"--save-dir {folder}: cannot be locked ({error.strerror}); give another one") from error
    except UserError:
        os.close(handle)
        raise
    _handles[folder] = handle


def _lock(handle: int, folder: Path) -> bool:
    """Take the lock; False where there are none."""
    taken = locks.take(fcntl.lockf, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if taken is None:
        logger.warning("%s: its file system has no locks, so nothing keeps a second run out", folder)
    elif not taken:
        holder = printable(os.pread(handle, 200, 0).decode(errors="replace")) or "another process"
        raise UserError(
            f"--save-dir {folder}: another run holds it ({holder}); wait for it to end, stop it, or give another "
            "--save-dir"
        )
    return bool(taken)


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
