"""Where a step would make the CPU wait for a GPU, found without one."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fairseq
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mclip_fairseq

# Each of them brings a number to the CPU (.item(), bool(), float()), has an output whose size depends on values, or
# copies a number to the GPU (torch.tensor). `Tensor.tolist` does not pass through the dispatcher and is counted apart.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "lift_fresh"}
CODE = tuple(f"{Path(str(package.__file__)).parent}/" for package in (fairseq, mclip_fairseq))


class Waits(TorchDispatchMode):
    """Notes the waits of everything that runs inside, as `file:line`.

    A check that only CPUs make (`is_cuda` is asked first) is not left out, so a bound says at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in WAITING or masks:
            self.note(name)
        return function(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Keep the innermost place in the code of the project or of fairseq."""
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(CODE)]
        self.places.append(f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} {name}" if frames else name)


def waits_of(work: Callable[[], object], patch: pytest.MonkeyPatch) -> list[str]:
    """The places at which `work` would wait for a GPU."""
    tolist = torch.Tensor.tolist
    with Waits() as found, patch.context() as here:

        def noted(tensor: torch.Tensor) -> Any:
            found.note("tolist")
            return tolist(tensor)

        here.setattr(torch.Tensor, "tolist", noted)
        work()
    return found.places
