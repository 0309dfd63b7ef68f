"""Names of temporary files and directories: each says which process makes it, so that no other removes it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

TEMPORARY = "tmp"
OWNED = re.compile(r".+\.(?P<machine>[\w-]+)\.(?P<process>\d+)\.\w+")
ABANDONED_SECONDS = 7 * 86400  # what another machine has not touched for so long is nobody's
ALL_PROCESSES = 4026531836  # the number of Linux's first namespace of processes, which is that of no container


def host_name() -> str:
    """Name of this machine, as a part of a file name."""
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def machine() -> str:
    """Where process numbers mean the same as here: this machine, or this container on it."""
    with contextlib.suppress(OSError):  # only Linux has containers
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return host_name() if namespace == ALL_PROCESSES else f"{host_name()}-{namespace}"
    return host_name()


def owner() -> str:
    """This process, as a part of a file name: `MACHINE.PROCESS`."""
    return f"{machine()}.{os.getpid()}"


def own_name(path: Path, kind: str = TEMPORARY) -> Path:
    """The path beside a file or directory for something that this process makes for it: `NAME.MACHINE.PROCESS.KIND`."""
    return path.with_name(f"{path.name}.{owner()}.{kind}")


def owner_is_alive(path: Path) -> bool:
    """Whether a temporary name is that of a process of this machine that runs, other than this process.

    This one's own number is that of an earlier process: in a container, the same command gets it again after a kill.
    """
    named = OWNED.fullmatch(path.name)
    if named is None or named["machine"] != machine() or int(named["process"]) == os.getpid():
        return False
    try:
        os.kill(int(named["process"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # it is another user's; or no process has such a number
        return int(named["process"]) < 2**31
    return True


def is_leftover(path: Path) -> bool:
    """Whether a killed process has left this: of this machine, or of another one where it has not changed for long."""
    named = OWNED.fullmatch(path.name)
    if named is None:
        return False
    if named["machine"] == machine():
        return not owner_is_alive(path)
    try:
        return time.time() - path.lstat().st_ctime > ABANDONED_SECONDS
    except OSError:  # its owner has just removed it
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a directory, which may be missing."""
    for path in folder.glob(f"*.{TEMPORARY}"):
        if is_leftover(path):
            path.unlink(missing_ok=True)
