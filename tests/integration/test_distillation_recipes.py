"""The recipes of M-CLIP, AltCLIP and Contrastive Tension: printed with --dry-run, and run with --tiny."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.cli.evaluate import main as evaluate
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.cli.features import main as features
from tests.integration.test_ccrk_recipe import write_benchmark
from tests.integration.test_recipes import commands, data, recipe, value
from tests.tiny_data import LANGS, run, sentences, write
from tests.tiny_models import tiny_clip_directory

__all__ = ["data"]  # the fixture
Run = Callable[..., str]


@pytest.fixture
def places(data: Path) -> dict[str, object]:
    """The environment of all three recipes on the tiny corpus."""
    write(data / "english.tsv", [f"txt{number}\t{sentence}" for number, sentence in enumerate(sentences("en"))])
    english = sentences("en")
    pairs = zip(english[:40], english[5:45], strict=True)
    write(data / "sts.tsv", [f"{number % 6}.0\t{one}\t{two}" for number, (one, two) in enumerate(pairs)])
    return {"XLMR": data / "xlmr", "OUT": data / "out", "LANGS": ",".join(LANGS), "OPTIONS": "--dropout 0"}


def test_published_settings_are_printed(repository_root: Path, tmp_path: Path) -> None:
    stages = commands(recipe(repository_root, "m_clip", "--dry-run", "--gpus", "8", cwd=tmp_path))
    assert list(stages) == ["features", "train", "evaluate", "export"]
    assert stages["train"][:4] == ["torchrun", "--standalone", "--nproc-per-node", "8"]
    assert (value(stages["train"], "--lr"), value(stages["train"], "--batch-size")) == ("1e-5", "256")
    assert value(stages["train"], "--max-caption-tokens") == "32"
    stages = commands(recipe(repository_root, "altclip", "--dry-run", cwd=tmp_path))
    assert list(stages) == ["features", "teach", "align", "evaluate", "export"]
    assert (value(stages["teach"], "--lr"), value(stages["teach"], "--weight-decay")) == ("1e-4", "1e-4")
    assert (value(stages["align"], "--lr"), value(stages["align"], "--batch-size")) == ("5e-5", "64")
    assert value(stages["export"], "--format") == "altclip"
    stages = commands(recipe(repository_root, "contrastive_tension", "--dry-run", cwd=tmp_path))
    assert list(stages) == ["train", "evaluate", "export"]
    assert (value(stages["train"], "--optimizer"), value(stages["train"], "--group-negatives")) == ("rmsprop", "7")
    assert "'501': 8e-6" in value(stages["train"], "--update2lr")
    assert not any(tmp_path.iterdir())
    for name in ("m_clip", "altclip", "contrastive_tension"):
        assert f"examples/{name}/run.sh" in recipe(repository_root, name, "--help", cwd=tmp_path)


@pytest.mark.parametrize("name", ["m_clip", "altclip", "contrastive_tension", "mla"])
def test_slurm_starts_each_training_on_every_machine(name: str, repository_root: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    write(tools / "scontrol", ["#!/bin/sh", "printf 'node1\\nnode2\\n'"])
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "RECIPE": name}
    path = f"{tools}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "examples/mclip/slurm.sbatch", "--dry-run"],
        cwd=repository_root,
        env={**os.environ, **job, "PATH": path, "GPUS_PER_NODE": "4", "OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=True,
    )
    trained = [line for line in done.stdout.splitlines() if "fairseq_cli.train" in line]
    assert trained
    for line in trained:
        assert line.startswith("+ srun --kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node 4")
        assert "--rdzv-endpoint node1:29500" in line
    assert not (tmp_path / "out").exists()


def run_printed(printed: str, run_in_process: Run) -> None:
    """Run the commands of a dry run inside this process, where they start in no time."""
    mains = {"mclip-features": features, "mclip-evaluate": evaluate, "mclip-export": export}
    for line in printed.splitlines():
        if line.startswith("+ "):
            program, *words = shlex.split(line)[1:]
            if program == "fairseq-train":
                run_in_process(program, *words)
            else:
                assert mains[program](words) == 0, line


@pytest.fixture
def m_clip(tiny_corpus: Path, photos: Path, data: Path, places: dict[str, object]) -> dict[str, object]:
    """What M-CLIP's recipe reads."""
    write_benchmark(data / "benchmark")
    more = {"TEXTS": text_only(tiny_corpus, data), "ENGLISH": data / "english.tsv"}
    more |= {"TEACHER": tiny_clip_directory(data / "teacher"), "BENCHMARKS": data / "benchmark"}
    return {**places, **more, "IMAGES": photos / "images"}


@pytest.fixture
def altclip(m_clip: dict[str, object], photos: Path) -> dict[str, object]:
    """What AltCLIP's recipe reads."""
    return {**m_clip, "CAPTIONS": photos / "captions", "PHOTOS": photos / "images", "LANGS": "en"}


@pytest.fixture
def contrastive_tension(tiny_corpus: Path, data: Path, places: dict[str, object]) -> dict[str, object]:
    """What the recipe of Contrastive Tension reads."""
    rows = [f"main\tfile\t2017\t{n}\t{line}" for n, line in enumerate((data / "sts.tsv").read_text().splitlines())]
    for part in ("train", "dev", "test"):
        write(data / "stsb" / f"sts-{part}.csv", rows)
    run("sts", "--stsb", data / "stsb", "--expect-counts", "no", "--output", data / "sets")
    return {
        **places,
        **{"SENTENCES": tiny_corpus / "captions", "STS": data / "sets" / "stsb.valid.en.tsv"},
        "BENCHMARKS": data / "sets",
    }


def text_only(corpus: Path, folder: Path) -> Path:
    """The captions of the tiny corpus without their images."""
    output = folder / "texts"
    output.mkdir()
    for file in (corpus / "captions").iterdir():
        if file.suffix == ".ids":
            rows = [line.split("\t") for line in file.read_text().splitlines()]
            write(output / file.name, [f"-\t{text}" for _, text in rows])
        else:
            (output / file.name).symlink_to(file)
    return output


RESULTS = {
    "m_clip": "m-clip/pytorch_model.bin",
    "altclip": "altclip/model.safetensors",
    "contrastive_tension": "sentence-encoder/1_Pooling/config.json",
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_tiny_commands_fit_together(
    name: str, repository_root: Path, data: Path, run_in_process: Run, request: pytest.FixtureRequest
) -> None:
    """Every stage; training, report and exported directory are there."""
    variables: dict[str, object] = request.getfixturevalue(name)
    run_printed(recipe(repository_root, name, "--dry-run", "--tiny", cwd=data, **variables), run_in_process)
    assert (data / "out" / RESULTS[name]).is_file()
    report = json.loads(next((data / "out" / "evaluation").rglob("report.json")).read_text(encoding="utf-8"))
    assert report["results"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RESULTS)
def test_the_tiny_recipe_runs_and_no_stage_twice(
    name: str, repository_root: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    variables: dict[str, object] = request.getfixturevalue(name)
    recipe(repository_root, name, "--tiny", cwd=data, **variables)
    assert (data / "out" / RESULTS[name]).is_file()
    printed = recipe(repository_root, name, "--tiny", cwd=data, **variables)
    assert "is finished" in printed
    assert f"{RESULTS[name].split('/')[0]} exists" in printed
    assert "report.json is up to date" in printed
