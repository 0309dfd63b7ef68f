"""Puts the promises of this package into fairseq's training, at the places for which it has no hook.

Eight functions of fairseq are replaced in memory, each by one that calls it or does the same more safely; no file of
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
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mclip_fairseq.compat import refuse_bomb
from mclip_fairseq.data.files import expecting
from mclip_fairseq.resilience import signals
from mclip_fairseq.resilience.program import training_programs
from mclip_fairseq.resilience.resume import (
    LAST,
    check_dictionary,
    check_settings,
    choose_checkpoint,
    read_lazily,
    remove_leftovers,
)
from mclip_fairseq.resilience.sealed import copy_sealed, damage, save_sealed
from mclip_fairseq.resilience.workers import close_workers_at_exit

logger = logging.getLogger(__name__)

_save_as_fairseq = checkpoint_utils.torch_persistent_save
_load_as_fairseq = checkpoint_utils.load_checkpoint
_read_as_fairseq = checkpoint_utils.load_checkpoint_to_cpu
_train_step_of_fairseq = Trainer.train_step
_valid_step_of_fairseq = Trainer.valid_step
_iterator_of_fairseq = Trainer.get_train_iterator
# Attributes that a trainer gets: its iterator, and the update after which it saved within a validation.
ITERATOR = "mclip_epoch_itr"
SAVED = "mclip_saved_in_validation"


def install() -> None:
    """Replace seven of the eight; the program's own is replaced when a run begins. Idempotent."""
    # fairseq's save retries into the half-written file, and nothing is brought to the disk.
    checkpoint_utils.torch_persistent_save = torch_persistent_save
    # fairseq copies checkpoint_last and checkpoint_best over the old ones, byte by byte.
    checkpoint_utils.PathManager = SafePathManager
    # fairseq stops at a damaged checkpoint_last, also where an older one is sound.
    checkpoint_utils.load_checkpoint = load_checkpoint
    # fairseq passes on what torch says of a file, in many lines that suggest to trust it.
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu
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
    replace_validate_and_save()
    signals.listen()
    weakref.finalize(trainer, signals.listen_no_more)
    path = None
    if not trainer.checkpoint_suffix:
        path = decided_by_rank_zero(trainer, functools.partial(find_checkpoint, cfg, trainer))
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
    if extra_state is not None and not cfg.reset_dataloader and (path is not None or not cfg.finetune_from_model):
        check_data(trainer.task, extra_state)
    if path is not None:
        replay_validation_loss(trainer, extra_state)
        end_if_complete(trainer)
    return extra_state, epoch_itr


def find_checkpoint(cfg: Any, trainer: Any) -> str | None:
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
                check_settings(path, trainer.cfg)
            check_dictionary(path, trainer.task)
            return str(path)
    given = cfg.restore_file if cfg.restore_file != LAST else cfg.finetune_from_model
    if given and PathManager.isfile(given) and not PathManager.path_requires_pathmanager(given):
        reason = damage(given)
        if reason:
            raise ValueError(f"{given}: {reason}; give another checkpoint")
        check_readable(given)
        if given == cfg.restore_file and not cfg.reset_dataloader:
            check_settings(Path(given), trainer.cfg)
        check_dictionary(Path(given), trainer.task)
    return None


def load_checkpoint_to_cpu(path: str, arg_overrides: Any = None, load_on_all_ranks: bool = False) -> Any:
    """Fairseq's function of this name, which refuses in a sentence what is no checkpoint or would run code.

    Raises:
        ValueError: naming the file.
    """
    if PathManager.path_requires_pathmanager(path):
        return _read_as_fairseq(path, arg_overrides, load_on_all_ranks)
    check_readable(path)
    with expecting(path, "a checkpoint of fairseq"):
        return _read_as_fairseq(path, arg_overrides, load_on_all_ranks)


def check_readable(path: str) -> None:
    """Refuse what is no checkpoint, holds what may run code, or unpacks to more than it is.

    Raises:
        ValueError: naming the file.
    """
    refuse_bomb(Path(path))
    try:
        read_lazily(Path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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


def check_data(task: Any, extra_state: dict[str, Any]) -> None:
    """Refuse to go on in mid-epoch with other training data; at its start, say so.

    Raises:
        ValueError: naming the parts.
    """
    stored, now = getattr(task, "stored_parts", None), task.parts() if hasattr(task, "parts") else None
    if not stored or not now or stored == now:
        return
    counts = {name: (stored.get(name, [0])[0], now.get(name, [0])[0]) for name in {*stored, *now}}
    changed = [
        f"{name} ({counts[name][0]} samples then, {counts[name][1]} now)"
        for name in sorted(counts)
        if stored.get(name) != now.get(name)
    ]
    said = f"the training data have changed since the checkpoint was written: {', '.join(changed)}"
    if extra_state["train_iterator"].get("iterations_in_epoch", 0):
        raise ValueError(
            f"{said}; its place in them has no meaning now: put them back, or pass --reset-dataloader to keep the "
            "parameters and begin the data anew"
        )
    logger.warning("%s", said)


def replay_validation_loss(trainer: Any, extra_state: dict[str, Any] | None) -> None:
    """Tell a schedule that looks at validation losses the last one: fairseq does so after it has saved."""
    state = extra_state or {}
    position = state.get("train_iterator") or {}
    loss = state.get("val_loss")
    watching = isinstance(getattr(trainer.lr_scheduler, "lr_scheduler", None), ReduceLROnPlateau)
    if watching and loss is not None and position.get("iterations_in_epoch") == 0:
        trainer.lr_step(position["epoch"] - 1, loss)


def end_if_complete(trainer: Any) -> None:
    """End a run that is resumed although it has all its updates; fairseq would take one more."""
    wanted = trainer.cfg.optimization.max_update
    if wanted and trainer.get_num_updates() >= wanted:
        logger.info("the run has all its %d updates already (--max-update %d)", trainer.get_num_updates(), wanted)
        raise SystemExit(0)


def get_train_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method, which remembers the iterator for a save; between epochs a run ends if a signal asked for it."""
    if getattr(self, ITERATOR, None) is not None and self.get_num_updates():
        end_if_asked(self)
    iterator = _iterator_of_fairseq(self, *args, **kwargs)
    setattr(self, ITERATOR, iterator)
    return iterator


def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method; loader processes end with the run from here on."""
    close_workers_at_exit(self, getattr(self, ITERATOR, None))
    return _train_step_of_fairseq(self, *args, **kwargs)


def valid_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method; a signal saves at once, for the rest of the validation may take longer than is left.

    The run goes on to the end of the validation, so that the one that goes on from its checkpoint need not repeat it.
    """
    result = _valid_step_of_fairseq(self, *args, **kwargs)
    if getattr(self, ITERATOR, None) is None:  # fairseq-validate has none
        return result
    name = signals.asked_to_stop(self.device)
    if name and getattr(self, SAVED, None) != self.get_num_updates():
        setattr(self, SAVED, self.get_num_updates())
        logger.info("%s: saving after %d updates, in the middle of a validation", name, self.get_num_updates())
        save_last(self)
    return result


def replace_validate_and_save() -> None:
    """Let runs end where a signal asks for it: after a step is logged, and its validation and saving are done."""
    for module in training_programs():
        if not hasattr(module.validate_and_save, "__wrapped__"):
            module.validate_and_save = ending_if_asked(module.validate_and_save)  # type: ignore[attr-defined]


def ending_if_asked(validate_and_save: Any) -> Any:
    """Fairseq's function of this name, after which the run ends where a signal asked for it."""

    @functools.wraps(validate_and_save)
    def wrapper(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: Any, end_of_epoch: bool) -> Any:
        result = validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        # At its end, an epoch is still to be logged; the next one does not begin, see `get_train_iterator`.
        if not end_of_epoch and not result[1]:
            end_if_asked(trainer)
        return result

    return wrapper


def end_if_asked(trainer: Any) -> None:
    """Save and end with status 0, on all ranks, if one of them was signalled."""
    name = signals.asked_to_stop(trainer.device)
    if not name:
        return
    doing = "after" if trainer.cfg.checkpoint.no_save else "saving after"
    logger.info("%s: %s %d updates and ending", name, doing, trainer.get_num_updates())
    save_last(trainer)
    raise SystemExit(0)


def save_last(trainer: Any) -> None:
    """Write `checkpoint_last.pt`, also where the options have none; nothing where nothing is saved (--no-save)."""
    with options_changed(trainer.cfg.checkpoint, {"no_last_checkpoints": False}):
        checkpoint_utils.save_checkpoint(trainer.cfg.checkpoint, trainer, getattr(trainer, ITERATOR), None)
