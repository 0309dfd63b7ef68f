"""Directories that are written whole: beside their final place first, then moved, with ordinary file modes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256
from mclip_fairseq.storage.owners import is_leftover, own_name

# Of Linux's `renameat2`: paths are seen from the working directory, and two names are exchanged.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new directory beside `output`, which takes its place once the block has ended without an error.

    The files of an older `output` that the new one does not have are kept. However the process ends, `output` is the
    older directory or the new one; where the system cannot exchange two directories in one step, a kill at that moment
    moves the older one aside, and the next call puts it back.

    Args:
        output: the final directory.

    Raises:
        UserError: `output` cannot be made or replaced. What was written is kept, and named, if that shows at the end.
    """
    output = Path(os.path.realpath(output))
    check_no_mounts(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; give a directory")
    staging = beside(output, "part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tidy_up(output)
        staging.mkdir()
    except OSError as error:
        raise UserError(f"{output}: cannot be made ({error.strerror}: {error.filename}); give another path") from error
    try:
        yield staging
        give_ordinary_modes(staging)
        put_in_place(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def make_new(output: Path, make: Callable[[Path], object]) -> bool:
    """Make a directory that holds nothing else.

    Args:
        output: the directory.
        make: makes it whole, such as by `staged`.

    Returns:
        False where the same one exists already; it is made once more to find out.

    Raises:
        UserError: the directory holds something else.
    """
    if not (output.exists() and any(output.iterdir())):
        make(output)
        return True
    aside = beside(output, "part")
    tidy_up(output)
    try:
        again = aside / output.name
        make(again)
        if contents(again) != contents(output):
            raise UserError(f"{output}: is not empty; give a new directory")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return False


def contents(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all files below a directory."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def check_no_mounts(output: Path) -> None:
    """Refuse a directory in which something is mounted: it would move along with the older one, and be emptied with it.

    Raises:
        UserError: naming the mount point.
    """
    if os.path.ismount(output):
        raise UserError(f"{output}: is a mount point, which cannot be replaced in one step; give a directory in it")
    inner = next((place for place in mount_points() if place.is_relative_to(output)), None)
    if inner is not None:
        raise UserError(f"{output}: cannot be replaced, because {inner} is a mount point; unmount it, or give another")


def mount_points() -> list[Path]:
    """Where file systems and directories are mounted, as far as the system lists that."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    # Spaces, tabs, line feeds and backslashes of a path are written as \040 and the like.
    places = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines)
    return [Path(place) for place in places]


def put_in_place(staging: Path, output: Path) -> None:
    """Let a finished directory take its place.

    Raises:
        UserError: the system refuses it; the message says where the directory is.
    """
    try:
        if output.is_dir() and any(output.iterdir()):
            keep_others(output, staging)
            exchange(output, staging)
        else:
            os.rename(staging, output)
    except OSError as error:
        complete = beside(output, "complete")
        os.rename(staging, complete)
        raise UserError(
            f"{output}: cannot be replaced ({error.strerror}); move {complete}, which holds all that was written, to "
            "where you want it"
        ) from error


def beside(output: Path, kind: str) -> Path:
    """The hidden path beside a directory for something that this process makes for it."""
    return own_name(output.with_name(f".{output.name}"), kind)


def tidy_up(output: Path) -> None:
    """Remove what killed processes have left beside a directory, or put it back if it is the older directory.

    What belongs to running processes stays.
    """
    name = re.compile(rf"\.{re.escape(output.name)}\.[\w-]+\.\d+\.(part|old)")
    for path in output.parent.iterdir():
        match = name.fullmatch(path.name)
        if not match or not is_leftover(path):
            continue
        if match[1] == "old" and not output.exists():
            os.rename(path, output)
        else:
            shutil.rmtree(path, ignore_errors=True)


def keep_others(older: Path, newer: Path) -> None:
    """Take the files of an older directory into a newer one, as hard links, unless it has files in their places."""

    def replaced(folder: str, names: list[str]) -> list[str]:
        place = newer / os.path.relpath(folder, older)
        return [name for name in names if not both_folders(Path(folder, name), place / name)]

    def both_folders(one: Path, other: Path) -> bool:
        return not os.path.lexists(other) or all(path.is_dir() and not path.is_symlink() for path in (one, other))

    shutil.copytree(older, newer, symlinks=True, ignore=replaced, copy_function=link_or_copy, dirs_exist_ok=True)


def link_or_copy(source: str, target: str) -> None:
    """Make a hard link, or a copy on a disk without them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def exchange(output: Path, staging: Path) -> None:
    """Exchange two directories; in one step, if the system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(output), os.fsencode(staging)
    if renameat2 is not None and renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    aside = beside(output, "old")
    os.rename(output, aside)
    try:
        os.rename(staging, output)
    except OSError:
        os.rename(aside, output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def give_ordinary_modes(folder: Path) -> None:
    """Give all files and folders below a directory the modes of newly made ones; some libraries write 0600."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
