"""Directories are written whole, with ordinary modes, and never tear an older one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mclip_fairseq.storage import staging as staging_module
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_identity
from mclip_fairseq.storage.owners import machine, owner
from mclip_fairseq.storage.staging import staged
from tests.kills import kill_everywhere


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
    running = tmp_path / f".out.{machine()}.{os.getppid()}.part"
    running.mkdir()
    other_machine = tmp_path / f".out.elsewhere.{os.getpid()}.part"
    other_machine.mkdir()
    with staged(tmp_path / "out") as staging:
        (staging / "a").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", running.name, other_machine.name])


def test_modes_are_ordinary(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with staged(tmp_path / "out") as staging:
            (staging / "a").touch(0o600)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def write_both(output: Path) -> None:
    """Replace one file, add one in a folder."""
    with staged(output) as staging:
        (staging / "a").write_text("new")
        (staging / "sub").mkdir()
        (staging / "sub/b").write_text("new")


OLDER = {"a": "old", "sub/b": "old", "sub/own": "kept", "own": "kept"}
NEWER = {"a": "new", "sub/b": "new", "sub/own": "kept", "own": "kept"}


def make_older(output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    for name, text in OLDER.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that have no such call."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())


def test_a_kill_at_any_step_never_tears_an_older_one(tmp_path: Path) -> None:
    output, found = tmp_path / "out", list[dict[str, str]]()
    make_older(output)
    for _ in kill_everywhere(lambda: write_both(output), tmp_path):
        found.append(content(output))
        write_both(output)
        assert content(output) == NEWER
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        make_older(output)
    assert all(one in (OLDER, NEWER) for one in found)
    assert len(found) > 8
    assert OLDER in found
    assert NEWER in found


def test_without_an_exchange_the_older_one_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_exchange(monkeypatch)
    output, absent = tmp_path / "out", 0
    make_older(output)
    for _ in kill_everywhere(lambda: write_both(output), tmp_path):
        if not output.exists():
            absent += 1
            with pytest.raises(OSError, match="disk"), staged(output):
                raise OSError("the disk is full")
        assert content(output) in (OLDER, NEWER)
        write_both(output)
        assert content(output) == NEWER
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        make_older(output)
    assert absent == 1


def test_the_negative_control_files_that_are_moved_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def move_files(output: Path, staging: Path) -> None:
        for path in [path for path in staging.rglob("*") if path.is_file()]:
            os.rename(path, output / path.relative_to(staging))

    monkeypatch.setattr(staging_module, "exchange", move_files)
    output, torn = tmp_path / "out", 0
    make_older(output)
    for _ in kill_everywhere(lambda: write_both(output), tmp_path):
        torn += content(output) not in (OLDER, NEWER)
        make_older(output)
    assert torn > 0


def test_links_stay_links(tmp_path: Path) -> None:
    """Also where the output itself is one."""
    for name in ("out", "far"):
        (tmp_path / name).mkdir()
    (tmp_path / "far/file").write_text("far")
    (tmp_path / "out/folder").symlink_to("../far")
    (tmp_path / "out/a").symlink_to("../far/file")
    (tmp_path / "link").symlink_to("out")
    write_both(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert os.readlink(tmp_path / "out/folder") == "../far"
    assert content(tmp_path / "far") == {"file": "far"}
    assert (tmp_path / "out/a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "link", "out"]


def test_a_leftover_with_the_number_of_this_process(tmp_path: Path) -> None:
    """In a container, the same command gets the same number after a kill."""
    (tmp_path / f".out.{owner()}.part").mkdir()
    write_both(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_is_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out: is a file; give a directory"), staged(tmp_path / "out"):
        pytest.fail("written first")
    assert content(tmp_path) == {"out": "a file"}


def refuse_to_rename(monkeypatch: pytest.MonkeyPatch, number: int, *involved: Path) -> None:
    """As where one of these is mounted, or of a lower layer of an image of a container."""
    rename = os.rename

    def refusing(source: Path, target: Path) -> None:
        if source in involved or target in involved:
            raise OSError(number, os.strerror(number), str(source))
        rename(source, target)

    without_exchange(monkeypatch)
    monkeypatch.setattr(os, "rename", refusing)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("older", [{}, OLDER], ids=["empty", "older"])
def test_what_cannot_be_replaced_is_kept_beside_it(
    number: int, older: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    if older:
        make_older(output)
    with monkeypatch.context() as patch:
        refuse_to_rename(patch, number, output)
        with pytest.raises(UserError) as refused:
            write_both(output)
    assert content(output) == older
    (complete,) = tmp_path.glob(".out.*")
    assert str(refused.value).startswith(
        f"{output}: cannot be replaced ({os.strerror(number)}); move {complete}, which"
    )
    assert content(complete) == (NEWER if older else {"a": "new", "sub/b": "new"})
    write_both(output)
    assert content(output)["a"] == "new"
    assert complete.exists()  # no later run removes it


def test_an_older_one_is_put_back_where_only_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, staging = tmp_path / "out", tmp_path / f".out.{owner()}.part"
    make_older(output)
    rename = os.rename

    def refusing(source: Path, target: Path) -> None:
        if (source, target) == (staging, output):
            raise OSError(errno.EIO, "broken disk")
        rename(source, target)

    without_exchange(monkeypatch)
    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(UserError, match=r"cannot be replaced \(broken disk\)"):
        write_both(output)
    assert content(output) == OLDER


def test_a_mount_point_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "out")
    with pytest.raises(UserError, match="out: is a mount point, which cannot"), staged(tmp_path / "out"):
        pytest.fail("written first")


def test_a_directory_that_holds_a_mount_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount would move along with the older directory, which is removed with all that is in it."""
    make_older(tmp_path / "out")
    place = tmp_path / "out/sub/my photos"
    place.mkdir()
    line = f"36 35 98:0 /mnt1 {str(place).replace(' ', chr(92) + '040')} rw,noatime master:1 - ext3 /dev/root rw"
    listing, read = Path("/proc/self/mountinfo"), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: line if path == listing else read(path, **how))
    with (
        pytest.raises(UserError, match=r"out: cannot be replaced, because .*/out/sub/my photos is a mount point; "),
        staged(tmp_path / "out"),
    ):
        pytest.fail("written first")
    monkeypatch.undo()
    assert content(tmp_path / "out") == OLDER


def test_a_real_mount_keeps_its_files(tmp_path: Path) -> None:
    """A directory mounted once more, where the system lets us: it has the device number of its surroundings."""
    source, place = tmp_path / "photos", tmp_path / "out/sub/photos"
    make_older(tmp_path / "out")
    for folder in (source, place):
        folder.mkdir()
    (source / "photo").write_text("precious")
    if subprocess.run(["mount", "--bind", str(source), str(place)], capture_output=True).returncode:
        pytest.skip("only root can mount a directory; the list of mounts above replaces it")
    try:
        with pytest.raises(UserError, match="/out/sub/photos is a mount point"):
            write_both(tmp_path / "out")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert content(source) == {"photo": "precious"}


def test_a_new_directory_is_made_once(tmp_path: Path) -> None:
    """The same command again has nothing to do; another one is refused."""
    output = tmp_path / "out"
    assert staging_module.make_new(output, write_both)
    (tmp_path / f".out.{owner()}.part").mkdir()
    before = file_identity(output / "a")
    assert not staging_module.make_new(output, write_both)
    assert file_identity(output / "a") == before
    (output / "own").write_text("mine")
    with pytest.raises(UserError, match=r"out: is not empty; give a new directory$"):
        staging_module.make_new(output, write_both)
    assert content(tmp_path) == {"out/a": "new", "out/sub/b": "new", "out/own": "mine"}


def test_an_output_below_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with (
        pytest.raises(UserError, match=r"file/out: cannot be made \(.+: .+\); give another"),
        staged(tmp_path / "file/out"),
    ):
        pytest.fail("written first")
