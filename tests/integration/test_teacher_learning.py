"""M-CLIP's way, `teacher_learning`, from training to retrieval, and its options of the caption task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.cli.features import main as features
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.features import FeatureStore
from tests.tiny_data import DIM, LANGS, binarise, sentences, teacher_features, write
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]
Trained = tuple[Path, list[dict[str, Any]]]


def options(corpus: Path, folder: Path, *more: object, langs: str = "en,de,fr") -> list[str]:
    """fairseq-train's command line: student texts in every language, teacher features of the English ones."""
    values = [
        *(corpus / "captions", "--task", "trikd", "--langs", langs, "--image-features", corpus / "features" / "image"),
        *("--text-features", corpus / "features" / "text", "--arch", "teacher_learning_tiny"),
        *("--criterion", "teacher_learning", "--text-tokenizer", corpus / "tokenizer", "--optimizer", "fused_adamw"),
        *("--lr", "0.005", "--batch-size", "40", "--num-workers", "0", "--dropout", "0", "--attention-dropout", "0"),
        *("--save-dir", folder, "--log-format", "json", "--no-epoch-checkpoints", "--no-progress-bar", *more),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The checkpoint with the best retrieval of 25 epochs, and what each validation logged."""
    folder = tmp_path_factory.mktemp("teacher_learning")
    log = run_train(
        *options(tiny_corpus, folder, "--max-epoch", "25", "--valid-retrieval"),
        *("--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric", "--validate-interval", "5"),
    )
    lines = [line for line in log.splitlines() if "| valid |" in line and "{" in line]
    return folder / "checkpoint_best.pt", [json.loads(line[line.index("{") :]) for line in lines]


def test_training_lowers_the_error_and_validation_logs_retrieval(trained: Trained) -> None:
    first, last = trained[1][0], trained[1][-1]
    assert float(last["valid_loss"]) < 0.7 * float(first["valid_loss"])
    assert float(last["valid_cosine"]) > float(first["valid_cosine"])
    assert {f"valid_mean_recall_{lang}" for lang in LANGS} <= last.keys()


def test_every_language_finds_the_images(trained: Trained, tiny_corpus: Path) -> None:
    """All languages lie in the teacher's own space: its image features are searched as they are."""
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    store = FeatureStore.open(tiny_corpus / "features" / "image")
    images = model.encode_image_features(store.take(np.arange(40)))
    torch.testing.assert_close(images, torch.nn.functional.normalize(torch.from_numpy(teacher_features()[0]), dim=1))
    numbers = torch.arange(104) % 40
    for lang in LANGS:
        recall = retrieval_metrics(model.encode_text(sentences(lang)[:104]), images, numbers)
        assert recall["t2i_R@1"] > 30, lang  # chance is 2.5


def test_the_logged_recall_is_that_of_the_checkpoint(trained: Trained, tiny_corpus: Path) -> None:
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    store = FeatureStore.open(tiny_corpus / "features" / "image")
    ids = (tiny_corpus / "captions" / "valid.de.ids").read_text().splitlines()
    rows = store.rows([line.split("\t")[0] for line in ids])
    used, own = np.unique(rows, return_inverse=True)
    texts = model.encode_text(sentences("de")[-len(ids) :])
    expected = retrieval_metrics(texts, model.encode_image_features(store.take(used)), own)["mean_recall"]
    best = max(trained[1], key=lambda epoch: float(epoch["valid_mean_recall"]))
    assert float(best["valid_mean_recall_de"]) == pytest.approx(expected, abs=0.01)


def test_a_frozen_encoder_trains_on_cached_states_as_on_tokens(
    tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    sgd = ("--optimizer", "sgd", "--lr", "0.5", "--student-head", "linear_2")
    stop = ("--max-update", "4", "--disable-validation", "--freeze-text", "all", *sgd)
    run_train(*options(tiny_corpus, tmp_path / "tokens", *stop))
    run_train(*options(tiny_corpus, tmp_path / "states", *stop, "--text-state-cache", tmp_path / "cache"))
    tokens, states = (load_checkpoint(tmp_path / n / "checkpoint_last.pt")["model"] for n in ("tokens", "states"))
    for name in ("projection.hidden.0.weight", "projection.linear.weight"):
        torch.testing.assert_close(tokens[name], states[name], rtol=1e-5, atol=1e-6)
    kept = [np.load(file, mmap_mode="r").shape[0] for file in sorted((tmp_path / "cache").iterdir())]
    assert kept == [104] * len(kept)  # pooled: one state a caption
    read = MultilingualCLIP.from_pretrained(tmp_path / "states" / "checkpoint_last.pt", device="cpu")
    assert read.encode_text(["ein Hund"]).shape == (1, DIM)


def test_a_trained_encoder_has_no_state_cache(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--text-state-cache needs a frozen text encoder; pass --freeze-text all"):
        run_train(*options(tiny_corpus, tmp_path, "--max-update", "1", "--text-state-cache", tmp_path / "cache"))


def test_data_without_teacher_texts_are_refused_at_the_start(
    tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    arguments = options(tiny_corpus, tmp_path, "--max-update", "1", langs="en")
    at = arguments.index("--text-features")
    with pytest.raises(ValueError, match=r"valid en:0: the model needs teacher_text for every caption; give --text"):
        run_train(*arguments[:at], *arguments[at + 2 :])


def test_pixels_serve_the_validation(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """`--image-root` with teacher texts: the images are decoded and found in validation, and inference has them."""
    teacher = photos / "teacher"
    texts = [f"txt{number}\t{sentence}" for number, sentence in enumerate(sentences("en"))]
    write(tmp_path / "english.tsv", texts)
    command = ["--model", str(teacher), "--captions", str(tmp_path / "english.tsv"), "--output", str(tmp_path / "text")]
    assert features([*command, "--device", "cpu"]) == 0
    corpus = binarise(tiny_corpus, str(tmp_path / "captions"), "--captions", "en")
    for split, start, stop in (("train", 0, 104), ("valid", 104, 120)):
        write(corpus / f"{split}.en.ids", [f"img{n % 40}.png\ttxt{n}" for n in range(start, stop)])
    common = [
        *(corpus, "--task", "trikd", "--langs", "en", "--text-features", tmp_path / "text", "--num-workers", "0"),
        *("--arch", "teacher_learning_tiny", "--criterion", "teacher_learning", "--optimizer", "sgd", "--lr", "0.1"),
        *(
            "--text-tokenizer",
            tiny_corpus / "tokenizer",
            "--batch-size",
            "26",
            "--max-update",
            "4",
            "--valid-retrieval",
        ),
        *("--no-progress-bar", "--log-format", "json", "--image-root", photos / "images"),
    ]
    with pytest.raises(ValueError, match="--image-root needs --teacher"):
        run_train(*common, "--save-dir", tmp_path / "none")
    log = run_train(*common, "--teacher", teacher, "--save-dir", tmp_path / "run")
    assert "valid_mean_recall_en" in log
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert not any(name.startswith("teacher.") for name in load_checkpoint(checkpoint)["model"])
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    assert model.encode_image([photos / "images" / "img0.png"]).shape == (1, model.dim)


def test_the_exported_directory_is_the_model(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    teacher = tiny_clip_directory(tmp_path / "teacher", dim=DIM)
    run_train(*options(tiny_corpus, tmp_path / "run", "--max-update", "2", "--disable-validation"))
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert (
        export([str(checkpoint), "--teacher", str(teacher), "--output", str(tmp_path / "m"), "--license", "mit"]) == 0
    )
    texts = ["ein Hund", "the red cat", ""]
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=teacher)
    torch.testing.assert_close(
        MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu").encode_text(texts), trained.encode_text(texts)
    )
