"""Exports of trained models: the directory, ONNX, sentence-transformers, open_clip's triple, the Hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.evaluate import main as evaluate
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.export.open_clip import open_clip_triple
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.storage.files import file_sha256
from mclip_fairseq.storage.staging import beside
from tests.tiny_data import pixel_options, sentences

TEXTS = [*sentences("de")[:3], "a", ""]
POOLING = ("last", "mean")


@pytest.fixture(scope="module", params=POOLING)
def checkpoint(
    request: pytest.FixtureRequest,
    photos: Path,
    tiny_corpus: Path,
    run_train: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model after four updates."""
    folder = tmp_path_factory.mktemp("trained")
    source = ("--image-features", photos / "features", "--pooling", request.param, "--projector-layers", "2")
    run_train(*pixel_options(photos, tiny_corpus / "tokenizer", folder, *source))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def captions(photos: Path) -> list[str]:
    """Options that name captions, ids and features for the commands."""
    (photos / "gallery.en").write_text("".join(f"{line}\n" for line in sentences("en")[:40]))
    (photos / "gallery.ids").write_text("".join(f"img{number}.png\n" for number in range(40)))
    return [
        *("--captions", f"en={photos / 'gallery.en'}", "--ids", str(photos / "gallery.ids")),
        *("--features", str(photos / "features")),
    ]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's directory with a card that holds a report."""
    folder = tmp_path_factory.mktemp("exported")
    assert evaluate(["--model", str(checkpoint), *captions, "--output", str(folder / "report")]) == 0
    facts = ["--license", "mit", "--data", "Noise with English captions.", "--report"]
    assert export([str(checkpoint), "--output", str(folder / "model"), *facts, str(folder / "report/report.json")]) == 0
    return folder / "model"


@pytest.fixture
def images(photos: Path) -> list[Path]:
    return [photos / "images" / f"img{number}.png" for number in range(3)]


def test_the_directory_is_the_model(
    checkpoint: Path, exported: Path, photos: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the same numbers without the files it was made from."""
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    text, image = trained.encode_text(TEXTS), trained.encode_image(images)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elsewhere = Path(shutil.move(exported, exported.with_name("moved")))
    try:
        model = MultilingualCLIP.from_pretrained(elsewhere, device="cpu")
        torch.testing.assert_close(model.encode_text(TEXTS), text, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-6)
        assert model.languages == trained.languages
        assert model.identity == trained.identity
        assert model.fingerprint == trained.fingerprint  # an index of the one is searched with the other
        named = [file for file in elsewhere.rglob("*.json") if str(photos) in file.read_text()]
        assert named == []
    finally:
        shutil.move(elsewhere, exported)


def test_the_card_says_what_is_known(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert 'license: "mit"' in card
    assert "- Noise with English captions." in card
    assert "| en " in card
    assert "strict protocol" in card
    assert "@inproceedings{chen-etal-2023-mclip" in card


def test_a_report_of_another_model_is_refused(
    checkpoint: Path, captions: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["--model", str(photos / "teacher"), *captions, "--output", str(tmp_path)]) == 0
    arguments = [str(checkpoint), "--output", str(tmp_path / "m"), "--report", str(tmp_path / "report.json")]
    assert export(arguments) == 2
    assert "is of a different model" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("tokens", [-5, 1, "many"])
def test_a_directory_that_cuts_texts_to_nothing(tokens: Any, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "m")
    edit(tmp_path / "m", max_tokens=tokens)
    with pytest.raises(
        ValueError, match=r"config.json: (says max_tokens -?\d, but <s>|max_tokens has the type (str|list|float|null))"
    ):
        MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")


def test_a_dictionary_of_another_size_is_named(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(exported, folder)
    with (folder / "dict.txt").open("a") as file:
        file.write("one-more 1\n")
    edit(folder, files={"dict.txt": file_sha256(folder / "dict.txt")})
    with pytest.raises(ValueError, match=r"Error\(s\) in loading state_dict for \w+: size mismatch for") as caught:
        MultilingualCLIP.from_pretrained(folder, device="cpu")
    assert str(caught.value).isprintable()


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of a directory's configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def test_portable_towers_are_the_towers(checkpoint: Path, images: list[Path]) -> None:
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    assert isinstance(model.tower, TrainedTower)
    tokens = model.tokenizer(TEXTS)
    left = torch.stack([torch.cat([row[row == 1], row[row != 1]]) for row in tokens])
    with torch.no_grad():
        for side in (tokens, left):
            found = model.tower.module.portable_text()(side)
            torch.testing.assert_close(found, model.encode_text(TEXTS), rtol=0, atol=1e-6)
        pixels = model.transform([Image.open(path).convert("RGB") for path in images])
        found = model.tower.module.portable_image(model.tower.teacher)(pixels)
    torch.testing.assert_close(found, model.encode_image(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("checkpoint", ["last"], indirect=True)
def test_onnx(checkpoint: Path, captions: list[str], tmp_path: Path, images: list[Path]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert export([str(checkpoint), "--output", str(tmp_path / "m"), "--int8", *captions]) == 0
    folder = tmp_path / "m" / "onnx"
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    session = onnxruntime.InferenceSession(str(folder / "text.onnx"))
    for texts in (TEXTS, TEXTS[:1], sentences("fr")):  # batch and length are free
        (found,) = session.run(None, {"input_ids": model.tokenizer(texts).numpy()})
        np.testing.assert_allclose(found, model.encode_text(texts).numpy(), atol=1e-4)
    session = onnxruntime.InferenceSession(str(folder / "image.onnx"))
    pixels = model.transform([Image.open(path).convert("RGB") for path in images])
    (found,) = session.run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(found, model.encode_image(images).numpy(), atol=1e-4)
    for file in folder.iterdir():  # the exporter would note the source files of each node
        assert not re.search(rb'File "/|site-packages', file.read_bytes()), file.name
    assert (folder / "text.int8.onnx").stat().st_size < (folder / "text.onnx").stat().st_size
    report = json.loads((folder / "report.json").read_text())
    assert max(report["largest_difference"].values()) < 1e-4
    assert abs(report["int8"]["en"]["int8"] - report["int8"]["en"]["float32"]) < 15


def test_int8_without_something_to_measure_on_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([str(checkpoint), "--output", str(tmp_path / "m"), "--int8"]) == 2
    assert "--int8 needs --captions, and --features or --images" in capsys.readouterr().err


def test_sentence_transformers(exported: Path, images: list[Path], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    loaded = library.SentenceTransformer(str(exported), device="cpu", trust_remote_code=True)
    model = MultilingualCLIP.from_pretrained(exported, device="cpu")
    text = loaded.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(text, model.encode_text(TEXTS), rtol=0, atol=1e-6)
    opened = [Image.open(path) for path in images]
    torch.testing.assert_close(
        loaded.encode(opened, convert_to_tensor=True), model.encode_image(images), rtol=0, atol=1e-6
    )
    assert loaded.get_embedding_dimension() == model.dim
    with pytest.raises(ValueError, match="both texts and images"):
        loaded[0].preprocess([TEXTS[0], opened[0]])
    loaded.save_pretrained(str(tmp_path / "again"))
    again = MultilingualCLIP.from_pretrained(tmp_path / "again", device="cpu")
    torch.testing.assert_close(again.encode_text(TEXTS), model.encode_text(TEXTS), rtol=0, atol=1e-6)


def test_open_clip_triple(exported: Path, images: list[Path]) -> None:
    """As CLIP_benchmark's zero-shot retrieval uses it: batches of transformed images, tokenised texts, normalised."""
    loaded = MultilingualCLIP.from_pretrained(exported, device="cpu")
    model, transform, tokenizer = open_clip_triple(loaded)
    with torch.no_grad():
        batch = torch.stack([transform(Image.open(path)) for path in images])
        image = torch.nn.functional.normalize(model.encode_image(batch), dim=-1)
        text = torch.nn.functional.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1)
        one = model.encode_text(tokenizer(TEXTS[0]), normalize=True)
    torch.testing.assert_close(one, text[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(image, loaded.encode_image(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(text, loaded.encode_text(TEXTS), rtol=0, atol=1e-6)
    assert model.logit_scale is not None
    assert float(model.logit_scale.exp()) == pytest.approx(float(loaded.logit_scale))


def test_push(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any]] = []

    class Hub:
        """Replaces the two calls."""

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            calls.append(("create", (repo_id, private)))

        def upload_folder(self, folder_path: str, repo_id: str, commit_message: str) -> Any:
            calls.append(("upload", (sorted(path.name for path in Path(folder_path).iterdir()), repo_id)))
            return type("Commit", (), {"commit_url": "the commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert export([str(checkpoint), "--output", str(tmp_path / "m")]) == 0
    beside(tmp_path / "m" / "onnx", "part").mkdir()  # of an export that was killed, with the number of this process
    assert export([str(checkpoint), "--output", str(tmp_path / "m"), "--push", "someone/mclip"]) == 0
    assert calls[0] == ("create", ("someone/mclip", True))
    files, repository = calls[1][1]
    assert repository == "someone/mclip"
    assert {"README.md", "config.json", "model.safetensors", "modules.json", "teacher"} <= set(files)
    assert not [name for name in files if name.endswith(".part")]


@pytest.mark.parametrize("what", ["nothing.pt", "teacher", "full"])
def test_bad_input_is_one_sentence(
    what: str, checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    model = {"nothing.pt": tmp_path / "nothing.pt", "teacher": photos / "teacher", "full": checkpoint}[what]
    message = {"nothing.pt": "not found", "teacher": "is a transformers model already", "full": "is not empty"}[what]
    assert export([str(model), "--output", str(tmp_path / ("full" if what == "full" else "m"))]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert (tmp_path / "full" / "file").read_text() == "mine"
