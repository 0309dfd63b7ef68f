"""Saving: checkpoints that are complete or absent, sealed, and hold all that the next step depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from omegaconf import open_dict

from mclip_fairseq.resilience.holding import check_still_held
from mclip_fairseq.resilience.unsaved import KEY, unsaved
from mclip_fairseq.storage.places import hide_places
from mclip_fairseq.storage.sealed import copy_sealed, save_sealed

# Attribute of a trainer: the iterator it trains on, which a save needs and fairseq keeps in a local variable.
ITERATOR = "mclip_epoch_itr"


def save_complete_and_sealed(original: Callable[..., None], obj: Any, filename: str, async_write: bool = False) -> None:
    """Save a checkpoint so that it is complete or absent, with a seal that proves its bytes.

    Args:
        original: fairseq's `torch_persistent_save`, which serves remote paths and asynchronous writing.
        obj: the state.
        filename: of the checkpoint.
        async_write: fairseq's option.
    """
    if async_write or PathManager.path_requires_pathmanager(filename):
        original(obj, filename, async_write)
        return
    check_still_held(Path(filename).parent)
    history = (obj.get("optimizer_history") if isinstance(obj, dict) else None) or [{}]
    save_sealed(obj, filename, int(history[-1].get("num_updates", 0)))


def copy_complete(original: Callable[..., bool], src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    """Copy a file, replacing the old one at the very end; see `save_complete_and_sealed`."""
    if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
        return bool(original(src_path, dst_path, overwrite))
    copy_sealed(src_path, dst_path)
    return True


def state_with_unsaved(original: Callable[..., dict[str, Any]], trainer: Any) -> dict[str, Any]:
    """The trainer's state, with what fairseq leaves out, and without the paths of this machine."""
    state = original(trainer)
    if isinstance(state.get("cfg"), dict):
        state["cfg"] = hide_places(state["cfg"])
    if not trainer.cfg.checkpoint.no_save_optimizer_state:
        state["extra_state"][KEY] = unsaved(trainer)
    return state


def save_last(trainer: Any) -> None:
    """Write `checkpoint_last.pt`, even with --no-last-checkpoints; with --no-save, fairseq writes nothing."""
    with options_changed(trainer.cfg.checkpoint, {"no_last_checkpoints": False}):
        checkpoint_utils.save_checkpoint(trainer.cfg.checkpoint, trainer, getattr(trainer, ITERATOR), None)


@contextlib.contextmanager
def options_changed(cfg: Any, changes: dict[str, Any]) -> Iterator[None]:
    """Give options other values inside a `with` block."""
    before = {name: cfg[name] for name in changes}
    with open_dict(cfg):
        cfg.update(changes)
    try:
        yield
    finally:
        with open_dict(cfg):
            cfg.update(before)
