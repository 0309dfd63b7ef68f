"""Checkpoints and an exported directory made by version 0.1.0 load, and give what they gave then."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.formats.training import load_training_checkpoint
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.places import MARK, remember

STORED = Path(__file__).resolve().parents[1] / "data" / "legacy"
TEXTS = ["ein Hund", "the red cat is small", "une maison bleue", "Baum " * 60, ""]
SMALL = ("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32")
COMMON = ("--langs", "en", "--optimizer", "fused_adamw", "--lr", "0.003", "--batch-size", "40")
TEACHER_TEXTS = ("--text-features", STORED / "data" / "text_features", "--text-encoder", STORED / "encoder")
RUNS = {
    "mte": (
        *(STORED / "data" / "mte", "--task", "mte", "--langs", "en,de,fr", "--lang-pairs", "en-de,en-fr"),
        *(*SMALL, "--decoder-ffn-embed-dim", "32", "--arch", "mte_tiny", "--criterion", "mte"),
        *("--contrastive-weight", "2", "--optimizer", "fused_adamw", "--lr", "0.003", "--max-tokens", "1200"),
        *("--translation-gradient", "recomputed"),
    ),
    "mclip": (
        *(STORED / "data" / "captions", "--task", "trikd", *COMMON, *TEACHER_TEXTS),
        *("--image-features", STORED / "data" / "image_features", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--teacher", STORED / "photos" / "teacher", "--projector-ffn-embed-dim", "48"),
        *("--projector-positions", "all"),  # whose dropout was drawn then
    ),
    "teacher_learning": (
        *(STORED / "data" / "texts", "--task", "trikd", *COMMON, *TEACHER_TEXTS, "--arch", "teacher_learning_tiny"),
        *("--criterion", "teacher_learning", "--text-tokenizer", STORED / "encoder"),
    ),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(STORED / "recorded.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "file"), [("mclip", "mclip.pt"), ("teacher_learning", "teacher_learning.pt"), ("exported", "exported")]
)
def test_stored_models_give_their_recorded_embeddings(name: str, file: str, recorded: dict[str, np.ndarray]) -> None:
    places = {} if name == "exported" else {"teacher": STORED / "photos" / "teacher"}
    if name != "exported":
        places["text_encoder"] = STORED / "encoder"
    model = MultilingualCLIP.from_pretrained(STORED / file, device="cpu", **places)
    images = [STORED / "photos" / "images" / f"img{number}.png" for number in range(3)]
    np.testing.assert_allclose(model.encode_text(TEXTS), recorded[f"{name}.text"], atol=1e-6)
    np.testing.assert_allclose(model.encode_image(images), recorded[f"{name}.image"], atol=1e-6)


def test_the_stored_translation_model_gives_its_recorded_logits(recorded: dict[str, np.ndarray]) -> None:
    from fairseq import checkpoint_utils

    import mclip_fairseq.tasks  # noqa: F401

    overrides = {"data": str(STORED / "data" / "mte")}
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(STORED / "mte.pt")], arg_overrides=overrides)
    model, ids = models[0].eval(), torch.from_numpy(recorded["ids"])
    with torch.no_grad():
        logits, _ = model(ids, torch.tensor([5, 4]), ids, tgt_lang_id=torch.tensor([2, 2]))
        states = model.encoder.xlmr(ids)
    np.testing.assert_allclose(logits, recorded["mte.logits"], atol=1e-5)
    np.testing.assert_allclose(states, recorded["mte.states"], atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_resumes(
    name: str, recorded: dict[str, np.ndarray], run_train: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copy(STORED / f"{name}.pt", tmp_path / "checkpoint_last.pt")
    run_train(
        *RUNS[name],
        *("--max-update", "8", "--seed", "3", "--num-workers", "0", "--no-progress-bar", "--disable-validation"),
        *("--no-epoch-checkpoints", "--save-dir", tmp_path),
    )
    state = load_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 8
    names = [key for key, value in sorted(state["model"].items()) if value.is_floating_point()]
    sums = {key: float(state["model"][key].double().abs().sum()) for key in names}
    expected = dict(zip(names, recorded[f"{name}.after8"], strict=True))
    # The gradient of a key's bias is zero but for rounding, which Adam enlarges and which differs between processors.
    compared = [key for key in names if not key.endswith("k_proj.bias")]
    np.testing.assert_allclose([sums[key] for key in compared], [expected[key] for key in compared], rtol=1e-5)


def test_the_name_of_a_teacher_in_a_checkpoint_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy = Path(__file__).resolve().parents[1] / "data/legacy"
    state = load_checkpoint(legacy / "mclip.pt")
    state["cfg"]["model"]["teacher"] = "someone/some-clip"
    written_here = state["cfg"] | {MARK: remember({"model.teacher": "someone/some-clip"})}

    def unexpected(*arguments: object) -> None:
        raise AssertionError(f"opens a connection to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", unexpected)
    for cfg, reason in (
        (written_here, "names the teacher 'someone/some-clip', which is not on this machine"),
        (state["cfg"], "was not written on this machine, so its teacher someone/some-clip is not looked for"),
    ):
        torch.save(state | {"cfg": cfg}, tmp_path / "mclip.pt")
        tower: Any = load_training_checkpoint(tmp_path / "mclip.pt", str(legacy / "encoder"))
        with pytest.raises(ValueError, match=reason):
            tower.image_settings() or tower.teacher
