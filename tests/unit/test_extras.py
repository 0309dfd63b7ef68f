"""Optional dependencies: a missing one names the extra to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra


def test_an_installed_module_is_returned() -> None:
    assert import_extra("xml.sax", "evaluate") is sys.modules["xml.sax"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.stats"])
def test_a_missing_module_names_the_extra(module: str) -> None:
    with pytest.raises(
        UserError, match=r"^no_such_package is not installed; run pip install 'mclip_fairseq\[search\]'$"
    ):
        import_extra(module, "search")


def test_an_installed_module_that_lacks_an_import_of_its_own_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import another_missing_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_missing_package"):
        import_extra("half_installed", "evaluate")
