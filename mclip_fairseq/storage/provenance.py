"""Where numbers come from: the command, the time, the versions."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import mclip_fairseq

# Names in a report -> the installed distributions that provide them.
DISTRIBUTIONS = {
    "torch": "torch",
    "numpy": "numpy",
    "transformers": "transformers",
    "fairseq": "fairseq-fixed",
    "mclip_fairseq": "mclip-fairseq",
}
# At the start of an argument, or behind one of = and :, as in LANG=FILE and one:two; not the // of an address, but for
# those of files on this machine.
ABSOLUTE = re.compile(r"(^|[=:]|file://)(/(?!/)[^=:]*)")
# The name and password of an address.
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What a report says about the run that made it.

    Args:
        command: program and arguments, one string each.

    Returns:
        `command` (as typed in a shell, but see `shareable`), `time` (UTC, ISO 8601), `platform` (system and processor),
        and `versions` of python, torch, numpy,
        transformers, fairseq and mclip_fairseq (None if not installed).
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {name: _version(distribution) for name, distribution in DISTRIBUTIONS.items()}
    versions["mclip_fairseq"] = mclip_fairseq.__version__  # of the checkout, if this is one
    return {
        "command": shlex.join(map(shareable, command)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def shareable(text: str | Path) -> str:
    """A path, or an argument with paths in it, as others may read it.

    Absolute paths lose their folders, and addresses their credentials; bytes that are not UTF-8 are escaped.
    """
    text = CREDENTIALS.sub("", str(text).encode("utf-8", "backslashreplace").decode())
    return ABSOLUTE.sub(lambda match: f"{match[1]}.../{os.path.basename(match[2].rstrip('/'))}", text)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
