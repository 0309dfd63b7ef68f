"""The tiny MLA whose numbers the released code computed, as this project's model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.formats.mla import model_of, split_published
from mclip_fairseq.models.mla import MLAModel


def load(shared_dir: Path, name: str = "mla_tiny.pt") -> dict[str, Any]:
    """A fixture of the folder `mla`."""
    fixture: dict[str, Any] = torch.load(shared_dir / "fixtures" / "mla" / name, weights_only=True)
    return fixture


def build(state: Mapping[str, Tensor], languages: str = "de,fr,zh", **options: Any) -> MLAModel:
    """The model of a published state dict."""
    published = split_published(state, "fixture")
    model = model_of(published, "fixture", end_token=102)
    model.cfg = Namespace(**{**vars(model.cfg), **options})
    model.freeze()
    return model
