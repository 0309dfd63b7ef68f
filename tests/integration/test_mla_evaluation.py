"""A model with a text path per language in `mclip-evaluate`: every benchmark language is read in its own way."""

import json
from pathlib import Path

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.evaluate import main as evaluate
from mclip_fairseq.encoding.cache import CachedEncoder
from mclip_fairseq.encoding.galleries import reader_of
from mclip_fairseq.evaluation import retrieval_metrics
from tests.mla_data import captions, untrained_directory


@pytest.fixture(scope="module")
def directory(photos: Path, mla_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_directory(tmp_path_factory.mktemp("directory") / "mla", photos, mla_corpus)


def test_the_report_has_each_language_by_its_own_path(
    directory: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for lang in ("en", "de", "fr"):
        (tmp_path / f"test.{lang}").write_text("".join(f"{line}\n" for line in captions(lang)[:40]), encoding="utf-8")
        files.append(f"{lang}={tmp_path / f'test.{lang}'}")
    (tmp_path / "ids").write_text("".join(f"img{number}.png\n" for number in range(40)))
    command = ["--model", str(directory), "--captions", *files, "--ids", str(tmp_path / "ids")]
    command += ["--images", str(photos / "images"), "--output", str(tmp_path / "report"), "--device", "cpu"]
    assert evaluate([*command, "--protocol", "caption_max", "--cache", str(tmp_path / "cache"), "--queries", "0"]) == 0
    results = json.loads((tmp_path / "report" / "report.json").read_text())["results"]
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    images = model.encode_image([photos / "images" / f"img{number}.png" for number in range(40)])
    for lang in ("en", "de", "fr"):
        texts = model.for_language(lang).encode_text(captions(lang)[:40])
        expected = retrieval_metrics(texts, images, torch.arange(40), "caption_max")
        assert results[lang]["mean_recall"] == pytest.approx(expected["mean_recall"])
    assert "caption_max" in capsys.readouterr().out


def test_the_cache_keeps_languages_apart(directory: Path, tmp_path: Path) -> None:
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    cached = CachedEncoder(model, tmp_path, model.fingerprint)
    german, french = reader_of(cached, "de"), reader_of(cached, "fr")
    texts = ["ein Hund"]
    assert not torch.equal(german.encode_text(texts), french.encode_text(texts))
    assert torch.equal(reader_of(cached, "deu").encode_text(texts), german.encode_text(texts))


def test_models_of_one_text_path_are_their_own_reader(photos: Path, tmp_path: Path) -> None:
    clip = MultilingualCLIP.from_pretrained(photos / "teacher", device="cpu")
    cached = CachedEncoder(clip, tmp_path, clip.fingerprint)
    assert reader_of(clip, "de") is clip
    assert reader_of(cached, "de") is cached
