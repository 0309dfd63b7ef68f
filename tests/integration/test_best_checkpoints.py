"""A best value is compared only with values measured in the same way, and a set that ranks nothing is named."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_fairseq.resilience import resuming
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from tests.runs import caption_options
from tests.tiny_data import pixel_options, sentences, teacher_features, write, write_images

Train = Callable[..., str]
DROPPED = "is dropped, because it was measured with "
RECALL = ("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric")


def updates_of(path: Path) -> int:
    return int(load_checkpoint(path)["optimizer_history"][-1]["num_updates"])


def best_values(log: str) -> list[float]:
    """`best_loss` or `best_mean_recall` of every validation that logs one."""
    lines = [json.loads(line) for line in re.findall(r"\| valid \| (\{.*\})", log)]
    return [float(value) for line in lines for name, value in line.items() if "_best_" in name]


@pytest.fixture(scope="module")
def small_batches(tiny_corpus: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has validated over batches of 4 captions; the best loss is far below that of larger batches."""
    folder = tmp_path_factory.mktemp("small")
    more = ("--batch-size", "4", "--num-workers", "0", "--max-update", "3", "--keep-best-checkpoints", "1")
    run_train(*caption_options(tiny_corpus, folder, *more))
    return folder


@pytest.mark.parametrize("compared", [True, False])
def test_a_best_loss_over_other_batches_is_dropped(
    compared: bool,
    tiny_corpus: Path,
    run_train: Train,
    small_batches: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the comparison, as in fairseq, `checkpoint_best.pt` stays that of update 3 for ever."""
    if not compared:
        monkeypatch.setattr(resuming, "changed_measurement", lambda stored, trainer: [])
    folder = tmp_path / "run"
    shutil.copytree(small_batches, folder)
    (first,) = (path.name for path in folder.glob("checkpoint.best_*"))
    more = ("--batch-size", "32", "--reset-dataloader", "--num-workers", "0", "--max-update", "12")
    kept = ("--keep-best-checkpoints", "1")
    log = run_train(*caption_options(tiny_corpus, folder, *more, *kept))
    assert (DROPPED in log) == compared
    assert (updates_of(folder / "checkpoint_best.pt") > 3) == compared
    assert (folder / f"earlier.{first}").exists() == compared
    if compared:
        assert f"{DROPPED}--batch-size-valid 4 (now 32): the next validation begins a new comparison" in log
        assert f"renamed to earlier.*: {first}" in log
        assert len(list(folder.glob("checkpoint.best_*"))) == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--text-text-scale", "9"), "--text-text-scale 14.28"),
        (("--max-valid-steps", "1"), "--max-valid-steps None (now 1)"),
        (("--batch-size-valid", "7"), "--batch-size-valid 4 (now 7)"),
        ((*RECALL,), "--best-checkpoint-metric loss (now mean_recall); --maximize-best-checkpoint-metric False"),
        (("--valid-langs", "en"), "other validation data"),
        (("--lr", "0.001", "--num-workers", "1"), ""),
    ],
)
def test_whatever_a_value_depends_on_is_compared(
    more: Sequence[str], reason: str, tiny_corpus: Path, run_train: Train, small_batches: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_batches, folder)
    same = ("--batch-size", "4", "--num-workers", "0", "--max-update", "4")
    log = run_train(*caption_options(tiny_corpus, folder, *same, *more))
    assert (f"{DROPPED}{reason}" in log) if reason else (DROPPED not in log)


def test_edited_validation_captions_are_other_data(
    tiny_corpus: Path, run_train: Train, small_batches: Path, tmp_path: Path
) -> None:
    """As many captions of the same lengths, but other ids: what was computed on the old ones is not comparable."""
    folder, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(small_batches, folder)
    shutil.copytree(tiny_corpus, corpus)
    ids = corpus / "captions" / "valid.en.ids"
    lines = ids.read_text(encoding="utf-8").splitlines()
    ids.write_text("".join(f"{line}\n" for line in lines[::-1]), encoding="utf-8")
    same = ("--batch-size", "4", "--num-workers", "0", "--max-update", "4")
    log = run_train(*caption_options(corpus, folder, *same))
    assert f"{DROPPED}other validation data" in log


@pytest.mark.parametrize(("image", "dropped"), [(30, True), (0, False)], ids=["validation", "training only"])
def test_other_features_of_the_validation_are_other_data(
    image: int, dropped: bool, tiny_corpus: Path, run_train: Train, small_batches: Path, tmp_path: Path
) -> None:
    """As after an edited picture: under the same ids, as many features of the same teacher."""
    folder, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(small_batches, folder)
    shutil.copytree(tiny_corpus, corpus)
    shutil.rmtree(corpus / "features" / "image")
    features = teacher_features()[0]
    features[image] += 1
    write_images(corpus, features)
    log = run_train(*caption_options(corpus, folder, "--batch-size", "4", "--num-workers", "0", "--max-update", "4"))
    assert (f"{DROPPED}other validation data" in log) == dropped


def test_an_edited_picture_of_the_validation_is_other_data(
    photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """Of the same size, and with its old time."""
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    picture = root / "images" / "img30.png"
    paint(picture, "red")
    before = picture.stat()
    options = pixel_options(root, tiny_corpus / "tokenizer", tmp_path / "run", "--image-root", root / "images")
    options.remove("--disable-validation")
    run_train(*options, "--max-update", "1")
    assert DROPPED not in run_train(*options, "--max-update", "2")
    paint(picture, "blue")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (picture.stat().st_size, picture.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert f"{DROPPED}other validation data" in run_train(*options, "--max-update", "3")


def paint(file: Path, colour: str) -> None:
    """A picture whose file has the same size for every colour."""
    Image.new("RGB", (32, 32), colour).save(file, compress_level=0)


def test_other_sentence_pairs_are_other_data(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Their correlation is measured over the whole file, so it does not depend on batches."""
    english = sentences("en")
    pairs = [f"{score}\t{english[number]}\t{english[number + 9]}" for number, score in enumerate((0, 3, 5, 1))]
    file = tmp_path / "stsb.valid.en.tsv"
    write(file, pairs)
    options = [
        *(tiny_corpus / "captions", "--task", "contrastive_tension", "--langs", "en", "--criterion"),
        *("contrastive_tension", "--arch", "contrastive_tension_tiny", "--text-tokenizer", tiny_corpus / "tokenizer"),
        *("--optimizer", "rmsprop", "--lr", "0.001", "--num-workers", "0", "--save-dir", tmp_path / "run"),
        *("--valid-sts", file, "--best-checkpoint-metric", "sts_spearman", "--maximize-best-checkpoint-metric"),
        *("--no-epoch-checkpoints", "--reset-dataloader", "--log-format", "json"),
    ]
    run_train(*options, "--batch-size", "4", "--max-update", "1")
    assert DROPPED not in run_train(*options, "--batch-size", "8", "--max-update", "2")
    write(file, pairs[::-1])
    assert f"{DROPPED}other validation data" in run_train(*options, "--batch-size", "8", "--max-update", "3")


def test_a_recall_does_not_depend_on_batches(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    common = (*RECALL, "--num-workers", "0", "--max-update")
    run_train(*caption_options(tiny_corpus, tmp_path, *common, "3"))
    log = run_train(*caption_options(tiny_corpus, tmp_path, *common, "6", "--batch-size", "32", "--reset-dataloader"))
    assert DROPPED not in log
    assert best_values(log)


def test_patience_and_plateau_begin_again(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Two validations without progress before the change do not count with the two after it."""
    watching = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", "9", "--patience", "3", "--lr", "0")
    common = (*watching, "--num-workers", "0", "--validate-interval-updates", "1", "--max-update")
    run_train(*caption_options(tiny_corpus, tmp_path, *common, "3"))
    more = ("--batch-size-valid", "16")
    log = run_train(*caption_options(tiny_corpus, tmp_path, *common, "5", *more))
    assert DROPPED in log
    assert "early stop" not in log
    assert updates_of(tmp_path / "checkpoint_last.pt") == 5


def one_image(corpus: Path, target: Path) -> Path:
    """The corpus with validation captions of one image only."""
    shutil.copytree(corpus, target)
    for lang in ("en", "de"):
        ids = target / "captions" / f"valid.{lang}.ids"
        lines = ids.read_text(encoding="utf-8").splitlines()
        ids.write_text(f"{lines[0]}\n" * len(lines), encoding="utf-8")
    return target


def test_a_set_that_ranks_nothing_is_named(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    corpus = one_image(tiny_corpus, tmp_path / "corpus")
    common = ("--num-workers", "0", "--max-update", "1")
    log = run_train(*caption_options(corpus, tmp_path / "run", *common))
    assert re.search(
        r"valid en: has one image only \(\d+ captions\), so nothing can be ranked: a contrastive loss", log
    )
    with pytest.raises(UserError, match=r"one image only .* --valid-retrieval would always find 100 %; give more"):
        run_train(*caption_options(corpus, tmp_path / "other", *common, "--valid-retrieval"))
    assert "can be ranked" not in run_train(*caption_options(tiny_corpus, tmp_path / "sound", *common))


@pytest.mark.parametrize("lines", [(0, 1), (None, 0)], ids=["an image for each language", "one of two languages"])
def test_each_language_must_rank_something(
    lines: tuple[int | None, int], tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """A batch, and what is searched, holds one language."""
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    for lang, number in zip(("en", "de"), lines, strict=True):
        ids = corpus / "captions" / f"valid.{lang}.ids"
        names = ids.read_text(encoding="utf-8").splitlines()
        write(ids, names if number is None else [names[number]] * len(names))
    common = ("--num-workers", "0", "--max-update", "1")
    log = run_train(*caption_options(corpus, tmp_path / "run", *common))
    found = re.findall(r"valid (\w+): has one image only", log)
    assert found == [lang for lang, number in zip(("en", "de"), lines, strict=True) if number is not None]
    with pytest.raises(UserError, match=r"--valid-retrieval would always find 100 %; give more images"):
        run_train(*caption_options(corpus, tmp_path / "other", *common, "--valid-retrieval"))


def test_batches_of_one_caption_are_named(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    single: list[Any] = ["--num-workers", "0", "--max-update", "1", "--batch-size-valid", "1"]
    sentence = "every batch of the validation has one caption"
    assert sentence in run_train(*caption_options(tiny_corpus, tmp_path / "one", *single))
    single[-1] = "2"
    assert sentence not in run_train(*caption_options(tiny_corpus, tmp_path / "two", *single))
