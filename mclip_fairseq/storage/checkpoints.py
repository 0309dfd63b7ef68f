"""Safe reading of checkpoints: nothing in them runs code, and altered files and decompression bombs are refused."""

from __future__ import annotations

import argparse
import re
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.sealed import damage

SMALL_FILE = 2**20


def allow_checkpoint_globals() -> None:
    """Let `torch.load(weights_only=True)`, torch's default, read what fairseq writes besides tensors.

    These are `argparse.Namespace` (options of models without a dataclass and of old checkpoints) and numpy arrays and
    scalars (meters, such as BLEU counts). All of them are data: rebuilding them runs no code.
    """
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    arrays = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")  # numpy 1 and 2 write different names
    ]
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "uint32", "bool")]
    torch.serialization.add_safe_globals([argparse.Namespace, np.ndarray, np.dtype, *dtypes, *arrays])


class StoredCheckpoint:
    """A checkpoint file that is looked at once: its tensors stay on the disk until they are used.

    Args:
        path: of the file.
        verified: whether `damage` has been asked about it already.
    """

    def __init__(self, path: str | Path, verified: bool = False) -> None:
        self.path = Path(path)
        self._verified = verified

    def check(self) -> None:
        """Refuse a file that is not a checkpoint, may run code, unpacks to more than its size, or has been altered.

        Raises:
            UserError: naming the file.
        """
        check_bomb(self.path)
        try:
            _ = self.state
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        if not self._verified:
            check_unaltered(self.path)
        self._verified = True

    @cached_property
    def state(self) -> dict[str, Any]:
        """Everything it holds, with tensors that are mapped from the file.

        Raises:
            UserError: why it is not a checkpoint, in words that follow the name of the file.
        """
        allow_checkpoint_globals()
        try:
            try:
                state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before zip archives cannot be mapped
                state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes can make the unpickler raise anything
            raise UserError(why_unreadable(self.path, error)) from error
        if not isinstance(state, dict):
            raise UserError(f"holds a {type(state).__name__}, not a checkpoint")
        history = state.get("optimizer_history")
        if not (history is None or (isinstance(history, list) and all(isinstance(entry, dict) for entry in history))):
            raise UserError("has an optimizer history that is not a list of dicts")
        extra = state.get("extra_state") or {}
        if not isinstance(extra, dict) or not isinstance(extra.get("train_iterator") or {}, dict):
            raise UserError("has an extra state, or a position in the data, that is not a dict")
        return state

    @property
    def updates(self) -> int:
        """Parameter updates it holds; 0 where it does not say."""
        history = self.state.get("optimizer_history") or [{}]
        return int(history[-1].get("num_updates", 0))

    @property
    def extra_state(self) -> dict[str, Any]:
        """What fairseq and the task save besides parameters and the optimizer."""
        return self.state.get("extra_state") or {}

    @property
    def position(self) -> dict[str, Any]:
        """Its position in the training data: `epoch`, `iterations_in_epoch` and more; empty where it has none."""
        return self.extra_state.get("train_iterator") or {}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running any code it may contain.

    Args:
        path: written by `torch.save`.

    Returns:
        the stored dict.

    Raises:
        UserError: the file is missing, is not a checkpoint, was altered after a training wrote it, or holds objects
            outside the allow-list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a directory' if path.is_dir() else 'not found'}; give a checkpoint file")
    allow_checkpoint_globals()
    check_bomb(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise UserError(f"{path}: {why_unreadable(path, error)}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, but a checkpoint is a dict; give another file")
    check_unaltered(path)
    return state


def check_unaltered(path: Path) -> None:
    """Refuse a checkpoint whose bytes are not those that were sealed, or whose checksums do not fit.

    Raises:
        UserError: naming the file.
    """
    reason = damage(path)
    if reason:
        raise UserError(f"{path}: {reason}; give another checkpoint, or copy it again")


def why_unreadable(path: Path, error: Exception) -> str:
    """Why torch's safe loading refused a file, in words that follow the name of the file."""
    forbidden = _forbidden_types(path, error)
    if forbidden:
        return (
            f"is not loaded, because it contains {', '.join(forbidden)}, and only types that run no code are read; "
            "save it again with tensors, numbers, strings, dicts, lists and argparse.Namespace"
        )
    reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0].rstrip(": ")
    return f"is not a checkpoint written by torch.save, or is damaged ({reason})"


def check_bomb(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than its size: torch.save never compresses.

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
            "not a checkpoint"
        )


def untrained_bookkeeping(criterion: str) -> dict[str, Any]:
    """The entries that fairseq expects in a checkpoint besides weights and options."""
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
    """Functions and classes in a checkpoint that are not allowed; in a zip archive all of them, else the first."""
    named = re.findall(r"GLOBAL ([\w.]+)", str(error)) or re.findall(r"got <class '([\w.]+)'>", str(error))
    if named and zipfile.is_zipfile(path):
        listed = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        named = [str(name) for name in listed] or named
    return sorted(set(named))
