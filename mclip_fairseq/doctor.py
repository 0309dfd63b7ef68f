"""`mclip-doctor` (or `python -m mclip_fairseq.doctor`): what is installed, what is broken, and how to fix it.

`mclip-doctor --fix` installs fairseq, and `mclip-doctor options` prints the options of components (`reference`).
Every import is tried here, so that the doctor also works where fairseq or torch cannot be loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mclip_fairseq import compat
from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.fairseq_wheel import FAIRSEQ, install_fairseq, run_pip

PROGRAM = "mclip-doctor"
Status = Literal["ok", "warning", "error"]

MODULES = {
    "fonttools": "fontTools",
    "fairseq-fixed": "fairseq",
    "faiss-cpu": "faiss",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
}  # packages that are imported by another name
WITHOUT = {  # what fails without a package that training does not need
    "babel": "mclip-search calibrate has no words",
    "faiss-cpu": "mclip-search cannot search",
    "ftfy": "captions cannot be cleaned",
    "matplotlib": "mclip-evaluate cannot draw",
    "pyarrow": "preprocess/own.py cannot read Parquet and Hugging Face datasets",
    "regex": "text cannot be cleaned",
    "sacrebleu": "translations cannot be scored",
    "scipy": "similarity of sentences cannot be scored",
    "starlette": "mclip-search cannot serve its page",
    "uvicorn": "mclip-search cannot serve its page",
}
# Extras for developers only.
NOT_FOR_USERS = ("dev", "docs", "fuzz")
# A decorator that registers a component, and its name.
REGISTERED = re.compile(r"^@register_(task|model|criterion|optimizer)\(\s*\"([^\"]+)\"", flags=re.MULTILINE)
COMPILED = ("fairseq.data.data_utils_fast", "fairseq.data.token_block_utils_fast")
FIX = "Run mclip-doctor --fix."
BFLOAT16 = "--autocast bfloat16 works everywhere, but is slow where the hardware does not compute in it."
MIN_DISK_GB = 2.0
MIN_SHM_MB = 256.0


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: `error` if training cannot work, `warning` if something else cannot.
        found: a version, or what is wrong.
        fix: what to do, in one sentence; empty if the status is `ok`.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def try_import(module: str) -> tuple[ModuleType | None, str]:
    """Import a module; returns it, or None and the error in one line."""
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
    rows: list[tuple[str, str]] = []
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        rows += [(line, "") for line in project["dependencies"]]
        rows += [(line, extra) for extra, lines in project["optional-dependencies"].items() for line in lines]
    else:
        for line in importlib.metadata.requires("mclip_fairseq") or []:
            requirement, _, marker = line.partition(";")
            extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
            rows.append((requirement, extra[1] if extra else ""))
    required = {"fairseq-fixed": ("fairseq-fixed", f"=={FAIRSEQ}", "")}
    for line, section in rows:
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*([^;\[]*)", line)
        if match and section not in NOT_FOR_USERS and match[1].replace("-", "_") != "mclip_fairseq":
            required.setdefault(match[1].lower(), (match[1].lower(), match[2].strip(" ()"), section))
    return list(required.values())


def check_python() -> Check:
    """Which Python this is (pip refuses one older than 3.11)."""
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_package(distribution: str, bound: str, extra: str = "") -> Check:
    """Whether a required package is installed, recent enough, and importable."""
    bad: Status = "warning" if extra else "error"
    use = WITHOUT.get(distribution, f"needed by the extra {extra}" if extra else "")
    cost = f" ({use})" if use else ""
    install = "mclip-doctor --fix" if distribution == "fairseq-fixed" else f"pip install '{distribution}{bound}'"
    version = installed_version(distribution)
    module, problem = try_import(MODULES.get(distribution, distribution.replace("-", "_")))
    if version is None and module is None:
        return Check(distribution, bad, f"not installed{cost}", f"Run {install}.")
    if module is None:
        return Check(
            distribution,
            bad,
            f"{version} cannot be imported: {problem}{cost}",
            FIX if distribution == "fairseq-fixed" else f"Run {install} --force-reinstall.",
        )
    if version is None:
        note = f"another build of {module.__name__} is installed instead"
        return Check(distribution, "warning", note, f"If anything fails, uninstall that one and run {install}.")
    if not satisfies(version, bound):
        return Check(distribution, bad, f"{version}, but {bound} is required{cost}", f"Run {install}.")
    return Check(distribution, "ok", version)


def satisfies(version: str, bound: str) -> bool:
    """Whether a version, without a local part such as `+cpu`, is within a bound; True if `packaging` is missing."""
    specifiers, _ = try_import("packaging.specifiers")
    if specifiers is None:
        return True
    return bool(specifiers.SpecifierSet(bound, prereleases=True).contains(version.partition("+")[0]))


def check_torchaudio() -> Check:
    """The torchaudio that the published fairseq-fixed requires: its wheel often does not fit the installed torch."""
    version = installed_version("torchaudio")
    if version is None:
        return Check("torchaudio", "ok", "not installed, not needed")
    module, problem = try_import("torchaudio")
    if module is not None:
        return Check("torchaudio", "ok", version)
    fix = (
        "Run mclip-doctor --fix, which does pip uninstall torchaudio: only fairseq's speech tasks use it. While it is "
        "there, transformers and sentence-transformers fail in every program that does not import mclip_fairseq first. "
        f"Or install the build for torch {installed_version('torch')} from the index that torch came from."
    )
    if "halted" in problem:  # it is hidden already, and `compat` keeps the true reason
        problem = compat.torchaudio_problem()
    return Check("torchaudio", "warning", f"{version} cannot be loaded: {problem}", fix)


def check_compiler() -> Check:
    """The C++ compiler that building fairseq needs."""
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
    return Check("fairseq extensions", "error", "not loadable: " + ", ".join(problems), FIX)


def check_plugin() -> Check:
    """Whether fairseq knows every component of this package once its tasks are imported."""
    tasks, problem = try_import("fairseq.tasks")
    if tasks is None:
        found = f"fairseq.tasks cannot be imported: {problem}"
        return Check("plugin", "error", found, "Fix fairseq first, see above.")
    package, problem = try_import("mclip_fairseq.tasks")
    fix = "Reinstall mclip_fairseq: run pip install . in its checkout."
    if package is None:
        return Check("plugin", "error", problem, fix)
    counts, missing = dict.fromkeys(("task", "model", "criterion", "optimizer"), 0), []
    for kind, name in components():
        # fairseq ignores a second registration of a name, so the entry may belong to another plugin.
        entry = registry(kind).get(name)
        if entry is None or not entry.__module__.startswith("mclip_fairseq."):
            missing.append(f"{kind} {name}")
        counts[kind] += 1
    if missing or not all(counts.values()):
        missing += [f"any {kind}" for kind, count in counts.items() if not count]
        return Check("plugin", "error", f"not registered: {', '.join(missing)}", fix)
    total = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())
    return Check("plugin", "ok", f"{total} registered from {Path(__file__).parent}")


def components() -> list[tuple[str, str]]:
    """(kind, name) of every component that a file of this package registers."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return [(kind, name) for file in files for kind, name in REGISTERED.findall(file.read_text(encoding="utf-8"))]


def registry(kind: str) -> dict[str, Any]:
    """Fairseq's registry of tasks, models, criterions or optimizers: name -> class."""
    if kind in ("task", "model"):
        module = importlib.import_module(f"fairseq.{kind}s")
        return dict(vars(module)[f"{kind.upper()}_REGISTRY"])
    return dict(importlib.import_module("fairseq.registry").REGISTRIES[kind]["registry"])


def check_accelerator() -> Iterator[Check]:
    """CUDA, the precisions it offers, and the backends of torch.distributed."""
    torch, problem = try_import("torch")
    if torch is None:
        yield Check("CUDA", "warning", f"unknown, torch cannot be imported: {problem}", "Fix torch first, see above.")
        return
    if torch.version.cuda is None:
        fix = "Training runs on the CPU (add --cpu). For a GPU, install a torch that fits its driver."
        yield Check("CUDA", "warning", f"torch {torch.__version__} is built without CUDA", fix)
    elif not torch.cuda.is_available():
        fix = "Check that nvidia-smi lists it, the driver is recent, and CUDA_VISIBLE_DEVICES is not empty."
        yield Check("CUDA", "warning", f"torch is built for CUDA {torch.version.cuda}, but no GPU can be used", fix)
    else:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("CUDA", "ok", f"{torch.version.cuda}, {len(names)} x {', '.join(sorted(set(names)))}")
    if not torch.cuda.is_available():
        yield Check("bf16/fp16", "warning", "not without CUDA", f"Train in float32: omit --fp16. {BFLOAT16}")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("bf16/fp16", "ok", "both: --autocast bfloat16 (the safer one) and --fp16")
    else:
        yield Check("bf16/fp16", "warning", "this GPU has no bf16", f"Use --fp16. {BFLOAT16}")
    distributed = torch.distributed
    backends = [b for b in ("nccl", "gloo") if distributed.is_available() and distributed.is_backend_available(b)]
    fix = "" if backends else "Install a build of torch with torch.distributed to train with several processes."
    yield Check("distributed", "ok" if backends else "warning", ", ".join(backends) or "no backend", fix)


def check_space() -> Iterator[Check]:
    """Disk space for checkpoints, and shared memory for data workers."""
    free = shutil.disk_usage(".").free / 1e9
    fix = "" if free >= MIN_DISK_GB else "Free some space, or give a --save-dir on another disk."
    yield Check("disk", "ok" if not fix else "warning", f"{free:.1f} GB free in {os.getcwd()}", fix)
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free / 1e6
        fix = (
            "" if free >= MIN_SHM_MB else "Use --num-workers 0, or give the container more shared memory (--shm-size)."
        )
        yield Check("shared memory", "ok" if not fix else "warning", f"{free:.0f} MB free", fix)


def examine() -> list[Check]:
    """All checks, in the order in which a broken installation is best fixed."""
    compat.shield_torchaudio()  # as everything else here does before it imports transformers
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
    """The findings as aligned lines, each with its fix below, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.fix}")
    errors = sum(check.status == "error" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    verdict = "Training works here" if not errors else f"Training cannot work here: {errors} error(s)"
    return "\n".join([*lines, f"{verdict}; {warnings} warning(s)"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings.

    Returns:
        0 if training can work, else 1; see `run_main` for the rest.
    """
    parser = Parser(prog=PROGRAM, description="Show what is installed, what is broken, and how to fix it.")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="first install fairseq if it is missing or broken, and uninstall a torchaudio that cannot be loaded",
    )
    commands = parser.add_subparsers(dest="command", metavar="options")
    options = commands.add_parser("options", help="print the options of tasks, models, criterions and optimizers")
    options.add_argument("names", nargs="*", metavar="NAME", help="such as trikd or mclip_base (default: all)")
    options.add_argument("--markdown", action="store_true", help="as a page, like docs/options.md")
    arguments = parser.parse_args(argv)
    if arguments.command == "options":
        return run_main(PROGRAM, lambda: print_options(arguments.names, arguments.markdown))
    return run_main(PROGRAM, lambda: repair(arguments.json) if arguments.fix else diagnose(arguments.json))


def print_options(names: Sequence[str], markdown: bool) -> None:
    """Print the options of components; no names stand for all."""
    logging.disable(logging.WARNING)  # fairseq logs while it is imported
    try:
        from mclip_fairseq import reference

        chosen = reference.choose(names)
    finally:
        logging.disable(logging.NOTSET)
    print(reference.as_markdown(chosen) if markdown else reference.as_text(chosen), end="")


def repair(as_json: bool) -> int:
    """Fix what `--fix` promises, then examine and print in a new process; returns the exit status.

    Raises:
        UserError: pip failed, or fairseq must be compiled and there is no compiler.
    """
    logging.disable(logging.WARNING)
    torchaudio = check_torchaudio()  # before fairseq, whose import hides it
    fairseq = check_package("fairseq-fixed", f"=={FAIRSEQ}")
    if fairseq.status == "error" or check_compiled_extensions().status == "error":
        install_fairseq()
    if torchaudio.status == "warning":
        run_pip("uninstall", "--yes", "torchaudio")
    command = [sys.executable, "-m", "mclip_fairseq.doctor", *(["--json"] if as_json else [])]
    return subprocess.run(command, check=False).returncode


def diagnose(as_json: bool) -> int:
    """Examine and print; returns the exit status."""
    logging.disable(logging.WARNING)  # fairseq, faiss and matplotlib log while they are imported
    try:
        checks = examine()
    finally:
        logging.disable(logging.NOTSET)
    healthy = all(check.status != "error" for check in checks)
    if as_json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(report(checks))
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
