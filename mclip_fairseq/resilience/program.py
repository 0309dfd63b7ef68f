"""Finds the running fairseq_cli.train module, whose functions call each other through its globals."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

TRAINING_PROGRAM = "fairseq_cli.train"


def training_programs() -> list[ModuleType]:
    """The modules that may be the program: `__main__` under `torchrun -m fairseq_cli.train`, and the imported one."""
    modules = [sys.modules.get(name) for name in ("__main__", TRAINING_PROGRAM)]
    return [module for module in modules if module is not None and hasattr(module, "validate_and_save")]


def early_stopping() -> dict[str, Any]:
    """The counters of --patience, which fairseq keeps as attributes of a function and leaves out of checkpoints."""
    return next((vars(module.should_stop_early) for module in training_programs()), {})
