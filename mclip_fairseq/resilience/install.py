"""Puts the promises of this package into fairseq's training, at the places for which it has no hook.

Ten functions of fairseq are replaced in memory, each by one that calls it or does the same more safely; no file of
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

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import open_dict
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mclip_fairseq.losses.gather import sum_over_ranks
from mclip_fairseq.resilience import signals
from mclip_fairseq.resilience.program import early_stopping, training_programs
from mclip_fairseq.resilience.resume import (
    LAST,
    check_dictionary,
    check_optimizer,
    check_settings,
    choose_checkpoint,
    remove_leftovers,
)
from mclip_fairseq.resilience.unsaved import KEY, restore, unsaved
from mclip_fairseq.resilience.workers import close_workers_at_exit
from mclip_fairseq.storage.checkpoints import read_lazily, refuse_altered, refuse_bomb
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting
from mclip_fairseq.storage.sealed import copy_sealed, save_sealed

logger = logging.getLogger(__name__)

_save_as_fairseq = checkpoint_utils.torch_persistent_save
_load_as_fairseq = checkpoint_utils.load_checkpoint
_read_as_fairseq = checkpoint_utils.load_checkpoint_to_cpu
_train_step_of_fairseq = Trainer.train_step
_valid_step_of_fairseq = Trainer.valid_step
_begin_valid_epoch_of_fairseq = Trainer.begin_valid_epoch
_state_of_fairseq = Trainer.state_dict
_iterator_of_fairseq = Trainer.get_train_iterator
# Attributes that a trainer gets: its iterator, and the update after which it saved within a validation.
ITERATOR = "mclip_epoch_itr"
SAVED = "mclip_saved_in_validation"


def install() -> None:
    """Replace nine of the ten; the program's own is replaced when a run begins. Idempotent."""
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
    Trainer.begin_valid_epoch = begin_valid_epoch
    Trainer.get_train_iterator = get_train_iterator
    # fairseq does not save all that the next step depends on.
    Trainer.state_dict = state_dict


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
        UserError: no checkpoint verifies, or the options give its place in the data another meaning.
    """
    replace_validate_and_save()
    signals.listen()
    weakref.finalize(trainer, signals.listen_no_more)
    path = None
    if trainer.checkpoint_suffix == (cfg.checkpoint_suffix or ""):  # not one of a rank of its own
        path = decided_by_rank_zero(trainer, functools.partial(find_checkpoint, cfg, trainer))
    changes: dict[str, Any] = {}
    if path is not None:
        changes = {"restore_file": path, "finetune_from_model": None}
    check_seen_by_all(trainer, path or cfg.restore_file)
    if trainer.data_parallel_world_size > 1:
        # fairseq's broadcast of a checkpoint is refused by torch's safe loading.
        changes["load_checkpoint_on_all_dp_ranks"] = True
    with options_changed(cfg, changes):
        extra_state, epoch_itr = _load_as_fairseq(cfg, trainer, **passthrough)
    if extra_state is not None and not cfg.reset_meters and path is not None:
        restore_inner_metrics(extra_state)
    if extra_state is not None and not cfg.reset_dataloader and (path is not None or not cfg.finetune_from_model):
        check_data(trainer.task, extra_state)
    if extra_state is not None:
        kept = extra_state.pop(KEY, {})
        restore(trainer, {} if cfg.reset_optimizer else kept)
        warn_of_annealing(trainer, extra_state)
    if path is not None:
        replay_validation_loss(trainer, extra_state)
        end_if_complete(trainer)
    return extra_state, epoch_itr


def find_checkpoint(cfg: Any, trainer: Any) -> str | None:
    """Path to go on from within this run's own directory; None leaves fairseq its way.

    Raises:
        UserError: see `load_checkpoint`.
    """
    if cfg.restore_file == LAST and not PathManager.path_requires_pathmanager(cfg.save_dir):
        suffix = cfg.checkpoint_suffix or ""
        for name in remove_leftovers(cfg.save_dir, suffix):
            logger.warning("%s/%s: removed, for a save was cut short there", cfg.save_dir, name)
        path, skipped = choose_checkpoint(cfg.save_dir, suffix)
        for reason in skipped:
            logger.warning("skipped checkpoint %s", reason)
        if path is not None:
            if skipped:
                logger.warning("going on from %s", path)
            if not cfg.reset_dataloader:
                check_settings(path, trainer.cfg)
            check_optimizer(path, cfg.reset_optimizer)
            check_dictionary(path, trainer.task)
            return str(path.with_name(f"{path.name.removesuffix(f'{suffix}.pt')}.pt"))  # fairseq puts it in again
    given = cfg.restore_file if cfg.restore_file != LAST else cfg.finetune_from_model
    if given and PathManager.isfile(given) and not PathManager.path_requires_pathmanager(given):
        check_readable(given)
        if given == cfg.restore_file:
            check_optimizer(Path(given), cfg.reset_optimizer)
        if given == cfg.restore_file and not cfg.reset_dataloader:
            check_settings(Path(given), trainer.cfg)
        check_dictionary(Path(given), trainer.task)
    return None


def load_checkpoint_to_cpu(path: str, arg_overrides: Any = None, load_on_all_ranks: bool = False) -> Any:
    """Fairseq's function of this name, which refuses in a sentence what is no checkpoint or would run code.

    Raises:
        UserError: naming the file.
    """
    if PathManager.path_requires_pathmanager(path):
        return _read_as_fairseq(path, arg_overrides, load_on_all_ranks)
    check_readable(path)
    with expecting(path, "a checkpoint of fairseq"):
        return _read_as_fairseq(path, arg_overrides, load_on_all_ranks)


def check_readable(path: str) -> None:
    """Refuse what is no checkpoint, holds what may run code, unpacks to more than it is, or has been altered.

    Raises:
        UserError: naming the file.
    """
    refuse_bomb(Path(path))
    try:
        read_lazily(Path(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    refuse_altered(Path(path))


def check_seen_by_all(trainer: Any, path: str) -> None:
    """Refuse to go on where some ranks have no such file: they would begin anew, beside those that go on.

    Raises:
        UserError: on all ranks alike.
    """
    if trainer.data_parallel_world_size == 1 or PathManager.path_requires_pathmanager(path):
        return
    path = path if path != LAST else str(Path(trainer.cfg.checkpoint.save_dir) / LAST)
    path = f"{path.removesuffix('.pt')}{trainer.checkpoint_suffix}.pt"
    seen = int(sum_over_ranks(torch.tensor(float(PathManager.isfile(path)), device=trainer.device)))
    if 0 < seen < trainer.data_parallel_world_size:
        raise UserError(
            f"{path}: only {seen} of {trainer.data_parallel_world_size} ranks see this file; let --save-dir be a "
            "folder that all machines share"
        )


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
        raise UserError(answer[1])
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
        UserError: naming the parts.
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
        raise UserError(
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


def warn_of_annealing(trainer: Any, extra_state: dict[str, Any]) -> None:
    """Say where a schedule goes on from another learning rate: that of an epoch's beginning is nowhere saved."""
    schedule, position = trainer.cfg.lr_scheduler, extra_state.get("train_iterator") or {}
    after = getattr(schedule, "force_anneal", None)
    annealing = schedule._name == "polynomial_decay" and after and position.get("epoch", 0) >= after
    if annealing and position.get("iterations_in_epoch"):
        logger.warning(
            "--force-anneal %d: the rest of epoch %d is annealed from the learning rate of its stop, not of its "
            "beginning; stop at the end of an epoch to go on exactly",
            *(after, position["epoch"]),
        )


def end_if_complete(trainer: Any) -> None:
    """End a run that is resumed although it had come to its end; fairseq would take one update or epoch more."""
    updates, options = trainer.get_num_updates(), trainer.cfg.optimization
    patience, hours = trainer.cfg.checkpoint.patience, options.stop_time_hours
    if options.max_update and updates >= options.max_update:
        reason = f"has all its {updates} updates already (--max-update {options.max_update})"
    elif 0 < patience <= early_stopping().get("num_runs", 0):
        reason = f"has ended already, after {updates} updates, by --patience {patience}"
    elif 0 < hours < trainer.cumulative_training_time() / 3600:
        reason = f"has ended already, after {updates} updates, by --stop-time-hours {hours}"
    else:
        return
    logger.info("the run %s", reason)
    raise SystemExit(0)


def state_dict(self: Any) -> dict[str, Any]:
    """Fairseq's method, with what it leaves out."""
    state: dict[str, Any] = _state_of_fairseq(self)
    if not self.cfg.checkpoint.no_save_optimizer_state:
        state["extra_state"][KEY] = unsaved(self)
    return state


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
    save_if_asked(self)
    return result


def begin_valid_epoch(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's method, in which a task may take its time: see `valid_step`."""
    if getattr(self, ITERATOR, None) is not None:
        self.task.between_batches = functools.partial(save_if_asked, self)
    return _begin_valid_epoch_of_fairseq(self, *args, **kwargs)


def save_if_asked(trainer: Any) -> None:
    """Save within a validation, once, on all ranks, if one of them was signalled."""
    name = signals.asked_to_stop(trainer.device)
    if name and getattr(trainer, SAVED, None) != trainer.get_num_updates():
        setattr(trainer, SAVED, trainer.get_num_updates())
        logger.info("%s: saving after %d updates, in the middle of a validation", name, trainer.get_num_updates())
        save_last(trainer)


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
