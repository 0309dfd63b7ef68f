"""Learning rate schedule `warmup_cosine` of BertAdam, which MLA was trained with."""

import math
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from mclip_fairseq.optim.momentum import first_lr
from mclip_fairseq.storage.errors import UserError

WARMUP = 0.1


def warmup_cosine(share: float, warmup: float = WARMUP) -> float:
    """Factor of the learning rate after a share of the training.

    It rises from 0 to 1 over the warm-up, and then follows the cosine of the whole training: the curve is not shifted
    by the warm-up, so it falls from 1 to 0.976 where a warm-up of 0.1 ends.

    Args:
        share: updates made / updates of the training.
        warmup: share of the training that is warm-up.
    """
    return share / warmup if share < warmup else 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass
class WarmupCosineConfig(FairseqDataclass):
    """Length of the training and of its warm-up."""

    warmup_share: float = field(default=WARMUP, metadata={"help": "share of the updates that are warm-up"})
    total_num_update: int = field(default=0, metadata={"help": "updates until the rate is 0; 0: --max-update"})
    max_update: int = II("optimization.max_update")
    lr: list[float] = field(default=II("optimization.lr"))


@register_lr_scheduler("warmup_cosine", dataclass=WarmupCosineConfig)
class WarmupCosineSchedule(FairseqLRScheduler):
    """The rate before each update, by the number of updates made.

    Raises:
        UserError: the length of the training or of its warm-up is unknown or impossible.
    """

    def __init__(self, cfg: WarmupCosineConfig, fairseq_optimizer: Any) -> None:
        super().__init__(cfg, fairseq_optimizer)
        self.total = cfg.total_num_update or cfg.max_update
        check_schedule(self.total, cfg.warmup_share, "--lr-scheduler warmup_cosine")
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set the rate of the next update."""
        share = min(num_updates / self.total, 1.0)
        self.optimizer.set_lr(first_lr(self.cfg.lr) * warmup_cosine(share, self.cfg.warmup_share))
        rate: float = self.optimizer.get_lr()
        return rate


def check_schedule(total: int, warmup: float, option: str) -> None:
    """Refuse a schedule without a length.

    Raises:
        UserError: naming the option.
    """
    if total <= 0:
        raise UserError(f"{option} needs the number of updates; give --max-update or --total-num-update")
    if not 0 < warmup < 1:
        raise UserError(f"--warmup-share is {warmup}; give a share between 0 and 1")
