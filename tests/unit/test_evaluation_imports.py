"""What evaluation imports, and when: a metric or a `--help` costs none of the libraries that it does not use."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

import mclip_fairseq.evaluation
from mclip_fairseq.evaluation.metrics.similarity import similarity_correlations
from mclip_fairseq.evaluation.metrics.translation import translation_scores
from mclip_fairseq.evaluation.reports.fonts import families_for
from mclip_fairseq.storage.errors import UserError

METRICS = ("bitext", "classification", "confidence", "languages", "retrieval", "similarity", "translation", "variance")
EXTRAS = ("scipy", "sacrebleu", "matplotlib")
HELP = "import {0}\ntry:\n    {0}.main(['--help'])\nexcept SystemExit:\n    pass"


def loaded(program: str) -> set[str]:
    """The top-level modules of a fresh process after a program."""
    program += "\nimport sys\nprint('\\n'.join(name for name in sys.modules if '.' not in name))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_metrics_need_torch_alone() -> None:
    program = "\n".join(f"import mclip_fairseq.evaluation.metrics.{name}" for name in METRICS)
    modules = loaded(f"{program}\nfrom mclip_fairseq.evaluation import *")
    assert "torch" in modules  # a control
    assert not modules & {"fairseq", "transformers", *EXTRAS}


@pytest.mark.parametrize("program", ["evaluate", "report"])
def test_help_needs_no_torch(program: str) -> None:
    modules = loaded(HELP.format(f"mclip_fairseq.cli.{program}"))
    assert "argparse" in modules  # a control
    assert not modules & {"torch", "fairseq", "transformers", *EXTRAS}


def test_lazy_names_are_those_of_their_modules() -> None:
    for name in mclip_fairseq.evaluation.__all__:
        value = getattr(mclip_fairseq.evaluation, name)
        assert getattr(import_module(value.__module__), name) is value
    with pytest.raises(AttributeError, match="has no attribute 'recall'"):
        mclip_fairseq.evaluation.recall  # noqa: B018


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_library_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    uses = {
        "scipy": lambda: similarity_correlations(np.eye(2), torch.ones(2, 2), [0.0, 1.0]),
        "sacrebleu": lambda: translation_scores(["a"], ["a"], "en"),
        "matplotlib": lambda: families_for(["a"]),
    }
    with pytest.raises(UserError, match=rf"{package} is not installed; run pip install 'mclip_fairseq\[evaluate\]'"):
        uses[package]()
