"""TriKD with pixels decoded on the fly and the teacher in the model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.features import main as features
from mclip_fairseq.compat import load_checkpoint
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the tiny corpus, its captions, a teacher, and the teacher's features of the images."""
    folder = tmp_path_factory.mktemp("pixels")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(40):
        colours = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((40, 40)).save(folder / "images" / f"img{number}.png")
    shutil.copytree(tiny_corpus / "captions", folder / "captions")
    for split, start, stop in (("train", 0, 104), ("valid", 104, 120)):
        lines = [f"img{number % 40}.png\n" for number in range(start, stop)]
        (folder / "captions" / f"{split}.en.ids").write_text("".join(lines))
    teacher = tiny_clip_directory(folder / "teacher")
    command = ["--model", str(teacher), "--images", str(folder / "images"), "--output", str(folder / "features")]
    assert features([*command, "--store-dtype", "float32", "--device", "cpu"]) == 0
    return folder


def options(corpus: Path, tokenizer: Path, folder: Path, *more: object) -> list[str]:
    values = [
        *(corpus / "captions", "--task", "trikd", "--langs", "en", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *(
            "--freeze-text",
            "none",
            "--text-tokenizer",
            tokenizer,
            "--teacher",
            corpus / "teacher",
            "--num-workers",
            "0",
        ),
        *("--text-text-weight", "0", "--positives", "image", "--optimizer", "sgd", "--lr", "0.1", "--dropout", "0"),
        *("--batch-size", "26", "--max-update", "4", "--disable-validation", "--no-progress-bar", "--save-dir", folder),
    ]
    return [str(value) for value in [*values, *more]]


def test_pixels_train_as_their_features_do(corpus: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    tokenizer = tiny_corpus / "tokenizer"
    run_train(*options(corpus, tokenizer, tmp_path / "pixels", "--image-root", corpus / "images"))
    run_train(*options(corpus, tokenizer, tmp_path / "features", "--image-features", corpus / "features"))
    pixels, cached = (load_checkpoint(tmp_path / f / "checkpoint_last.pt")["model"] for f in ("pixels", "features"))
    assert pixels.keys() == cached.keys()
    assert not any(name.startswith("teacher.") for name in pixels)
    for name in pixels:
        if pixels[name].is_floating_point():
            torch.testing.assert_close(pixels[name], cached[name], rtol=1e-4, atol=1e-5)
    model = MultilingualCLIP.from_pretrained(tmp_path / "pixels" / "checkpoint_last.pt", device="cpu")
    paths = [corpus / "images" / f"img{number}.png" for number in range(3)]
    from mclip_fairseq.data.features import FeatureStore

    store = FeatureStore.open(corpus / "features")
    stored = model.encode_image_features(store.take(store.rows([path.name for path in paths])))
    torch.testing.assert_close(model.encode_image(paths), stored, rtol=1e-4, atol=1e-5)


def test_an_unreadable_image_is_named(corpus: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    (images / "img7.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"img7\.png"):
        run_train(
            *options(corpus, tiny_corpus / "tokenizer", tmp_path / "run", "--image-root", images, "--max-epoch", 1)
        )
