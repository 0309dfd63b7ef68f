"""Optimizer `mclip_lamb`: LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962) without apex."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import register_optimizer
from omegaconf import II
from torch import Tensor

from mclip_fairseq.optim.momentum import MomentumOptimizer, check_shapes_kept, first_lr, parse_betas

# Parameters of one call, unless one tensor alone has more: a step keeps two copies of them, here of 128 MiB.
GROUP_ELEMENTS = 2**25


@dataclass
class LambConfig(FairseqDataclass):
    """Settings of LAMB."""

    lamb_betas: str = field(default="(0.9, 0.999)", metadata={"help": "decay rates of the two moments"})
    lamb_eps: float = field(default=1e-8, metadata={"help": "added to the root of the second moment"})
    lamb_max_grad_norm: float = field(
        default=0.0,
        metadata={"help": "scale all gradients down to this norm before the moments, as apex does with 1.0; 0 is off"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "decoupled weight decay of all parameters", "argparse_alias": "--wd"}
    )
    lr: list[float] = field(default=II("optimization.lr"))


class Lamb(torch.optim.Optimizer):
    """Adam's direction, rescaled for each tensor to the length of its weights.

    With bias-corrected moments m and v, u = m / (sqrt(v) + eps) + weight_decay * w, and
    w -= lr * (|w| / |u|) * u; the ratio is 1 where either norm is 0. Version 3 of the paper with the identity as
    scaling function; apex's FusedLAMB computes the same where weight_decay is not 0.

    Args:
        params: parameters or groups of them; the tensors of a group share a device.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: inside the rescaled direction.
        max_grad_norm: the gradients of all groups together are scaled down to this norm first; 0 is off.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient keep their values and moments.

        Args:
            closure: computes the loss and its gradients again; its result is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        divisor = self._gradient_divisor()
        for group in self.param_groups:
            for params in in_groups([param for param in group["params"] if param.grad is not None]):
                grads = [param.grad for param in params if param.grad is not None]
                self._step_group(params, grads if divisor is None else torch._foreach_div(grads, divisor), group)
        return loss

    def _gradient_divisor(self) -> Tensor | None:
        """What to divide all gradients by so that their common norm is allowed, () shape; None without a limit."""
        if self.defaults["max_grad_norm"] <= 0:
            return None
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return (torch.nn.utils.get_total_norm(grads) / self.defaults["max_grad_norm"]).clamp(min=1.0)

    def _step_group(
        self, params: list[Tensor], grads: list[Tensor] | tuple[Tensor, ...], group: dict[str, Any]
    ) -> None:
        # The `_foreach_` functions update all of these tensors in a few kernels.
        beta1, beta2 = group["betas"]
        states = [self._state_of(param) for param in params]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        # Steps are counted per parameter: some have no gradient in some steps.
        updates = torch._foreach_div(means, [1 - beta1 ** state["step"] for state in states])
        roots = torch._foreach_div(squares, [1 - beta2 ** state["step"] for state in states])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        lengths, update_lengths = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
        # The trust ratio |w| / |u|; a tensor that is still zero, such as a new bias, takes Adam's plain step.
        nonzero = (lengths > 0) & (update_lengths > 0)
        ratios = torch.where(nonzero, lengths / update_lengths, 1.0)
        torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        """State of a parameter, its step counted up."""
        state = self.state[param]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        state["step"] += 1
        return state


def in_groups(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters in their order, in lists of at most `GROUP_ELEMENTS` numbers, or of one larger tensor."""
    group: list[Tensor] = []
    for param in params:
        if group and sum(map(Tensor.numel, [*group, param])) > GROUP_ELEMENTS:
            yield group
            group = []
        group.append(param)
    if group:
        yield group


@register_optimizer("mclip_lamb", dataclass=LambConfig)
class MCLIPLamb(MomentumOptimizer):
    """LAMB for fairseq. As in fairseq's own `lamb`, weight decay and rescaling apply to every parameter.

    Args:
        cfg: the settings.
        params: parameters to train.

    Raises:
        UserError: a setting is out of range, or fairseq has flattened the parameters.
    """

    def __init__(self, cfg: LambConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        params = list(params)
        check_shapes_kept(params, "--optimizer mclip_lamb")
        self._optimizer = Lamb(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Keyword arguments of `Lamb`."""
        return {
            "lr": first_lr(self.cfg.lr),
            "betas": parse_betas(self.cfg.lamb_betas, "--lamb-betas"),
            "eps": self.cfg.lamb_eps,
            "weight_decay": self.cfg.weight_decay,
            "max_grad_norm": self.cfg.lamb_max_grad_norm,
        }
