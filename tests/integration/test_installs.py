"""Ordinary and editable installs, in an environment of their own: fairseq finds the plugin from a foreign folder.

The environment has a copy of fairseq, because fairseq looks for `--user-dir` beside itself, and reads everything else
from the environment of the tests. What pip resolves and compiles is tried by hand (docs/setup.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

FRESH = """
import sys
from transformers import CLIPModel
import sentence_transformers
print(CLIPModel.__name__, "mclip_fairseq" in sys.modules)
"""


def run(command: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment."""
    import fairseq

    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    source = Path(fairseq.__file__).parent.parent
    for name in ("fairseq", "fairseq_cli"):
        shutil.copytree(source / name, site / name)
    (site / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["ordinary", "editable"])
def test_fairseq_finds_the_plugin_from_a_foreign_folder(
    editable: bool, python: Path, repository_root: Path, tmp_path: Path
) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    elsewhere.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(repository_root / "mclip_fairseq", checkout / "mclip_fairseq", ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(repository_root / name, checkout)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", *options]
    installed = run([*pip, *(["-e"] if editable else []), checkout], elsewhere)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    code = "import mclip_fairseq; print(mclip_fairseq.__file__)"
    place = checkout if editable else python.parents[1]
    assert Path(run([python, "-c", code], elsewhere).stdout.strip()).is_relative_to(place)
    # Without the bad option, this is a training; with it, the task's own sentence shows that the plugin is in use.
    train = [python, "-m", "fairseq_cli.train", "nowhere", "--user-dir", "mclip_fairseq", "--task", "trikd"]
    more = ["--arch", "mclip_tiny", "--criterion", "trikd", "--optimizer", "fused_adamw", "--cpu", "--batch-size", "0"]
    result = run([*train, *more], elsewhere)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.rstrip().endswith(": error: --batch-size 0: is too small; give 1 or more")
    unknown = run([python, "-m", "fairseq_cli.train", "nowhere", "--task", "trikd"], elsewhere)
    assert "invalid choice: 'trikd'" in unknown.stderr, "without --user-dir, the task does not exist"


def test_transformers_work_in_a_fresh_process(tmp_path: Path) -> None:
    """In the environment as it is, without our package: a torchaudio that cannot be loaded would break both."""
    result = run([sys.executable, "-c", FRESH], tmp_path)
    assert result.returncode == 0, f"{result.stderr}\nrun mclip-doctor --fix"
    assert result.stdout == "CLIPModel False\n"
