"""CLIP_benchmark's own command line with one of our models, on captions in COCO's format."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.clip_benchmark import main
from mclip_fairseq.evaluation import retrieval_metrics

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "exported"
CAPTIONS = ("a red dog", "ein Hund am Strand", "un chien rouge", "a blue house", "green cat", "dog and cat")
IMAGES = len(CAPTIONS)


def captions_of(number: int) -> list[str]:
    return [CAPTIONS[number], f"{CAPTIONS[number]} {CAPTIONS[number - 1]}"]


def write_coco(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    (folder / "val2014").mkdir()
    paths = [folder / "val2014" / f"{number}.png" for number in range(IMAGES)]
    for path in paths:
        pixels = rng.integers(0, 255, (2, 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 40), Image.Resampling.NEAREST).save(path)
    listed = [{"id": number, "file_name": path.name} for number, path in enumerate(paths)]
    texts = [(number, text) for number in range(IMAGES) for text in captions_of(number)]
    annotations = [{"id": n, "image_id": number, "caption": text} for n, (number, text) in enumerate(texts)]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": annotations}), encoding="utf-8")
    return paths


def test_retrieval_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("clip_benchmark", reason="CLIP_benchmark is not installed (pip install mclip_fairseq[tools])")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        pytest.skip(f"torchvision is built for another torch: {error}")
    paths = write_coco(tmp_path)
    command = (
        f"clip_benchmark eval --model_type mclip_fairseq --pretrained {LEGACY} --model ours --no_amp --num_workers 0"
    )
    command += f" --dataset mscoco_captions --dataset_root {tmp_path} --annotation_file {tmp_path}/captions.json"
    command += f" --recall_k 1 2 3 --output {tmp_path}/result.json"
    monkeypatch.setattr(sys, "argv", command.split())
    assert main() == 0
    theirs = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["metrics"]
    model = MultilingualCLIP.from_pretrained(LEGACY, device="cpu")
    texts = model.encode_text([text for number in range(IMAGES) for text in captions_of(number)])
    own = torch.arange(IMAGES).repeat_interleave(2)
    ours = retrieval_metrics(texts, model.encode_image(paths), own)
    for side, name in (("t2i", "image"), ("i2t", "text")):
        assert 100 * theirs[f"{name}_retrieval_recall@1"] == pytest.approx(ours[f"{side}_R@1"], abs=0.1)
    assert theirs["image_retrieval_recall@1"] < theirs["image_retrieval_recall@3"] < 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("clip_benchmark", "clip_benchmark.models"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main() == 2
    assert "run pip install 'mclip_fairseq[tools]'" in capsys.readouterr().err
