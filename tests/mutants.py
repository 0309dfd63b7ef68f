"""Small faults put into the code one by one, each with the tests that must notice it: `make mutants`.

`python -m tests.mutants [WORD ...]` copies the checkout, changes one line at a time and runs the tests of its row;
words choose the rows whose file or change contains one of them. It prints what survived and exits with status 1 if
anything did. `tests/unit/test_mutants.py` checks in the suite that every row still fits the code.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("mclip_fairseq", "preprocess", "examples", "tests", "docs", "pyproject.toml", "README.md", "setup.py")
# Seconds after which a mutant counts as caught: it has made a test hang. On a busy machine, look at the lines `hung`.
HANG = 1800
OUTCOMES = {0: "SURVIVED", 1: "caught", -1: "hung"}


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        file: below `mclip_fairseq/`.
        old: what stands there, once.
        new: what stands there instead.
        tests: arguments of pytest.
    """

    file: str
    old: str
    new: str
    tests: str


LOSSES = "tests/unit/test_losses_contrastive.py"
GATHER = "tests/distributed/test_gather.py tests/distributed/test_exact.py"
SMOOTHING = "tests/unit/test_losses_smoothing.py"
EXACT = "tests/distributed/test_exact.py"
SAMPLING = "tests/unit/test_sampling.py tests/unit/test_tail_batches.py"
SEALS = "tests/unit/test_sealed.py"
RESUME = "tests/integration/test_resume.py"
VALIDATION = "tests/integration/test_resume_validation.py -k 'plateau or replay or bad_epochs'"
BEST = "tests/integration/test_best_checkpoints.py"
LAUNCH = "tests/integration/test_launch.py -k 'holds or one_sentence or locks'"
HOLDING = "tests/unit/test_holding.py"
METRICS = "tests/unit/test_retrieval_metrics.py"
SEARCH = "tests/integration/test_search_changes.py"
FREEZING = "tests/unit/test_freezing.py tests/unit/test_mclip_model.py tests/integration/test_trikd.py"
OPTIM = "tests/unit/test_optim.py"
VERIFIED = "tests/unit/test_verified.py"

MUTANTS = (
    Mutant("storage/verified.py", "*identity[:4]]", "*identity[:2], identity[3]]", VERIFIED),
    Mutant("storage/verified.py", "*identity[:4]]", "*identity[:3]]", VERIFIED),
    Mutant("storage/verified.py", "[self.expected[name], *", "[*", VERIFIED),
    Mutant("storage/verified.py", "identity is None or known", "known", VERIFIED),
    Mutant(
        "optim/mclip_lamb.py", "lengths / update_lengths, 1.0)", "(lengths / update_lengths).clamp(max=10), 1.0)", OPTIM
    ),
    Mutant("optim/mclip_lamb.py", "(update_lengths > 0)", "(lengths > 0)", OPTIM),
    Mutant("optim/mclip_lamb.py", '1 - beta2 ** state["step"]', '1 - beta1 ** state["step"]', OPTIM),
    Mutant("optim/mclip_lamb.py", ".clamp(min=1.0)", "", OPTIM),
    Mutant("optim/mclip_lamb.py", 'state["step"] += 1', 'state["step"] = max(state["step"], 1)', OPTIM),
    Mutant("optim/fused_adamw.py", 'group["weight_decay"] = 0.0', "pass", OPTIM),
    Mutant("optim/fused_adamw.py", "if param.dim() >= 2]", "if param.dim() >= 1]", OPTIM),
    Mutant("losses/contrastive.py", "(loss_xy + loss_yx) / (2 * max(len(x), 1))", "(loss_xy + loss_yx) / 2", LOSSES),
    Mutant("losses/contrastive.py", "hits = rivals.sum(1) == 1", "hits = rivals.sum(1) >= 1", LOSSES),
    Mutant("losses/contrastive.py", "None if positives is None else positives.T", "positives", LOSSES),
    Mutant("losses/contrastive.py", "(loss_xy + loss_yx) / (2 * rows)", "loss_xy / rows", LOSSES),
    Mutant("losses/gather.py", "dist.all_reduce(rows, group", "dist.all_reduce(rows.clone(), group", GATHER),
    Mutant("losses/gather.py", "sum(sizes[: dist.get_rank(group)])", "sum(sizes[: dist.get_rank()])", GATHER),
    Mutant("losses/gather.py", "part[:size] for part", "part for part", GATHER),
    Mutant("losses/smoothing.py", "counts = target != ignore_index", "counts = target == target", SMOOTHING),
    Mutant("losses/smoothing.py", "epsilon * classes / (classes - 1) if", "epsilon if", SMOOTHING),
    Mutant("losses/smoothing.py", "mixture.mul_(shrink).add_(", "mixture.add_(", SMOOTHING),
    Mutant("criterions/terms.py", "rows=0 if dummy else int", "rows=int", EXACT),
    Mutant("criterions/terms.py", "rows = 0 if batch.dummy or weight == 0", "rows = 0 if weight == 0", EXACT),
    Mutant("data/sampling.py", "default_rng([self.seed, epoch])", "default_rng(self.seed)", SAMPLING),
    Mutant("data/sampling.py", "(1.0 / temperature), 0.0)", "temperature, 0.0)", SAMPLING),
    Mutant("data/sampling.py", "if len(left):", "if False:", SAMPLING),
    Mutant("data/sampling.py", "2 * len(batches[-1]) < len", "len(batches[-1]) < len", SAMPLING),
    Mutant("data/sampling.py", "min(len(batches[-2]), max_tokens // longest)", "len(batches[-2])", SAMPLING),
    Mutant("data/sampling.py", "rng.permutation(size)[:partial]", "rng.permutation(size)[:0]", SAMPLING),
    Mutant("storage/sealed.py", "seal[1] == _hash_before_seal(path)", "True", SEALS),
    Mutant("storage/sealed.py", 'return "its seal is damaged"', 'return ""', SEALS),
    Mutant("storage/sealed.py", "os.replace(temporary, path)", "shutil.copy(temporary, path)", SEALS),
    Mutant("storage/owners.py", 'named["machine"] != machine() or', "", SEALS),
    Mutant("storage/sealed.py", "if error.errno in HOPELESS or attempt", "if attempt", SEALS),
    Mutant("storage/locks.py", " | os.O_NOFOLLOW", "", HOLDING),
    Mutant("storage/staging.py", "if place.is_relative_to(output)", "if False", "tests/unit/test_staging.py -k mount"),
    Mutant("resilience/choosing.py", "and not owner_is_alive(path)", "", SEALS),
    Mutant("resilience/choosing.py", "if updates[path] > updates[last] and", "if", SEALS),
    Mutant("resilience/resuming.py", 'position.get("iterations_in_epoch") == 0:', "False:", VALIDATION),
    Mutant("resilience/resuming.py", "metrics.load_state_dict(", "dict(", RESUME),
    Mutant("resilience/resuming.py", "restore(trainer, {} if cfg.reset_optimizer else kept)", "pass", VALIDATION),
    Mutant("resilience/unsaved.py", '"num_bad_epochs", "cooldown_counter"', '"cooldown_counter"', VALIDATION),
    Mutant("resilience/best.py", '"dataset.batch_size_valid",', "", BEST),
    Mutant("resilience/best.py", "early_stopping().clear()", "pass", BEST),
    Mutant("resilience/holding.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", LAUNCH),
    Mutant("resilience/preflight.py", "if path.is_file() or begun:", "if True:", LAUNCH),
    Mutant("evaluation/metrics/retrieval.py", "(values < k)", "(values <= k)", METRICS),
    Mutant("evaluation/metrics/retrieval.py", "image[captioned]", "image[: len(captioned)]", METRICS),
    Mutant("search/change.py", "0 < rows - len(removed) < len(removed)", "0 < rows - len(removed)", SEARCH),
    Mutant("search/change.py", "removed = index.removed | gone | {", "removed = gone | {", SEARCH),
    Mutant("search/change.py", "row not in removed for row", "True for row", SEARCH),
    Mutant("models/freezing.py", "and name not in trained}", "}", FREEZING),
    Mutant("models/freezing.py", "for name in sorted(state):", "for name in state:", FREEZING),
    Mutant("models/freezing.py", "if archive is not None and stored", "if stored", FREEZING),
)


def chosen(words: list[str]) -> list[Mutant]:
    """The rows with one of some words in their file or change; all rows without words."""
    return [row for row in MUTANTS if not words or any(word in f"{row.file} {row.old}" for word in words)]


def copy_checkout(folder: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder)


def outcome(row: Mutant, folder: Path) -> str:
    """Run the tests of a row on the copy with its fault: `caught`, `hung`, or `SURVIVED` if they all pass."""
    file = folder / "mclip_fairseq" / row.file
    sound = file.read_text(encoding="utf-8")
    if sound.count(row.old) != 1:
        raise SystemExit(f"{row.file}: {row.old!r} stands there {sound.count(row.old)} times; fix its row")
    file.write_text(sound.replace(row.old, row.new), encoding="utf-8")
    try:
        return OUTCOMES[run_tests(row.tests, folder)]
    finally:
        file.write_text(sound, encoding="utf-8")


def run_tests(tests: str, folder: Path) -> int:
    """Exit status of pytest in a folder: 1 if a test fails, 0 if none does; -1 after `HANG`.

    Raises:
        SystemExit: the tests could not be run at all.
    """
    shared = os.environ.get("MCLIP_SHARED") or str(ROOT.parent / "shared")
    environment = {**os.environ, "PYTHONPATH": str(folder), "MCLIP_SHARED": shared, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-o",
        "timeout=0",
        *shlex.split(tests),
    ]
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG)
    except subprocess.TimeoutExpired:
        return -1
    if result.returncode not in (0, 1):
        raise SystemExit(f"{tests}: pytest ended with status {result.returncode}\n{result.stdout[-3000:]}")
    return result.returncode


def main(words: list[str]) -> int:
    """Try the mutants and print a line for each."""
    rows, survived = chosen(words), list[Mutant]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_checkout(folder)
        for row in rows:
            found = outcome(row, folder)
            print(f"{found:8}  {row.file}: {row.old}  ->  {row.new}", flush=True)
            if found == OUTCOMES[0]:
                survived.append(row)
    print(f"{len(rows) - len(survived)} of {len(rows)} mutants caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
