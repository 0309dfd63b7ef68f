"""Bad data in a training: an error, or left out and listed within a budget, and never left out of a validation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.features import FeatureStore, write_features
from tests import hostile_images
from tests.runs import ROOT
from tests.tiny_data import binarise, mte_options, pixel_options, sentences, write

Train = Callable[..., str]
BROKEN = ("img3.png", "img7.png")  # of 40 images and 104 training captions, three captions each


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> Path:
    """The photos, two of them unreadable; the captions of the validation name img24 to img39."""
    images = tmp_path / "images"
    shutil.copytree(photos / "images", images)
    for name in BROKEN:
        (images / name).write_bytes(hostile_images.BAD_IMAGES["HTML"][1]())
    return images


@pytest.fixture
def start(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> Train:
    def run(*more: object, folder: str = "run") -> str:
        return run_train(*pixel_options(photos, tiny_corpus / "tokenizer", tmp_path / folder, *more))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoint_last.pt")["model"]
    return found


def test_a_budget_leaves_out_lists_and_replaces_nothing(
    start: Train, damaged: Path, photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    log = start("--image-root", damaged, "--skip-budget", 2)
    assert "skipped: img7.png: is not an image in a known format" in log
    listed = (tmp_path / "run" / "skipped.tsv").read_text().splitlines()
    assert sorted(listed) == [f"{name}\tis not an image in a known format" for name in BROKEN]
    # What is left is what a training sees that never had these images; stored features show it.
    whole = FeatureStore.open(photos / "features")
    kept = [name for name in whole.ids if name not in BROKEN]
    feature = whole.take(whole.rows(kept))
    whole_epochs = ("--batch-size", 104, "--required-batch-size-multiple", 1, "--attention-dropout", 0)
    write_features(tmp_path / "features", kept, feature, model=whole.identity, normalized=False)
    start("--image-features", tmp_path / "features", "--skip-budget", 2, *whole_epochs, folder="known")
    start("--image-root", damaged, "--skip-budget", 2, *whole_epochs, folder="found")
    assert sorted((tmp_path / "known" / "skipped.tsv").read_text().splitlines()) == [
        f"{name}\thas no features in features (3 captions)" for name in BROKEN
    ]
    known, found = weights(tmp_path / "known"), weights(tmp_path / "found")
    for name in known:
        if known[name].is_floating_point():
            torch.testing.assert_close(known[name], found[name], rtol=1e-4, atol=1e-5)


def test_more_than_the_budget_ends_the_run(start: Train, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"img\d\.png: is not an image .* more than --skip-budget 1 allows"):
        start("--image-root", damaged, "--skip-budget", 1, "--num-workers", 2)
    start("--image-root", damaged, "--skip-budget", 2)
    assert len((tmp_path / "run" / "skipped.tsv").read_text().splitlines()) == 2
    # A restart, which resumes from the checkpoint, knows what was skipped before.
    with pytest.raises(ValueError, match=r"skipped.tsv: 2 items were skipped before, so it needs --skip-budget 2"):
        start("--image-root", damaged, "--skip-budget", 1)
    assert "Loaded checkpoint" in start("--image-root", damaged, "--skip-budget", 2, "--max-update", 6)


def test_without_a_budget_the_first_one_is_an_error(
    start: Train, damaged: Path, photos: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"img\d\.png: is not an image in a known format"):
        start("--image-root", damaged)
    assert not (tmp_path / "run" / "skipped.tsv").exists()
    whole = FeatureStore.open(photos / "features")
    rows = whole.rows(whole.ids[1:])
    write_features(tmp_path / "features", whole.ids[1:], whole.take(rows), model=whole.identity, normalized=False)
    with pytest.raises(ValueError, match="text: holds text features; --image-features needs those of images"):
        start("--image-features", tiny_corpus / "features" / "text")
    with pytest.raises(ValueError, match=f"has no features for 3 of 104 ids, the first are '{whole.ids[0]}'"):
        start("--image-features", tmp_path / "features")


def test_a_batch_of_nothing_readable_counts_nothing(start: Train, damaged: Path, tmp_path: Path) -> None:
    """Batches of one caption: some consist of an unreadable image, the first one of an epoch perhaps."""
    for image in damaged.iterdir():
        if image.name not in ("img0.png", "img1.png", "img2.png"):
            image.write_bytes(b"")
    log = start("--image-root", damaged, "--skip-budget", 37, "--batch-size", 2, "--max-update", 30)
    assert len((tmp_path / "run" / "skipped.tsv").read_text().splitlines()) > 10
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values() if tensor.is_floating_point())
    assert "nan" not in log
    for image in damaged.iterdir():
        image.write_bytes(b"")
    none = ("--image-root", damaged, "--skip-budget", 40, "--optimizer", "adam", "--weight-decay", 0.1)
    start(*none, "--save-interval-updates", 1, "--max-update", 3, folder="none")
    first, last = (load_checkpoint(tmp_path / "none" / f"checkpoint_1_{number}.pt")["model"] for number in (1, 3))
    assert all(torch.equal(first[name], last[name]) for name in first), "not even by weight decay"


def test_validation_leaves_nothing_out(
    damaged: Path, photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    (damaged / "img25.png").write_bytes(b"")
    options = pixel_options(photos, tiny_corpus / "tokenizer", tmp_path, "--image-root", damaged, "--skip-budget", 40)
    options[options.index("--max-update") + 1] = "1"
    run_train(*options)
    options.remove("--disable-validation")
    with pytest.raises(ValueError, match=r"img25\.png: is not an image in a known format"):
        run_train(*options, "--reset-dataloader", "--max-update", 2)


def test_pixel_limits_of_a_training(start: Train, damaged: Path) -> None:
    Image.new("RGB", (50, 50)).save(damaged / "img3.png")
    (damaged / "img7.png").unlink()
    reason = r"img7\.png: does not exist|img3\.png: has 50 x 50 pixels, more than 2000"
    with pytest.raises(ValueError, match=reason):
        start("--image-root", damaged, "--max-pixels", 2000)
    with pytest.raises(ValueError, match="--max-pixels is 0"):
        start("--image-root", damaged, "--max-pixels", 0)


# ------------------------------------------------------------------------------------------ parallel files


@pytest.fixture
def shifted(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus, to be made again from other text."""
    for name in ("tokenizer", "pieces"):
        shutil.copytree(tiny_corpus / name, tmp_path / name)
    return tmp_path


def test_a_line_too_few_is_counted(
    shifted: Path, tiny_corpus: Path, run_train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    file = shifted / "pieces" / "train.de"
    file.write_text(file.read_text().partition("\n")[2])
    with pytest.raises(AssertionError, match=r"train\.de: has 103 lines, but .*train\.en has 104"):
        binarise(shifted, "mte", "--pairs", "en-de")
    # Made all the same, as fairseq-preprocess would: the training refuses it.
    whole = shutil.copytree(tiny_corpus / "mte", shifted / "mte")
    for suffix in ("bin", "idx"):
        shutil.copy(whole / f"valid.en-de.de.{suffix}", whole / f"train.en-de.de.{suffix}")
    with pytest.raises(ValueError, match=r"train\.en-de: has 104 source and 16 target sentences; parallel files must"):
        run_train(*mte_options(shifted, shifted / "run"), "--max-update", "1", "--batch-size", "8")


LONG = 150  # the tiny model takes 128 tokens


def pairs(folder: Path, pieces: dict[str, list[str]]) -> Path:
    """English and German lines, the last 16 of them for validation."""
    for lang, lines in pieces.items():
        write(folder / "pieces" / f"train.{lang}", lines[:-16])
        write(folder / "pieces" / f"valid.{lang}", lines[-16:])
    binarise(folder, "mte", "--pairs", "en-de")
    return folder


@pytest.fixture(scope="module")
def holed(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`holed/`: German is empty in line 2 and English too long in line 5; `whole/`: the same without these lines."""
    folder = tmp_path_factory.mktemp("holed")
    pieces = {lang: (tiny_corpus / "pieces" / f"train.{lang}").read_text().splitlines() for lang in ("en", "de")}
    for name in ("holed", "whole"):
        shutil.copytree(tiny_corpus / "tokenizer", folder / name / "tokenizer")
    pairs(folder / "whole", {lang: [lines[0], *lines[2:4], *lines[5:]] for lang, lines in pieces.items()})
    pieces["de"][1] = ""
    pieces["en"][4] = " ".join(pieces["en"][4].split()[:1] * LONG)
    pieces["en"][-4] = pieces["en"][4]
    pairs(folder / "holed", pieces)
    return folder


@pytest.fixture
def translate(holed: Path, run_train: Train, tmp_path: Path) -> Train:
    def run(*more: object, corpus: str = "holed", folder: str = "run", split: str = "train") -> str:
        both = ("--lang-pairs", "en-de", "--both-directions", "--max-update", "15", "--batch-size", "8")
        options = [*mte_options(holed / corpus, tmp_path / folder), *both, *more]
        return run_train(*options, *(["--disable-validation"] if split == "train" else []))

    return run


def test_unusable_sentences_are_named_or_spend_the_budget(
    translate: Train, run_in_process: Train, holed: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"train\.en-de, line 2: de is empty \(in .*mte\) \(and 1 more\); fix it.* with --skip-"
    ):
        translate()
    with pytest.raises(ValueError, match=r"line 2: de is empty .* \(and 1 more\); .* more than --skip-budget 1 allows"):
        translate("--skip-budget", 1)
    translate(
        "--skip-budget", 2, "--save-interval-updates", 15
    )  # both directions read the same lines, which count once
    place = f"(in {holed}/holed/mte)"
    assert (tmp_path / "run" / "skipped.tsv").read_text().splitlines() == [
        f"train.en-de, line 2\tde is empty {place}",
        f"train.en-de, line 5\ten has {LONG + 2} tokens, more than the 128 that --truncate cuts to {place}",
    ]
    # A restart recognises them although the data have moved, and evaluation has no part in the budget.
    moved = shutil.copytree(holed / "holed" / "mte", tmp_path / "moved" / "mte")
    translate("--skip-budget", 2, "--max-update", 16, corpus=str(moved.parent))
    assert len((tmp_path / "run" / "skipped.tsv").read_text().splitlines()) == 2
    command = (moved, "--path", tmp_path / "run" / "checkpoint_last.pt", "--task", "mte", "--valid-subset", "train")
    with pytest.raises(ValueError, match=r"train\.en-de, line 2: de is empty .*; evaluation skips nothing"):
        run_in_process("fairseq-validate", *command, "--user-dir", ROOT / "mclip_fairseq", "--batch-size", 8, "--cpu")
    # Nothing replaces them: the run equals one on data that never had them.
    translate(corpus="whole", folder="whole")
    kept = load_checkpoint(next((tmp_path / "run").glob("checkpoint_*_15.pt")))["model"]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, kept[name]), name


def test_long_sentences_are_cut_to_what_the_model_takes(translate: Train, tmp_path: Path) -> None:
    log = translate("--skip-budget", 1, "--truncate", "--max-update", 1)
    assert "train en-de: 88 pairs, 1 sentences cut" in log
    assert len((tmp_path / "run" / "skipped.tsv").read_text().splitlines()) == 1
    translate("--skip-budget", 2, "--truncate", "--max-update", 1, "--max-tokens", 100, folder="small")
    assert (
        "line 5\ten has 128 tokens, more than the 100 of --max-tokens" in (tmp_path / "small/skipped.tsv").read_text()
    )


def test_validation_leaves_no_sentence_out(translate: Train) -> None:
    invalid = ("--skip-budget", 9, "--skip-invalid-size-inputs-valid-test", "--max-update", 1)
    with pytest.raises(
        ValueError, match=r"valid\.en-de, line 13: en has 152 tokens, more than the 128 that --truncate"
    ):
        translate(*invalid, split="valid")
    assert "| valid | " in translate(*invalid, "--truncate", split="valid")


def test_empty_captions_are_named_or_spend_the_budget(tiny_corpus: Path, tmp_path: Path) -> None:
    from mclip_fairseq.tasks.trikd import TriKDTask, TriKDTaskConfig

    pieces = (tiny_corpus / "pieces" / "train.en").read_text().splitlines()
    folder = tmp_path / "pieces"
    write(folder / "train.en", [pieces[0], "", *pieces[2:]])
    write(folder / "valid.en", ["", pieces[0]])
    shutil.copytree(tiny_corpus / "tokenizer", tmp_path / "tokenizer")
    corpus = binarise(tmp_path, "captions", "--captions", "en")
    for split, count in (("train", len(pieces)), ("valid", 2)):
        write(corpus / f"{split}.en.ids", [f"-\tt{number}" for number in range(count)])

    def load(budget: int, split: str) -> int:
        cfg = TriKDTaskConfig(data=str(corpus), langs="en", skip_budget=budget, save_dir=str(tmp_path / "run"))
        task = TriKDTask.setup_task(cfg)
        return len(task.load_captions(0, corpus, split, "en", split == "train"))

    with pytest.raises(
        ValueError, match=r"train\.en, line 2: is empty \(in .*captions\); fix it, remove it, or skip it"
    ):
        load(0, "train")
    assert load(1, "train") == len(pieces) - 1
    assert (tmp_path / "run" / "skipped.tsv").read_text() == f"train.en, line 2\tis empty (in {corpus})\n"
    with pytest.raises(ValueError, match=r"valid\.en, line 1 is empty \(in .*\), one of 1; fix the captions"):
        load(1, "valid")


def test_a_line_that_is_off_is_warned_about(shifted: Path, run_train: Train) -> None:
    lines = {lang: sentences(lang) for lang in ("en", "de", "fr")}
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()
    words = {lang: [" ".join([lines[lang][row]] * (1 + row % 7)) for row in order] for lang in lines}
    for lang, texts in words.items():
        encoded = [" ".join("▁" + word for word in text.split()) for text in texts]
        write(shifted / "pieces" / f"train.{lang}", encoded[:104] if lang != "de" else [encoded[-1], *encoded[:103]])
    binarise(shifted, "mte", "--pairs", "en-de", "en-fr")
    log = run_train(
        *mte_options(shifted, shifted / "run"), "--max-update", "1", "--disable-validation", "--batch-size", "8"
    )
    assert "train.en-de: in 1 sampled blocks, the first of them lines 4 to 101, sentences fit the lengths" in log
    assert "better when it is moved by -1" in log
    assert "train.en-fr: in" not in log
