"""torchrun on machines without CUDA: fairseq divides by the number of GPUs there."""

import os
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils

_with_cuda = distributed_utils._infer_torch_distributed_launch_init


def _infer_torchrun(cfg: Any) -> None:
    """Take rank and world size from torchrun's environment, on CPUs too."""
    if torch.cuda.device_count():
        _with_cuda(cfg)
        return
    cfg.distributed_init_method = "env://"
    cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
    cfg.distributed_rank = int(os.environ["RANK"])
    cfg.device_id = 0
    cfg.distributed_no_spawn = True


def support_torchrun_on_cpu() -> None:
    """Let fairseq's commands start under torchrun with the gloo backend; idempotent."""
    distributed_utils._infer_torch_distributed_launch_init = _infer_torchrun
