"""TriKD with pixels decoded on the fly and the teacher in the model."""

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.runs import PRELOADED, difference, state_of
from tests.tiny_data import pixel_options

Train = Callable[..., str]


def test_pixels_train_as_their_features_do(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    tokenizer = tiny_corpus / "tokenizer"
    run_train(*pixel_options(photos, tokenizer, tmp_path / "pixels", "--image-root", photos / "images"))
    run_train(*pixel_options(photos, tokenizer, tmp_path / "features", "--image-features", photos / "features"))
    pixels, cached = (load_checkpoint(tmp_path / f / "checkpoint_last.pt")["model"] for f in ("pixels", "features"))
    assert pixels.keys() == cached.keys()
    assert not any(name.startswith("teacher.") for name in pixels)
    for name in pixels:
        if pixels[name].is_floating_point():
            torch.testing.assert_close(pixels[name], cached[name], rtol=1e-4, atol=1e-5)
    model = MultilingualCLIP.from_pretrained(tmp_path / "pixels" / "checkpoint_last.pt", device="cpu")
    paths = [photos / "images" / f"img{number}.png" for number in range(3)]
    from mclip_fairseq.storage.features import FeatureStore

    store = FeatureStore.open(photos / "features")
    stored = model.encode_image_features(store.take(store.rows([path.name for path in paths])))
    torch.testing.assert_close(model.encode_image(paths), stored, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_loader_processes_of_either_kind_load_the_same(
    method: str, photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """Those of a rank that fairseq's own launcher has started are spawned: the data must reach them by pickling.

    They reach processes of a server likewise, which are there sooner.
    """
    once = ("--image-root", photos / "images", "--max-update", 1, "--skip-budget", 1)
    common = pixel_options(photos, tiny_corpus / "tokenizer", tmp_path, *once)
    run_train(*common, "--save-dir", tmp_path / "alone")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_forkserver_preload(PRELOADED)
    try:
        run_train(*common, "--save-dir", tmp_path / method, "--num-workers", 1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert difference(state_of(tmp_path / "alone"), state_of(tmp_path / method)) == ""


def test_an_unreadable_image_is_named(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos / "images", images)
    (images / "img7.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"img7\.png"):
        run_train(
            *pixel_options(
                photos, tiny_corpus / "tokenizer", tmp_path / "run", "--image-root", images, "--max-epoch", 1
            )
        )
