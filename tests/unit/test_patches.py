"""The table of patches: what it lists is installed when the plugin registers, once, documented, and not before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mclip_fairseq.tasks  # noqa: F401  # registers the plugin
from mclip_fairseq.resilience.install import PATCHES, Patch, install, install_for_run
from mclip_fairseq.resilience.program import TRAINING_PROGRAM


def label(patch: Patch) -> str:
    return f"{patch.owner}.{patch.name}"


AT_ONCE = [patch for patch in PATCHES if not patch.when_a_run_begins]
INSTALLED = """
import pkgutil, sys
import mclip_fairseq
assert "torch" not in sys.modules
from mclip_fairseq import MultilingualCLIP
import fairseq.checkpoint_utils, fairseq.distributed.utils, fairseq.trainer

def installed():
    return [place for place in {places!r} if hasattr(getattr(pkgutil.resolve_name(place[0]), place[1]), "patch")]

print(installed())
import mclip_fairseq.tasks
print(installed())
"""


@pytest.mark.parametrize("patch", AT_ONCE, ids=label)
def test_every_patch_is_installed_once_with_the_plugin(patch: Patch) -> None:
    (owner,) = patch.owners()
    before = vars(owner)[patch.name]
    assert patch.installed()
    install()
    assert vars(owner)[patch.name] is before


def test_the_training_program_is_patched_when_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under each of the names that it may have been imported by; its functions look each other up there."""
    (patch,) = (patch for patch in PATCHES if patch.when_a_run_begins)
    programs = [SimpleNamespace(validate_and_save=lambda *args: ([], False)) for _ in range(2)]
    for name, program in zip(("__main__", TRAINING_PROGRAM), programs, strict=True):
        monkeypatch.setitem(sys.modules, name, program)
    assert not patch.installed()
    install_for_run()
    assert patch.installed()
    before = [program.validate_and_save for program in programs]
    install_for_run()
    assert [program.validate_and_save for program in programs] == before
    assert programs[0].validate_and_save(None, None, None, None, None, True) == ([], False)


def test_nothing_is_patched_for_inference(repository_root: Path) -> None:
    """The negative control: once the plugin is imported as well, it names every patch."""
    places = [(patch.owner, patch.name) for patch in AT_ONCE]
    code = INSTALLED.format(places=places)
    result = subprocess.run([sys.executable, "-c", code], cwd=repository_root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[]", str(places)]


def test_the_documentation_lists_the_table(repository_root: Path) -> None:
    page = (repository_root / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (with the plugin|when a run begins) \|$", page, flags=re.MULTILINE)
    expected = [
        (label(patch), patch.why, "when a run begins" if patch.when_a_run_begins else "with the plugin")
        for patch in PATCHES
    ]
    assert rows == expected
