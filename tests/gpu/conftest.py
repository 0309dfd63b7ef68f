"""Tests on a device: on the CPU in every run of the suite, and on a GPU with MCLIP_TEST_GPU=1 -m gpu."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU in a test of its own that is marked `gpu`."""
    return torch.device(request.param)
