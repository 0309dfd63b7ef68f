"""The recipes of examples/: printed with --dry-run, and run with --tiny on the tiny corpus."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sysconfig
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from tests.tiny_data import LANGS, sentences, write


def recipe(root: Path, name: str, *arguments: str, cwd: Path, **variables: object) -> str:
    """Run examples/NAME/run.sh; returns what it printed."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(root), **{k: str(v) for k, v in variables.items()}}
    command = ["bash", str(root / "examples" / name / "run.sh"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def commands(printed: str) -> dict[str, list[str]]:
    """The stages of a dry run and the words of their commands."""
    stages: dict[str, list[str]] = {}
    stage = ""
    for line in printed.splitlines():
        if line.startswith("\x1b[1m"):
            stage = line.removeprefix("\x1b[1m").removesuffix("\x1b[0m")
        elif line.startswith("+ "):
            stages[stage] = shlex.split(line)[1:]
    return stages


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_a_stage_that_was_asked_to_stop_is_not_finished(repository_root: Path, tmp_path: Path) -> None:
    """It exits with status 0 like a finished one; only the log distinguishes them."""
    stub = tmp_path / "bin" / "fairseq-train"
    write(stub, ["#!/usr/bin/env bash", 'while (($# > 1)); do shift; done; cat "$LINE" >> "$1"'])
    stub.chmod(0o755)
    path = os.pathsep.join([str(stub.parent), os.environ["PATH"]])
    for message, finished in (("SIGUSR1: saving after 7 updates and ending", False), ("done training", True)):
        write(tmp_path / "line", [message])
        environment = {**os.environ, "PATH": path, "LINE": str(tmp_path / "line"), "OUT": str(tmp_path / str(finished))}
        command = ["bash", str(repository_root / "examples" / "mclip" / "run.sh"), "mte1", "extract"]
        done = subprocess.run(
            command if not finished else command[:-1],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / str(finished) / "mte1" / "finished").exists() == finished
        assert "mclip-extract-mte" not in done.stdout


def test_published_settings_are_printed(repository_root: Path, tmp_path: Path) -> None:
    stages = commands(recipe(repository_root, "mclip", "--dry-run", "--gpus", "8", cwd=tmp_path))
    assert list(stages) == ["mte1", "mte2", "extract", "trikd", "finetune", "evaluate"]
    assert stages["mte1"][:4] == ["torchrun", "--standalone", "--nproc-per-node", "8"]
    assert value(stages["mte1"], "--lang-pairs") == "en-cs,en-de,en-es,en-ja,en-ru,en-zh"
    assert (value(stages["mte1"], "--lr"), value(stages["mte1"], "--max-update")) == ("5e-4", "400000")
    assert (value(stages["mte2"], "--freeze-text"), value(stages["mte2"], "--update-freq")) == ("embeddings", "4")
    assert (value(stages["trikd"], "--batch-size"), value(stages["trikd"], "--max-epoch")) == ("2048", "15")
    assert value(stages["trikd"], "--validate-interval-updates") == "250"
    assert value(stages["finetune"], "--positives") == "image"
    assert "data/sets/multi30k-task1:test_2016_flickr" in stages["evaluate"]
    assert not any(tmp_path.iterdir())
    large = commands(recipe(repository_root, "mclip_plus", "--dry-run", "mte1", "trikd", cwd=tmp_path))
    assert (value(large["mte1"], "--arch"), value(large["trikd"], "--arch")) == ("mte_large", "mclip_large")
    several = {
        "FINETUNE": "a b",
        "FINETUNE_FEATURES": "c",
        "FEATURES": "f g",
        "IMAGES": "i j",
        "OPTIONS": "--wandb-project x",
    }
    stages = commands(recipe(repository_root, "mclip", "--dry-run", "finetune", "evaluate", cwd=tmp_path, **several))
    assert "a/bin:b/bin" in stages["finetune"]
    assert value(stages["finetune"], "--text-features") == "c/text"
    assert value(stages["finetune"], "--wandb-project") == "x"
    start = stages["evaluate"].index("--images-root")
    assert stages["evaluate"][start : start + 6] == ["--images-root", "i", "j", "--features", "f", "g"]
    usage = recipe(repository_root, "ablations", "--dry-run", "--help", cwd=tmp_path)
    assert usage.startswith("What each part of TriKD is worth")
    printed = recipe(repository_root, "ablations", "--dry-run", cwd=tmp_path, VARIANTS="ttc depth4")
    assert "--image-text-weight 0 --text-text-weight 1" in printed
    assert "--projector-layers 4" in printed


@pytest.fixture
def data(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The directories that a recipe reads."""
    for name in ("bin", "features"):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / name).symlink_to(tiny_corpus / {"bin": "captions"}.get(name, name))
    archive = tmp_path / "xlmr"
    archive.mkdir()
    for file in (tiny_corpus / "tokenizer").iterdir():
        (archive / file.name).write_bytes(file.read_bytes())
    sizes = Namespace(
        encoder_layers=2,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=4,
        encoder_max_positions=128,
        dropout=0.1,
        attention_dropout=0.1,
    )
    torch.save(XLMREncoder(xlmr_args(sizes), load_dictionary(archive)).checkpoint(), archive / "model.pt")
    text = tmp_path / "text"
    for lang in LANGS:
        write(text / f"test.{lang}", sentences(lang)[:40])
        write(text / f"test.{lang}.ids", [f"img{number}" for number in range(40)])
    write(text / "images.tsv", [f"img{number}\timg{number}.png" for number in range(40)])
    splits = {"test": {lang: {"captions": f"test.{lang}", "ids": f"test.{lang}.ids"} for lang in LANGS}}
    write(text / "manifest.json", [json.dumps({"name": "Tiny", "splits": splits})])
    return tmp_path


@pytest.mark.slow
def test_all_stages_run_and_none_twice(repository_root: Path, tiny_corpus: Path, data: Path) -> None:
    places = {
        **{"XLMR": data / "xlmr", "MT": tiny_corpus / "mte", "PAIRS": "de,fr", "FINETUNE_LANGS": "en,de"},
        **{"CAPTIONS": data / "pairs", "FINETUNE": data / "pairs", "BENCHMARKS": data / "text"},
        **{"FEATURES": tiny_corpus / "features" / "image", "OUT": data / "out"},
    }
    recipe(repository_root, "mclip", "--tiny", cwd=data, **places)
    for name in ("trikd", "finetune-en-de"):
        report = json.loads((data / "out" / "evaluation" / "Tiny" / name / "report.json").read_text(encoding="utf-8"))
        assert set(report["results"]) == set(LANGS)
    assert (data / "out" / "evaluation" / "comparison.html").is_file()
    assert '"train_mean_recall"' not in (data / "out" / "trikd" / "train.log").read_text(encoding="utf-8")
    again = recipe(repository_root, "mclip", "--tiny", cwd=data, **places)
    assert again.count("is finished") == 4
    assert "report.json is up to date" in again
