"""A model directory that came from elsewhere names no other model, file or directory that is then read or fetched."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors import safe_open

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.models import teacher_loading
from mclip_fairseq.models.mla_parts import word_embeddings
from mclip_fairseq.models.teacher_loading import load_dual_encoder
from mclip_fairseq.models.transformers_encoder import described
from mclip_fairseq.models.vision.swin import load_swin
from mclip_fairseq.storage.self_contained import check_self_contained
from tests.tiny_models import tiny_clip_directory
from tests.traps import edit, refused

Change = Callable[[Path], None]
SENTENCE = "sentence_bert_config.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clip/`, and `elsewhere/`, where everything that the directories below name exists."""
    folder = tmp_path_factory.mktemp("models")
    tiny_clip_directory(folder / "clip")
    tiny_clip_directory(folder / "elsewhere", seed=1)
    (folder / "elsewhere/tokenizer.4.0.json").write_bytes((folder / "elsewhere/tokenizer.json").read_bytes())
    (folder / "elsewhere/config.4.0.json").write_bytes((folder / "elsewhere/config.json").read_bytes())
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*arguments: object) -> None:
        pytest.fail(f"opens a connection to {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", unexpected)
    monkeypatch.setattr(socket.socket, "connect", unexpected)


@pytest.fixture
def clip(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change, in a working directory with the same neighbour."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clip"


def shards_in(place: str) -> Change:
    """All weights are in one shard."""

    def change(folder: Path) -> None:
        with safe_open(folder / "model.safetensors", "pt") as weights:
            names = list(weights.keys())
        shutil.move(folder / "model.safetensors", folder / "shard.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def changes(name: str, **entries: Any) -> Change:
    return lambda folder: edit(folder / name, **entries)


def adapter(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path=str(folder.parent / "elsewhere"), peft_type="LORA")


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()


def absolute_shard(folder: Path) -> None:
    shards_in(str(folder.parent / "elsewhere/model.safetensors"))(folder)


LEADING_OUT = {
    "adapter": (adapter, "adapter_config.json: is of an adapter"),
    "adapter without config": (adapter_alone, "adapter_config.json: is of an adapter"),
    "shard above": (shards_in("../elsewhere/model.safetensors"), "weight_map names '../elsewhere/model.safetensors'"),
    "shard below and above": (shards_in("x/../../elsewhere/model.safetensors"), "weight_map names 'x/../../elsewhere"),
    "absolute shard": (absolute_shard, "weight_map names '/"),
    "tokenizer": (
        changes("tokenizer_config.json", fast_tokenizer_files=["../elsewhere/tokenizer.4.0.json"]),
        "fast_tokenizer_files names '../elsewhere/tokenizer.4.0.json'",
    ),
    "configuration": (
        changes("config.json", configuration_files=["config.4.0/../../elsewhere/config.4.0.json"]),
        "configuration_files names 'config.4.0/../../elsewhere/config.4.0.json'",
    ),
    "backbone": (changes("config.json", model_type="detr", backbone="user/repo"), "backbone names 'user/repo'"),
    "backbone of a part": (
        changes("config.json", vision_config={"model_type": "detr", "backbone": "elsewhere"}),
        "backbone names 'elsewhere'",
    ),
    "kernel": (changes("config.json", attn_implementation="user/kernel"), "attn_implementation names 'user/kernel'"),
}


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Puts a copy of a directory into the Hub's cache, as `user/repo`; nothing is downloaded."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def publish(folder: Path) -> str:
        repository = cache / "models--user--repo"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("0" * 40)
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        return "user/repo"

    return publish


@pytest.mark.parametrize("kind", LEADING_OUT)
def test_a_repository_of_the_hub_is_refused_like_a_directory(kind: str, clip: Path, hub: Callable[[Path], str]) -> None:
    change, reason = LEADING_OUT[kind]
    change(clip)
    said = refused(lambda: check_self_contained(clip))
    name = hub(clip)
    assert refused(lambda: check_self_contained(name)) == said.replace(str(clip), name)
    for load in (load_swin, word_embeddings, teacher_loading.load_tokenizer, load_dual_encoder):
        assert reason in refused(lambda load=load: load(name))  # type: ignore[misc]
    assert teacher_loading.load_settings(name) is None


def test_a_sound_repository_of_the_hub_is_read(clip: Path, hub: Callable[[Path], str]) -> None:
    files = load_dual_encoder(hub(clip))
    assert (files.name, files.revision) == ("user/repo", "0" * 40)


@pytest.mark.parametrize("kind", LEADING_OUT)
def test_a_dual_encoder_that_leads_out_is_refused(kind: str, clip: Path) -> None:
    change, reason = LEADING_OUT[kind]
    change(clip)
    said = refused(lambda: MultilingualCLIP.from_pretrained(clip, device="cpu"))
    assert said.startswith(f"{clip}/")
    assert reason in said
    # Whoever else reads such directories refuses them too.
    assert said == refused(lambda: word_embeddings(str(clip)))
    assert said == refused(lambda: load_swin(str(clip)))
    assert said == refused(lambda: teacher_loading.load_tokenizer(str(clip)))
    assert teacher_loading.load_settings(clip) is None


def test_the_negative_control_weights_from_elsewhere_would_be_read(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_loading, "check_self_contained", lambda *source: None)
    other = MultilingualCLIP.from_pretrained(clip.parent / "elsewhere", device="cpu").encode_text("a dog")
    shards_in("../elsewhere/model.safetensors")(clip)
    assert torch.equal(MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a dog"), other)


HARMLESS = {
    "own shard": shards_in("shard.safetensors"),
    "name": changes("config.json", _name_or_path="../elsewhere"),
    "name on the Hub": changes("config.json", _name_or_path="user/repo"),
    "code on the Hub": changes("config.json", auto_map=dict.fromkeys(("AutoConfig", "AutoModel"), "u/r--module.Class")),
    "code of a tokenizer": changes("tokenizer_config.json", auto_map={"AutoTokenizer": ["u/r--module.Class", None]}),
    "files of a tokenizer": changes(
        "tokenizer_config.json",
        **dict.fromkeys(("vocab_file", "tokenizer_file", "special_tokens_map_file"), "../elsewhere/tokenizer.json"),
        name_or_path="../elsewhere",
    ),
    "attention": changes("config.json", attn_implementation="eager"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_entries_that_nothing_follows_change_nothing(kind: str, clip: Path) -> None:
    """Published directories are full of them."""
    expected = MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a dog")
    for file in (clip.parent / "elsewhere").iterdir():
        file.write_bytes(b"damaged")
    HARMLESS[kind](clip)
    found = MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a dog")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def modules(folder: Path, path: str) -> None:
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": path, "type": "x.y"}]))


SENTENCE_MODELS: dict[str, tuple[Change, str]] = {
    "module above": (lambda folder: modules(folder, "../elsewhere"), "modules.json: path names '../elsewhere'"),
    "adapter": (adapter, "is of an adapter"),
    "tokenizer": (changes(SENTENCE, tokenizer_name_or_path="elsewhere"), "tokenizer_name_or_path names 'elsewhere'"),
    "file of a tokenizer": (
        changes(SENTENCE, tokenizer_args={"tokenizer_file": "elsewhere.json"}),
        "tokenizer_args.tokenizer_file names 'elsewhere.json'",
    ),
    "weights": (changes(SENTENCE, model_args={"gguf_file": "../x"}), "model_args.gguf_file names '../x'"),
    "configuration": (
        changes(SENTENCE, config_kwargs={"_configuration_file": "/x"}),
        "config_kwargs._configuration_file names '/x'",
    ),
    "nested": (changes(SENTENCE, model_args={"a": {"b": ["user/repo", {"c": "u/r"}]}}), "model_args.c names 'u/r'"),
    "in a folder": (changes(f"2_Dense/{SENTENCE}", tokenizer_name_or_path="x"), "tokenizer_name_or_path names 'x'"),
}


@pytest.mark.parametrize("kind", SENTENCE_MODELS)
def test_a_sentence_model_that_leads_out_is_refused(kind: str, clip: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (clip / "config.json").write_text('{"model_type": "bert"}')
    (clip / "2_Dense").mkdir()
    modules(clip, "")
    change, reason = SENTENCE_MODELS[kind]
    change(clip)
    assert reason in refused(lambda: MultilingualCLIP.from_pretrained(clip, device="cpu"))


def test_ordinary_settings_of_a_sentence_model(tmp_path: Path) -> None:
    edit(
        tmp_path / SENTENCE,
        max_seq_length=128,
        do_lower_case=False,
        tokenizer_name_or_path=None,
        model_args={"dtype": "bfloat16", "attn_implementation": "sdpa", "add_pooling_layer": False},
        tokenizer_args={"padding_side": "left"},
    )
    (tmp_path / "modules.json").write_text('[{"idx": 0, "path": "1_Pooling"}, 3, {"path": null}]')
    (tmp_path / "config.json").write_text('["not", "an object"]')
    (tmp_path / "tokenizer_config.json").write_text("not JSON")
    check_self_contained(tmp_path)
    check_self_contained("user/repo")


def test_a_description_in_a_checkpoint_names_no_backbone() -> None:
    assert "backbone names 'user/repo'" in refused(lambda: described('{"model_type": "detr", "backbone": "user/repo"}'))
