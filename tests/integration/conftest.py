"""Fixtures of the tests of `mclip-evaluate` on benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mclip_fairseq.cli import evaluate
from tests.grey_benchmarks import GreyModel, write_benchmarks


@pytest.fixture
def grey_models(monkeypatch: pytest.MonkeyPatch) -> dict[str, GreyModel]:
    """What `--model first second` loads; the second takes German d for a."""
    loaded = {name: GreyModel(name) for name in ("first", "second")}
    monkeypatch.setattr(evaluate, "load_model", lambda options, number: loaded[options.model[number]])
    return loaded


@pytest.fixture
def benchmark_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one benchmark of each kind."""
    monkeypatch.chdir(tmp_path)
    write_benchmarks(tmp_path)
    return tmp_path
