"""How a training starts: options checked, torchrun without GPUs, signals for ranks, one run per directory."""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from fairseq import options
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mclip_fairseq.resilience import signals
from mclip_fairseq.resilience.holding import held_by_rank_zero
from mclip_fairseq.resilience.preflight import check_launch
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line, shown

BAD_INPUT, INTERRUPTED = 2, 130


def infer_torchrun(original: Callable[..., None], cfg: Any) -> None:
    """Take rank and world size from torchrun's environment where there is no GPU to divide by.

    Args:
        original: fairseq's function, which serves machines with GPUs.
        cfg: options of distributed training, which are filled in.
    """
    if torch.cuda.device_count():
        original(cfg)
        return
    cfg.distributed_init_method = "env://"
    cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
    cfg.distributed_rank = int(os.environ["RANK"])
    cfg.device_id = 0
    cfg.distributed_no_spawn = True


def call_main(original: Callable[..., None], cfg: Any, main: Any, **kwargs: Any) -> None:
    """Check a training's options and let one run hold its directory; pass signals on to ranks that start here.

    Forward SIGTERM and SIGUSR1 to the ranks that this process starts; fairseq alone would die and take them along.

    Args:
        original: fairseq's `call_main`.
        cfg: all options.
        main: what every rank runs.
        **kwargs: for `main`.

    Raises:
        UserError: options that cannot work, or a directory that another run holds.
    """
    report_in_one_line()
    if is_training(main):
        check_launch(cfg)
        main = functools.partial(run_alone, main)
    ranks = cfg.distributed_training
    if ranks.distributed_init_method is None:
        distributed_utils.infer_init_method(ranks)
    starts_ranks = ranks.distributed_init_method is not None and not ranks.distributed_no_spawn
    with signals.forwarded() if starts_ranks else contextlib.nullcontext():
        original(cfg, main, **kwargs)


def is_training(main: Any) -> bool:
    """Whether a program's `main` is that of fairseq-train."""
    return hasattr(sys.modules.get(getattr(main, "__module__", "")), "validate_and_save")


def run_alone(main: Callable[..., None], cfg: Any, **kwargs: Any) -> None:
    """Train on this rank while the run holds --save-dir; with --no-save, nothing is written and nothing held.

    Args:
        main: that of fairseq-train.
        cfg: all options.
        **kwargs: for `main`.
    """
    report_in_one_line()  # ranks that fairseq has started begin here
    make_log_folders(cfg.common)
    folder, rank = cfg.checkpoint.save_dir, cfg.distributed_training.distributed_rank or 0
    if cfg.checkpoint.no_save or PathManager.path_requires_pathmanager(folder):
        main(cfg, **kwargs)
        return
    with held_by_rank_zero(folder, rank):
        main(cfg, **kwargs)


def make_log_folders(common: Any) -> None:
    """Make the directories of --log-file and --tensorboard-logdir.

    Args:
        common: fairseq's options.

    Raises:
        UserError: one cannot be made, or the log file is a directory.
    """
    log_file, tensorboard = common.log_file, common.tensorboard_logdir
    folders = {"--log-file": log_file and Path(log_file).parent, "--tensorboard-logdir": tensorboard}
    for option, folder in folders.items():
        try:
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{option}: the directory {folder} cannot be made: {error.strerror}; give another"
            ) from error
    if log_file and Path(log_file).is_dir():
        raise UserError(f"--log-file {log_file}: is a directory; give the name of a file")


def parse_options(original: Callable[..., Any], parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
    """Parse a command line; a wrong option ends in one line and status 2, not below hundreds of lines of usage.

    Args:
        original: fairseq's `parse_args_and_arch`.
        parser: its parser.
        *args: for `original`.
        **kwargs: for `original`.

    Returns:
        What `original` returns.
    """

    def end(message: str) -> NoReturn:
        advice = "mclip-doctor options prints those of a task, model or criterion"
        plain = shown(message).replace("invalid <lambda> value", "invalid value")  # fairseq's reader of lists
        parser.exit(BAD_INPUT, f"{parser.prog}: error: {plain}; {advice}\n")

    parser.error = end  # type: ignore[method-assign]
    return original(parser, *args, **kwargs)


def sentence_of(error: BaseException) -> str:
    """What the user can fix, in one sentence; empty for a bug.

    Args:
        error: a `UserError`; what hydra says of an option of a wrong type, by which fairseq composes its options; or
            fairseq's empty RuntimeError where no architecture is given.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return first_line(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if (
        isinstance(error, RuntimeError)
        and frames
        and frames[-1].f_code is inspect.unwrap(options.parse_args_and_arch).__code__
    ):
        return "--arch is not given; pass a model or one of its architectures, which mclip-doctor options lists"
    return ""


def report_in_one_line() -> None:
    """Let fairseq's programs end as ours do: one line and status 2 for what the user can fix, 130 after Ctrl-C."""
    before = sys.excepthook
    if getattr(before, "in_one_line", False):
        return
    program = Path(sys.argv[0]).name

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = sentence_of(error)
        if message:
            print(f"{program}: error: {shown(message)}", file=sys.stderr, flush=True)
            raise SystemExit(BAD_INPUT)
        if isinstance(error, KeyboardInterrupt):
            print(f"\n{program}: interrupted", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED)
        before(kind, error, trace)

    hook.in_one_line = True  # type: ignore[attr-defined]
    sys.excepthook = hook
