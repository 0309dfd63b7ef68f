"""An mla as a directory of all its languages, and of one, for sentence-transformers and as ONNX."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.export import mla
from tests.mla_data import captions, untrained_directory
from tests.tiny_data import write

COMMON = ("--license", "mit")


@pytest.fixture(scope="module")
def directory(photos: Path, mla_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_directory(tmp_path_factory.mktemp("directory") / "mla", photos, mla_corpus)


@pytest.fixture(scope="module")
def german(directory: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of one language, with ONNX and int8."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("german")
    write(folder / "valid.de", captions("de")[:40])
    write(folder / "ids", [f"img{number}.png" for number in range(40)])
    measured = ["--captions", f"de={folder}/valid.de", "--ids", str(folder / "ids")]
    measured += ["--features", str(photos / "features")]
    command = [str(directory), "--language", "de", "--output", str(folder / "mla-de"), "--int8", *measured, *COMMON]
    assert export(command) == 0
    return folder / "mla-de"


def test_all_languages_in_one_directory(directory: Path, tmp_path: Path) -> None:
    assert export([str(directory), "--output", str(tmp_path / "all"), *COMMON]) == 0
    given, written = (MultilingualCLIP.from_pretrained(place, device="cpu") for place in (directory, tmp_path / "all"))
    for lang in ("en", "de", "fr"):
        texts = captions(lang)[:5]
        assert torch.equal(given.for_language(lang).encode_text(texts), written.for_language(lang).encode_text(texts))
    card = (tmp_path / "all" / "README.md").read_text(encoding="utf-8")
    assert 'for_language("fr")' in card
    assert "CLIP's text tower with acquirers for de, fr" in card


def test_a_directory_that_cannot_be_finished_leaves_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk; the next call would refuse to write into half a directory."""
    tower = MultilingualCLIP.from_pretrained(directory, device="cpu").tower

    def full(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(mla, "write_json", full)
        with pytest.raises(OSError, match="no space"):
            mla.save_directory(tower, tmp_path / "mla")
    assert list(tmp_path.iterdir()) == []
    mla.save_directory(tower, tmp_path / "mla")
    assert (tmp_path / "mla/config.json").is_file()


def test_one_language_needs_no_naming(directory: Path, german: Path) -> None:
    model = MultilingualCLIP.from_pretrained(german, device="cpu")
    texts = captions("de")[:5]
    expected = MultilingualCLIP.from_pretrained(directory, device="cpu", language="de").encode_text(texts)
    assert torch.equal(model.encode_text(texts), expected)
    assert model.languages == ["en", "de"]
    assert "for_language" not in (german / "README.md").read_text(encoding="utf-8")


def test_onnx_gives_the_same_vectors(german: Path) -> None:
    import onnxruntime

    model = MultilingualCLIP.from_pretrained(german, device="cpu")
    session = onnxruntime.InferenceSession(str(german / "onnx" / "text.onnx"), providers=["CPUExecutionProvider"])
    for texts in (captions("de")[:3], ["Hund"], ["Hund " * 100]):
        ids = model.tokenizer(texts)
        (vectors,) = session.run(None, {"input_ids": ids.numpy()})
        assert np.abs(vectors - model.encode_text(ids).numpy()).max() < 1e-5


def test_the_int8_tower_is_smaller_and_its_recall_is_reported(german: Path) -> None:
    folder = german / "onnx"
    assert (folder / "text.int8.onnx").stat().st_size < (folder / "text.onnx").stat().st_size
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["int8"].keys() == {"de"}
    assert abs(report["int8"]["de"]["int8"] - report["int8"]["de"]["float32"]) < 15


def test_sentence_transformers_reads_it(german: Path, photos: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    model, own = (
        SentenceTransformer(str(german), device="cpu", trust_remote_code=True),
        MultilingualCLIP.from_pretrained(german, device="cpu"),
    )
    texts, picture = captions("de")[:3], photos / "images" / "img0.png"
    assert np.allclose(model.encode(texts), own.encode_text(texts).numpy(), atol=1e-6)
    assert np.allclose(model.encode([Image.open(picture)]), own.encode_image([picture]).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--language", "en"), "English is CLIP itself"),
        (("--language", "ja"), "does not have the language 'ja'"),
        (("--onnx",), "name one with for_language"),
        (("--language", "de", "--int8", "--captions", "fr=x", "--images", "y"), "fr is not the exported language"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    options: tuple[str, ...], message: str, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([str(directory), "--output", str(tmp_path / "out"), *options, *COMMON]) == 2
    assert message in capsys.readouterr().err
