"""The quickstart's teacher learns keywords and keeps the names it knows."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from tests.unit.test_quickstart_corpus import ROOT, load

NAMES = ["red apple", "green apple", "black cat", "white cat"]
DIM = 128


@pytest.fixture(scope="module")
def tuning() -> ModuleType:
    sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
    try:
        return load("tune_teacher")
    finally:
        sys.path.pop(0)


def test_any_drawing_that_a_text_describes_will_do(tuning: ModuleType) -> None:
    """Softmax of (0, log 2, log 3) is (1, 2, 3) / 6; a weight of a half halves it."""
    logits = torch.tensor([[0.0, math.log(2), math.log(3)]]).expand(4, 3)
    weights = torch.tensor([[1.0, 0, 0], [1, 0, 1], [1, 1, 1], [1, 0.5, 0]])
    expected = torch.tensor([math.log(6), math.log(6 / 4), 0.0, math.log(6 / 2)])
    torch.testing.assert_close(tuning.find_any(logits, weights), expected)
    assert tuning.find_any(logits[:0], weights[:0]).sum() == 0, "no new text in a batch"


def test_captions_become_texts_and_what_they_describe(tuning: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    folder.mkdir()
    for name, captions, ids in (
        ("train", ["red apple", "black cat", "plum"], ["b/1.png\t1", "a/2.png\t2", "b/3.png\t3"]),
        ("keywords", ["fruit", "fruit", "cat", "cat"], ["b/1.png\t1", "b/3.png\t3", "a/2.png\t2", "b/3.png\t3"]),
    ):
        (folder / f"{name}.en").write_text("".join(f"{line}\n" for line in captions))
        (folder / f"{name}.en.ids").write_text("".join(f"{line}\n" for line in ids))
    data = tuning.describe(tmp_path, ["train", "keywords"])
    assert data.texts == ["black cat", "cat", "fruit", "plum", "red apple"]
    assert data.images == ["a/2.png", "b/1.png", "b/3.png"]
    assert data.weights.tolist() == [
        [1, 0, 0],
        [1, 0, 1 / tuning.NAMED],  # only the first is named a cat
        [0, 1, 1],
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_keywords_are_learned_and_names_kept(tuning: ModuleType) -> None:
    torch.manual_seed(1)
    teacher = sys.modules["train_teacher"]
    tokenizer = teacher.build_tokenizer(NAMES)
    model = teacher.build_model(tokenizer)
    images = F.normalize(torch.randn(6, DIM), dim=1)
    texts = [*NAMES, "fruit", "cat"]
    positives = torch.eye(6, dtype=torch.bool)
    positives[4:] = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    data = tuning.Described(texts, [f"{number}.png" for number in range(6)], positives.float())
    known = torch.tensor([True] * 4 + [False] * 2)
    model.eval()
    with torch.no_grad():
        before = tuning.encode_texts(model, tokenizer, texts)
    assert not positives[4:].gather(1, (before[4:] @ images.T).argmax(1, keepdim=True)).all(), "untrained, seed 1"
    tuning.tune(model, tokenizer, images, data, known, argparse.Namespace(steps=80, batch_size=6, lr=3e-3))
    with torch.no_grad():
        after = tuning.encode_texts(model, tokenizer, texts)
    assert positives[4:].gather(1, (after[4:] @ images.T).argmax(1, keepdim=True)).all()
    moved = (after - before).square().sum(1)
    assert moved[:4].max() < 0.1 < moved[4:].min()
