"""Models of other projects, from small directories of their published layouts."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.m_clip import base_config
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_loading import model_without_memory
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from tests.tiny_models import tiny_clip_directory, tiny_dual_encoder_directory

shield_torchaudio()
TEXTS = ["a red dog", "the house", "a"]


def save_base(folder: Path) -> Any:
    """A small XLM-R, its tokenizer of whole words in the folder; returns the model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "dog", "the", "house"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    return XLMRobertaModel(config).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip_directory(tmp_path_factory.mktemp("clip"), dim=16)


@pytest.fixture(scope="module")
def m_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """M-CLIP's layout: the base model's name in config.json, `transformer.*` and `LinearTransformation.*` weights."""
    folder = tmp_path_factory.mktemp("m-clip")
    base = save_base(folder)
    base.save_pretrained(folder / "base")
    linear = torch.nn.Linear(24, 16)
    state = {f"transformer.{name}": tensor for name, tensor in base.state_dict().items()}
    state |= {f"LinearTransformation.{name}": tensor for name, tensor in linear.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    config = {"model_type": "M-CLIP", "modelBase": "base", "transformerDimSize": 24, "imageDimSize": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def expected_m_clip(folder: Path, text: str) -> torch.Tensor:
    """The published formula, one sentence at a time, so without padding."""
    from transformers import AutoTokenizer, XLMRobertaModel

    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        states = XLMRobertaModel.from_pretrained(folder / "base").eval()(tokens).last_hidden_state
    return states.mean(1) @ state["LinearTransformation.weight"].T + state["LinearTransformation.bias"]


def test_m_clip(m_clip: Path, clip: Path) -> None:
    model = MultilingualCLIP.from_pretrained(m_clip, device="cpu", teacher=clip)
    expected = torch.cat([expected_m_clip(m_clip, text) for text in TEXTS])
    torch.testing.assert_close(model.encode_text(TEXTS, normalize=False), expected, rtol=1e-5, atol=1e-6)
    # Indexes and features on disk record this name: it outlives the class's.
    assert model.identity["text_encoder"]["architecture"] == "MCLIPText"
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        model.encode_image(pixels, normalize=False), DualEncoderTeacher.from_pretrained(clip).encode_image(pixels)
    )


def test_a_text_tower_alone_takes_features(m_clip: Path) -> None:
    model = MultilingualCLIP.from_pretrained(m_clip, device="cpu")
    assert model.encode_image_features(np.ones((2, 16), np.float32)).shape == (2, 16)
    with pytest.raises(ValueError, match="is a text tower; pass teacher="):
        model.encode_image(torch.zeros(1, 3, 32, 32))


def test_an_image_tower_of_another_width_is_refused(m_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts have 16 dimensions but the images of .* have 12"):
        MultilingualCLIP.from_pretrained(m_clip, device="cpu", teacher=tiny_clip_directory(tmp_path / "c", dim=12))


def test_the_base_model_is_not_chosen_by_the_config(
    m_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory elsewhere and a model of the Hub are neither read nor fetched, even where they exist."""
    folder = Path(shutil.copytree(m_clip, tmp_path / "m"))
    shutil.move(folder / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)

    def unexpected(*arguments: object) -> None:
        raise AssertionError(f"opens a connection to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", unexpected)
    for name in ("base", "../base", str(tmp_path / "base"), "someone/some-model", "."):
        (folder / "config.json").write_text(json.dumps({"modelBase": name, "imageDimSize": 16}))
        with pytest.raises(ValueError, match=r"names the base model .*, which is neither a folder in it nor one of"):
            MultilingualCLIP.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("xlm-roberta-base", 278),
        ("xlm-roberta-large", 560),
        ("sentence-transformers/LaBSE", 471),
        ("bert-base-multilingual-cased", 178),
        ("distilbert-base-multilingual-cased", 135),
    ],
)
def test_published_base_models_have_their_sizes(name: str, millions: int) -> None:
    model = model_without_memory(base_config("source", name), "source")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_weights_of_m_clip_are_all_used(m_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(m_clip, tmp_path / "m"))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["LinearTransformation.bias"]
    torch.save(state | {"novel": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"missing: LinearTransformation\.bias; unknown: novel"):
        MultilingualCLIP.from_pretrained(folder, device="cpu")


def test_sentence_transformers_pair(clip: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    base = save_base(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    word = Transformer(str(tmp_path / "base"))
    pooled = Pooling(24, pooling_mode="mean")
    written = library.SentenceTransformer(modules=[word, pooled, Dense(24, 16)], device="cpu")
    written.save_pretrained(str(tmp_path / "text"))
    model = MultilingualCLIP.from_pretrained(tmp_path / "text", device="cpu", teacher=clip)
    expected = torch.from_numpy(library.SentenceTransformer(str(tmp_path / "text"), device="cpu").encode(TEXTS))
    torch.testing.assert_close(model.encode_text(TEXTS, normalize=False), expected, rtol=1e-5, atol=1e-6)
    assert model.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 16)


def test_a_clip_packed_by_sentence_transformers(clip: Path, tmp_path: Path) -> None:
    """The layout of its clip-ViT-B-32: modules.json, and the model of `transformers` in a folder."""
    shutil.copytree(clip, tmp_path / "packed" / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "packed" / "modules.json").write_text(json.dumps([module]))
    (tmp_path / "packed" / "README.md").write_text("---\nlanguage:\n- en\n- de\n---\nA model.\n")
    plain, packed = (MultilingualCLIP.from_pretrained(path, device="cpu") for path in (clip, tmp_path / "packed"))
    assert torch.equal(plain.encode_text(TEXTS), packed.encode_text(TEXTS))
    assert packed.identity["teacher"] == plain.identity["teacher"] | {"name": "packed"}
    assert (packed.languages, plain.languages) == (["en", "de"], [])


def alt_clip(folder: Path) -> Path:
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessorPil

    save_base(folder)
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 9, "max_position_embeddings": 40, "project_dim": 20, "type_vocab_size": 1}
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    vision = {**small, "image_size": 32, "patch_size": 16, "projection_dim": 16}
    config = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    torch.manual_seed(0)
    AltCLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [alt_clip, tiny_clip_directory, tiny_dual_encoder_directory])
def test_dual_encoders_of_transformers(make: Any, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = make(tmp_path / "model")
    model = MultilingualCLIP.from_pretrained(folder, device="cpu")
    theirs, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = theirs.get_text_features(**inputs)
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    torch.testing.assert_close(model.encode_text(TEXTS, normalize=False), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="has an image tower of its own"):
        MultilingualCLIP.from_pretrained(folder, device="cpu", teacher=folder)


def test_an_xlmr_archive_compares_texts(shared_dir: Path) -> None:
    """The mean of the states of all tokens, independent of the rest of the batch; images are refused."""
    archive = shared_dir / "fixtures" / "xlmr_tiny"
    model = MultilingualCLIP.from_pretrained(archive, device="cpu")
    tokenizer = XLMRTokenizer(archive)
    encoder = XLMREncoder.from_checkpoint(archive, tokenizer.dictionary).eval()
    with torch.no_grad():
        expected = torch.stack([encoder(tokenizer(text))[0].mean(0) for text in TEXTS])
    torch.testing.assert_close(model.encode_text(TEXTS, normalize=False), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="is a text tower"):
        model.encode_image(torch.zeros(1, 3, 8, 8))
