"""Stopping: a signal ends a run after its step, with everything saved, and loader processes end with the run."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

from mclip_fairseq.resilience import signals
from mclip_fairseq.resilience.saving import ITERATOR, save_last
from mclip_fairseq.resilience.workers import close_workers_at_exit

# The one logger whose lines fairseq also writes to --log-file, where recipes look for how a run ended.
logger = logging.getLogger("fairseq_cli.train")
Function = Callable[..., Any]
# Attribute of a trainer: the update after which it has saved in the middle of a validation.
SAVED = "mclip_saved_in_validation"


def listen_for(trainer: Any) -> None:
    """Note signals from now on, for as long as the trainer exists."""
    signals.listen()
    weakref.finalize(trainer, signals.listen_no_more)


def train_step(original: Function, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Train one step; from the first one on, loader processes end with the run."""
    close_workers_at_exit(trainer, getattr(trainer, ITERATOR, None))
    return original(trainer, *args, **kwargs)


def valid_step(original: Function, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Validate one batch; a signal saves at once, because the rest may take longer than the scheduler waits.

    The run still finishes the validation, so that the resumed run need not repeat it.
    """
    result = original(trainer, *args, **kwargs)
    if getattr(trainer, ITERATOR, None) is not None:  # fairseq-validate has none
        save_if_asked(trainer)
    return result


def begin_valid_epoch(original: Function, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Begin a validation; the task may look for signals between batches of its own, as in `valid_step`."""
    if getattr(trainer, ITERATOR, None) is not None:
        trainer.task.between_batches = functools.partial(save_if_asked, trainer)
    return original(trainer, *args, **kwargs)


def get_train_iterator(original: Function, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Remember the iterator for a save; between two epochs, end the run if a signal asked for it."""
    if getattr(trainer, ITERATOR, None) is not None and trainer.get_num_updates():
        end_if_asked(trainer)
    iterator = original(trainer, *args, **kwargs)
    setattr(trainer, ITERATOR, iterator)
    return iterator


def validate_and_save(
    original: Function, cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: Any, end_of_epoch: bool
) -> Any:
    """Validate and save as due; then end the run if a signal asked for it."""
    result = original(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
    # The end of an epoch must still be logged: there the run ends when the next epoch begins, in `get_train_iterator`.
    if not end_of_epoch and not result[1]:
        end_if_asked(trainer)
    return result


def save_if_asked(trainer: Any) -> None:
    """Save in the middle of a validation, once, on all ranks, if one of them was signalled."""
    name = signals.asked_to_stop(trainer.device)
    if name and getattr(trainer, SAVED, None) != trainer.get_num_updates():
        setattr(trainer, SAVED, trainer.get_num_updates())
        logger.info("%s: saving after %d updates, in the middle of a validation", name, trainer.get_num_updates())
        save_last(trainer)


def end_if_asked(trainer: Any) -> None:
    """Save and end with status 0, on all ranks, if one of them was signalled."""
    name = signals.asked_to_stop(trainer.device)
    if not name:
        return
    action = "after" if trainer.cfg.checkpoint.no_save else "saving after"
    logger.info("%s: %s %d updates and ending", name, action, trainer.get_num_updates())
    save_last(trainer)
    raise SystemExit(0)
