"""What a model costs: parameters."""

from __future__ import annotations

from typing import Any


def count_parameters(model: Any) -> int:
    """Parameters of both towers of a `MultilingualCLIP`, shared ones once."""
    modules = [module for module in (model.tower.module, model.tower.image_module) if module is not None]
    return sum({id(weight): weight.numel() for module in modules for weight in module.parameters()}.values())
