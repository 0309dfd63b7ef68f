"""Published formats in and out: equal numbers, equal token ids, and no weight is lost silently."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.pieces import SENTENCEPIECE

SENTENCES = ["Hello a man is", "ein Hund läuft ！ schnell", "  odd   spaces\ttabs ", "Ünïcode ﬁ 東京", ""]


@pytest.fixture(scope="module")
def fixtures(shared_dir: Path) -> Path:
    return shared_dir / "fixtures"


@pytest.fixture(scope="module")
def recorded(fixtures: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_checkpoint(fixtures / "mclip_tiny.pt")["fixture"]
    return found


@pytest.fixture(scope="module")
def released(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released checkpoint as a directory."""
    output = tmp_path_factory.mktemp("released") / "mclip"
    arguments = [str(fixtures / "mclip_tiny.pt"), "--xlmr", str(fixtures / "xlmr_tiny"), "--output", str(output)]
    assert convert(["released", *arguments]) == convert(["released", *arguments]) == 0
    return output


def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def openai_weights(fixtures: Path) -> dict[str, Tensor]:
    """The CLIP inside the released checkpoint, under OpenAI's names."""
    state: dict[str, Tensor] = dict(load_checkpoint(fixtures / "clip_tiny.pt"))
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


# ------------------------------------------------------------------------------------------ the released checkpoint


@pytest.mark.parametrize("lang", ["en", "cs"])
def test_released_text_embeddings(released: Path, recorded: dict[str, Any], lang: str) -> None:
    model = MultilingualCLIP.from_pretrained(released, device="cpu")
    tokens = recorded["inputs"][f"text_tokens_{lang}"]
    expected = recorded["outputs"][f"text_embed_{lang}_norm"]
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=1e-5, atol=1e-6)
    # The same sentences, padded on the other side.
    right = torch.stack([torch.cat([row[row != 1], row[row == 1]]) for row in tokens])
    assert not torch.equal(right, tokens)
    torch.testing.assert_close(model.encode_text(right), expected, rtol=1e-5, atol=1e-6)


def test_released_image_embeddings(released: Path, recorded: dict[str, Any]) -> None:
    model = MultilingualCLIP.from_pretrained(released, device="cpu")
    found = model.encode_image(recorded["inputs"]["pixels"].float(), batch_size=2)
    torch.testing.assert_close(found, recorded["outputs"]["image_embed_norm"], rtol=1e-5, atol=1e-6)
    assert model.languages == ["en", "cs", "de"]
    assert model.logit_scale is not None
    assert float(model.logit_scale) == pytest.approx(18.174145, rel=1e-6)


def test_the_directory_holds_no_pickle_and_no_path(released: Path) -> None:
    names = {path.name for path in released.rglob("*") if path.is_file()}
    assert {path.rpartition(".")[2] for path in names} == {"json", "safetensors", "txt", "model", "py"}
    assert "/" not in (released / "config.json").read_text().replace("mclip_tiny/clip", "")


def test_resize_of_the_released_code_is_an_option(fixtures: Path, tmp_path: Path) -> None:
    arguments = [str(fixtures / "mclip_tiny.pt"), "--xlmr", str(fixtures / "xlmr_tiny"), "--resize", "48"]
    assert convert(["released", *arguments, "--output", str(tmp_path / "m")]) == 0
    processor = json.loads((tmp_path / "m" / "teacher" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 48}
    assert processor["crop_size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("encoder.dim_proj.weight"), "missing: c_projector.weight"),
        (lambda w: w.pop("encoder.encoder_adapter.1.fc1.bias"), "missing: x_projector.layers.1.fc1.bias"),
        (lambda w: w.update({"encoder.novel.weight": torch.zeros(1)}), "holds unknown weights: encoder.novel.weight"),
        (lambda w: w.pop("encoder.clip.visual.proj"), "missing: visual_projection.weight"),
        (
            lambda w: w.update({"encoder.dim_proj.weight": torch.zeros(48, 511)}),
            r"c_projector.weight \(48, 511\) instead of \(48, 512\)",
        ),
        (lambda w: w.clear(), "is not a checkpoint of the released mCLIP"),
    ],
)
def test_weights_that_differ_are_named(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    state = load_checkpoint(fixtures / "mclip_tiny.pt")
    damage(state["model"])
    torch.save(state, tmp_path / "bad.pt")
    arguments = [str(tmp_path / "bad.pt"), "--xlmr", str(fixtures / "xlmr_tiny"), "--output", str(tmp_path / "out")]
    assert convert(["released", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"short", "model.safetensors: cannot be read"),
        ("dict.txt", b"one 1\n", "dict.txt: is not the file that was written with the model"),
        ("sentencepiece.bpe.model", b"\n", "sentencepiece.bpe.model: is not the file that was written"),
        ("config.json", b"{", "config.json: cannot be read"),
    ],
)
def test_damaged_directories_are_refused(
    released: Path, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = copy(released, tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        MultilingualCLIP.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    "option",
    [
        *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_max_positions"),
        *("projector_layers", "projector_ffn_embed_dim", "teacher_dim"),
    ],
)
def test_sizes_beyond_those_of_the_weights_take_no_memory(released: Path, tmp_path: Path, option: str) -> None:
    folder = copy(released, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model"][option] = 1 << 24
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json: says {option} 16777216, but its weights have [0-9]+;"):
        MultilingualCLIP.from_pretrained(folder, device="cpu")


def test_image_processor_of_another_resolution_is_refused(released: Path, tmp_path: Path) -> None:
    folder = copy(released, tmp_path)
    file = folder / "teacher" / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings["crop_size"] = {"height": 64, "width": 64}
    file.write_text(json.dumps(settings))
    model = MultilingualCLIP.from_pretrained(folder, device="cpu")
    with pytest.raises(ValueError, match=r"64|32"):
        model.encode_image(torch.zeros(1, 3, 64, 64))


def test_features_of_another_width_are_refused(released: Path) -> None:
    model = MultilingualCLIP.from_pretrained(released, device="cpu")
    with pytest.raises(ValueError, match=r"features of shape \(2, 256\), but mclip takes \(images, 512\)"):
        model.encode_image_features(torch.zeros(2, 256))


def test_token_ids_of_another_dictionary_are_refused(released: Path) -> None:
    model = MultilingualCLIP.from_pretrained(released, device="cpu")
    with pytest.raises(ValueError, match="token id 104 is beyond the 104 entries"):
        model.encode_text(torch.tensor([[0, 104, 2]]))


# ------------------------------------------------------------------------------------------ CLIP under OpenAI's names


@pytest.mark.parametrize("layout", ["state dict", "below state_dict", "safetensors"])
def test_clip_state_dicts(fixtures: Path, tmp_path: Path, recorded: dict[str, Any], layout: str) -> None:
    weights = openai_weights(fixtures)
    file = tmp_path / ("clip.safetensors" if layout == "safetensors" else "clip.pt")
    if layout == "safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    else:
        torch.save(weights if layout == "state dict" else {"epoch": 3, "state_dict": OrderedDict(weights)}, file)
    assert convert(["clip", str(file), "--output", str(tmp_path / "clip")]) == 0
    shield_torchaudio()
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    with torch.no_grad():
        image = model.get_image_features(pixel_values=recorded["inputs"]["pixels"].float()).pooler_output
        text = model.get_text_features(input_ids=recorded["inputs"]["clip_ids"]).pooler_output
    torch.testing.assert_close(image, recorded["outputs"]["clip_image_cls"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(text, recorded["outputs"]["clip_text_feature"], rtol=1e-5, atol=2e-5)


def test_the_activation_matters(fixtures: Path, tmp_path: Path, recorded: dict[str, Any]) -> None:
    """open_clip's gelu gives other features: the option reaches the model."""
    torch.save(openai_weights(fixtures), tmp_path / "clip.pt")
    assert convert(["clip", str(tmp_path / "clip.pt"), "--activation", "gelu", "--output", str(tmp_path / "c")]) == 0
    from transformers import CLIPModel

    with torch.no_grad():
        features = CLIPModel.from_pretrained(tmp_path / "c").get_image_features(
            pixel_values=recorded["inputs"]["pixels"].float()
        )
    assert (features.pooler_output - recorded["outputs"]["clip_image_cls"]).abs().max() > 1e-3


def test_open_clip_configuration_is_read(fixtures: Path, tmp_path: Path) -> None:
    torch.save(openai_weights(fixtures), tmp_path / "open_clip_pytorch_model.bin")
    config = {"model_cfg": {"vision_cfg": {"head_width": 32}}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert convert(["clip", str(tmp_path / "open_clip_pytorch_model.bin"), "--output", str(tmp_path / "c")]) == 0
    vision = json.loads((tmp_path / "c" / "config.json").read_text())["vision_config"]
    assert (vision["hidden_act"], vision["num_attention_heads"]) == ("gelu", 2)
    pixels = json.loads((tmp_path / "c" / "preprocessor_config.json").read_text())
    assert (pixels["image_mean"], pixels["image_std"]) == ([0.5] * 3, [0.25] * 3)


class Archive(torch.nn.Module):
    """A module that holds tensors under OpenAI's names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in weights.items():
            module: torch.nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_torchscript_is_read_only_when_trusted(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ViT.pt"
    torch.jit.trace(Archive(openai_weights(fixtures)), torch.zeros(1)).save(str(file))
    assert convert(["clip", str(file), "--output", str(tmp_path / "clip")]) == 2
    assert "is a TorchScript archive, which can run code when it is read; pass --trust" in capsys.readouterr().err
    assert convert(["clip", str(file), "--trust", "--output", str(tmp_path / "clip")]) == 0
    assert (tmp_path / "clip" / "model.safetensors").is_file()


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for state, message in (
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "it lacks visual.conv1.weight, visual.attnpool"),
        ({"weight": torch.zeros(1)}, "is not a CLIP under OpenAI's names; it lacks visual.conv1.weight"),
    ):
        torch.save(state, tmp_path / "clip.pt")
        assert convert(["clip", str(tmp_path / "clip.pt"), "--output", str(tmp_path / "clip")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "clip.pt").write_bytes(b"\x80truncated")
    assert convert(["clip", str(tmp_path / "clip.pt"), "--output", str(tmp_path / "clip")]) == 2
    assert "is not a checkpoint written by torch.save, or is damaged" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ XLM-R


@pytest.fixture(scope="module")
def both_ways(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """fairseq's archive as a `transformers` directory, and that as an archive again."""
    folder = tmp_path_factory.mktemp("xlmr")
    there, back = folder / "transformers", folder / "fairseq"
    command = ["xlmr-to-transformers", str(fixtures / "xlmr_tiny"), "--output", str(there)]
    assert convert(command) == convert(command) == 0
    assert convert(["xlmr-to-fairseq", str(there), "--output", str(back)]) == 0
    return there, back


def test_token_ids_are_the_same(fixtures: Path, both_ways: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(both_ways[0]), XLMRTokenizer(fixtures / "xlmr_tiny")
    assert theirs(SENTENCES, padding=True)["input_ids"] == ours(SENTENCES).tolist()
    assert theirs.mask_token_id == ours.dictionary.index("<mask>") == len(ours.dictionary) - 1
    assert XLMRTokenizer(both_ways[1])(SENTENCES).tolist() == ours(SENTENCES).tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_are_the_same(fixtures: Path, both_ways: tuple[Path, Path], side: str) -> None:
    from transformers import AutoModelForMaskedLM

    tokenizer = XLMRTokenizer(fixtures / "xlmr_tiny")
    tokens = tokenizer(SENTENCES)
    if side == "left":
        tokens = torch.stack([torch.cat([row[row == 1], row[row != 1]]) for row in tokens])
    real = tokens.ne(1)
    theirs = AutoModelForMaskedLM.from_pretrained(both_ways[0]).eval()
    with torch.no_grad():
        expected = XLMREncoder.from_checkpoint(fixtures / "xlmr_tiny", tokenizer.dictionary).eval()(tokens)
        found = theirs.roberta(tokens, attention_mask=real.long()).last_hidden_state
        again = XLMREncoder.from_checkpoint(both_ways[1], tokenizer.dictionary).eval()(tokens)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again[real], expected[real], rtol=1e-5, atol=1e-5)


def test_token_type_embeddings_are_kept(fixtures: Path, both_ways: tuple[Path, Path], tmp_path: Path) -> None:
    """fairseq has none: a token type that is not zero is added to the positions."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(both_ways[0]).eval()
    model.roberta.embeddings.token_type_embeddings.weight.data.uniform_(-1, 1)
    model.save_pretrained(tmp_path / "typed")
    shutil.copyfile(both_ways[0] / SENTENCEPIECE, tmp_path / "typed" / SENTENCEPIECE)
    assert convert(["xlmr-to-fairseq", str(tmp_path / "typed"), "--output", str(tmp_path / "archive")]) == 0
    tokenizer = XLMRTokenizer(tmp_path / "archive")
    tokens = tokenizer(["a man is"])
    with torch.no_grad():
        expected = model.roberta(tokens).last_hidden_state
        found = XLMREncoder.from_checkpoint(tmp_path / "archive", tokenizer.dictionary).eval()(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_dictionary_in_another_order_is_refused(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(fixtures / "xlmr_tiny", tmp_path)
    lines = (folder / "dict.txt").read_text().splitlines()
    (folder / "dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    assert convert(["xlmr-to-transformers", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "dict.txt, line 1: is 'e' where sentencepiece.bpe.model has '▁'" in capsys.readouterr().err


def test_enhanced_encoder_alone(fixtures: Path, tmp_path: Path) -> None:
    """Stock fairseq refuses the released file, which lacks bookkeeping, but reads the archive."""
    from fairseq.models.roberta import XLMRModel

    source, archive = fixtures / "mte_tiny_extracted.pt", tmp_path / "archive"
    arguments = [str(source), "--xlmr", str(fixtures / "xlmr_tiny"), "--output", str(archive)]
    assert convert(["encoder", *arguments]) == 0
    hub = XLMRModel.from_pretrained(str(archive), bpe=None).eval()
    tokenizer = XLMRTokenizer(archive)
    tokens = tokenizer(SENTENCES)
    with torch.no_grad():
        expected = XLMREncoder.from_checkpoint(source, tokenizer.dictionary).eval()(tokens)
        found = hub.extract_features(tokens)
    torch.testing.assert_close(found[tokens.ne(1)], expected[tokens.ne(1)], rtol=1e-5, atol=1e-5)


def test_other_checkpoints_are_not_translation_models(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--xlmr", str(fixtures / "xlmr_tiny"), "--output", str(tmp_path / "out")]
    assert convert(["translation", str(fixtures / "mclip_tiny.pt"), *arguments]) == 2
    assert "is not a translation model of the released mCLIP" in capsys.readouterr().err
    assert convert(["encoder", str(fixtures / "clip_tiny.pt"), *arguments]) == 2
    assert "has no model options" in capsys.readouterr().err
