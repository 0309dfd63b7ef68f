"""``python -m mclip_fairseq.doctor`` (or ``mclip-doctor``): what is here, what is broken, and how to mend it.

Every import is tried, not assumed, so that the doctor also speaks where fairseq or torch cannot be loaded.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

Status = Literal["ok", "warning", "error"]

MODULES = {
    "fairseq-fixed": "fairseq",
    "faiss-cpu": "faiss",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
}  # where import and package differ
EXTRAS = ("demo", "evaluate", "prepare", "search")  # of pyproject.toml, looked at beside the core dependencies
WITHOUT = {  # what does not work without a package of these extras
    "faiss-cpu": "mclip-search cannot search",
    "ftfy": "captions cannot be cleaned",
    "matplotlib": "mclip-evaluate cannot draw",
    "regex": "text cannot be cleaned",
    "sacrebleu": "translations cannot be scored",
    "scipy": "similarity of sentences cannot be scored",
    "starlette": "mclip-search cannot serve its page",
    "uvicorn": "mclip-search cannot serve its page",
}
COMPILED = ("fairseq.data.data_utils_fast", "fairseq.data.token_block_utils_fast")
BUILD_FAIRSEQ = "pip install torch numpy cython setuptools wheel, then pip install --no-build-isolation fairseq-fixed"
MIN_DISK_GB = 2.0
MIN_SHM_MB = 256.0


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: ``error`` when training cannot work, ``warning`` when something else cannot.
        found: a version, or what is wrong.
        fix: the sentence that mends it; empty when all is well.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def try_import(module: str) -> tuple[ModuleType | None, str]:
    """Import ``module``; returns it, or None and what the import raised, in one line."""
    try:
        return importlib.import_module(module), ""
    except Exception as error:  # whatever a broken installation raises is what the user wants to read
        text = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {text[0]}"


def installed_version(distribution: str) -> str | None:
    """The version pip knows, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[tuple[str, str, str]]:
    """What the project requires: (distribution, version bound, extra or "").

    Read from a checkout's pyproject.toml, else from the installed metadata (an editable one may be older).
    """
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        rows = [(line, "") for line in project["dependencies"]]
        rows += [(line, extra) for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    else:
        rows = []
        for line in importlib.metadata.requires("mclip_fairseq") or []:
            requirement, _, marker = line.partition(";")
            extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
            rows.append((requirement, extra[1] if extra else ""))
    found: dict[str, tuple[str, str, str]] = {}  # two extras may list the same package
    for line, section in rows:
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(.*)", line)
        if match and section in ("", *EXTRAS):
            found.setdefault(match[1].lower(), (match[1].lower(), match[2].strip(" ()"), section))
    return list(found.values())


def check_python() -> Check:
    """Which Python this is (pip refuses one older than 3.11)."""
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_package(distribution: str, bound: str, extra: str = "") -> Check:
    """A required package: installed, recent enough, and importable."""
    bad: Status = "warning" if extra else "error"
    cost = f" ({WITHOUT[distribution]})" if distribution in WITHOUT else ""
    install = f"pip install '{distribution}{bound}'"
    if distribution == "fairseq-fixed":
        install = f"{BUILD_FAIRSEQ}{bound}"
    version = installed_version(distribution)
    module, problem = try_import(MODULES.get(distribution, distribution.replace("-", "_")))
    if version is None and module is None:
        return Check(distribution, bad, f"not installed{cost}", f"Run {install}.")
    if module is None:
        return Check(
            distribution,
            bad,
            f"{version} cannot be imported: {problem}{cost}",
            f"Run {install} --force-reinstall.",
        )
    if version is None:
        note = f"another build of {module.__name__} is installed in its place"
        return Check(distribution, "warning", note, f"If anything fails, uninstall that one and run {install}.")
    if not satisfies(version, bound):
        return Check(distribution, bad, f"{version}, but {bound} is required{cost}", f"Run {install}.")
    return Check(distribution, "ok", version)


def satisfies(version: str, bound: str) -> bool:
    """Whether ``version``, without a local part such as ``+cpu``, lies in ``bound``; yes if unknowable."""
    specifiers, _ = try_import("packaging.specifiers")
    if specifiers is None:
        return True
    return bool(specifiers.SpecifierSet(bound, prereleases=True).contains(version.partition("+")[0]))


def check_torchaudio() -> Check:
    """The torchaudio that fairseq-fixed drags in: its wheel often does not fit the installed torch."""
    version = installed_version("torchaudio")
    if version is None:
        return Check("torchaudio", "ok", "not installed, not needed")
    module, problem = try_import("torchaudio")
    if module is not None:
        return Check("torchaudio", "ok", version)
    fix = (
        "Nothing here uses it (fairseq's speech tasks do), and mclip_fairseq hides it from transformers. "
        "To be rid of it run pip uninstall torchaudio, or install the build that fits "
        f"torch {installed_version('torch')}, from the index torch came from."
    )
    compat = sys.modules.get("mclip_fairseq.compat")
    if "halted" in problem and compat is not None:
        # Importing the package has hidden it already; the shield remembers the true reason.
        problem = compat.torchaudio_problem()
    return Check("torchaudio", "warning", f"{version} cannot be loaded: {problem}", fix)


def check_compiler() -> Check:
    """A C++ compiler, which building fairseq needs."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name.split()[0]))), None)
    if found:
        return Check("C++ compiler", "ok", found)
    fix = "Install one to build fairseq: apt install g++, dnf install gcc-c++, or conda install cxx-compiler."
    return Check("C++ compiler", "warning", "none found (CXX, c++, g++, clang++)", fix)


def check_compiled_extensions() -> Check:
    """The Cython parts of fairseq, without which no batch can be formed."""
    problems = [f"{name.rpartition('.')[2]} ({problem})" for name in COMPILED if (problem := try_import(name)[1])]
    if not problems:
        return Check("fairseq extensions", "ok", "compiled")
    fix = (
        "With a C++ compiler, torch, numpy and cython in place, run pip install --force-reinstall --no-deps "
        f"--no-cache-dir --no-build-isolation fairseq-fixed=={installed_version('fairseq-fixed')}."
    )
    return Check("fairseq extensions", "error", "not loadable: " + ", ".join(problems), fix)


def check_plugin() -> Check:
    """Whether fairseq knows our tasks once this package is imported."""
    tasks, problem = try_import("fairseq.tasks")
    if tasks is None:
        return Check(
            "plugin",
            "error",
            f"fairseq.tasks cannot be imported: {problem}",
            "Mend fairseq first, see above.",
        )
    package, problem = try_import("mclip_fairseq.tasks")
    missing = [name for name in ("mte", "trikd") if name not in tasks.TASK_REGISTRY]
    if package is None or missing:
        found = problem or f"tasks not registered: {', '.join(missing)}"
        return Check("plugin", "error", found, "Reinstall mclip_fairseq: run pip install . in its checkout.")
    return Check("plugin", "ok", f"mte and trikd registered from {Path(str(package.__file__)).parent}")


def check_accelerator() -> Iterator[Check]:
    """CUDA, the precisions it offers, and the back ends of torch.distributed."""
    torch, problem = try_import("torch")
    if torch is None:
        yield Check("CUDA", "warning", f"unknown, torch cannot be imported: {problem}", "Mend torch first, see above.")
        return
    if torch.version.cuda is None:
        fix = "Training runs on the CPU (add --cpu). For a GPU, install a torch that fits its driver."
        yield Check("CUDA", "warning", f"torch {torch.__version__} is built without it", fix)
    elif not torch.cuda.is_available():
        fix = "Check that nvidia-smi lists it, the driver is recent, and CUDA_VISIBLE_DEVICES is not empty."
        yield Check("CUDA", "warning", f"torch is built for CUDA {torch.version.cuda}, but no GPU can be used", fix)
    else:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("CUDA", "ok", f"{torch.version.cuda}, {len(names)} x {', '.join(sorted(set(names)))}")
    if not torch.cuda.is_available():
        yield Check("bf16/fp16", "warning", "not without CUDA", "Train in float32: leave --bf16 and --fp16 out.")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("bf16/fp16", "ok", "both (--bf16 is the safer one)")
    else:
        yield Check("bf16/fp16", "warning", "this GPU has no bf16", "Use --fp16 in place of --bf16.")
    distributed = torch.distributed
    backends = [b for b in ("nccl", "gloo") if distributed.is_available() and distributed.is_backend_available(b)]
    fix = "" if backends else "Install a build of torch with torch.distributed to train with several processes."
    yield Check("distributed", "ok" if backends else "warning", ", ".join(backends) or "no back end", fix)


def check_space() -> Iterator[Check]:
    """Room for checkpoints here, and shared memory for data loading workers."""
    free = shutil.disk_usage(".").free / 1e9
    fix = "" if free >= MIN_DISK_GB else "Free some space, or give --save-dir a place on another disk."
    yield Check("disk", "ok" if not fix else "warning", f"{free:.1f} GB free in {os.getcwd()}", fix)
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free / 1e6
        fix = (
            "" if free >= MIN_SHM_MB else "Use --num-workers 0, or give the container more shared memory (--shm-size)."
        )
        yield Check("shared memory", "ok" if not fix else "warning", f"{free:.0f} MB free", fix)


def examine() -> list[Check]:
    """All checks, in the order in which a broken installation is best mended."""
    return [
        check_python(),
        check_compiler(),
        *(check_package(*requirement) for requirement in requirements()),
        check_torchaudio(),
        check_compiled_extensions(),
        check_plugin(),
        *check_accelerator(),
        *check_space(),
    ]


def report(checks: Sequence[Check]) -> str:
    """The findings as aligned lines, each fix below what it mends, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.fix}")
    errors = sum(check.status == "error" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    verdict = "Training works here" if not errors else f"Training cannot work here: {errors} error(s)"
    return "\n".join([*lines, f"{verdict}; {warnings} warning(s)."])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; returns 0 when training can work, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="mclip-doctor", description="Say what is installed, what is broken, and how to mend it."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # fairseq, faiss and matplotlib talk while they are imported
    try:
        checks = examine()
    finally:
        logging.disable(logging.NOTSET)
    healthy = all(check.status != "error" for check in checks)
    if arguments.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(report(checks))
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
