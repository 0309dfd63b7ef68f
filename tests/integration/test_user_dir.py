"""fairseq's commands find the plugin from every place a user may start them at.

This file is also the program that the tests start: importing fairseq takes seconds, so one process imports it
once and forks a child per case, in which nothing of the plugin has been imported yet.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

COMMANDS = ("train", "generate", "validate", "interactive", "preprocess")
HEAVY = ("transformers", "faiss", "matplotlib", "ftfy", "sentencepiece", "safetensors")
OURS = {
    "task": {
        "mte": "tasks.mte",
        "trikd": "tasks.trikd",
        "distillation": "tasks.distillation",
        "image_text": "tasks.image_text",
        "contrastive_tension": "tasks.contrastive_tension",
        "ccrk": "tasks.ccrk",
    },
    "model": {
        "mte": "models.mte",
        "mclip": "models.mclip",
        "teacher_learning": "models.teacher_learning",
        "altclip": "models.altclip",
        "contrastive_tension": "models.contrastive_tension",
        "mla": "models.mla",
        "ccrk": "models.ccrk",
    },
    "architecture": dict.fromkeys(("mte_base", "mte_tiny"), "models.mte")
    | dict.fromkeys(("mclip_base", "mclip_large", "mclip_tiny"), "models.mclip")
    | dict.fromkeys(("teacher_learning_base", "teacher_learning_tiny"), "models.teacher_learning")
    | dict.fromkeys(("m_clip_base", "m_clip_large"), "models.teacher_learning")
    | dict.fromkeys(
        ("contrastive_tension_base", "contrastive_tension_large", "contrastive_tension_tiny"),
        "models.contrastive_tension",
    )
    | dict.fromkeys(("ccrk_base", "ccrk_tiny"), "models.ccrk")
    | dict.fromkeys(("mla_base", "mla_tiny"), "models.mla")
    | dict.fromkeys(("altclip_base", "altclip_large", "altclip_tiny"), "models.altclip"),
    "criterion": {
        "mte": "criterions.mte",
        "trikd": "criterions.trikd",
        "teacher_learning": "criterions.teacher_learning",
        "distillation": "criterions.distillation",
        "image_text": "criterions.image_text",
        "contrastive_tension": "criterions.contrastive_tension",
        "ccrk": "criterions.ccrk",
    },
    "optimizer": {
        "fused_adamw": "optim.fused_adamw",
        "mclip_lamb": "optim.mclip_lamb",
        "rmsprop": "optim.rmsprop",
        "bert_adam": "optim.bert_adam",
    },
    "lr_scheduler": {"warmup_cosine": "optim.warmup_cosine"},
}
# Places without `tasks/` of their own, tried with fairseq-train only.
ROUNDABOUT = ("signpost", "around the checkout")
Run = Callable[..., subprocess.CompletedProcess[str]]


def _registered() -> dict[str, dict[str, str]]:
    """The module of each registered component that has one of our names, without `mclip_fairseq.`."""
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_REGISTRY

    registries = {"task": TASK_REGISTRY, "model": MODEL_REGISTRY, "architecture": ARCH_MODEL_REGISTRY}
    registries |= {kind: REGISTRIES[kind]["registry"] for kind in ("criterion", "optimizer", "lr_scheduler")}
    return {
        kind: {
            name: registries[kind][name].__module__.removeprefix("mclip_fairseq.")
            for name in names
            if name in registries[kind]
        }
        for kind, names in OURS.items()
    }


def _run_case(case: dict[str, Any], answer: Connection) -> None:
    """One command line in a forked child; sends what came of it."""
    os.chdir(case["cwd"])
    assert "mclip_fairseq" not in sys.modules
    if case["importable"]:
        sys.path.insert(0, case["importable"])
    if case["imported"]:
        sys.path.insert(0, case["imported"])
        importlib.import_module("mclip_fairseq")
    before = {name for name in HEAVY if name in sys.modules}
    sys.argv = [
        f"fairseq-{case['command']}",
        "--user-dir",
        case["user_dir"],
        "--task",
        case["task"],
        "--help",
    ]
    result: dict[str, Any] = {"status": None, "error": ""}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            importlib.import_module(f"fairseq_cli.{case['command']}").cli_main()
        except SystemExit as stop:
            result["status"] = stop.code
        except ImportError as error:
            result["error"] = str(error)
    result["error"] += errors.getvalue()
    plugin = sys.modules.get("mclip_fairseq")
    result["file"] = plugin and os.path.realpath(str(plugin.__file__))
    result["registered"] = _registered()
    result["heavy"] = sorted({name for name in HEAVY if name in sys.modules} - before)
    answer.send(result)


def _run_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every case in a child of its own, one after the other."""
    for command in COMMANDS:
        importlib.import_module(f"fairseq_cli.{command}")
    context = multiprocessing.get_context("fork")
    results = []
    for case in cases:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_run_case, args=(case, sender))
        child.start()
        sender.close()
        results.append(receiver.recv())
        child.join()
    return results


@pytest.fixture(scope="module")
def places(
    repository_root: Path, installed_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, str, Path]]:
    """Name of the place -> working directory, `--user-dir` as typed there, the file to be imported.

    `signpost` is what an editable install has in site-packages. `around the checkout` is the folder in which
    `git clone` makes a folder `mclip_fairseq`.
    """
    from mclip_fairseq.user_dir import signpost  # not above: the program below must not import the plugin

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    spot = elsewhere / "site" / "mclip_fairseq"
    spot.mkdir(parents=True)
    (spot / "__init__.py").write_text(signpost(str(repository_root / "mclip_fairseq")), encoding="utf-8")
    around = tmp_path_factory.mktemp("around")
    (around / "mclip_fairseq").symlink_to(repository_root)
    (elsewhere / "checkout").symlink_to(repository_root)
    (elsewhere / "renamed").symlink_to(repository_root / "mclip_fairseq")
    here = repository_root / "mclip_fairseq" / "__init__.py"
    installed = installed_dir / "mclip_fairseq"
    return {
        "checkout": (str(repository_root), "mclip_fairseq", here),
        "another directory": (str(elsewhere), str(here.parent), here),
        "symlinked checkout": (str(elsewhere), "checkout/mclip_fairseq", here),
        "trailing slash": (str(elsewhere), "checkout/mclip_fairseq/", here),
        "installed": (str(elsewhere), str(installed), installed / "__init__.py"),
        "renamed link": (str(elsewhere), "renamed", here),
        "signpost": (str(elsewhere), str(spot), here),
        "around the checkout": (str(around), "mclip_fairseq", here),
    }


# The runs behind it take a minute of two cores.
needs_all_runs = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(
    places: dict[str, tuple[str, str, Path]], repository_root: Path, installed_dir: Path, fairseq_cli: Run
) -> Callable[..., dict[str, Any]]:
    """`outcome(place, command="train", task="mte", imported="checkout")`: the result of that run."""
    parents = {None: None, "checkout": str(repository_root), "installed": str(installed_dir)}
    keys = [
        (place, command, "mte", imported)
        for place in places
        for command in COMMANDS
        for imported in parents
        if command == "train" or (imported is None and place not in ROUNDABOUT)
    ] + [("checkout", "train", "trikd", None), ("checkout", "train", "not_a_task", None)]
    cases = [
        {
            "cwd": places[place][0],
            "user_dir": places[place][1],
            "command": command,
            "task": task,
            "imported": parents[imported],
            # where pip has put the package, or the signpost to it
            "importable": str(Path(places["signpost"][1]).parent) if place == "around the checkout" else None,
        }
        for place, command, task, imported in keys
    ]
    # without the checkout on PYTHONPATH: --user-dir alone has to find the plugin
    answer = fairseq_cli("python", __file__, input=json.dumps(cases), env={"PYTHONPATH": None})
    results = dict(zip(keys, json.loads(answer.stdout.splitlines()[-1]), strict=True))

    def look_up(place: str, command: str = "train", task: str = "mte", imported: str | None = None) -> dict[str, Any]:
        return results[place, command, task, imported]

    return look_up


@needs_all_runs
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "place", ["checkout", "another directory", "symlinked checkout", "trailing slash", "installed"]
)
def test_every_command_finds_the_plugin_from_every_place(
    place: str, command: str, outcome: Callable[..., dict[str, Any]], places: dict[str, tuple[str, str, Path]]
) -> None:
    result = outcome(place, command)
    assert result["status"] == 0, result["error"]
    assert result["file"] == os.path.realpath(places[place][2])
    assert result["registered"] == OURS


@needs_all_runs
@pytest.mark.parametrize("place", ROUNDABOUT)
def test_a_path_that_only_leads_to_the_plugin_registers_it(
    place: str, outcome: Callable[..., dict[str, Any]], places: dict[str, tuple[str, str, Path]]
) -> None:
    result = outcome(place)
    assert result["status"] == 0, result["error"]
    assert result["file"] == os.path.realpath(places[place][2])
    assert result["registered"] == OURS


@needs_all_runs
def test_tasks_are_distinguished(outcome: Callable[..., dict[str, Any]]) -> None:
    assert outcome("checkout", task="trikd")["status"] == 0
    unknown = outcome("checkout", task="not_a_task")
    assert unknown["status"] == 2
    assert "invalid choice" in unknown["error"]


@needs_all_runs
@pytest.mark.parametrize(
    ("imported", "place"),
    [
        ("checkout", "checkout"),
        ("checkout", "another directory"),
        ("checkout", "symlinked checkout"),
        ("installed", "installed"),
        ("checkout", "signpost"),
        ("checkout", "around the checkout"),
    ],
)
def test_a_plugin_that_is_already_imported_is_recognised(
    imported: str, place: str, outcome: Callable[..., dict[str, Any]]
) -> None:
    result = outcome(place, imported=imported)
    assert result["status"] == 0, result["error"]
    assert result["registered"] == OURS


@needs_all_runs
@pytest.mark.parametrize("place", ["symlinked checkout", "signpost", "around the checkout"])
def test_two_copies_are_never_mixed(place: str, outcome: Callable[..., dict[str, Any]]) -> None:
    result = outcome(place, imported="installed")
    assert result["status"] is None
    assert "not globally unique" in result["error"]


@needs_all_runs
def test_a_link_of_another_name_is_refused_with_a_sentence(outcome: Callable[..., dict[str, Any]]) -> None:
    result = outcome("renamed link")
    assert result["status"] is None
    assert "mclip_fairseq" in result["error"]
    assert "renamed" in result["error"]


@needs_all_runs
def test_registering_imports_nothing_heavy(outcome: Callable[..., dict[str, Any]]) -> None:
    assert outcome("checkout")["heavy"] == []


def test_the_real_console_script_through_a_link(tmp_path: Path, repository_root: Path, fairseq_cli: Run) -> None:
    (tmp_path / "checkout").symlink_to(repository_root)
    result = fairseq_cli(
        *("fairseq-train", "--user-dir", "checkout/mclip_fairseq", "--task", "trikd", "--help"),
        cwd=tmp_path,
        env={"PYTHONPATH": None},
    )
    assert "usage: fairseq-train" in result.stdout


if __name__ == "__main__":
    print(json.dumps(_run_cases(json.loads(sys.stdin.read()))))
