"""examples/mla: its published settings, and all stages on a tiny corpus."""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.test_recipes import commands, recipe, value
from tests.mla_data import captions
from tests.tiny_data import write


def test_published_settings_are_printed(repository_root: Path, tmp_path: Path) -> None:
    stages = commands(recipe(repository_root, "mla", "--dry-run", "--gpus", "2", cwd=tmp_path))
    assert list(stages) == ["data", "nlt", "le", "finetune-en", "finetune-all", "evaluate"]
    assert stages["nlt"][:4] == ["torchrun", "--standalone", "--nproc-per-node", "2"]
    assert (value(stages["nlt"], "--lr"), value(stages["nlt"], "--max-update")) == ("1e-4", "117150")
    assert (value(stages["le"], "--lr"), value(stages["le"], "--max-update")) == ("3e-6", "11715")
    assert value(stages["le"], "--base") == "runs/mla/nlt/checkpoint_best.pt"
    assert value(stages["finetune-en"], "--train-parts") == "clip"
    assert value(stages["finetune-all"], "--langs") == "en,de,fr,cs"
    assert value(stages["evaluate"], "--protocol") == "caption_max"
    assert "data/sets/multi30k-task1:test_2016_flickr" in stages["evaluate"]
    coco = commands(
        recipe(repository_root, "mla", "--dry-run", "finetune-en", "finetune-all", "evaluate", cwd=tmp_path, SET="coco")
    )
    assert value(coco["finetune-all"], "--langs") == "en,ja,zh"
    assert value(coco["finetune-all"], "--base") == "runs/mla/coco-finetune-en/checkpoint_best.pt"
    assert "runs/mla/le/checkpoint_best.pt" in coco["evaluate"]  # zero-shot
    assert [part for part in coco["evaluate"] if part.startswith("data/sets/")] == [
        f"data/sets/coco-{lang}" for lang in ("en", "ja", "zh")
    ]
    assert not any(tmp_path.iterdir())
    released = commands(recipe(repository_root, "mla", "--dry-run", "nlt", cwd=tmp_path, OPTIMIZER="bert_adam"))
    assert value(released["nlt"], "--optimizer") == "bert_adam"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_stages_run_and_none_twice(repository_root: Path, mla_corpus: Path, photos: Path, tmp_path: Path) -> None:
    langs = ("en", "de", "fr")
    for lang in langs:
        for split, start, stop in (("train", 0, 104), ("valid", 104, 120)):
            write(tmp_path / "set" / "text" / f"{split}.{lang}", captions(lang)[start:stop])
            ids = [f"img{n % 40}.png\ttxt{n}" for n in range(start, stop)]
            write(tmp_path / "set" / "text" / f"{split}.{lang}.ids", ids)
        write(tmp_path / "bench" / f"test.{lang}", captions(lang)[:40])
        write(tmp_path / "bench" / f"test.{lang}.ids", [f"img{n}.png" for n in range(40)])
    write(tmp_path / "bench" / "images.tsv", [f"img{n}.png\timg{n}.png" for n in range(40)])
    splits = {"test": {lang: {"captions": f"test.{lang}", "ids": f"test.{lang}.ids"} for lang in langs}}
    write(tmp_path / "bench" / "manifest.json", [json.dumps({"name": "Tiny", "splits": splits})])
    shutil.copytree(mla_corpus / "text", tmp_path / "set" / "features" / "text")
    shutil.copytree(photos / "features", tmp_path / "set" / "features" / "image")
    places = {
        **{"CAPTIONS": tmp_path / "set", "FINETUNE": tmp_path / "set", "LANGS": "de,fr", "FINETUNE_LANGS": "en,de,fr"},
        **{"IMAGES": photos / "images", "TEACHER": photos / "teacher", "TOKENIZER": mla_corpus / "vocab.txt"},
        **{"EMBEDDING": "", "BENCHMARKS": tmp_path / "bench", "EVALUATE_IMAGES": photos / "images"},
        "OUT": tmp_path / "out",
    }
    recipe(repository_root, "mla", "--tiny", "data", "nlt", "le", "finetune-en", "finetune-all", cwd=tmp_path, **places)
    recipe(repository_root, "mla", "--tiny", "evaluate", cwd=tmp_path, **places)
    for name in ("le", "finetune-en", "finetune-all"):
        report = json.loads((tmp_path / "out" / "evaluation" / "Tiny" / name / "report.json").read_text())
        assert set(report["results"]) == set(langs)
        assert report["protocol"] == "caption_max"
    again = recipe(repository_root, "mla", "--tiny", "data", "nlt", "le", "finetune-en", cwd=tmp_path, **places)
    assert again.count("is finished") == 3
    assert again.count("exists") == 3
    coco = {**places, "SET": "coco"}
    recipe(repository_root, "mla", "--tiny", "data", "finetune-en", "finetune-all", "evaluate", cwd=tmp_path, **coco)
    reports = tmp_path / "out" / "evaluation" / "Tiny"
    assert {folder.name for folder in reports.iterdir()} >= {"le", "coco-finetune-en", "coco-finetune-all"}
