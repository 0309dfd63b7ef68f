"""Directories that are written whole: beside their final place first, then moved, with ordinary file modes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new directory beside `output`, whose files are moved there once the block has ended without an error.

    A new or empty `output` appears in one step. Files of an older one are replaced one by one, each in one step, and
    its other files stay.

    Args:
        output: the final directory.
    """
    output = Path(os.path.abspath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    staging = output.with_name(f".{output.name}.{os.getpid()}.part")
    staging.mkdir()
    try:
        yield staging
        give_ordinary_modes(staging)
        if not output.is_dir() or not any(output.iterdir()):
            if output.is_dir():
                output.rmdir()
            os.rename(staging, output)
        else:
            replace_files(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(output: Path) -> None:
    """Remove what killed processes have left beside a directory; those of running ones stay."""
    name = re.compile(rf"\.{re.escape(output.name)}\.(\d+)\.part")
    for path in output.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def replace_files(source: Path, target: Path) -> None:
    """Move all files below a directory to the same places below another one, over those that are there."""
    for parent, _, names in os.walk(source):
        place = target / os.path.relpath(parent, source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(os.path.join(parent, name), place / name)


def give_ordinary_modes(folder: Path) -> None:
    """Give all files and folders below a directory the modes of newly made ones; some libraries write 0600."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
