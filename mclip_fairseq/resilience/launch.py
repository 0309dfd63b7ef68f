"""How ranks are started: under torchrun also without CUDA, and by fairseq itself with signals forwarded to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils

from mclip_fairseq.resilience import signals


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
    """Forward SIGTERM and SIGUSR1 to the ranks that this process starts; fairseq alone would die and take them along.

    Args:
        original: fairseq's `call_main`.
        cfg: all options.
        main: what every rank runs.
        **kwargs: for `main`.
    """
    ranks = cfg.distributed_training
    if ranks.distributed_init_method is None:
        distributed_utils.infer_init_method(ranks)
    starts_ranks = ranks.distributed_init_method is not None and not ranks.distributed_no_spawn
    with signals.forwarded() if starts_ranks else contextlib.nullcontext():
        original(cfg, main, **kwargs)
