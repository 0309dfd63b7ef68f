"""A prepared set holds what its last call has written, and nothing of the calls before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq.storage.errors import UserError
from tests.kills import kill_everywhere

Lines = dict[str, str]
BOTH = {"train.en": "a dog", "train.de": "ein Hund"}
ENGLISH = {"train.en": "a cat"}


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, repository_root: Path) -> Any:
    """The class, which is in `preprocess/`."""
    monkeypatch.syspath_prepend(repository_root / "preprocess")
    from corpora.output import Output

    return Output


def call(output: Any, folder: Path, files: Lines, name: str = "set", sources: tuple[Path, ...] = ()) -> None:
    with output(folder, name) as out:
        for file, line in files.items():
            out.write(file, line)
        out.finish({}, sources)


def content(folder: Path) -> Lines:
    """Name -> text of all files but the manifest and what a kill leaves of writing it."""
    files = [path for path in folder.iterdir() if path.name != "manifest.json" and path.suffix != ".tmp"]
    return {path.name: path.read_text().strip() for path in files}


def test_files_that_a_later_call_does_not_write_are_removed(
    output: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(output, tmp_path, BOTH)
    (tmp_path / "own notes").write_text("kept")
    call(output, tmp_path, BOTH)
    assert capsys.readouterr().err == ""
    call(output, tmp_path, ENGLISH)
    assert content(tmp_path) == ENGLISH | {"own notes": "kept"}
    assert f"{tmp_path}: removed train.de, which an earlier call wrote and this one did not" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "manifest.json").read_text())["files"]) == ["train.en"]


def test_also_after_a_kill_at_any_step(output: Any, tmp_path: Path) -> None:
    folder, kills = tmp_path / "out", 0
    call(output, folder, BOTH)
    for _ in kill_everywhere(lambda: call(output, folder, ENGLISH), tmp_path):
        call(output, folder, ENGLISH)
        assert content(folder) == ENGLISH
        call(output, folder, BOTH)
        kills += 1
    assert kills > 6


def test_also_after_an_error(output: Any, tmp_path: Path) -> None:
    call(output, tmp_path, BOTH)
    with pytest.raises(UserError, match="null character"):
        call(output, tmp_path, {"train.en": "a\0b"})
    with pytest.raises(UserError, match="already holds set, which other would overwrite"):
        call(output, tmp_path, BOTH, name="other")
    call(output, tmp_path, ENGLISH)
    assert content(tmp_path) == ENGLISH


def test_a_source_is_not_removed(output: Any, tmp_path: Path) -> None:
    call(output, tmp_path, BOTH)
    call(output, tmp_path, ENGLISH, sources=(tmp_path / "train.de",))
    assert "train.de" in content(tmp_path)


@pytest.mark.parametrize("name", ["../kept", "/etc/hostname", "a/b", ""])
def test_a_forged_manifest_removes_nothing_elsewhere(name: str, output: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    for file in (tmp_path / "kept", folder / "a/b"):
        file.write_text("kept")
    (folder / "manifest.json").write_text(json.dumps({"name": "set", "files": {name: "0"}}))
    call(output, folder, ENGLISH)
    assert (tmp_path / "kept").exists()
    assert (folder / "a/b").exists()
