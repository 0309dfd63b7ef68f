"""Large files behind any address of fsspec, and what a webdataset tar holds."""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")  # of file systems, the surest first
REMAKE = "make it again, or leave it out"


def list_parts(pattern: str, distinct: bool = True) -> list[str]:
    """The addresses that a pattern stands for, sorted.

    Args:
        pattern: a path or an address of fsspec, such as `s3://bucket/*.tar`; `*`, `?`, `[...]` and `{a,b}` are read.
        distinct: refuse two parts of one name.

    Raises:
        UserError: nothing fits, the file system cannot be reached, or two parts have the same name.
    """
    with asking(pattern):
        files = import_extra("fsspec", "scale").open_files(expanded(pattern))
        exist = all(file.fs.exists(file.path) for file in files)
    parts = sorted({file.fs.unstrip_protocol(file.path).removeprefix("file://") for file in files})
    if not parts or not exist:
        raise UserError(f"{pattern}: no such files; check the path, and quote a pattern")
    by_name: dict[str, str] = {}
    for part in parts if distinct else ():
        if by_name.setdefault(part_name(part), part) != part:
            raise UserError(f"{part}: has the same name as {by_name[part_name(part)]}; rename one of them")
    return parts


def expanded(pattern: str) -> list[str]:
    """The patterns that braces stand for."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if group is None:
        return [pattern]
    choices = group[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", group[1]):
        width = len(numbers[1])
        choices = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    return [each for choice in choices for each in expanded(pattern[: group.start()] + choice + pattern[group.end() :])]


def part_name(part: str) -> str:
    """The name of a part: the last piece of its address up to the first dot."""
    return PurePosixPath(part).name.partition(".")[0]


def filesystem_of(address: str, fresh: bool = False) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Args:
        address: of fsspec.
        fresh: make a new object, for a process that was forked.

    Raises:
        UserError: the address is of no known kind, or its package is missing.
    """
    with asking(address):
        filesystem, path = import_extra("fsspec", "scale").core.url_to_fs(address, skip_instance_cache=fresh)
    return filesystem, str(path)


def stamp_of(address: str) -> str:
    """Size and time of change (or tag) of a file, which costs no reading."""
    filesystem, path = filesystem_of(address)
    with asking(address):
        facts = filesystem.info(path)
    return f"{facts.get('size')}\t{next((facts[name] for name in STAMPS if facts.get(name) is not None), None)}"


@contextlib.contextmanager
def asking(place: str) -> Iterator[None]:
    """Say in one sentence what a file system refuses."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{place}: no such file; check the path") from error
    except ImportError as error:  # fsspec names the package
        raise UserError(f"{place}: {error}") from error
    except Exception as error:  # each file system has errors of its own
        raise UserError(
            f"{place}: cannot be read: {type(error).__name__}: {error}; check address and rights"
        ) from error


def tar_members(part: str, stream: BinaryIO) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, ending, member) of the files of a webdataset tar; a key ends at the first dot of the last piece."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                if member.isfile() and key:
                    yield (f"{folder}/{key}" if folder else key), ending.lower(), member
    except tarfile.TarError as error:
        raise UserError(f"{part}: is not a tar, or is truncated ({error}); {REMAKE}") from error
