"""What importing the package does to the process, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = """
import logging, sys
import mclip_fairseq
root = logging.getLogger()
assert root.level == logging.WARNING and not root.handlers, (root.level, root.handlers)
assert not {"torch", "numpy", "fairseq", "transformers", "faiss", "matplotlib"} & sys.modules.keys()
from mclip_fairseq import MultilingualCLIP
assert not {"transformers", "faiss", "matplotlib"} & sys.modules.keys()
try:
    mclip_fairseq.nothing
except AttributeError as error:
    print(error)
"""
GROUND = """
import importlib, pkgutil, sys
import mclip_fairseq.losses, mclip_fairseq.storage, mclip_fairseq.evaluation.metrics
for package in (mclip_fairseq.losses, mclip_fairseq.storage, mclip_fairseq.evaluation.metrics):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(*sorted({"fairseq", "transformers"} & sys.modules.keys()))
"""


def run(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)


def test_importing_is_light_and_leaves_logging_alone(repository_root: Path) -> None:
    result = run(LIGHT, repository_root)
    assert result.returncode == 0, result.stderr
    assert "has no attribute 'nothing'" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("more", "loaded"), [("", ""), ("import mclip_fairseq.tasks, transformers\n", "fairseq transformers")]
)
def test_losses_storage_and_metrics_need_neither_fairseq_nor_transformers(
    more: str, loaded: str, repository_root: Path
) -> None:
    """All of their modules; the negative control imports the plugin first."""
    result = run(more + GROUND, repository_root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == loaded
