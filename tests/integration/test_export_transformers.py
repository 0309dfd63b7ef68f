"""Exported directories in `transformers` and `tokenizers`: the same ids and the same vectors, by their own loaders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.export.card import CardFacts, model_card
from mclip_fairseq.export.directory import save_directory
from mclip_fairseq.export.tokenizer_json import write_tokenizer_json
from mclip_fairseq.storage.staging import staged
from tests.hostile_texts import HOSTILE

TEXTS = ["a dog", "ein Hund </s> am Strand", "<pad>", ""]
LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "exported"


@pytest.fixture(scope="module")
def model() -> MultilingualCLIP:
    return MultilingualCLIP.from_pretrained(LEGACY, device="cpu")


@pytest.fixture(scope="module")
def exported(model: MultilingualCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    save_directory(model.tower, folder)
    return folder


@pytest.fixture(scope="module")
def auto(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `AutoModel` and `AutoTokenizer` load."""
    from transformers import AutoModel, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    return AutoModel.from_pretrained(exported, **options), AutoTokenizer.from_pretrained(exported, **options)


def differing(tokenizer: XLMRTokenizer, folder: Path) -> list[str]:
    """Texts that `tokenizers` or `transformers` read differently."""
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    pad, wrong = tokenizer.dictionary.pad(), []
    for text in HOSTILE:
        ours = [number for number in tokenizer([text])[0].tolist() if number != pad]
        if raw.encode(text).ids != ours or auto(text, truncation=True)["input_ids"] != ours:
            wrong.append(text)
    return wrong


def test_hostile_texts_have_our_ids_with_a_small_vocabulary(model: MultilingualCLIP, exported: Path) -> None:
    assert len(set(HOSTILE)) >= 100
    assert differing(model.tokenizer, exported) == []


@pytest.mark.slow
def test_hostile_texts_have_our_ids_with_that_of_xlmr(shared_dir: Path, tmp_path: Path) -> None:
    tokenizer = XLMRTokenizer(shared_dir / "data" / "xlmr_tokenizer", max_tokens=77)
    assert write_tokenizer_json(tokenizer, tmp_path)
    assert differing(tokenizer, tmp_path) == []


def test_no_file_is_written_whose_ids_would_differ(exported: Path, tmp_path: Path) -> None:
    """Pieces that a dictionary lacks are `<unk>`, which `tokenizer.json` cannot say."""
    shutil.copyfile(exported / "sentencepiece.bpe.model", tmp_path / "sentencepiece.bpe.model")
    lines = (exported / "dict.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "dict.txt").write_text("".join(lines[:-3]), encoding="utf-8")
    assert not write_tokenizer_json(XLMRTokenizer(tmp_path), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_auto_classes_give_our_vectors(model: MultilingualCLIP, exported: Path, auto: Any) -> None:
    from transformers import AutoImageProcessor

    loaded, tokenizer = auto
    processor: Any = AutoImageProcessor.from_pretrained(exported, local_files_only=True)
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "teal")]
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = loaded(**inputs, **processor(pictures, return_tensors="pt"))
    torch.testing.assert_close(output.text_embeds, model.encode_text(TEXTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.image_embeds, model.encode_image(pictures), rtol=0, atol=1e-5)
    assert model.logit_scale is not None
    cosines = model.encode_image(pictures) @ model.encode_text(TEXTS).T
    torch.testing.assert_close(output.logits_per_image, model.logit_scale * cosines, rtol=0, atol=1e-3)
    assert loaded(**inputs).image_embeds is None


def test_the_zero_shot_pipeline_runs(model: MultilingualCLIP, auto: Any, exported: Path) -> None:
    from transformers import AutoImageProcessor, ZeroShotImageClassificationPipeline

    loaded, tokenizer = auto
    processor: Any = AutoImageProcessor.from_pretrained(exported, local_files_only=True)
    pipeline: Any = ZeroShotImageClassificationPipeline(model=loaded, tokenizer=tokenizer, image_processor=processor)
    picture, labels = Image.new("RGB", (40, 30), "red"), ["dog", "Hund", "chat"]
    scores = {row["label"]: row["score"] for row in pipeline(picture, labels, hypothesis_template="{}")}
    cosines = model.encode_image([picture]) @ model.encode_text(labels).T
    assert model.logit_scale is not None
    expected = (model.logit_scale * cosines).softmax(dim=1)[0]
    torch.testing.assert_close(torch.tensor([scores[label] for label in labels]), expected, rtol=0, atol=1e-4)


def test_saving_again_gives_the_same_model(model: MultilingualCLIP, auto: Any, tmp_path: Path) -> None:
    auto[0].save_pretrained(tmp_path / "again")
    assert MultilingualCLIP.from_pretrained(tmp_path / "again", device="cpu").fingerprint == model.fingerprint


def test_weights_say_their_format_and_files_have_ordinary_modes(exported: Path, tmp_path: Path) -> None:
    with safe_open(exported / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    with staged(tmp_path / "new") as folder:
        (folder / "made").write_text("")
    expected = (tmp_path / "new" / "made").stat().st_mode
    assert {file.stat().st_mode for file in exported.rglob("*") if file.is_file()} == {expected}


def test_the_card_holds_the_results_as_a_model_index(model: MultilingualCLIP) -> None:
    from huggingface_hub import ModelCard

    rows = {name: {"t2i_R@1": 40.25, "mean_recall": 60.5, "ties": 0} for name in ("en", "de")}
    about = {
        "model": {"identity": model.identity},
        "protocol": "strict",
        "command": "x",
        "average": {"all": rows["en"]},
    }
    card = ModelCard(model_card(model.tower, CardFacts("m", reports=[about | {"results": rows, "benchmark": "own"}])))
    data: Any = card.data
    results = data.eval_results
    assert results is not None
    found = {(row.dataset_name, row.dataset_type, row.metric_type, row.metric_value) for row in results}
    expected = {
        (name, "own", metric, row[metric]) for name, row in rows.items() for metric in ("t2i_R@1", "mean_recall")
    }
    assert found == expected
