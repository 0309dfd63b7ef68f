"""Which files of a feature directory have been verified and not been touched since, so that no run reads them twice.

The record lies in the user's cache and holds what the file system says of each file. Whoever changes a file changes
that, and so does a copy: the file is verified anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclip_fairseq.storage.files import read_json, write_bytes

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
        self.record = record_of(folder)
        known = _read_record(self.record)
        self.due = {name for name, entry in self.entries.items() if len(entry) == 1 or known.get(name) != entry}

    def remember(self) -> None:
        """Note that all files are what they should be; without a cache that can be written to, nothing is noted."""
        settled = {name: entry for name, entry in self.entries.items() if max(entry[2:4]) < self.began - SETTLED_NS}
        if not (self.due & settled.keys()):
            return
        with contextlib.suppress(OSError):
            self.record.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.record, json.dumps(settled).encode())


def record_of(folder: Path) -> Path:
    """Where the record of a directory lies: below `MCLIP_CACHE`, by default `~/.cache/mclip_fairseq`."""
    cache = os.environ.get("MCLIP_CACHE") or os.path.expanduser("~/.cache/mclip_fairseq")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(cache) / "verified" / f"{name}.json"


def _signs(path: Path) -> list[int]:
    """Size, times of the last change of the content and of the entry, and number of a file; empty without a file."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (OSError, ValueError):  # there is none, or it is damaged: then everything is due
        return {}
    return record if isinstance(record, dict) else {}
