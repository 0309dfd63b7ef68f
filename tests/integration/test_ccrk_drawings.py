"""CCRK on the quickstart's drawings: pixels, and names in four languages; re-ranking must beat the features alone."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.cli.evaluate import main as evaluate
from tests.tiny_data import binarise, run, write

pytestmark = pytest.mark.slow
Train = Callable[..., str]
LANGUAGES = ("en", "de", "fr", "es")
UPDATES_LR = (800, 0.002)
SIZES = [
    *("--encoder-layers", "2", "--fusion-layers", "2", "--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128"),
    *("--image-size", "32", "--image-patch-size", "2", "--image-embed-dim", "16", "--image-depths", "2,2,2"),
    *("--image-heads", "1,2,4", "--image-window", "4", "--joint-dim", "64", "--drop-path", "0", "--dropout", "0.1"),
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
    images = {
        split: [line.split("\t")[0] for line in lines(f"captions/{split}.en.ids")] for split in ("train", "valid")
    }
    for lang in LANGUAGES:
        for split, paths in images.items():
            write(folder / "raw" / f"{split}.{lang}", [names[lang][Path(path).stem] for path in paths])
    files = sorted((folder / "raw").iterdir())
    run("train_tokenizer", "--vocabulary", 3000, "--output", folder / "tokenizer", *files)
    model = folder / "tokenizer" / "sentencepiece.bpe.model"
    run("encode", "--model", model, "--output", folder / "pieces", *files)
    binarise(folder, "captions", "--captions", *LANGUAGES)
    for lang in LANGUAGES:
        for split, paths in images.items():
            write(folder / "captions" / f"{split}.{lang}.ids", paths)
    return folder


def test_re_ranking_beats_the_features_alone(drawings: Path, run_train: Train, tmp_path: Path) -> None:
    """Of drawings by an artist whose drawing of the concept was never seen, found by their names."""
    run_train(
        *(drawings / "captions", "--task", "ccrk", "--langs", ",".join(LANGUAGES), "--arch", "ccrk_tiny", *SIZES),
        *("--criterion", "ccrk", "--image-root", drawings / "corpus" / "images", "--captions-per-image", 2),
        *("--text-tokenizer", drawings / "tokenizer", "--optimizer", "fused_adamw", "--lr", UPDATES_LR[1]),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", 50, "--total-num-update", UPDATES_LR[0]),
        *("--max-update", UPDATES_LR[0], "--clip-norm", 1, "--batch-size", 64, "--weight-decay", 0.01),
        *("--crop-area", 0.6, "--augment-operations", 0, "--num-workers", 0, "--disable-validation"),
        *("--no-epoch-checkpoints", "--no-progress-bar", "--log-format", "json", "--save-dir", tmp_path),
    )
    gallery = drawings / "corpus" / "gallery"
    captions = [f"{lang}={gallery}/held_out_artist.{lang}" for lang in LANGUAGES]
    command = ["--model", str(tmp_path / "checkpoint_last.pt"), "--captions", *captions, "--device", "cpu"]
    command += ["--ids", str(gallery / "held_out_artist.ids"), "--images", str(drawings / "corpus" / "images")]
    assert evaluate([*command, "--rerank", "32", "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    alone, again = report["average"]["all"], report["reranked"]["average"]["all"]
    assert alone["t2i_R@1"] > 5  # chance is 0.4
    assert again["mean_recall"] > alone["mean_recall"]
    assert again["t2i_R@1"] > alone["t2i_R@1"]
