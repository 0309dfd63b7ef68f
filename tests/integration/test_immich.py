"""`mclip-export --format immich`: loaded with onnxruntime and `tokenizers` as immich's machine-learning server does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.export.immich import preprocessing_of
from mclip_fairseq.formats.towers import TrainedTower

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "exported"
TEXTS = ("a red dog", "ein Hund </s> am Strand")
LONG = "un chien " * 60  # the server cuts it


@pytest.fixture(scope="module")
def model() -> MultilingualCLIP:
    return MultilingualCLIP.from_pretrained(LEGACY, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install mclip_fairseq[export])")
    output = tmp_path_factory.mktemp("immich") / "model"
    assert export([str(LEGACY), "--output", str(output), "--format", "immich"]) == 0
    return output


def run(file: Path, **inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output for the first input, as the server takes it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    row: np.ndarray[Any, Any] = session.run(None, inputs)[0][0]
    return row


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_texts_have_our_vectors(folder: Path, model: MultilingualCLIP) -> None:
    from tokenizers import Tokenizer

    length = read(folder / "config.json")["text_cfg"]["context_length"]
    pad = read(folder / "textual" / "tokenizer_config.json")["pad_token"]
    tokenizer = Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=length)
    for text in (*TEXTS, LONG):
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int32)
        assert ids.shape == (1, length)
        given: Any = [text] if text in TEXTS else torch.from_numpy(ids).long()
        ours = model.encode_text(given)[0].numpy()
        np.testing.assert_allclose(run(folder / "textual" / "model.onnx", text=ids), ours, atol=1e-4)


@pytest.mark.slow
def test_images_have_our_vectors(folder: Path, model: MultilingualCLIP) -> None:
    settings = read(folder / "visual" / "preprocess_cfg.json")
    rng, size = np.random.default_rng(0), settings["size"]
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    picture = small.resize((4 * size, 3 * size), Image.Resampling.BICUBIC)
    assert settings["resize_mode"] == "shortest"
    resized = picture.resize((4 * size // 3, size), Image.Resampling[settings["interpolation"].upper()])
    left = (resized.width - size) // 2
    pixels = np.asarray(resized.crop((left, 0, left + size, size)), dtype=np.float32) / 255
    pixels = (pixels - np.float32(settings["mean"])) / np.float32(settings["std"])
    row = run(folder / "visual" / "model.onnx", image=pixels.transpose(2, 0, 1)[None].astype(np.float32))
    np.testing.assert_allclose(row, model.encode_image([picture])[0].numpy(), atol=1e-3)


def test_preprocessing_that_the_server_lacks_is_refused() -> None:
    model = MultilingualCLIP.from_pretrained(LEGACY, device="cpu")
    assert isinstance(model.tower, TrainedTower)
    processor: Any = model.tower.teacher.transform.processor
    processor.size = {"shortest_edge": 40}
    with pytest.raises(ValueError, match="which immich does not do"):
        preprocessing_of(model.tower)
