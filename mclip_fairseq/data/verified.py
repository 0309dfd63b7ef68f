"""Which files of a feature directory have been verified and not been touched since, so that no run reads them twice.

The record lies in the directory and holds what the file system says of each file. Whoever changes a file changes that,
and so does a copy: the file is verified anew.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclip_fairseq.data.files import read_json, write_bytes

RECORD = ".verified.json"
# A file that was written this shortly before could be written again without a sign: clocks of file systems are coarse.
SETTLED_NS = 2_000_000_000
Hashes = Mapping[str, str]


class Verification:
    """One verification of a directory; made before the files are read.

    Args:
        folder: the directory.
        expected: file name -> SHA-256 that the manifest says; empty where nothing is to be verified.

    Attributes:
        due: names of the files that must be read.
    """

    def __init__(self, folder: Path, expected: Hashes) -> None:
        self.folder = folder
        self.expected = expected
        self.began = time.time_ns()
        self.entries: dict[str, list[Any]] = {
            name: [sha256, *_signs(folder / name)] for name, sha256 in expected.items()
        }
        known = _read_record(folder)
        self.due = {name for name, entry in self.entries.items() if len(entry) == 1 or known.get(name) != entry}

    def remember(self) -> None:
        """Note that all files are what they should be; a directory that cannot be written to is verified every time."""
        settled = {name: entry for name, entry in self.entries.items() if max(entry[2:4]) < self.began - SETTLED_NS}
        if not (self.due & settled.keys()):
            return
        with contextlib.suppress(OSError):
            write_bytes(self.folder / RECORD, json.dumps(settled).encode())


def _signs(path: Path) -> list[int]:
    """Size, times of the last change of the content and of the entry, and number of a file; empty without a file."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):  # there is none, or it is damaged: then everything is due
        return {}
    return record if isinstance(record, dict) else {}
