"""What the installed torch, torchaudio and transformers need before they work together, and safe checkpoint loading."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclip_fairseq.resilience.sealed import damage

logger = logging.getLogger(__name__)
_problems: dict[str, str] = {}
SMALL_FILE = 2**20


def shield_torchaudio() -> None:
    """Make a torchaudio that cannot be loaded look absent, so that `transformers` models can be imported.

    fairseq requires torchaudio, whose wheel often does not fit the installed torch; transformers then fails wherever it
    finds the package. Call this before the first import of transformers. Does nothing where torchaudio works or is not
    installed; calling it again costs nothing.
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # OSError, ImportError, RuntimeError: the loader decides, and all mean "unusable"
        _problems["torchaudio"] = f"{type(error).__name__}: {error}"
        logger.debug("torchaudio is hidden, for it cannot be loaded: %s", error)
        for name in [name for name in sys.modules if name.startswith("torchaudio.")]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # find_spec and import now say "not there"
        _forget_availability()


def torchaudio_problem() -> str:
    """Why `shield_torchaudio` hid torchaudio in this process; empty when it did not."""
    return _problems.get("torchaudio", "")


def _forget_availability() -> None:
    """Drop what transformers remembers of torchaudio, if it was asked before."""
    utils = sys.modules.get("transformers.utils.import_utils")
    for name in ("is_torchaudio_available", "is_speech_available"):
        forget = getattr(getattr(utils, name, None), "cache_clear", None)
        if forget is not None:
            forget()


def allow_checkpoint_globals() -> None:
    """Let `torch.load(weights_only=True)`, torch's default, read what fairseq writes besides tensors.

    That is `argparse.Namespace` (options of models without a dataclass and of old checkpoints) and numpy arrays and
    scalars (meters, such as BLEU counts). All of it is data: none of these types runs code when it is rebuilt.
    """
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    arrays = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")  # numpy 1 and 2 write different names
    ]
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")]
    torch.serialization.add_safe_globals([argparse.Namespace, np.ndarray, np.dtype, *dtypes, *arrays])


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running any code it may contain.

    Args:
        path: written by `torch.save`.

    Returns:
        The stored dict.

    Raises:
        ValueError: the file is missing, is not a checkpoint, was altered after a training wrote it, or holds objects
            outside the allow-list.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a directory' if path.is_dir() else 'not found'}; give a checkpoint file")
    allow_checkpoint_globals()
    refuse_bomb(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise ValueError(f"{path}: {why_unreadable(path, error)}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, but a checkpoint is a dict; give another file")
    refuse_altered(path)
    return state


def refuse_altered(path: Path) -> None:
    """Refuse a checkpoint that has a seal, but not the bytes that were sealed.

    Raises:
        ValueError: naming the file.
    """
    reason = damage(path)
    if reason:
        raise ValueError(f"{path}: {reason}; give another checkpoint, or copy it again")


def why_unreadable(path: Path, error: Exception) -> str:
    """What torch's safe loading could not read, in words that follow the name of the file."""
    forbidden = _forbidden_types(path, error)
    if forbidden:
        return (
            f"is not loaded, for it contains {', '.join(forbidden)}, and only types that run no code are read; save it "
            "again with tensors, numbers, strings, dicts, lists and argparse.Namespace"
        )
    reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0].rstrip(": ")
    return f"is not a checkpoint written by torch.save, or is damaged ({reason})"


def refuse_bomb(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than it holds: torch.save never compresses.

    Raises:
        ValueError: with both sizes.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path}: is not a checkpoint written by torch.save, or is damaged ({error})") from error
    if unpacked > 2 * path.stat().st_size + SMALL_FILE:
        raise ValueError(
            f"{path}: unpacks to {unpacked} bytes from {path.stat().st_size}, but torch.save does not compress; it is "
            "no checkpoint"
        )


def untrained_bookkeeping(criterion: str) -> dict[str, Any]:
    """The entries of a checkpoint, besides weights and options, that fairseq looks for when it reads one."""
    history = {
        "criterion_name": criterion,
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    return {
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }


def _forbidden_types(path: Path, error: Exception) -> list[str]:
    """Names of functions and classes in a checkpoint that are not allowed; all of them where the format tells."""
    named = re.findall(r"GLOBAL ([\w.]+)", str(error)) or re.findall(r"got <class '([\w.]+)'>", str(error))
    if named and zipfile.is_zipfile(path):
        listed = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        named = [str(name) for name in listed] or named
    return sorted(set(named))
