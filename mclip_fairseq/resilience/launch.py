"""How ranks are started: under torchrun also without CUDA, by fairseq itself with the signals passed on."""

import contextlib
import os
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils

from mclip_fairseq.resilience import signals

_with_cuda = distributed_utils._infer_torch_distributed_launch_init
_call_main_of_fairseq = distributed_utils.call_main


def _infer_torchrun(cfg: Any) -> None:
    """Take rank and world size from torchrun's environment, on CPUs too: fairseq divides by the number of GPUs."""
    if torch.cuda.device_count():
        _with_cuda(cfg)
        return
    cfg.distributed_init_method = "env://"
    cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
    cfg.distributed_rank = int(os.environ["RANK"])
    cfg.device_id = 0
    cfg.distributed_no_spawn = True


def _call_main(cfg: Any, main: Any, **kwargs: Any) -> None:
    """Fairseq's `call_main`; where it starts the ranks itself, SIGTERM and SIGUSR1 would end it, and them with it."""
    ranks = cfg.distributed_training
    if ranks.distributed_init_method is None:
        distributed_utils.infer_init_method(ranks)
    starts_ranks = ranks.distributed_init_method is not None and not ranks.distributed_no_spawn
    with signals.passed_on() if starts_ranks else contextlib.nullcontext():
        _call_main_of_fairseq(cfg, main, **kwargs)


def support_every_launcher() -> None:
    """Let fairseq's commands start under torchrun with the gloo backend, and end well on signals; idempotent."""
    distributed_utils._infer_torch_distributed_launch_init = _infer_torchrun
    distributed_utils.call_main = _call_main
