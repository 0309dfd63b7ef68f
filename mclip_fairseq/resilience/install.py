"""Puts the promises of this package into fairseq's training, at the places for which it has no hook.

Six functions of fairseq are replaced in memory, each by one that calls it or does the same more safely; no file of
fairseq changes. Everything else hangs on the hooks that tasks have.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import open_dict

from mclip_fairseq.resilience import signals
from mclip_fairseq.resilience.resume import LAST, check_settings, choose_checkpoint, remove_leftovers
from mclip_fairseq.resilience.sealed import copy_sealed, damage, save_sealed
from mclip_fairseq.resilience.workers import close_workers_at_exit

logger = logging.getLogger(__name__)

_save_as_fairseq = checkpoint_utils.torch_persistent_save
_load_as_fairseq = checkpoint_utils.load_checkpoint
_train_step_of_fairseq = Trainer.train_step
_valid_step_of_fairseq = Trainer.valid_step
_iterator_of_fairseq = Trainer.get_train_iterator
ITERATOR = "mclip_epoch_itr"


def install() -> None:
    """Replace the six; idempotent."""
    # fairseq's save retries into the half-written file, and nothing is brought to the disk.
    checkpoint_utils.torch_persistent_save = torch_persistent_save
    # fairseq copies checkpoint_last and checkpoint_best over the old ones, byte by byte.
    checkpoint_utils.PathManager = SafePathManager
    # fairseq stops at a damaged checkpoint_last, also where an older one is sound.
    checkpoint_utils.load_checkpoint = load_checkpoint
    # fairseq has no place at which a task could end a run.
    Trainer.train_step = train_step
    Trainer.valid_step = valid_step
    Trainer.get_train_iterator = get_train_iterator


def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
    """Fairseq's function of this name, but complete or not at all, and sealed."""
    if async_write or PathManager.path_requires_pathmanager(filename):
        _save_as_fairseq(obj, filename, async_write)
        return
    history = (obj.get("optimizer_history") if isinstance(obj, dict) else None) or [{}]
    save_sealed(obj, filename, int(history[-1].get("num_updates", 0)))


class SafePathManager(PathManager):
    """fairseq's file access, with copies that are there completely or not at all."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        """Copy a file, replacing the old one at the very end."""
        if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
            return bool(PathManager.copy(src_path, dst_path, overwrite))
        copy_sealed(src_path, dst_path)
        return True


def load_checkpoint(cfg: Any, trainer: Any, **passthrough: Any) -> tuple[Any, Any]:
    """Fairseq's function of this name, from the newest checkpoint that verifies; signals are noted from here on.

    Args:
        cfg: fairseq's checkpoint options.
        trainer: fairseq's trainer.
        **passthrough: for the data iterator.

    Raises:
        ValueError: no checkpoint verifies, or the options give its place in the data another meaning.
    """
    signals.listen()
    weakref.finalize(trainer, signals.listen_no_more)
    path = None
    if not trainer.checkpoint_suffix:
        path = decided_by_rank_zero(trainer, functools.partial(find_checkpoint, cfg, trainer.cfg))
    changes: dict[str, Any] = {}
    if path is not None:
        changes = {"restore_file": path, "finetune_from_model": None}
    if trainer.data_parallel_world_size > 1:
        # fairseq's broadcast of a checkpoint is refused by torch's safe loading.
        changes["load_checkpoint_on_all_dp_ranks"] = True
    with options_changed(cfg, changes):
        extra_state, epoch_itr = _load_as_fairseq(cfg, trainer, **passthrough)
    if extra_state is not None and not cfg.reset_meters and path is not None:
        restore_inner_metrics(extra_state)
    if path is not None:
        end_if_complete(trainer)
    return extra_state, epoch_itr


def find_checkpoint(cfg: Any, run: Any) -> str | None:
    """Path to go on from within this run's own directory; None leaves fairseq its way.

    Raises:
        ValueError: see `load_checkpoint`.
    """
    if cfg.restore_file == LAST and not PathManager.path_requires_pathmanager(cfg.save_dir):
        for name in remove_leftovers(cfg.save_dir):
            logger.warning("%s/%s: removed, for a save was cut short there", cfg.save_dir, name)
        path, skipped = choose_checkpoint(cfg.save_dir)
        for reason in skipped:
            logger.warning("skipped checkpoint %s", reason)
        if path is not None:
            if skipped:
                logger.warning("going on from %s", path)
            if not cfg.reset_dataloader:
                check_settings(path, run)
            return str(path)
    given = cfg.restore_file if cfg.restore_file != LAST else cfg.finetune_from_model
    if given and PathManager.isfile(given) and not PathManager.path_requires_pathmanager(given):
        reason = damage(given)
        if reason:
            raise ValueError(f"{given}: {reason}; give another checkpoint")
        if given == cfg.restore_file and not cfg.reset_dataloader:
            check_settings(Path(given), run)
    return None


def decided_by_rank_zero(trainer: Any, decide: Any) -> Any:
    """Let rank 0 decide, and all ranks hear of its decision or of its error."""
    if trainer.data_parallel_world_size == 1:
        return decide()
    answer: list[Any] = [None, None]
    if trainer.data_parallel_rank == 0:
        try:
            answer[0] = decide()
        except ValueError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0, device=trainer.device)
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


@contextlib.contextmanager
def options_changed(cfg: Any, changes: dict[str, Any]) -> Iterator[None]:
    """Options with other values for a while."""
    before = {name: cfg[name] for name in changes}
    with open_dict(cfg):
        cfg.update(changes)
    try:
        yield
    finally:
        with open_dict(cfg):
            cfg.update(before)


def restore_inner_metrics(extra_state: dict[str, Any]) -> None:
    """Bring back the averages since the last log line.

    fairseq forgets them where it resumes at the start of an epoch, although they run on over its end.
    """
    state = (extra_state.get("metrics") or {}).get("train_inner")
    if state and extra_state["train_iterator"].get("iterations_in_epoch") == 0:
        metrics.load_state_dict({"train_inner": state})
        for meter in metrics.get_meters("train_inner").values():
            if hasattr(meter, "elapsed_time"):
                meter.reset()


def end_if_complete(trainer: Any) -> None:
    """End a run that is resumed although it has all its updates; fairseq would take one more."""
    wanted = trainer.cfg.optimization.max_update
    if wanted and trainer.get_num_updates() >= wanted:
        logger.info("the run has all its %d updates already (--max-update %d)", trainer.get_num_updates(), wanted)
        raise SystemExit(0)


def get_train_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method, which remembers the iterator for a save in mid-epoch."""
    iterator = _iterator_of_fairseq(self, *args, **kwargs)
    setattr(self, ITERATOR, iterator)
    return iterator


def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method, after which the run ends where a signal asked for it."""
    close_workers_at_exit(self, getattr(self, ITERATOR, None))
    result = _train_step_of_fairseq(self, *args, **kwargs)
    wanted = self.cfg.optimization.max_update
    if not wanted or self.get_num_updates() < wanted:
        end_if_asked(self)
    return result


def valid_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method; see `train_step`."""
    result = _valid_step_of_fairseq(self, *args, **kwargs)
    if getattr(self, ITERATOR, None) is not None:  # fairseq-validate has none
        end_if_asked(self)
    return result


def end_if_asked(trainer: Any) -> None:
    """Save and end with status 0, on all ranks, if one of them was signalled."""
    name = signals.asked_to_stop(trainer.device)
    if not name:
        return
    logger.info("%s: saving after %d updates and ending", name, trainer.get_num_updates())
    with options_changed(trainer.cfg.checkpoint, {"no_last_checkpoints": False}):
        checkpoint_utils.save_checkpoint(trainer.cfg.checkpoint, trainer, getattr(trainer, ITERATOR), None)
    raise SystemExit(0)
