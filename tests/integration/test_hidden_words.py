"""Post-KD of AltCLIP: hidden words beside the distance to the teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary

from mclip_fairseq.data.hidden_words import HiddenWordColumn
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.formats.altclip import load_altclip
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.features import write_features
from tests.tiny_data import sentences
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]


def test_scores_loss_and_gradients_are_those_of_the_fixture(shared_dir: Path, tmp_path: Path) -> None:
    fixture = shared_dir / "fixtures" / "altclip"
    module: Any = load_altclip(str(fixture / "altclip_tiny"), tmp_path).module
    expected = np.load(fixture / "altclip_losses.npz")
    head = module.text_encoder.encoder.lm_head.requires_grad_(True)
    with torch.no_grad():
        for part in ("dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias"):
            head.get_parameter(part).copy_(torch.from_numpy(expected[f"mlm/lm_head.{part}"]))
    tokens, labels = (torch.from_numpy(expected[f"mlm/{name}"]) for name in ("input_ids", "labels"))
    out = module.eval()(text_tokens=tokens, masked_tokens=tokens, masked_labels=labels)
    hidden = labels.ge(0)
    assert np.abs(out["words"].detach().numpy() - expected["mlm/scores"][hidden.numpy()]).max() < 2e-5
    loss = F.cross_entropy(out["words"], out["word_labels"])
    assert float(loss.detach()) == pytest.approx(float(expected["mlm/loss"]), rel=1e-5)
    loss.backward()
    own = {"lm_head.dense.weight": head.dense.weight, "pre_LN.weight": module.projection.norm.weight}
    own["roberta.embeddings.word_embeddings.weight"] = module.text_encoder.embed_tokens.weight
    for name, parameter in own.items():
        wanted = expected[f"mlm/grad/{name}"]
        assert np.abs(parameter.grad.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_words_are_hidden_in_the_published_shares() -> None:
    dictionary = Dictionary()
    for number in range(1000):
        dictionary.add_symbol(str(number))
    mask = dictionary.add_symbol("<mask>")
    lines = [torch.cat([torch.randint(4, mask, (60,)), torch.tensor([dictionary.eos()])]) for _ in range(200)]
    column = HiddenWordColumn(FlatTokens.from_sentences(lines, dictionary), 0.15, mask, dictionary.nspecial, seed=3)
    rows = np.arange(200)
    ids, batch = column.tokens.batch(rows), column.batch(rows)
    chosen = batch["masked_labels"].ge(0)
    assert not chosen[:, 0].any()
    assert not chosen[ids.eq(dictionary.eos())].any()
    assert torch.equal(batch["masked_labels"][chosen], ids[chosen])
    assert torch.equal(batch["masked_tokens"][~chosen], ids[~chosen])
    assert float(chosen[:, 1:-1].float().mean()) == pytest.approx(0.15, abs=0.01)
    hidden = batch["masked_tokens"][chosen]
    assert float(hidden.eq(mask).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(hidden.eq(ids[chosen]).float().mean()) == pytest.approx(0.1, abs=0.03)
    some = column.batch(rows[5:7])["masked_tokens"]
    assert torch.equal(some, batch["masked_tokens"][5:7])
    longer = [*lines[:199], torch.cat([lines[0][:-1], lines[199]])]  # a wider batch hides the same words
    wider = HiddenWordColumn(FlatTokens.from_sentences(longer, dictionary), 0.15, mask, dictionary.nspecial, seed=3)
    assert torch.equal(wider.batch(rows)["masked_tokens"][5:7, : some.shape[1]], some)
    column.set_epoch(2)
    assert not torch.equal(column.batch(rows[5:7])["masked_tokens"], some)
    fixed = HiddenWordColumn(column.tokens, 0.15, mask, dictionary.nspecial, seed=3, fixed=True)
    fixed.set_epoch(2)
    assert torch.equal(fixed.batch(rows[5:7])["masked_tokens"], some)


def test_a_run_with_hidden_words_trains_their_head_and_resumes_exactly(
    tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    teacher = DualEncoderTeacher.from_pretrained(tiny_clip_directory(tmp_path / "teacher", dim=12))
    ids = (tiny_corpus / "features" / "text" / "ids.txt").read_text().splitlines()
    texts = teacher.pooled_text(**teacher.tokenize(sentences("en"))).numpy()[: len(ids)]
    write_features(
        *(tmp_path / "text", ids, texts),
        model=teacher.identity,
        normalized=False,
        modality="text",
        projection=teacher.projection("text"),
    )
    images = np.random.default_rng(1).normal(size=(40, 12)).astype(np.float32)
    names = (tiny_corpus / "features" / "image" / "ids.txt").read_text().splitlines()
    write_features(tmp_path / "image", names, images[: len(names)], model=teacher.identity, normalized=False)
    common = [
        *(tiny_corpus / "captions", "--task", "distillation", "--langs", "en,de", "--criterion", "distillation"),
        *("--arch", "altclip_tiny", "--text-features", tmp_path / "text", "--image-features", tmp_path / "image"),
        *("--text-tokenizer", tiny_corpus / "tokenizer", "--optimizer", "fused_adamw", "--lr", "0.003"),
        *("--batch-size", "40", "--num-workers", "0", "--no-progress-bar", "--disable-validation"),
        *("--hide-words", "0.15", "--masked-word-weight", "0.5", "--train-word-head", "--save-dir"),
    ]
    for name, updates in (("whole", 8), ("parts", 3), ("parts", 8)):
        log = run_train(*common, tmp_path / name, "--max-update", updates)
    assert "masked_word_loss" in log
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert whole["text_encoder.encoder.lm_head.dense.bias"].abs().max() > 0
    without = [value for value in common if value not in ("--hide-words", "0.15")]
    with pytest.raises(ValueError, match=r"give --hide-words 0\.15"):
        run_train(*without, tmp_path / "without", "--max-update", "1")
