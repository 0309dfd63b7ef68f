"""CCRK on the quickstart's drawings: pixels, and names in four languages."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.cli.evaluate import main as evaluate
from tests.tiny_data import binarise, run, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Train = Callable[..., str]
LANGUAGES = ("en", "de", "fr", "es")
CONCEPTS = 100
UPDATES = 600
SIZES = [
    *("--encoder-layers", "2", "--fusion-layers", "2", "--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128"),
    *("--image-size", "32", "--image-patch-size", "4", "--image-embed-dim", "32", "--image-depths", "2,2"),
    *("--image-heads", "2,4", "--image-window", "4", "--joint-dim", "64", "--drop-path", "0", "--dropout", "0"),
]


@pytest.fixture(scope="module")
def drawings(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus/`, and `captions/` with the names of every training drawing in four languages."""
    pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    folder = tmp_path_factory.mktemp("drawings")
    sys.path.insert(0, str(repository_root / "examples" / "quickstart"))
    build = importlib.import_module("build_corpus")
    sys.path.pop(0)
    assert build.main(["--output", str(folder / "corpus"), "--seed", "1"]) == 0
    corpus = folder / "corpus"

    def lines(name: str) -> list[str]:
        return (corpus / name).read_text(encoding="utf-8").splitlines()

    concepts = [Path(line).stem for line in lines("gallery/seen.ids")]
    names = {lang: dict(zip(concepts, lines(f"gallery/seen.{lang}"), strict=True)) for lang in LANGUAGES}
    chosen = set(concepts[:: len(concepts) // CONCEPTS])
    drawn = [line.split("\t")[0] for line in lines("captions/train.en.ids")]
    drawn = [path for path in drawn if Path(path).stem in chosen]
    images = {"train": drawn, "valid": drawn[:64]}
    for lang in LANGUAGES:
        for split, paths in images.items():
            write(folder / "raw" / f"{split}.{lang}", [names[lang][Path(path).stem] for path in paths])
    files = sorted((folder / "raw").iterdir())
    run("train_tokenizer", "--vocabulary", 1200, "--output", folder / "tokenizer", *files)
    model = folder / "tokenizer" / "sentencepiece.bpe.model"
    run("encode", "--model", model, "--output", folder / "pieces", *files)
    binarise(folder, "captions", "--captions", *LANGUAGES)
    for lang in LANGUAGES:
        for split, paths in images.items():
            write(folder / "captions" / f"{split}.{lang}.ids", paths)
    return folder


def test_drawings_are_found_by_their_names_in_four_languages(drawings: Path, run_train: Train, tmp_path: Path) -> None:
    """After a short pre-training: the drawings by one artist of 94 concepts, and the report of both rankings.

    A fusion encoder that starts at random needs longer than this to match, so nothing is asked of the re-ranking.
    """
    run_train(
        *(drawings / "captions", "--task", "ccrk", "--langs", ",".join(LANGUAGES), "--arch", "ccrk_tiny", *SIZES),
        *(
            "--criterion",
            "ccrk",
            "--matching-weight",
            3,
            "--masked-words-weight",
            0,
            "--image-root",
            drawings / "corpus" / "images",
            "--captions-per-image",
            2,
        ),
        *("--text-tokenizer", drawings / "tokenizer", "--optimizer", "fused_adamw", "--lr", 0.001),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", 30, "--total-num-update", UPDATES),
        *("--max-update", UPDATES, "--clip-norm", 1, "--batch-size", 64, "--weight-decay", 0.01),
        *("--crop-area", 0.8, "--augment-operations", 0, "--num-workers", 0, "--disable-validation"),
        *("--no-epoch-checkpoints", "--no-progress-bar", "--log-format", "json", "--save-dir", tmp_path),
    )
    numbers = [row for row, path in enumerate(rows(drawings, "train.en.ids")) if path.startswith("twemoji/")]
    for name in ("ids", *LANGUAGES):
        source = rows(drawings, "train.en.ids" if name == "ids" else f"../raw/train.{name}")
        write(tmp_path / name, [source[number] for number in numbers])
    captions = [f"{lang}={tmp_path / lang}" for lang in LANGUAGES]
    command = ["--model", str(tmp_path / "checkpoint_last.pt"), "--captions", *captions, "--device", "cpu"]
    command += ["--ids", str(tmp_path / "ids"), "--images", str(drawings / "corpus" / "images")]
    assert evaluate([*command, "--rerank", "16", "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["reranked"]["results"].keys() == set(LANGUAGES)
    for language, metrics in report["results"].items():
        assert metrics["t2i_R@1"] > 15, language  # chance is 1


def rows(folder: Path, name: str) -> list[str]:
    """The lines of a file of the captions."""
    return (folder / "captions" / name).read_text(encoding="utf-8").splitlines()
