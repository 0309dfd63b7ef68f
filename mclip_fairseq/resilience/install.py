"""Patches fairseq where it has no hook for what docs/reliability.md promises.

fairseq's files stay unchanged: each row of `PATCHES` replaces one function in memory. Everything else uses the hooks
that fairseq offers to tasks and datasets.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mclip_fairseq.resilience import launch, resuming, saving, stopping
from mclip_fairseq.resilience.program import TRAINING_PROGRAM, training_programs


@dataclass(frozen=True)
class Patch:
    """One function of fairseq that is replaced in memory.

    Attributes:
        owner: dotted name of the module or class that has the function.
        name: of the function in its owner.
        replacement: called as `replacement(original, *args, **kwargs)`.
        why: the reason, in one sentence.
        when_a_run_begins: install it then, and not when the plugin registers itself.
    """

    owner: str
    name: str
    replacement: Callable[..., Any]
    why: str
    when_a_run_begins: bool = False

    def owners(self) -> list[Any]:
        """The module or class; the training program may have been imported under two names, or not at all."""
        if self.owner == TRAINING_PROGRAM:
            return list(training_programs())
        return [pkgutil.resolve_name(self.owner)]

    def installed(self) -> bool:
        """Whether the function is replaced, wherever it was imported."""
        owners = self.owners()
        return bool(owners) and all(getattr(getattr(owner, self.name), "patch", None) is self for owner in owners)

    def install(self) -> None:
        """Replace the function; idempotent."""
        for owner in self.owners():
            original = getattr(owner, self.name)
            if getattr(original, "patch", None) is self:
                continue
            patched = _wrapped(self.replacement, original)
            patched.patch = self  # type: ignore[attr-defined]
            static = isinstance(inspect.getattr_static(owner, self.name), staticmethod)
            setattr(owner, self.name, staticmethod(patched) if static else patched)


def _wrapped(replacement: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function, so that it also works as a method; `__wrapped__` is the original."""

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    return patched


PATCHES = (
    Patch(
        "fairseq.checkpoint_utils",
        "torch_persistent_save",
        saving.save_complete_and_sealed,
        "A failed save is retried into the half-written file, and nothing is flushed to the disk.",
    ),
    Patch(
        "fairseq.file_io.PathManager",
        "copy",
        saving.copy_complete,
        "`checkpoint_last.pt` and `checkpoint_best.pt` are overwritten in place, so a kill leaves a torn file.",
    ),
    Patch(
        "fairseq.trainer.Trainer",
        "state_dict",
        saving.state_with_unsaved,
        "A checkpoint lacks some of what the next step depends on with `--fp16`.",
    ),
    Patch(
        "fairseq.checkpoint_utils",
        "load_checkpoint",
        resuming.load_newest_sound,
        "A damaged `checkpoint_last.pt` ends the run although an older checkpoint is sound.",
    ),
    Patch(
        "fairseq.checkpoint_utils",
        "load_checkpoint_to_cpu",
        resuming.read_safely,
        "An unreadable file ends in many lines of torch that suggest trusting it.",
    ),
    Patch(
        "fairseq.trainer.Trainer",
        "train_step",
        stopping.train_step,
        "At exit, torch waits five seconds for each data worker.",
    ),
    Patch(
        "fairseq.trainer.Trainer",
        "valid_step",
        stopping.valid_step,
        "A task cannot save in the middle of a validation.",
    ),
    Patch(
        "fairseq.trainer.Trainer",
        "begin_valid_epoch",
        stopping.begin_valid_epoch,
        "A long step of a validation, such as retrieval, has no place to look for signals.",
    ),
    Patch(
        "fairseq.trainer.Trainer",
        "get_train_iterator",
        stopping.get_train_iterator,
        "A task cannot end a run between two epochs, and a trainer forgets the iterator that a save needs.",
    ),
    Patch(
        TRAINING_PROGRAM,
        "validate_and_save",
        stopping.validate_and_save,
        "A task cannot end a run after a step is logged, validated and saved.",
        when_a_run_begins=True,
    ),
    Patch(
        "fairseq.distributed.utils",
        "_infer_torch_distributed_launch_init",
        launch.infer_torchrun,
        "The number of ranks under torchrun is divided by the number of GPUs, which is 0 on a CPU.",
    ),
    Patch(
        "fairseq.distributed.utils",
        "call_main",
        launch.call_main,
        "A signal kills the process that has started the ranks, and the ranks with it.",
    ),
    Patch(
        "fairseq.options",
        "parse_args_and_arch",
        launch.parse_options,
        "A wrong option is named below hundreds of lines of usage.",
    ),
)


def install() -> None:
    """Install the patches that do not wait for a run; idempotent."""
    for patch in PATCHES:
        if not patch.when_a_run_begins:
            patch.install()


def install_for_run() -> None:
    """Install the patches of the training program, which exists once a run begins; idempotent."""
    for patch in PATCHES:
        if patch.when_a_run_begins:
            patch.install()
