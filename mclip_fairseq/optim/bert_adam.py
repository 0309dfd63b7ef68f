"""Optimizer `bert_adam`: BERT's Adam without bias correction, as MLA's released code uses it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim import register_optimizer
from omegaconf import II

from mclip_fairseq.optim.momentum import MomentumOptimizer, check_shapes_kept, first_lr, parse_betas
from mclip_fairseq.optim.warmup_cosine import WARMUP, check_schedule, warmup_cosine


@dataclass
class BertAdamConfig(FairseqDataclass):
    """Settings of BertAdam; the defaults are MLA's."""

    bert_adam_betas: str = field(default="(0.9, 0.98)", metadata={"help": "decay rates of the two moments"})
    bert_adam_eps: float = field(default=1e-6, metadata={"help": "added to the root of the second moment"})
    bert_adam_max_norm: float = field(
        default=1.0, metadata={"help": "scale the gradient of each parameter down to this norm; 0 is off"}
    )
    bert_adam_clock: ChoiceEnum(["update", "parameter"]) = field(  # type: ignore[valid-type]
        default="update",
        metadata={
            "help": "what the schedule counts. update: the updates of the run, with any --lr-scheduler; parameter: the "
            "updates of each parameter, warmup_cosine over --max-update, as the released code does (with "
            "--lr-scheduler fixed)"
        },
    )
    weight_decay: float = field(
        default=0.2,
        metadata={"help": "decoupled weight decay of everything but biases", "argparse_alias": "--wd"},
    )
    max_update: int = II("optimization.max_update")
    lr: list[float] = field(default=II("optimization.lr"))


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, with decoupled weight decay and a gradient clip for each parameter.

    g <- g min(1, max_norm / (|g| + 1e-6)); m, v as Adam's; w <- w - lr f (m / (sqrt(v) + eps) + weight_decay w).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of a group's parameters.
        max_norm: of the gradient of one parameter; 0 is off.
        total: with it f = `warmup_cosine`(a parameter's own updates / total), else f = 1.
        warmup: share of `total` that is warm-up.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
        total: int = 0,
        warmup: float = WARMUP,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": max_norm}
        super().__init__(params, {**settings, "total": total, "warmup": warmup})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient keep their values, moments and clock.

        Args:
            closure: computes the loss and its gradients once more; what it returns is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norms = self._norms()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, norms[clip_group(parameter)], group)
        return loss

    def _norms(self) -> dict[Any, torch.Tensor]:
        """Norm of each gradient; parameters that a model marks with one `clip_group` count as one parameter."""
        parts: dict[Any, list[torch.Tensor]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parts.setdefault(clip_group(parameter), []).append(parameter.grad.norm())
        return {name: torch.stack(norms).norm() for name, norms in parts.items()}

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, norm: torch.Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        if group["max_norm"]:
            gradient = gradient * (group["max_norm"] / (norm + 1e-6)).clamp(max=1.0)
        state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        direction = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        if group["weight_decay"]:
            direction.add_(parameter, alpha=group["weight_decay"])
        factor = warmup_cosine(state["step"] / group["total"], group["warmup"]) if group["total"] else 1.0
        parameter.add_(direction, alpha=-group["lr"] * factor)
        state["step"] += 1


def clip_group(parameter: torch.Tensor) -> Any:
    """What a parameter's gradient is clipped with: itself, unless a model has marked it."""
    return getattr(parameter, "clip_group", id(parameter))


@register_optimizer("bert_adam", dataclass=BertAdamConfig)
class FairseqBertAdam(MomentumOptimizer):
    """BertAdam; by default its schedule is fairseq's, which counts the updates of the run.

    The released code's clock is an accident: each parameter counts its own updates, so what a language's batches train
    has its own warm-up and never reaches the end of the schedule.

    Args:
        cfg: the settings.
        params: parameters to train. One that a model marks as `is_bias` is not decayed, nor is an unmarked vector.

    Raises:
        UserError: a setting is out of range, or fairseq has flattened the parameters.
    """

    def __init__(self, cfg: BertAdamConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        params = list(params)
        check_shapes_kept(params, "--optimizer bert_adam")
        biases = [param for param in params if getattr(param, "is_bias", param.dim() < 2)]
        skip = set(map(id, biases))
        others = [param for param in params if id(param) not in skip]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": biases, "weight_decay": 0.0}]
        self._optimizer = BertAdam(groups, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Keyword arguments of `BertAdam`."""
        by_parameter = str(self.cfg.bert_adam_clock) == "parameter"
        if by_parameter:
            check_schedule(self.cfg.max_update, WARMUP, "--bert-adam-clock parameter")
        return {
            "lr": first_lr(self.cfg.lr),
            "betas": parse_betas(self.cfg.bert_adam_betas, "--bert-adam-betas"),
            "eps": self.cfg.bert_adam_eps,
            "weight_decay": self.cfg.weight_decay,
            "max_norm": self.cfg.bert_adam_max_norm,
            "total": self.cfg.max_update if by_parameter else 0,
        }

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Restore the state; biases stay without weight decay whatever the overrides say."""
        super().load_state_dict(state_dict, optimizer_overrides)
        self.param_groups[1]["weight_decay"] = 0.0
