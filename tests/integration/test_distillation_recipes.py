"""The recipes of M-CLIP, AltCLIP and Contrastive Tension: printed with --dry-run, and run with --tiny."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_recipes import commands, data, recipe, value
from tests.tiny_data import LANGS, sentences, write
from tests.tiny_models import tiny_clip_directory

__all__ = ["data"]  # the fixture


@pytest.fixture
def places(data: Path) -> dict[str, object]:
    """The environment of all three recipes on the tiny corpus."""
    write(data / "english.tsv", [f"txt{number}\t{sentence}" for number, sentence in enumerate(sentences("en"))])
    english = sentences("en")
    pairs = zip(english[:40], english[5:45], strict=True)
    write(data / "sts.tsv", [f"{number % 6}.0\t{one}\t{two}" for number, (one, two) in enumerate(pairs)])
    return {"XLMR": data / "xlmr", "OUT": data / "out", "LANGS": ",".join(LANGS), "OPTIONS": "--dropout 0"}


def test_published_settings_are_printed(repository_root: Path, tmp_path: Path) -> None:
    stages = commands(recipe(repository_root, "m_clip", "--dry-run", "--gpus", "8", cwd=tmp_path))
    assert list(stages) == ["features", "train", "evaluate", "export"]
    assert stages["train"][:4] == ["torchrun", "--standalone", "--nproc-per-node", "8"]
    assert (value(stages["train"], "--lr"), value(stages["train"], "--batch-size")) == ("1e-5", "256")
    assert value(stages["train"], "--max-caption-tokens") == "32"
    stages = commands(recipe(repository_root, "altclip", "--dry-run", cwd=tmp_path))
    assert list(stages) == ["features", "teach", "align", "evaluate", "export"]
    assert (value(stages["teach"], "--lr"), value(stages["teach"], "--weight-decay")) == ("1e-4", "1e-4")
    assert (value(stages["align"], "--lr"), value(stages["align"], "--batch-size")) == ("5e-5", "64")
    assert value(stages["export"], "--format") == "altclip"
    stages = commands(recipe(repository_root, "contrastive_tension", "--dry-run", cwd=tmp_path))
    assert list(stages) == ["train", "evaluate", "export"]
    assert (value(stages["train"], "--optimizer"), value(stages["train"], "--group-negatives")) == ("rmsprop", "7")
    assert "'501': 8e-6" in value(stages["train"], "--update2lr")
    assert not any(tmp_path.iterdir())
    for name in ("m_clip", "altclip", "contrastive_tension"):
        assert f"examples/{name}/run.sh" in recipe(repository_root, name, "--help", cwd=tmp_path)


@pytest.mark.slow
def test_m_clip_runs(repository_root: Path, tiny_corpus: Path, data: Path, places: dict[str, object]) -> None:
    teacher = tiny_clip_directory(data / "teacher")
    more: dict[str, object] = {
        "TEXTS": text_only(tiny_corpus, data),
        "ENGLISH": data / "english.tsv",
        "TEACHER": teacher,
    }
    recipe(repository_root, "m_clip", "--tiny", "features", "train", "export", cwd=data, **{**places, **more})
    assert (data / "out" / "m-clip" / "pytorch_model.bin").is_file()


def text_only(corpus: Path, folder: Path) -> Path:
    """The captions of the tiny corpus without their images."""
    output = folder / "texts"
    output.mkdir()
    for file in (corpus / "captions").iterdir():
        if file.suffix == ".ids":
            rows = [line.split("\t") for line in file.read_text().splitlines()]
            write(output / file.name, [f"-\t{text}" for _, text in rows])
        else:
            (output / file.name).symlink_to(file)
    return output


@pytest.mark.slow
def test_altclip_runs(
    repository_root: Path, tiny_corpus: Path, data: Path, photos: Path, places: dict[str, object]
) -> None:
    teacher = tiny_clip_directory(data / "teacher")
    more: dict[str, object] = {
        "TEXTS": text_only(tiny_corpus, data),
        "ENGLISH": data / "english.tsv",
        "TEACHER": teacher,
    }
    more |= {"CAPTIONS": photos / "captions", "PHOTOS": photos / "images", "LANGS": "en"}
    recipe(repository_root, "altclip", "--tiny", "features", "teach", "align", "export", cwd=data, **{**places, **more})
    assert (data / "out" / "altclip" / "model.safetensors").is_file()


@pytest.mark.slow
def test_contrastive_tension_runs(
    repository_root: Path, tiny_corpus: Path, data: Path, places: dict[str, object]
) -> None:
    more = {"SENTENCES": tiny_corpus / "captions", "STS": data / "sts.tsv"}
    recipe(repository_root, "contrastive_tension", "--tiny", "train", "export", cwd=data, **more, **places)
    assert (data / "out" / "sentence-encoder" / "1_Pooling" / "config.json").is_file()
    printed = recipe(repository_root, "contrastive_tension", "--tiny", "train", "export", cwd=data, **more, **places)
    assert "is finished" in printed
    assert "sentence-encoder exists" in printed
