"""Wheels are changed file by file and stay installable: that of fairseq, and that of an editable install."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mclip_fairseq import fairseq_wheel, user_dir
from mclip_fairseq.fairseq_wheel import FAIRSEQ, LOCAL, cached_wheel, check_compiler, make_wheel, without_torchaudio
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.wheels import rewrite_wheel, wheel_metadata
from tests.runs import HANG

METADATA = """Metadata-Version: 2.4
Name: fairseq-fixed
Version: 0.12.3.1
Requires-Dist: tqdm
Requires-Dist: torchaudio>=0.8.0
Requires-Dist: torch>=1.13

Version: of the description, torchaudio included
"""


def small_wheel(folder: Path, version: str = FAIRSEQ, tag: str = "cp311-cp311-linux_x86_64") -> Path:
    path = folder / f"fairseq_fixed-{version}-{tag}.whl"
    info = f"fairseq_fixed-{version}.dist-info"
    files = {
        "fairseq/__init__.py": "VALUE = 1\n",
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "fairseq/__init__.py,,\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_the_record_is_true_after_a_change(tmp_path: Path) -> None:
    old = small_wheel(tmp_path)
    new = rewrite_wheel(old, {"METADATA": b"Name: x\n", "extra/file.py": b"pass\n"}, LOCAL)
    assert new.name == f"fairseq_fixed-{LOCAL}-cp311-cp311-linux_x86_64.whl"
    assert list(tmp_path.iterdir()) == [new]
    info = f"fairseq_fixed-{LOCAL}.dist-info"
    with zipfile.ZipFile(new) as archive:
        record = csv.reader(io.TextIOWrapper(archive.open(f"{info}/RECORD")))
        rows = {path: (digest, size) for path, digest, size in record}
        assert rows.keys() == set(archive.namelist())
        assert archive.read("extra/file.py") == b"pass\n"
        assert archive.read("fairseq/__init__.py") == b"VALUE = 1\n"
        for path, (digest, size) in rows.items():
            data = archive.read(path)
            if path != f"{info}/RECORD":
                expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={expected}", str(len(data)))
    assert wheel_metadata(new) == "Name: x\n"


def test_pip_installs_a_changed_wheel(tmp_path: Path) -> None:
    small_wheel(tmp_path, tag="py3-none-any")
    wheel = rewrite_wheel(next(tmp_path.glob("*.whl")), {"METADATA": without_torchaudio(METADATA).encode()}, LOCAL)
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    command = ["pip", "install", *offline, "--target", str(tmp_path / "t")]
    result = subprocess.run([sys.executable, "-m", *command, str(wheel)], capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    assert f"fairseq-fixed-{LOCAL}" in result.stdout.replace("fairseq_fixed", "fairseq-fixed")


def test_torchaudio_is_no_longer_required() -> None:
    head, _, description = without_torchaudio(METADATA).partition("\n\n")
    assert head.splitlines()[2:] == [f"Version: {LOCAL}", "Requires-Dist: tqdm", "Requires-Dist: torch>=1.13"]
    assert description == METADATA.partition("\n\n")[2], "only the header is changed"


def test_a_wheel_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pip replaced by a copy of a small wheel; the commands are those of the two ways."""
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "cache"))
    calls: list[tuple[str, ...]] = []
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = fairseq_wheel.sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def pip(*arguments: str, check: bool = True, env: object = None) -> int:
        calls.append(arguments)
        if arguments[0] in ("download", "wheel"):
            target = arguments[arguments.index("--dest" if arguments[0] == "download" else "--wheel-dir") + 1]
            small_wheel(Path(target), tag=f"{tag}-{tag}-{platform}")
        elif "--target" in arguments:
            Path(arguments[arguments.index("--target") + 1]).mkdir()
        return 0

    monkeypatch.setattr(fairseq_wheel, "run_pip", pip)
    monkeypatch.setattr(fairseq_wheel, "check_compiler", lambda: None)
    for ready, expected in ((True, ["download"]), (False, ["install", "wheel"])):
        monkeypatch.setattr(fairseq_wheel, "has_ready_wheel", lambda ready=ready: ready)
        calls.clear()
        wheel = make_wheel(tmp_path / "cache" / "wheels")
        assert [call[0] for call in calls] == expected
        assert cached_wheel() == wheel
        assert "torchaudio" not in wheel_metadata(wheel).partition("\n\n")[0]
    calls.clear()
    fairseq_wheel.install_fairseq()
    assert [call[0] for call in calls] == ["install", "install"], "nothing is built again"
    assert calls[0][-1] == str(wheel)


def test_what_compiling_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(UserError, match=r"^no C\+\+ compiler \(no-such-compiler -O2\) .* or use Python 3\.12"):
        check_compiler()
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(fairseq_wheel.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"^Python\.h, which building fairseq needs, is missing; "):
        check_compiler()
    (tmp_path / "Python.h").touch()
    check_compiler()


def test_a_failing_pip_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^pip no-such-command: failed with status \d+; see its messages above$"):
        fairseq_wheel.run_pip("no-such-command")


def test_the_signpost_loads_the_package_it_names(tmp_path: Path) -> None:
    """In a process that knows the package's place from the signpost only."""
    package = tmp_path / "checkout" / "some_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("PLACE = __file__\n", encoding="utf-8")
    (package / "part.py").write_text("VALUE = 7\n", encoding="utf-8")
    spot = tmp_path / "site" / "some_package"
    spot.mkdir(parents=True)
    (spot / "__init__.py").write_text(user_dir.signpost(str(package)), encoding="utf-8")
    code = "import some_package, some_package.part as p; print(some_package.PLACE, p.VALUE, some_package.__path__)"
    env = {"PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, timeout=HANG)
    assert result.stdout == f"{package / '__init__.py'} 7 {[str(package)]}\n", result.stderr
    assert user_dir.leads_to(str(spot), str(package))
    assert user_dir.leads_to(str(package.parent), str(package))
    assert not user_dir.leads_to(str(spot), str(tmp_path))
    assert not user_dir.leads_to(str(tmp_path / "nowhere"), str(package))
