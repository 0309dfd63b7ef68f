"""A recipe skips a finished training only if its options and data are the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = """
set -euo pipefail
source "$1/examples/recipe.sh"
TRAIN=(true)
train run data:more --lr 1 --user-dir code --text-state-cache cache ${2:-}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data", "more", "code", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a file").write_text("one")
    return tmp_path


def train(root: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", SCRIPT, "recipe", str(root), *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_same_training_is_skipped(repository_root: Path, folder: Path) -> None:
    assert train(repository_root, folder).returncode == 0
    for name in ("code", "cache"):  # the code, and what a training writes
        (folder / name / "a file").write_text("two")
    (folder / "data/a file").touch()
    again = train(repository_root, folder)
    assert (again.returncode, again.stdout) == (0, "run is finished\n")


@pytest.mark.parametrize("change", ["data", "more", "option"])
def test_a_training_with_other_data_or_options_is_not(repository_root: Path, folder: Path, change: str) -> None:
    assert train(repository_root, folder).returncode == 0
    if change != "option":
        (folder / change / "a file").write_text("two")
    again = train(repository_root, folder, *(["--patience 3"] if change == "option" else []))
    assert again.returncode == 2
    assert "run was trained with other data or options; move it away to train again" in again.stderr


def test_a_large_input_is_compared_by_its_content(repository_root: Path, folder: Path) -> None:
    """As a text encoder that is extracted again: a new file with the same content, or with one other byte."""
    large = folder / "data/model.pt"
    for byte, status in ((b"a", 0), (b"a", 0), (b"b", 2)):
        large.unlink(missing_ok=True)
        with large.open("wb") as stream:
            stream.seek(70 << 20)
            stream.write(byte)
        assert train(repository_root, folder).returncode == status
    assert "run was trained with other data" in train(repository_root, folder).stderr


def test_a_training_of_an_earlier_version_stays_finished(repository_root: Path, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/finished").touch()
    assert train(repository_root, folder).stdout == "run is finished\n"


MADE = """
set -euo pipefail
source "$1/examples/recipe.sh"
copy() { [[ ! -e $4 ]] && mkdir -p "$4" && cp "$1/a file" "$4/"; }
made out/result copy data --output out/result out/result
"""


def made(root: Path, folder: Path) -> list[str]:
    command = ["bash", "-c", MADE, "recipe", str(root)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_result_is_made_again_only_from_other_inputs(repository_root: Path, folder: Path) -> None:
    """Also after a kill before the result appeared; an older directory, which exporters refuse, is kept aside."""
    result, record = folder / "out/result/a file", folder / "out/result.inputs"
    record.parent.mkdir()
    record.write_text("of a run that was killed")
    assert made(repository_root, folder) == ["+ copy data --output out/result out/result"]
    (folder / "data/a file").touch()
    assert made(repository_root, folder) == ["out/result exists"]
    (folder / "data/a file").write_text("two")
    kept, command = made(repository_root, folder)
    assert kept.startswith("out/result was made from other inputs, ")
    assert " is kept as out/result.2" in kept
    assert command.startswith("+ copy data")
    assert result.read_text() == "two"
    (old,) = record.parent.glob("result.2*/a file")
    assert old.read_text() == "one"
    assert made(repository_root, folder) == ["out/result exists"]


def test_a_result_of_an_earlier_version_is_made_again(repository_root: Path, folder: Path) -> None:
    (folder / "out/result").mkdir(parents=True)
    kept, command = made(repository_root, folder)
    assert "is kept as" in kept
    assert command.startswith("+ copy data")
