"""Options of a training that cannot work, refused before anything is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from fairseq.file_io import PathManager
from fairseq.registry import REGISTRIES
from omegaconf import OmegaConf

from mclip_fairseq.resilience.choosing import LAST
from mclip_fairseq.storage.errors import UserError

HALF_PRECISION = ("fp16", "memory_efficient_fp16")
RECALL, SIMILARITY = "mean_recall", "sts_spearman"


def check_launch(cfg: Any) -> None:
    """Check the options that fairseq would misunderstand or ignore.

    Args:
        cfg: fairseq's configuration.

    Raises:
        UserError: naming the option.
    """
    check_precision(cfg.common, OmegaConf.select(cfg, "task.autocast"))
    check_batches(cfg.dataset)
    check_numbers(cfg)
    check_hardware(cfg)
    if not cfg.checkpoint.save_dir:
        raise UserError("--save-dir: is empty; give a directory")
    check_restored_files(cfg.checkpoint)
    check_metric(cfg)


def check_precision(common: Any, autocast: Any) -> None:
    """Refuse a precision that this machine, or fairseq, does not have.

    Args:
        common: fairseq's common options.
        autocast: the task's option, None where the task has none.
    """
    if common.bf16 or common.memory_efficient_bf16 or common.tpu:
        option = "--tpu" if not (common.bf16 or common.memory_efficient_bf16) else "--bf16"
        raise UserError(
            f"{option}: is fairseq's TPU mode, which does not work here; leave it out, and pass --autocast bfloat16 "
            "for bfloat16 on GPUs or CPUs"
        )
    if common.amp:
        raise UserError(
            "--amp: fairseq divides gradients by the loss scale twice, so that updates fade; pass --autocast bfloat16, "
            "or --fp16"
        )
    lowered = autocast not in (None, "none")
    on_gpu = torch.cuda.is_available() and not common.cpu
    if lowered and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--autocast {autocast}: this GPU does not compute in it; use --fp16, or leave it out")
    chosen = [f"--{name.replace('_', '-')}" for name in HALF_PRECISION if getattr(common, name)]
    if not chosen:
        return
    if not on_gpu:
        why = "--cpu is given" if common.cpu else "torch finds none"
        raise UserError(f"{chosen[0]}: needs a GPU, and {why}; leave it out to train in float32")
    if lowered:
        raise UserError(f"{chosen[0]} and --autocast {autocast} are both given; choose one of them")


def check_batches(dataset: Any) -> None:
    """Refuse batches without a size or of no size, and a negative number of data workers.

    Args:
        dataset: fairseq's options of the data.
    """
    sizes = {"--batch-size": dataset.batch_size, "--max-tokens": dataset.max_tokens}
    for option, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"{option} {size}: is too small; give 1 or more")
    if dataset.num_workers < 0:
        raise UserError(f"--num-workers {dataset.num_workers}: is negative; give 0 to load data in this process")
    if all(size is None for size in sizes.values()):
        raise UserError("neither --batch-size nor --max-tokens is given; pass one of them")


def check_numbers(cfg: Any) -> None:
    """Refuse rates and counts that no training can use.

    Args:
        cfg: fairseq's configuration.
    """
    optimization = cfg.optimization
    for rate in optimization.lr:
        if not 0 <= rate < math.inf:
            raise UserError(f"--lr {rate}: is not a learning rate; give a number of 0 or more")
    for count in optimization.update_freq:
        if count < 1:
            raise UserError(f"--update-freq {count}: is too small; give 1 or more")
    for name in ("max_update", "max_epoch", "clip_norm"):
        value = getattr(optimization, name)
        if not value >= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: is not a limit; give a number of 0 or more")
    block_rows = OmegaConf.select(cfg, "task.contrast_block_rows")
    if block_rows is not None and block_rows < -1:
        raise UserError(f"--contrast-block-rows {block_rows}: is not a number of rows; give one, or 0 for all of them")
    if not 0 <= cfg.common.seed < 2**32:
        raise UserError(f"--seed {cfg.common.seed}: is not a seed; give a number from 0 to {2**32 - 1}")
    for name, value in dict(cfg.model or {}).items():
        if name.endswith("dropout") and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: is not a probability; give a number from 0 to 1")


def check_hardware(cfg: Any) -> None:
    """Refuse TF32 without a GPU, and fairseq's copy-free float16 with an optimizer that cannot work with it.

    Args:
        cfg: fairseq's configuration.
    """
    if OmegaConf.select(cfg, "task.tf32") and (cfg.common.cpu or not torch.cuda.is_available()):
        raise UserError("--tf32: is for GPUs; leave it out")
    name = getattr(cfg.optimizer, "_name", None)
    kind = REGISTRIES["optimizer"]["registry"].get(name)
    ours = kind is not None and kind.__module__.split(".")[0] == __name__.split(".")[0]
    if cfg.common.memory_efficient_fp16 and ours:
        raise UserError(
            f"--memory-efficient-fp16: --optimizer {name} needs weights in float32; pass --autocast bfloat16, or "
            "--fp16 --fp16-no-flatten-grads"
        )


def check_restored_files(cfg: Any) -> None:
    """Refuse a file to start from that does not exist: fairseq would silently train from scratch.

    Args:
        cfg: fairseq's checkpoint options.
    """
    options = ("restore_file", "finetune_from_model", "continue_once")
    for name in options:
        given = getattr(cfg, name, None)
        if given is None or (name == "restore_file" and given == LAST) or PathManager.path_requires_pathmanager(given):
            continue
        suffix = (cfg.checkpoint_suffix or "") if name == "restore_file" else ""
        path = Path(given.replace(".pt", f"{suffix}.pt"))
        # A run that has begun continues from its own checkpoints, wherever it once started from.
        begun = name != "restore_file" and any(Path(cfg.save_dir).glob("checkpoint*.pt"))
        if path.is_file() or begun:
            continue
        option = f"--{name.replace('_', '-')}"
        what = "is a directory" if path.is_dir() else "not found"
        beside = Path(cfg.save_dir) / path.name
        advice = f"give {beside}" if path.name and beside.is_file() else "give an existing checkpoint, or leave it out"
        raise UserError(f"{option} {path}: {what}; {advice}")


def check_metric(cfg: Any) -> None:
    """Refuse to choose checkpoints by a recall that is not measured, or by the smallest one.

    Args:
        cfg: fairseq's configuration.
    """
    metric, measured = cfg.checkpoint.best_checkpoint_metric, OmegaConf.select(cfg, "task.valid_retrieval")
    if cfg.dataset.disable_validation or measured is None or not metric.startswith(RECALL):
        return
    if not measured:
        raise UserError(f"--best-checkpoint-metric {metric}: is measured with --valid-retrieval only; pass it as well")
    if not cfg.checkpoint.maximize_best_checkpoint_metric:
        raise UserError(
            f"--best-checkpoint-metric {metric}: is better when it is larger; pass --maximize-best-checkpoint-metric"
        )
