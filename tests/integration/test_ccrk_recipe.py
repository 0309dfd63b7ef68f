"""`examples/ccrk`: printed with --dry-run, and run with --tiny on the tiny corpus."""

import json
from pathlib import Path

import pytest

from tests.ccrk_models import parallel_corpus
from tests.integration.test_recipes import commands, recipe, value
from tests.tiny_data import LANGS, sentences, write


def test_the_commands_hold_the_published_settings(repository_root: Path, tmp_path: Path) -> None:
    printed = recipe(
        repository_root, "ccrk", "--dry-run", "--gpus", "2", "pretrain", "finetune", "fewshot", "evaluate", cwd=tmp_path
    )
    stages = commands(printed)
    assert value(stages["pretrain"], "--batch-size") == "64"  # of each of two GPUs
    assert value(stages["pretrain"], "--text-layers") == "1,3,...,23"
    assert value(stages["pretrain"], "--fresh-lr-multiplier") == "2"
    assert int(value(stages["pretrain"], "--warmup-updates")) == int(0.03006 * 436830)
    assert value(stages["finetune"], "--image-window") == "12"
    assert value(stages["finetune"], "--finetune-from-model") == "runs/ccrk/pretrain/checkpoint_last.pt"
    assert "--disable-validation" in stages["fewshot"]
    assert value(stages["evaluate"], "--rerank") == "128"


@pytest.mark.slow
def test_all_stages_fit_together(repository_root: Path, photos: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    parallel_corpus(photos, tiny_corpus, tmp_path / "set" / "bin")
    write_benchmark(tmp_path / "benchmark")
    recipe(
        repository_root,
        "ccrk",
        *("--tiny", "pretrain", "finetune", "fewshot", "evaluate"),
        cwd=tmp_path,
        XLMR=tiny_corpus / "tokenizer",
        PARALLEL="set",
        PARALLEL_IMAGES=photos / "images",
        LANGUAGES=",".join(LANGS),
        CAPTIONS_PER_IMAGE=2,
        FINETUNE="set",
        FINETUNE_IMAGES=photos / "images",
        FINETUNE_LANGS="en,de",
        FEWSHOT="set/bin",
        FEWSHOT_LANG="fr",
        BENCHMARKS=tmp_path / "benchmark",
        IMAGES=photos / "images",
        OUT="out",
        OPTIONS="--max-caption-tokens 40",
    )
    reports = sorted((tmp_path / "out" / "evaluation").rglob("report.json"))
    assert len(reports) == 3
    for report in reports:
        assert json.loads(report.read_text(encoding="utf-8"))["reranked"]["k"] == 4


def write_benchmark(folder: Path) -> None:
    """A retrieval benchmark of twelve of the tiny corpus's images."""
    splits = {}
    for lang in LANGS:
        write(folder / f"test.{lang}", sentences(lang)[:12])
        write(folder / f"test.{lang}.ids", [f"img{number}.png" for number in range(12)])
        splits[lang] = {"captions": f"test.{lang}", "ids": f"test.{lang}.ids", "lines": 12, "images": 12}
    write(folder / "images.tsv", [f"img{number}.png\timg{number}.png" for number in range(12)])
    (folder / "manifest.json").write_text(json.dumps({"name": "tiny", "splits": {"test": splits}}), encoding="utf-8")
