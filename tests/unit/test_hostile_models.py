"""No downloaded model directory runs code, leads elsewhere, or claims more memory than its weights need."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.models.teacher import DualEncoderTeacher, ImageTransform
from mclip_fairseq.tasks.mte import MTETask
from tests import hostile
from tests.tiny_models import tiny_clip_directory
from tests.traps import TRAP, edit, evil_checkpoint, nothing_is_sprung, refused

_nothing_is_sprung = pytest.fixture(autouse=True)(nothing_is_sprung)

MODULE = f"from pathlib import Path\nPath({TRAP!r}).mkdir()\nclass Evil:\n    pass\n"
AUTO = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "evil.Evil")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tiny_clip_directory(tmp_path / "clip")
    (folder / "evil.py").write_text(MODULE)
    return folder


def evil_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="evil", auto_map=AUTO)


def evil_processor(folder: Path) -> None:
    processor = {"image_processor_type": "Evil", "processor_class": "Evil"}
    edit(folder / "preprocessor_config.json", **processor, auto_map=AUTO)


def evil_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def evil_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    evil_checkpoint(folder / "pytorch_model.bin", "zip")


def evil_sentence_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]))


def path_above(folder: Path) -> None:
    """A packed model that would be read from beside the directory."""
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "../clip", "type": "x.y"}]))


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(hostile.DEEP_JSON)


def deep_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(hostile.DEEP_JSON)


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def odd_config(folder: Path) -> None:
    edit(folder / "config.json", vision_config=3, text_config="x")


def many_layers(folder: Path) -> None:
    edit(folder / "config.json", text_config={"num_hidden_layers": 1 << 30})


def wide_layers(folder: Path) -> None:
    edit(folder / "config.json", vision_config={"hidden_size": 1 << 16, "intermediate_size": 1 << 18})


MODELS = (
    *(evil_model, evil_processor, evil_weights),
    *(evil_sentence_model, path_above, deep_config, deep_tokenizer, huge_header, odd_config, many_layers, wide_layers),
)


@pytest.mark.parametrize("damage", MODELS)
def test_model_directories_run_no_code(damage: Callable[[Path], None], clip: Path, tmp_path: Path) -> None:
    damage(clip)
    refused(lambda: MultilingualCLIP.from_pretrained(clip, device="cpu"))
    if damage not in (evil_sentence_model, path_above):
        assert str(clip) in refused(lambda: DualEncoderTeacher.from_pretrained(clip))


@pytest.mark.parametrize(
    "changes",
    [
        *({"size": {"shortest_edge": 16000}}, {"crop_size": {"height": 32, "width": 16000}}, {"size": 10**30}),
        {"size": {"height": 1e9, "width": 1e9}, "do_center_crop": False},
    ],
)
def test_a_processor_of_huge_pictures_is_refused_before_it_makes_one(
    changes: dict[str, Any], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(clip / "preprocessor_config.json", **changes)
    monkeypatch.setattr(ImageTransform, "__call__", lambda *a: pytest.fail("made before it was compared"))
    said = refused(lambda: DualEncoderTeacher.from_pretrained(clip))
    assert f"{clip}: its image processor has a " in said
    assert "size of 1" in said
    assert "but the model reads 32; restore the preprocessor_config.json" in said


def test_a_crop_that_is_switched_off_may_have_any_size(clip: Path) -> None:
    """transformers writes 224, its default, beside the size of a small model."""
    edit(clip / "preprocessor_config.json", crop_size={"height": 16000, "width": 16000}, do_center_crop=False)
    assert DualEncoderTeacher.from_pretrained(clip).image_size == 32


def test_a_tokenizer_of_another_model(clip: Path) -> None:
    file = clip / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["a</w>"] = 10**9
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    model = MultilingualCLIP.from_pretrained(clip, device="cpu")
    assert model.encode_text("b").isfinite().all()
    assert "clip: its tokenizer gives the id 1000000000, but the model has 514" in refused(
        lambda: model.encode_text("a")
    )


def test_a_tokenizer_without_words(clip: Path) -> None:
    file = clip / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "clip" in refused(lambda: MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a"))


@pytest.mark.parametrize("texts", [None, b"a dog", 3 * [None], ["a", "\ud800"], ["a", 7]])
def test_a_value_that_is_not_text_is_one_sentence(texts: Any, clip: Path) -> None:
    model = MultilingualCLIP.from_pretrained(clip, device="cpu")
    assert refused(lambda: model.encode_text(texts)).startswith("text ")


def test_a_tokenizer_of_another_class_runs_no_code(clip: Path) -> None:
    """What is at hand reads it, as if no code had been offered."""
    evil_tokenizer(clip)
    assert MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a dog").isfinite().all()


@pytest.mark.parametrize("base", ["evil", "odd", "deep", "weights", "large"])
def test_text_towers_run_no_code(base: str, clip: Path, tmp_path: Path) -> None:
    if base == "evil":
        evil_model(clip)
    else:
        edit(clip / "config.json", model_type="bert", hidden_size=8, num_attention_heads=2, intermediate_size=8)
    tower = tmp_path / "tower"
    tower.mkdir()
    config: dict[str, Any] = {"modelBase": "base", "imageDimSize": 8}
    (tower / "config.json").write_text(json.dumps(config | ({"imageDimSize": "many"} if base == "odd" else {})))
    if base == "deep":
        (tower / "config.json").write_bytes(hostile.DEEP_JSON)
    if base in ("weights", "large"):
        for file in clip.glob("*token*"):
            (tower / file.name).write_bytes(file.read_bytes())
    if base == "weights":
        evil_checkpoint(tower / "pytorch_model.bin", "zip")
    if base == "large":
        edit(clip / "config.json", vocab_size=1 << 40)
        (tower / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    shutil.copytree(clip, tower / "base")
    said = refused(lambda: MultilingualCLIP.from_pretrained(tower, device="cpu"))
    assert base != "large" or "transformer.embeddings.word_embeddings.weight" in said


def test_options_of_other_models_are_not_evaluated(tmp_path: Path) -> None:
    """fairseq builds whatever model a checkpoint names, and some evaluate strings of their options as Python."""
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

    cfg = Wav2Vec2Config(conv_feature_layers=f"__import__('pathlib').Path({TRAP!r}).mkdir()")
    with pytest.raises((TypeError, AssertionError)):  # the negative control: fairseq alone runs it
        Wav2Vec2Model(cfg)
    (tmp_path / TRAP).rmdir()
    task = object.__new__(MTETask)
    task.langs = ["en", "de"]
    options = Namespace(**(vars(cfg) | {"_name": "wav2vec2"}))
    said = refused(lambda: task.build_model(options, from_checkpoint=True))
    assert "holds a model 'wav2vec2', which is not of this project" in said


def test_yaml_of_hydra_builds_no_objects(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    (tmp_path / "x.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{TRAP}]\n")
    with pytest.raises(Exception, match="could not determine a constructor for the tag"):
        OmegaConf.load(tmp_path / "x.yaml")
