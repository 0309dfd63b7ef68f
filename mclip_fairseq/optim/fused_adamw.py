"""Optimizer `fused_adamw`: torch's fused AdamW (Loshchilov and Hutter 2019), on CUDA and CPU, without apex."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import register_optimizer
from omegaconf import II

from mclip_fairseq.optim.momentum import MomentumOptimizer, check_shapes_kept, first_lr, parse_betas


@dataclass
class FusedAdamWConfig(FairseqDataclass):
    """Settings of AdamW."""

    adamw_betas: str = field(default="(0.9, 0.999)", metadata={"help": "decay rates of the two moments"})
    adamw_eps: float = field(default=1e-8, metadata={"help": "added to the root of the second moment"})
    weight_decay: float = field(
        default=0.0,
        metadata={
            "help": "decoupled weight decay of matrices; vectors and scalars are never decayed",
            "argparse_alias": "--wd",
        },
    )
    lr: list[float] = field(default=II("optimization.lr"))


@register_optimizer("fused_adamw", dataclass=FusedAdamWConfig)
class FusedAdamW(MomentumOptimizer):
    """AdamW whose weight decay skips biases, norms and the logit scale, as in open_clip.

    Args:
        cfg: the settings.
        params: parameters to train.

    Raises:
        UserError: a setting is out of range, or weight decay is on and fairseq has flattened the parameters.
    """

    def __init__(self, cfg: FusedAdamWConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        params = list(params)
        if cfg.weight_decay:
            check_shapes_kept(params, "--optimizer fused_adamw with --weight-decay")
        matrices = [param for param in params if param.dim() >= 2]
        others = [param for param in params if param.dim() < 2]
        # Always two groups, so that a checkpoint can be loaded with any weight decay.
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, fused=True, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Keyword arguments of `torch.optim.AdamW`."""
        return {
            "lr": first_lr(self.cfg.lr),
            "betas": parse_betas(self.cfg.adamw_betas, "--adamw-betas"),
            "eps": self.cfg.adamw_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self) -> bool:
        """Whether fairseq may flatten the parameters: without weight decay, their shapes do not matter."""
        return not self.cfg.weight_decay

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Restore the state; vectors and scalars keep a weight decay of 0, even if the overrides set one."""
        super().load_state_dict(state_dict, optimizer_overrides)
        self.param_groups[1]["weight_decay"] = 0.0
