"""The table of mutants fits the code, and its runner tells a fault that is noticed from one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("row", MUTANTS, ids=lambda row: f"{row.file} {row.old}")
def test_every_row_fits_the_code(row: Mutant, repository_root: Path) -> None:
    text = (repository_root / "mclip_fairseq" / row.file).read_text(encoding="utf-8")
    assert text.count(row.old) == 1
    compile(text.replace(row.old, row.new), row.file, "exec")
    assert row.old != row.new
    paths = row.tests.partition(" -k ")[0].split()
    assert all((repository_root / path).is_file() for path in paths)


def test_every_area_has_mutants() -> None:
    areas = (
        "losses/",
        "gather",
        "terms",
        "sampling",
        "resuming",
        "sealed",
        "metrics/",
        "search/",
        "freezing",
        "optim/",
    )
    assert [area for area in areas if not any(area in row.file for row in MUTANTS)] == []
    assert len(set(MUTANTS)) == len(MUTANTS)


TEST = "from mclip_fairseq.code import add\ndef test_add():\n    assert add(1, {second}) == {total}\n"


@pytest.mark.parametrize(("second", "caught"), [(2, True), (0, False)])
def test_a_fault_survives_where_no_test_notices_it(second: int, caught: bool, tmp_path: Path) -> None:
    (tmp_path / "mclip_fairseq").mkdir()
    (tmp_path / "mclip_fairseq" / "__init__.py").touch()
    (tmp_path / "mclip_fairseq" / "code.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_it.py").write_text(TEST.format(second=second, total=1 + second))
    row = Mutant("code.py", "a + b", "a - b", "test_it.py")
    assert mutants.outcome(row, tmp_path) == ("caught" if caught else "SURVIVED")
    assert "a + b" in (tmp_path / "mclip_fairseq" / "code.py").read_text()
