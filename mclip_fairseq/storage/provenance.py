"""Where numbers come from: the command, the time, the versions."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
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


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What a report says about the run that made it.

    Args:
        command: program and arguments, one string each.

    Returns:
        `command` (as typed in a shell), `time` (UTC, ISO 8601), `platform`, and `versions` of python, torch, numpy,
        transformers, fairseq and mclip_fairseq (None if not installed).
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {name: _version(distribution) for name, distribution in DISTRIBUTIONS.items()}
    versions["mclip_fairseq"] = mclip_fairseq.__version__  # of the checkout, if this is one
    return {
        "command": shlex.join(command),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "versions": versions,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
