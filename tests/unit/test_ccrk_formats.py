"""CCRK's published checkpoints in, the released retrieval layout out, and files that are something else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.ccrk_models import archive, checkpoint, fixture_folder


@pytest.fixture(scope="module")
def text_files(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(shared_dir, tmp_path_factory.mktemp("xlmr") / "files")


@pytest.fixture(scope="module")
def converted(shared_dir: Path, text_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both layouts, converted by the command."""
    folder = tmp_path_factory.mktemp("converted")
    for name in ("ccrk_tiny", "ccrk_tiny_retrieval"):
        source = str(fixture_folder(shared_dir) / f"{name}.pt")
        options = ["--text-encoder", str(text_files), "--head-dim", "8", "--output", str(folder / name)]
        assert convert(["ccrk", source, *options]) == 0
    return {name: folder / name for name in ("ccrk_tiny", "ccrk_tiny_retrieval")}


def test_a_converted_checkpoint_is_read_and_gives_the_recorded_features(
    shared_dir: Path, converted: dict[str, Path]
) -> None:
    fixture = checkpoint(shared_dir, "ccrk_tiny.pt")["fixture"]
    model = MultilingualCLIP.from_pretrained(converted["ccrk_tiny"], device="cpu")
    inputs, wanted = fixture["inputs"], fixture["outputs"]
    torch.testing.assert_close(model.encode_text(inputs["text_ids"]), wanted["text_feat"], rtol=0, atol=3e-5)
    pixels = inputs["image"].float()
    torch.testing.assert_close(model.encode_image(pixels), wanted["image_feat"], rtol=0, atol=3e-5)
    rows = wanted["cross_fusion_rows"]
    scores = model.match(inputs["text_ids"][rows], pixels)
    torch.testing.assert_close(scores, wanted["itm_logits"][:, 1], rtol=0, atol=3e-5)


def test_texts_become_the_recorded_ids(shared_dir: Path, converted: dict[str, Path]) -> None:
    inputs = checkpoint(shared_dir, "ccrk_tiny_retrieval.pt")["fixture"]["inputs"]
    model = MultilingualCLIP.from_pretrained(converted["ccrk_tiny_retrieval"], device="cpu")
    model.tokenizer.max_tokens = 512  # the released fine-tuning does not cut
    assert torch.equal(model.tokenizer(inputs["texts"]), inputs["text_ids"])


def test_the_released_evaluation_is_repeated(shared_dir: Path, converted: dict[str, Path]) -> None:
    """Similarities, and matching logits of every pair that the released code has scored."""
    fixture = checkpoint(shared_dir, "ccrk_tiny_retrieval.pt")["fixture"]
    wanted = fixture["evaluation"]
    model = MultilingualCLIP.from_pretrained(converted["ccrk_tiny_retrieval"], device="cpu")
    pixels = (fixture["inputs"].get("pixels", fixture.get("pixels"))).float()
    image, text = model.encode_image(pixels), model.encode_text(wanted["text_ids"])
    torch.testing.assert_close(image @ text.T, torch.as_tensor(wanted["sims"]), rtol=0, atol=1e-5)
    columns, rows = np.nonzero(np.asarray(wanted["score_t2i"]).T > -100)
    got = model.match(wanted["text_ids"][torch.from_numpy(rows)], pixels[torch.from_numpy(columns)])
    expected = torch.as_tensor(np.asarray(wanted["score_t2i"])[rows, columns])
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-5)


def test_the_released_layout_comes_back(shared_dir: Path, converted: dict[str, Path], tmp_path: Path) -> None:
    """Every tensor of `checkpoint_best.pth`, buffers included; the token type is added into the positions."""
    source = str(converted["ccrk_tiny_retrieval"])
    assert convert(["ccrk-to-released", source, "--output", str(tmp_path / "out")]) == 0
    back = load_checkpoint(tmp_path / "out" / "checkpoint_best.pth")
    wanted = checkpoint(shared_dir, "ccrk_tiny_retrieval.pt")["model"]
    assert back["model"].keys() == wanted.keys()
    positions, types = (f"text_encoder.embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    for name, tensor in wanted.items():
        if name not in (positions, types):
            assert torch.equal(back["model"][name], tensor), name
    assert torch.equal(back["model"][positions], wanted[positions] + wanted[types])
    assert back["config"]["image_res"] == 160


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model"), "has no weights under `model`"),
        (lambda state: state["model"].pop("text_proj.weight"), "lacks text_proj.weight"),
        (lambda state: state["model"].update({"extra.weight": torch.zeros(2)}), "holds extra.weight, which CCRK does"),
        (lambda state: state["model"].update({"text_proj.weight": torch.zeros(16, 5)}), "is not a CCRK of these sizes"),
    ],
)
def test_other_files_are_refused_in_one_sentence(
    change: Any, message: str, shared_dir: Path, text_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoint(shared_dir, "ccrk_tiny_retrieval.pt")
    change(state)
    torch.save({name: state[name] for name in ("model", "config") if name in state}, tmp_path / "bad.pth")
    options = ["--text-encoder", str(text_files), "--head-dim", "8", "--output", str(tmp_path / "out")]
    assert convert(["ccrk", str(tmp_path / "bad.pth"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_head_width_that_does_not_divide_is_refused(
    shared_dir: Path, text_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(fixture_folder(shared_dir) / "ccrk_tiny.pt")
    assert convert(["ccrk", source, "--text-encoder", str(text_files), "--output", str(tmp_path / "out")]) == 2
    assert "--head-dim is 64; give a divisor of the text width 32" in capsys.readouterr().err
