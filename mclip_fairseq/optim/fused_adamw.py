"""Optimizer `fused_adamw`: torch's fused AdamW (Loshchilov and Hutter 2019), on CUDA and CPU, without apex."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import register_optimizer
from omegaconf import II

from mclip_fairseq.optim.momentum import MomentumOptimizer, check_shapes_kept, first_lr, parse_betas
from mclip_fairseq.storage.errors import UserError


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
    fresh_lr_multiplier: float = field(
        default=1.0,
        metadata={
            "help": "factor of the learning rate of parameters that no published weights start, where the model marks "
            "them (ccrk: 2 as published)"
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
        UserError: a setting is out of range, there is weight decay and fairseq has flattened the parameters, or there
            is a multiplier and nothing that it applies to.
    """

    def __init__(self, cfg: FusedAdamWConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        params = list(params)
        if cfg.weight_decay:
            check_shapes_kept(params, "--optimizer fused_adamw with --weight-decay")
        # Always two groups of ordinary parameters, so that a checkpoint fits whatever the weight decay is.
        groups = decay_groups([param for param in params if cfg.fresh_lr_multiplier == 1 or not is_fresh(param)])
        if cfg.fresh_lr_multiplier != 1:
            groups += self.fresh_groups(params)
        self._optimizer = torch.optim.AdamW(groups, fused=True, **self.optimizer_config)
        self.set_lr(first_lr(cfg.lr))

    def fresh_groups(self, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        """Groups of the parameters that the model marks as fresh, with the factor of their learning rate.

        Raises:
            UserError: the factor is not positive, or there are no such parameters.
        """
        factor, fresh = self.cfg.fresh_lr_multiplier, [param for param in params if is_fresh(param)]
        if not 0 < factor < float("inf"):
            raise UserError(f"--fresh-lr-multiplier is {factor}; give a positive number")
        if not fresh:
            raise UserError(
                "--fresh-lr-multiplier: no parameter is marked as fresh; leave it out for models that mark none, and "
                "replace --fp16, whose copies of the parameters lose the mark, by --autocast bfloat16"
            )
        return [group | {"lr_multiplier": factor} for group in decay_groups(fresh)]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate that the schedule gives; each group keeps its factor of it."""
        for group in self.param_groups:
            group["lr"] = lr * group.get("lr_multiplier", 1.0)

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
        """Restore the state.

        Whatever the overrides say, vectors and scalars stay without weight decay, and the factors of the learning rate
        are those of the command line.
        """
        super().load_state_dict(state_dict, optimizer_overrides)
        for number, group in enumerate(self.param_groups):
            if number % 2:
                group["weight_decay"] = 0.0
            if number >= 2:
                group["lr_multiplier"] = self.cfg.fresh_lr_multiplier
        self.set_lr(self.get_lr())


def is_fresh(param: torch.nn.Parameter) -> bool:
    """Whether the model marks a parameter as one that no published weights start."""
    return bool(getattr(param, "fresh", False))


def decay_groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Matrices, and vectors and scalars, which are never decayed."""
    matrices = [param for param in params if param.dim() >= 2]
    others = [param for param in params if param.dim() < 2]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
