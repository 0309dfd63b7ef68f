"""The dual encoder of a `ccrk` as ONNX, from a run of one update to the runtime."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from tests.ccrk_models import parallel_corpus, training_options
from tests.tiny_data import sentences, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the exporter traces Swin for most of a minute
Train = Callable[..., str]


def test_the_dual_encoder_becomes_onnx(run_train: Train, photos: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """Both towers, and an int8 text tower whose recall is measured on images, because features cannot be stored."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    corpus = parallel_corpus(photos, tiny_corpus, tmp_path / "captions")
    options = training_options(corpus, photos, tiny_corpus / "tokenizer", tmp_path / "run", "--max-update", 1)
    run_train(*options, "--disable-validation")
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    write(tmp_path / "fr.txt", sentences("fr")[:12])
    write(tmp_path / "ids.txt", [f"img{number}.png" for number in range(12)])
    measured = ["--captions", f"fr={tmp_path}/fr.txt", "--ids", str(tmp_path / "ids.txt")]
    measured += ["--images", str(photos / "images")]
    assert export([str(checkpoint), "--output", str(tmp_path / "m"), "--license", "mit", "--int8", *measured]) == 0
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    files = [photos / "images" / f"img{number}.png" for number in range(5)]
    given = {
        "text": (model.tokenizer(["le chien", "ein Hund das ist rot"]), model.encode_text),
        "image": (model.transform([Image.open(file).convert("RGB") for file in files]), model.encode_image),
    }
    for name, (batch, encode) in given.items():
        session = onnxruntime.InferenceSession(str(tmp_path / "m" / "onnx" / f"{name}.onnx"))
        (vectors,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(vectors), encode(batch), rtol=0, atol=1e-5)
    report = json.loads((tmp_path / "m" / "onnx" / "report.json").read_text(encoding="utf-8"))
    assert report["int8"]["fr"].keys() == {"float32", "int8"}
