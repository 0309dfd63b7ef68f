"""Safe reading of checkpoints: nothing in them runs code, and altered or packed files are refused."""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.sealed import damage

SMALL_FILE = 2**20


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
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "uint32", "bool")]
    torch.serialization.add_safe_globals([argparse.Namespace, np.ndarray, np.dtype, *dtypes, *arrays])


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running any code it may contain.

    Args:
        path: written by `torch.save`.

    Returns:
        The stored dict.

    Raises:
        UserError: the file is missing, is not a checkpoint, was altered after a training wrote it, or holds objects
            outside the allow-list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a directory' if path.is_dir() else 'not found'}; give a checkpoint file")
    allow_checkpoint_globals()
    refuse_bomb(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise UserError(f"{path}: {why_unreadable(path, error)}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, but a checkpoint is a dict; give another file")
    refuse_altered(path)
    return state


def read_lazily(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay on the disk until they are looked at.

    Raises:
        UserError: it is not one, in a few words.
    """
    allow_checkpoint_globals()
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before zip archives cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise UserError(why_unreadable(path, error)) from error
    if not isinstance(state, dict):
        raise UserError(f"holds a {type(state).__name__}, not a checkpoint")
    return state


def refuse_altered(path: Path) -> None:
    """Refuse a checkpoint that has a seal, but not the bytes that were sealed.

    Raises:
        UserError: naming the file.
    """
    reason = damage(path)
    if reason:
        raise UserError(f"{path}: {reason}; give another checkpoint, or copy it again")


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
        UserError: with both sizes.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{path}: is not a checkpoint written by torch.save, or is damaged ({error})") from error
    if unpacked > 2 * path.stat().st_size + SMALL_FILE:
        raise UserError(
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
