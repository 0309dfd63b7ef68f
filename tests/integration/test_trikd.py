"""TriKD through `fairseq-train`, and what it leaves for inference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.features import FeatureStore
from tests.tiny_data import mte_options, sentences

Train = Callable[..., str]
RARELY = ("--save-interval", "30", "--validate-interval", "30", "--pooling", "mean")


@pytest.fixture(scope="module")
def encoder(tiny_corpus: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-R archive strengthened on the tiny parallel text."""
    from mclip_fairseq.cli.extract_mte import main as extract_mte

    folder = tmp_path_factory.mktemp("encoder")
    run_train(
        *mte_options(tiny_corpus, folder / "mte"),
        *("--contrastive-weight", "5", "--contrastive-temperature", "0.2", "--max-tokens", "1200"),
        *("--max-epoch", "25", "--disable-validation", "--no-epoch-checkpoints"),
    )
    checkpoint, archive = folder / "mte" / "checkpoint_last.pt", folder / "archive"
    tokenizer = tiny_corpus / "tokenizer"
    assert extract_mte([str(checkpoint), "--tokenizer", str(tokenizer), "--output", str(archive)]) == 0
    return archive


def options(corpus: Path, encoder: Path, folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line for English pairs on cached features."""
    values = [
        *(corpus / "captions", "--task", "trikd", "--langs", "en", "--image-features", corpus / "features" / "image"),
        *("--text-features", corpus / "features" / "text", "--arch", "mclip_tiny", "--text-encoder", encoder),
        *("--criterion", "trikd", "--optimizer", "fused_adamw", "--lr", "0.003", "--batch-size", "40"),
        *("--num-workers", "0"),
        *("--save-dir", folder, "--log-format", "json", "--no-epoch-checkpoints", "--no-progress-bar", *more),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def trained(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A model after 30 epochs of English pairs, and its log."""
    folder = tmp_path_factory.mktemp("trikd")
    log = run_train(*options(tiny_corpus, encoder, folder, "--max-epoch", "30", "--positives", "image", *RARELY))
    return folder / "checkpoint_last.pt", log


def train_metrics(log: str) -> list[dict[str, str]]:
    lines = [line for line in log.splitlines() if "| train |" in line and "{" in line]
    return [json.loads(line[line.index("{") :]) for line in lines]


def test_losses_fall_and_all_metrics_are_logged(trained: tuple[Path, str]) -> None:
    epochs = train_metrics(trained[1])
    for name in ("train_image_text_loss", "train_text_text_loss"):
        assert float(epochs[-1][name]) < float(epochs[0][name])
    assert float(epochs[-1]["train_t2i_R@1"]) > 50
    assert {"train_i2t_R@1", "train_scale"} <= epochs[-1].keys()


def test_terms_of_the_teachers_space_fall_together(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path
) -> None:
    """The distance, soft labels and structure of captions drawn in other pieces, the encoder trained as well."""
    log = run_train(
        *options(tiny_corpus, encoder, tmp_path, "--max-epoch", "8", *RARELY, "--freeze-text", "none"),
        *("--text-text-loss", "mse", "--text-text-weight", "4", "--fixed-target", "--soft-label-weight", "1"),
        *("--soft-label-images", "30", "--structure-weight", "1", "--subword-sampling", "0.3"),
        *("--subword-model", str(tiny_corpus / "tokenizer"), "--langs", "en,de", "--matryoshka", "4"),
        *("--pair-language", "en", "--pair-weight", "1", "--projector-start", "identity", "--save-interval", "8"),
    )
    losses = {
        name: [float(epoch[f"train_{name}_loss"]) for epoch in train_metrics(log)]
        for name in ("text_text", "soft_label", "structure", "pair", "text_text_4")
    }
    # A random space has less structure than it soon gets.
    assert losses["structure"][-1] < 0.8 * max(losses["structure"])
    for name in ("text_text", "soft_label", "pair", "text_text_4"):
        assert losses[name][-1] < losses[name][0]
    # Images are where the teacher puts them, whose width is not that of the text encoder.
    model = MultilingualCLIP.from_pretrained(tmp_path / "checkpoint_last.pt", device="cpu")
    features = FeatureStore.open(tiny_corpus / "features" / "image").take(np.arange(3))
    expected = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    assert torch.allclose(model.encode_image_features(features), expected, atol=1e-6)
    assert model.encode_text(["a dog that is red"]).shape == (1, features.shape[1])


def test_every_language_finds_the_images(trained: tuple[Path, str], tiny_corpus: Path) -> None:
    """Trained on English pairs only, far above chance (1 in 40) in the others."""
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    store = FeatureStore.open(tiny_corpus / "features" / "image")
    images = model.encode_image_features(store.take(np.arange(40)))
    numbers = torch.arange(104) % 40
    recall = {
        lang: retrieval_metrics(model.encode_text(sentences(lang)[:104]), images, numbers)
        for lang in ("en", "de", "fr")
    }
    assert recall["en"]["t2i_R@1"] > 60
    assert recall["de"]["t2i_R@1"] > 15
    assert recall["fr"]["t2i_R@1"] > 15


def test_checkpoints_are_chosen_by_recall_over_the_whole_validation_set(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path
) -> None:
    """The logged recall is that of the best checkpoint, over all images at once."""
    log = run_train(
        *options(tiny_corpus, encoder, tmp_path, "--max-epoch", "4", "--pooling", "mean", "--valid-langs", "en,de"),
        *("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric"),
        *("--batch-size-valid", "4"),
    )
    lines = [line for line in log.splitlines() if "| valid |" in line and "{" in line]
    epochs = [json.loads(line[line.index("{") :]) for line in lines]
    values = [float(epoch["valid_mean_recall"]) for epoch in epochs]
    assert float(epochs[-1]["valid_best_mean_recall"]) == max(values)
    model = MultilingualCLIP.from_pretrained(tmp_path / "checkpoint_best.pt", device="cpu")
    store = FeatureStore.open(tiny_corpus / "features" / "image")
    ids = (tiny_corpus / "captions" / "valid.de.ids").read_text().split("\n")[:-1]
    rows = store.rows([line.split("\t")[0] for line in ids])
    used, own = np.unique(rows, return_inverse=True)
    texts = model.encode_text(sentences("de")[-len(ids) :])
    expected = retrieval_metrics(texts, model.encode_image_features(store.take(used)), own)["mean_recall"]
    best = epochs[values.index(max(values))]
    assert float(best["valid_mean_recall_de"]) == pytest.approx(expected, abs=0.01)


def test_inference_uses_the_learned_parts(trained: tuple[Path, str]) -> None:
    state = load_checkpoint(trained[0])
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu")
    assert not any(name.startswith("text_encoder.") for name in state["model"])
    assert float(model.logit_scale) == pytest.approx(float(state["model"]["logit_scale"].exp()), rel=1e-6)
    assert model.languages == ["en", "de", "fr"]
    texts = ["the red dog is small", "", "Hund " * 500, "ein Hund"]
    encoded = model.encode_text(texts, batch_size=2)
    assert encoded.shape == (4, model.dim)
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(encoded[3:], model.encode_text("ein Hund"), rtol=1e-5, atol=1e-5)


def test_moved_or_other_archives_are_handled(trained: tuple[Path, str], encoder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(encoder, moved)
    model = MultilingualCLIP.from_pretrained(trained[0], device="cpu", text_encoder=moved)
    expected = MultilingualCLIP.from_pretrained(trained[0], device="cpu").encode_text(["ein Hund"])
    torch.testing.assert_close(model.encode_text(["ein Hund"]), expected)
    other = load_checkpoint(moved / "model.pt")
    other["model"]["encoder.sentence_encoder.layers.0.fc1.bias"] += 1
    torch.save(other, moved / "model.pt")
    with pytest.raises(ValueError, match="trained on text encoder"):
        MultilingualCLIP.from_pretrained(trained[0], device="cpu", text_encoder=moved)
    with pytest.raises(ValueError, match="gone: is not a directory; give the text encoder's"):
        MultilingualCLIP.from_pretrained(trained[0], device="cpu", text_encoder=tmp_path / "gone")


def test_cached_token_states_change_nothing(tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path) -> None:
    stop = ("--max-update", "4", "--disable-validation", "--dropout", "0", "--optimizer", "sgd")
    run_train(*options(tiny_corpus, encoder, tmp_path / "plain", *stop))
    cache = ("--text-state-cache", tmp_path / "cache")
    run_train(*options(tiny_corpus, encoder, tmp_path / "cached", *stop, *cache))
    run_train(*options(tiny_corpus, encoder, tmp_path / "again", *stop, *cache, "--keep-text-states"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    plain, cached, again = (
        load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("plain", "cached", "again")
    )
    for name in plain:
        if plain[name].is_floating_point():
            torch.testing.assert_close(cached[name], plain[name], rtol=1e-4, atol=1e-4)
            assert torch.equal(cached[name], again[name])
    with pytest.raises(ValueError, match="--keep-text-states keeps the states of --text-state-cache; give both"):
        run_train(*options(tiny_corpus, encoder, tmp_path / "none", *stop, "--keep-text-states"))


def test_resuming_in_mid_epoch_changes_nothing(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path
) -> None:
    common = ("--langs", "en,de", "--sampling-temperature", "5", "--disable-validation", "--save-interval-updates", "4")
    for folder, updates in (("straight", "9"), ("stopped", "4"), ("stopped", "9")):
        run_train(*options(tiny_corpus, encoder, tmp_path / folder, *common, "--max-update", updates))
    straight, stopped = (load_checkpoint(tmp_path / f / "checkpoint_last.pt")["model"] for f in ("straight", "stopped"))
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


@pytest.mark.parametrize("frozen", ["all", "none"])
def test_fine_tuning_goes_on_from_a_checkpoint(
    trained: tuple[Path, str], tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path, frozen: str
) -> None:
    """Also with the encoder that was frozen before: it is that of the archive then."""
    run_train(
        *options(tiny_corpus, encoder, tmp_path, "--max-update", "1", "--disable-validation", "--langs", "de"),
        *("--finetune-from-model", str(trained[0]), "--lr", "0", "--freeze-text", frozen),
    )
    before, after = load_checkpoint(trained[0])["model"], load_checkpoint(tmp_path / "checkpoint_last.pt")["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    prefix = "text_encoder."
    held = {name.removeprefix(prefix): tensor for name, tensor in after.items() if name.startswith(prefix)}
    assert bool(held) == (frozen == "none")
    archive = load_checkpoint(encoder / "model.pt")["model"]
    assert all(torch.equal(archive[name], tensor) for name, tensor in held.items())


def test_saving_everything_needs_no_archive(tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    run_train(
        *options(tiny_corpus, copy, tmp_path / "run", "--max-update", "1", "--disable-validation", "--save-frozen")
    )
    (copy / "model.pt").unlink()
    model = MultilingualCLIP.from_pretrained(tmp_path / "run" / "checkpoint_last.pt", device="cpu")
    assert model.encode_text(["ein Hund"]).shape == (1, 32)


def test_a_trained_encoder_is_saved_extracted_and_used(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path
) -> None:
    """With and without an archive: train from scratch, name the tokenizer for inference, and get an archive out."""
    from mclip_fairseq.cli.extract_mte import main as extract_mte

    tokenizer = tiny_corpus / "tokenizer"
    more = ("--freeze-text", "none", "--text-tokenizer", tokenizer, "--max-update", "2", "--disable-validation")
    run_train(*options(tiny_corpus, Path(), tmp_path / "run", *more, "--text-encoder", ""))
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    run_train(*options(tiny_corpus, encoder, tmp_path / "warm", *more))
    warm = MultilingualCLIP.from_pretrained(tmp_path / "warm" / "checkpoint_last.pt", device="cpu")
    assert warm.encode_text("ein Hund").shape == (1, 32)
    assert MultilingualCLIP.from_pretrained(checkpoint, device="cpu").encode_text("ein Hund").shape == (1, 32)
    assert extract_mte([str(checkpoint), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "archive")]) == 0
    stored = load_checkpoint(checkpoint)["model"]["text_encoder.encoder.sentence_encoder.embed_tokens.weight"]
    weights = load_checkpoint(tmp_path / "archive" / "model.pt")["model"]
    assert torch.equal(weights["encoder.sentence_encoder.embed_tokens.weight"], stored)


def test_captions_are_cut_and_counted(tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path) -> None:
    log = run_train(*options(tiny_corpus, encoder, tmp_path, "--max-update", "1", "--max-caption-tokens", "6"))
    assert "104 captions, 104 cut to 6 tokens" in log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--langs": "ja"}, "not found; make it with fairseq-preprocess"),
        ({"--image-features": ""}, "names images; give --image-features or --image-root"),
        ({"--image-root": "somewhere"}, "both given"),
        ({"--teacher-dim": "99"}, "the features have 12 columns"),
        ({"--image-text-weight": "0", "--text-text-weight": "0"}, "nothing to train"),
        ({"--text-encoder": "nowhere"}, "nowhere"),
        ({"--freeze-text": "none", "--text-state-cache": "cache"}, "needs a frozen text encoder"),
    ],
)
def test_contradictory_options_are_refused(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    arguments = options(tiny_corpus, encoder, tmp_path, "--max-update", "1", "--disable-validation")
    for name, value in change.items():
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    with pytest.raises(ValueError, match=message):
        run_train(*arguments)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["img0\ttxt0"] * 103, "103 lines for 104 captions"),
        (["img0\ttxt0"] * 103 + ["imgX\ttxt0"], "imgX"),
        (["img0\ttxt0"] * 50 + ["-\ttxt0"] * 54, "line 51: no image id"),
    ],
)
def test_ids_must_fit(
    tiny_corpus: Path, encoder: Path, run_train: Train, tmp_path: Path, lines: list[str], message: str
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    (corpus / "captions" / "train.en.ids").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        run_train(*options(corpus, encoder, tmp_path / "run", "--max-update", "1", "--disable-validation"))
