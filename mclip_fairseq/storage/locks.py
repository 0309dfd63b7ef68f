"""Lock files: opened where they are and not where a link leads, and taken as far as the file system has locks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


def open_own(path: str | Path, flags: int = os.O_RDWR) -> int:
    """Open or create a file of ours in a directory that may come from elsewhere: a link in its place is an error.

    Args:
        path: of the file.
        flags: of `os.open`.

    Raises:
        OSError: see `os.open`; ELOOP for a link.
    """
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def take(lock: Callable[[int, int], object], handle: int, how: int) -> bool | None:
    """Take a lock.

    Args:
        lock: `fcntl.flock` or `fcntl.lockf`.
        handle: of the open file.
        how: its second argument.

    Returns:
        True: this process has it; False: another one has; None: the file system has no locks.
    """
    try:
        lock(handle, how)
    except OSError as error:
        if error.errno in HELD_ELSEWHERE:
            return False
        if error.errno in NO_LOCKS:
            return None
        raise
    return True
