"""Published MLA files, read and written, and the view of one language."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.export.mla import load_published, save_directory, save_published
from mclip_fairseq.formats.mla import merge_published, round_as_released, split_published
from mclip_fairseq.storage.errors import UserError
from tests.mla_fixture import build, load
from tests.tiny_models import tiny_clip_directory, tiny_wordpiece

VOCABULARY = "fixtures/mla/data_example/pretrained_model/bert-base-multilingual-cased/vocab.txt"
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 2e-5}


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> dict[str, Any]:
    return load(shared_dir)


@pytest.fixture(scope="module")
def checkpoint(fixture: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released state dict as a file."""
    file = tmp_path_factory.mktemp("published") / "pytorch_model.bin.1"
    torch.save(fixture["model"], file)
    return file


@pytest.fixture(scope="module")
def directory(checkpoint: Path, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mclip-convert mla` makes of it."""
    folder = tmp_path_factory.mktemp("converted") / "mla"
    save_directory(load_published(checkpoint, None, shared_dir / VOCABULARY), folder)
    return folder


def test_a_converted_checkpoint_encodes_as_the_released_code(directory: Path, fixture: dict[str, Any]) -> None:
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    assert model.languages == ["en", "de", "fr", "zh"]
    images = model.encode_image(fixture["inputs"]["pixels"], normalize=False)
    expected = torch.nn.functional.normalize(fixture["outputs"]["image_features"], dim=1)
    torch.testing.assert_close(images, expected, **CLOSE)
    for lang in ("de", "fr", "zh"):
        texts = model.for_language(lang).encode_text(fixture["inputs"]["texts"][lang])
        expected = torch.nn.functional.normalize(fixture["outputs"][f"text_features_{lang}"], dim=1)
        torch.testing.assert_close(texts, expected, **CLOSE)
    assert float(model.logit_scale or 0) == 100.0


def test_a_model_with_text_paths_wants_a_language(directory: Path) -> None:
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    with pytest.raises(UserError, match=r"name one with for_language, of en, de, fr, zh"):
        model.encode_text(["ein Hund"])
    with pytest.raises(UserError, match="does not have the language 'ja'; it has en, de, fr, zh"):
        model.for_language("ja")
    with pytest.raises(UserError, match="has no tokenizer to read en"):
        model.for_language("en").encode_text(["a dog"])
    german = MultilingualCLIP.from_pretrained(directory, device="cpu", language="de")
    assert torch.equal(german.encode_text(["ein test"]), model.for_language("de").encode_text(["ein test"]))
    assert not torch.equal(german.encode_text(["ein test"]), model.for_language("fr").encode_text(["ein test"]))
    with pytest.raises(UserError, match="is beyond the 160 entries of the vocabulary of de"):
        german.encode_text(torch.tensor([[101, 160, 102]]))


def test_views_in_threads_do_not_disturb_each_other(directory: Path, fixture: dict[str, Any]) -> None:
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    texts = fixture["inputs"]["texts"]
    alone = {lang: model.for_language(lang).encode_text(texts[lang]) for lang in ("de", "fr", "zh")}
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            jobs = {lang: pool.submit(model.for_language(lang).encode_text, texts[lang]) for lang in alone}
            for lang, job in jobs.items():
                assert torch.equal(job.result(), alone[lang])


def test_the_body_of_one_file_takes_the_acquirers_of_another(fixture: dict[str, Any]) -> None:
    """inference.sh's merge: what the released code loads by substrings of names."""
    other = {name: tensor + 1 for name, tensor in fixture["model"].items()}
    merged = merge_published(fixture["model"], other)
    replaced = {name for name, tensor in merged.items() if torch.equal(tensor, other[name])}
    assert replaced == set(fixture["keys"]["acquirer_ckpt_loads"])
    assert merged.keys() == fixture["model"].keys()


def test_rounding_is_that_of_the_released_loader(fixture: dict[str, Any]) -> None:
    keys, third = fixture["keys"], 1 / 3
    state = {name: torch.full_like(tensor, third, dtype=torch.float32) for name, tensor in fixture["model"].items()}
    rounded = {name for name, tensor in round_as_released(state).items() if not torch.equal(tensor, state[name])}
    listed = set(keys["rounded_to_half_when_loaded_as_clip_ckpt"])
    linear = {"multilingual_embedding_linear.weight", "multilingual_embedding_linear.bias"}
    assert rounded == listed | linear
    assert not rounded & set(keys["exact_when_loaded_as_clip_ckpt"])


def test_what_is_written_back_is_what_was_read(
    directory: Path, fixture: dict[str, Any], shared_dir: Path, tmp_path: Path
) -> None:
    tower = MultilingualCLIP.from_pretrained(directory, device="cpu").tower
    save_published(tower, tmp_path / "back.bin")
    back = torch.load(tmp_path / "back.bin", weights_only=True)
    given = {name: tensor for name, tensor in fixture["model"].items() if ".ln." not in name}
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(back[name], tensor.float()), name


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("multilingual_embedding.weight", "lacks multilingual_embedding.weight"),
        ("transformer.resblocks.0.acquirer.de.mlp.c_fc.weight", "lacks the acquirer of the first layer"),
        ("transformer.resblocks.1.acquirer.de.mlp.c_fc.bias", "do not fit its weights"),
        ("visual.proj", "visual.proj"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(missing: str, message: str, fixture: dict[str, Any]) -> None:
    state = {name: tensor for name, tensor in fixture["model"].items() if name != missing}
    with pytest.raises(UserError, match=message):
        build(state)


def test_a_clip_without_acquirers_is_refused(fixture: dict[str, Any]) -> None:
    plain = {name: tensor for name, tensor in fixture["model"].items() if "acquirer" not in name}
    with pytest.raises(UserError, match="lacks acquirers with a language"):
        split_published(plain, "clip.pt")


def test_a_foreign_vocabulary_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = tiny_wordpiece(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"token ids ending with 3, but the model reads 160 ending with 3"):
        load_published(checkpoint, None, vocabulary)


def test_a_directory_with_other_sizes_is_refused(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mla"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["acquirer_dim"] = 4096
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="says acquirer_dim 4096, but its weights have 40"):
        MultilingualCLIP.from_pretrained(copy, device="cpu")


def test_the_commands_convert_there_and_back(
    checkpoint: Path, shared_dir: Path, fixture: dict[str, Any], tmp_path: Path
) -> None:
    acquirers = tmp_path / "other.bin"
    torch.save({name: tensor.half() for name, tensor in fixture["model"].items()}, acquirers)
    common = [str(checkpoint), "--acquirers", str(acquirers), "--vocabulary", str(shared_dir / VOCABULARY)]
    assert convert(["mla", *common, "--output", str(tmp_path / "mla")]) == 0
    model = MultilingualCLIP.from_pretrained(tmp_path / "mla", device="cpu", language="fr")
    texts = model.encode_text(fixture["inputs"]["texts"]["fr"])
    expected = torch.nn.functional.normalize(fixture["outputs"]["text_features_fr"], dim=1)
    torch.testing.assert_close(texts, expected, **CLOSE)  # the fixture's weights are exact in half
    assert convert(["mla-to-published", str(tmp_path / "mla"), "--output", str(tmp_path / "back")]) == 0
    back = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert torch.equal(back["visual.proj"], fixture["model"]["visual.proj"].float())


def test_other_models_are_not_written_in_the_published_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tiny_clip_directory(tmp_path / "clip")
    assert convert(["mla-to-published", str(clip), "--output", str(tmp_path / "back")]) == 2
    assert "is not an mla" in capsys.readouterr().err
