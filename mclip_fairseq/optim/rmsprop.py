"""Optimizer `rmsprop`: RMSprop (Tieleman and Hinton 2012) with Keras' settings, as Contrastive Tension uses it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from mclip_fairseq.optim.momentum import first_lr


@dataclass
class RMSpropConfig(FairseqDataclass):
    """Settings of RMSprop; torch's own defaults are others (0.99 and 1e-8)."""

    rmsprop_rho: float = field(default=0.9, metadata={"help": "decay rate of the second moment"})
    rmsprop_eps: float = field(default=1e-7, metadata={"help": "added to the root of the second moment"})
    lr: list[float] = field(default=II("optimization.lr"))


@register_optimizer("rmsprop", dataclass=RMSpropConfig)
class RMSprop(FairseqOptimizer):
    """Neither centred nor with momentum: x -= lr g / (sqrt(v) + eps), as Keras before 2.11 has it.

    Args:
        cfg: the settings.
        params: parameters to train.
    """

    def __init__(self, cfg: RMSpropConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        self._optimizer = torch.optim.RMSprop(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Keyword arguments of `torch.optim.RMSprop`."""
        return {"lr": first_lr(self.cfg.lr), "alpha": self.cfg.rmsprop_rho, "eps": self.cfg.rmsprop_eps}

    @property
    def supports_flat_params(self) -> bool:
        """Whether shapes do not matter."""
        return True
