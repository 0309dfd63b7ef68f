"""Where fairseq's training program is, whose functions look one another up in it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def training_programs() -> list[ModuleType]:
    """The modules that may be it: `__main__` under `torchrun -m fairseq_cli.train`, and the installed one."""
    found = (sys.modules.get(name) for name in ("__main__", "fairseq_cli.train"))
    return [module for module in found if hasattr(module, "validate_and_save")]  # type: ignore[misc]


def early_stopping() -> dict[str, Any]:
    """What fairseq counts for --patience, as attributes of a function; its checkpoints leave it out."""
    return next((vars(module.should_stop_early) for module in training_programs()), {})
