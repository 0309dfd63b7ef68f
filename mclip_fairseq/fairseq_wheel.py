"""Installs fairseq without what nobody here needs: three extensions that need torch to be compiled, and torchaudio.

fairseq-fixed has a ready wheel for CPython 3.12 on Linux. Elsewhere its sdist is compiled, which needs no torch once
`libbase`, `libnat` and `alignment_train_cpu_binding` are left out: nothing in this project reads them. Either way
`torchaudio` is taken out of the wheel's requirements, because only fairseq's speech tasks use it and a build that does
not fit the installed torch breaks `transformers` and `sentence-transformers` in every program. The wheel gets a local
version (`0.12.3.1+mclip`), to tell it from the published one, and stays in the cache for the next environment.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.verified import cache_folder
from mclip_fairseq.storage.wheels import rewrite_wheel, wheel_metadata

FAIRSEQ = "0.12.3.1"
LOCAL = f"{FAIRSEQ}+mclip"
# What compiling needs, besides a C++ compiler and Python's headers.
BUILD_TOOLS = ("setuptools>=77", "wheel", "cython>=3", "numpy>=2.0")
# Takes the place of torch while fairseq is compiled: its setup.py imports these two classes.
NO_TORCH = '''"""Stands in for torch: extensions that need it are left out of the build."""

from setuptools import Extension
from setuptools.command.build_ext import build_ext


class CppExtension(Extension):
    """An extension that needs torch."""


class BuildExtension(build_ext):
    """Builds all other extensions."""

    def finalize_options(self):
        modules = self.distribution.ext_modules
        modules[:] = [module for module in modules if not isinstance(module, CppExtension)]
        super().finalize_options()
'''


def cached_wheel() -> Path | None:
    """The wheel for this Python and platform that an earlier call left in the cache, or None."""
    folder = cache_folder() / "wheels"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform()).removeprefix("linux_")
    wheels = sorted(folder.glob(f"fairseq_fixed-{LOCAL}-{tag}-{tag}-*{platform}.whl"))
    return wheels[-1] if wheels else None


def install_fairseq() -> None:
    """Install fairseq into this environment, from the cache if it has the wheel.

    Raises:
        UserError: pip failed, or a compiler is needed and missing.
    """
    wheel = cached_wheel()
    if wheel is None:
        wheel = make_wheel(cache_folder() / "wheels")
    else:
        say(f"fairseq: {wheel}")
    run_pip("install", "--no-deps", "--force-reinstall", str(wheel))
    run_pip("install", str(wheel))  # what it requires and the environment lacks


def make_wheel(folder: Path) -> Path:
    """Download or compile fairseq, and put the wheel into a folder.

    Args:
        folder: where the wheel goes; made if necessary.

    Returns:
        the wheel.

    Raises:
        UserError: see `install_fairseq`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fairseq-") as name:
        work = Path(name)
        say("fairseq: looking for a ready wheel")
        ready = ("download", "--no-deps", "--only-binary=:all:", "--dest", str(work), f"fairseq-fixed=={FAIRSEQ}")
        if not has_ready_wheel() or run_pip(*ready, check=False):
            compile_wheel(work)
        (wheel,) = work.glob("fairseq_fixed-*.whl")
        wheel = rewrite_wheel(wheel, {"METADATA": without_torchaudio(wheel_metadata(wheel)).encode("utf-8")}, LOCAL)
        partial = folder / f"{wheel.name}.partial"
        shutil.copyfile(wheel, partial)
        target = partial.replace(folder / wheel.name)
    say(f"fairseq: {target} is kept for other environments")
    return target


def has_ready_wheel() -> bool:
    """Whether fairseq-fixed publishes a wheel for this Python."""
    return sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 12)


def without_torchaudio(metadata: str) -> str:
    """METADATA with the local version and without the requirement of torchaudio; its description stays."""
    header, blank, description = metadata.partition("\n\n")
    lines = [line for line in header.split("\n") if not re.match(r"Requires-Dist:\s*torchaudio\b", line)]
    lines = [f"Version: {LOCAL}" if line.startswith("Version:") else line for line in lines]
    return "\n".join(lines) + blank + description


def compile_wheel(work: Path) -> None:
    """Compile fairseq into a wheel.

    Args:
        work: an empty folder; the wheel and whatever compiling needs go there.

    Raises:
        UserError: a compiler or Python's headers are missing, or compiling failed.
    """
    check_compiler()
    tools = work / "tools"
    say("fairseq: fetching what compiling needs")
    run_pip("install", "--target", str(tools), *BUILD_TOOLS)
    stand_in = tools / "torch" / "utils"
    stand_in.mkdir(parents=True)
    for folder in (stand_in.parent, stand_in):
        (folder / "__init__.py").touch()
    (stand_in / "cpp_extension.py").write_text(NO_TORCH, encoding="utf-8")
    say("fairseq: compiling three extensions (less than a minute on one core)")
    path = os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")]))
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-binary=fairseq-fixed", "--no-cache-dir")
    run_pip(*build, "--wheel-dir", str(work), f"fairseq-fixed=={FAIRSEQ}", env={"PYTHONPATH": path})


def check_compiler() -> None:
    """Refuse to compile where it cannot work.

    Raises:
        UserError: saying what to install.
    """
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise UserError(
            f"no C++ compiler ({compiler}) to build fairseq with; install one (apt install g++), set CXX, or use "
            "Python 3.12, for which fairseq has a ready wheel"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UserError(
            "Python.h, which building fairseq needs, is missing; install Python's headers (apt install python3-dev), "
            "or use Python 3.12, for which fairseq has a ready wheel"
        )


def run_pip(*arguments: str, check: bool = True, env: Mapping[str, str] | None = None) -> int:
    """Run pip in this environment; its output goes to the terminal.

    Args:
        *arguments: of pip.
        check: whether a failure is an error.
        env: variables to add.

    Returns:
        its exit status.

    Raises:
        UserError: it failed.
    """
    command: Sequence[str] = (sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check")
    status = subprocess.run(command, env={**os.environ, **(env or {})}, check=False).returncode
    if status and check:
        raise UserError(f"pip {shlex.join(arguments)}: failed with status {status}; see its messages above")
    return status


def say(line: str) -> None:
    """Print a step at once."""
    print(f"== {line}", flush=True)
