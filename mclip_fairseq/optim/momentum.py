"""Base class and option parsing of the optimizers."""

import ast
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from fairseq.optim import FairseqOptimizer

from mclip_fairseq.storage.errors import UserError


class MomentumOptimizer(FairseqOptimizer):
    """A fairseq optimizer with first and second moments, whose steps depend on the shapes of parameters."""

    @property
    def supports_flat_params(self) -> bool:
        """Whether fairseq may flatten all parameters into one vector: no, because steps depend on their shapes."""
        return False

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Restore the moments and the learning rate.

        Other settings come from the command line (`optimizer_config`) instead of the checkpoint, unless
        `--optimizer-overrides` names them.
        """
        settings = {name: value for name, value in self.optimizer_config.items() if name != "lr"}
        super().load_state_dict(state_dict, {**settings, **(optimizer_overrides or {})})

    def average_params(self) -> None:
        """Average the moments over ranks; fairseq calls this only in BMUF training."""
        for state in self.optimizer.state.values():
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                dist.all_reduce(moment)
                moment /= dist.get_world_size()


def first_lr(lr: float | Iterable[float]) -> float:
    """The learning rate to start with; fairseq's `--lr` has one for each epoch."""
    return float(next(iter(lr))) if isinstance(lr, Iterable) else float(lr)


def parse_betas(text: str, option: str) -> tuple[float, float]:
    """Read the decay rates of the moments.

    Args:
        text: such as `(0.9, 0.98)`.
        option: where it comes from, for the message.

    Raises:
        UserError: these are not two numbers in [0, 1).
    """
    try:
        first, second = (float(number) for number in ast.literal_eval(text))
        if not (0 <= first < 1 and 0 <= second < 1):
            raise ValueError
    except (ValueError, TypeError, SyntaxError):
        raise UserError(f"{option} is {text!r}; give two numbers from 0 to below 1, such as '(0.9, 0.999)'") from None
    return first, second


def check_shapes_kept(params: list[torch.nn.Parameter], name: str) -> None:
    """Refuse the one vector into which fairseq's --fp16 flattens all parameters.

    It is recognised by its gradient: fairseq allocates that at once, while a model's parameters have none yet.

    Args:
        params: parameters to train.
        name: what needs the shapes, for the message.

    Raises:
        UserError: all parameters are vectors with gradients.
    """
    if params and all(param.dim() == 1 and param.grad is not None for param in params):
        raise UserError(f"{name} needs the parameters' shapes, which --fp16 flattens; add --fp16-no-flatten-grads")
