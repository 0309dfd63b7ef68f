"""Directories are written whole, with ordinary modes, and never tear an older one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mclip_fairseq.storage.staging import staged


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", ["absent", "empty", "older"])
def test_it_appears_whole(tmp_path: Path, before: str) -> None:
    output = tmp_path / "out"
    if before != "absent":
        output.mkdir()
    if before == "older":
        (output / "a").write_text("old")
        (output / "own").write_text("kept")
    old = content(output) if output.exists() else None
    with staged(output) as staging:
        (staging / "a").write_text("new")
        (staging / "sub").mkdir()
        (staging / "sub/b").write_text("b")
        assert (content(output) if output.exists() else None) == old
    assert content(output) == {"a": "new", "sub/b": "b"} | ({"own": "kept"} if before == "older" else {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("old")

    def fail(staging: Path) -> None:
        (staging / "a").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"), staged(tmp_path / "out") as staging:
        fail(staging)
    assert content(tmp_path) == {"out/a": "old"}


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    code = "import os,signal,sys; from pathlib import Path; from mclip_fairseq.storage.staging import staged\n"
    code += "with staged(Path(sys.argv[1])) as s: (s / 'a').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1  # the negative control: it was killed in the middle
    running = tmp_path / f".out.{os.getppid()}.part"
    running.mkdir()
    with staged(tmp_path / "out") as staging:
        (staging / "a").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", running.name])


def test_modes_are_ordinary(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with staged(tmp_path / "out") as staging:
            (staging / "a").touch(0o600)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
