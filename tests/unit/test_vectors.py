"""Shorter vectors, fewer bits, similarity, classification, and several devices, on a tiny CLIP and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.encoding.devices import encode_in_shares
from mclip_fairseq.encoding.vectors import Precision, check_form, finish, quantize, similarity
from mclip_fairseq.storage.errors import UserError
from tests.tiny_models import tiny_clip_directory

TEXTS = ["ein Hund", "", "a red cat on a small house", "x", "une maison bleue", "ein Hund", "浜辺の犬"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip_directory(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MultilingualCLIP:
    return MultilingualCLIP.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40, 30 + n, 3), dtype=np.uint8) for n in range(5)]


def test_quantised_by_hand() -> None:
    rows = torch.tensor([[0.5, -1.0, 0.25, 0.0, 2.0, -2.0, 0.001, -0.001]])
    assert quantize(rows, "int8").tolist() == [[32, -64, 16, 0, 127, -127, 0, 0]]
    assert quantize(rows, "uint8").tolist() == [[160, 64, 144, 128, 255, 1, 128, 128]]
    assert quantize(rows, "ubinary").tolist() == [[0b10101010]]
    assert quantize(rows, "binary").tolist() == [[0b10101010 - 128]]
    types: dict[Precision, torch.dtype] = {"int8": torch.int8, "uint8": torch.uint8, "binary": torch.int8}
    assert {name: quantize(rows, name).dtype for name in types} == types
    assert quantize(torch.zeros(1, 8), "int8").tolist() == [[0] * 8]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("int8", 0.02), ("uint8", 0.02)])
def test_similarities_are_cosines(precision: Precision, tolerance: float) -> None:
    a, b = torch.randn(5, 32), torch.randn(7, 32) * 3
    expected = F.cosine_similarity(a[:, None], b[None], dim=2)
    found = similarity(quantize(a, precision), quantize(b, precision), precision)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert similarity(quantize(a, precision)[0], quantize(b, precision).numpy(), precision).shape == (1, 7)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_that_agree(precision: Precision) -> None:
    a, b = torch.randn(5, 32), torch.randn(7, 32)
    expected = 1 - 2 * (a[:, None].gt(0) != b[None].gt(0)).float().mean(dim=2)
    found = similarity(quantize(a, precision), quantize(b, precision), precision)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_truncated_vectors_are_normalised_again() -> None:
    rows = torch.randn(3, 16)
    torch.testing.assert_close(finish(rows, 4, True, "float32"), F.normalize(rows[:, :4], dim=1))
    assert torch.equal(finish(rows, 4, False, "float32"), rows[:, :4])
    assert finish(rows, 8, True, "binary").shape == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((17, "float32"), "truncate_dim 17: give 1 to 16"),
        ((0, "float32"), "truncate_dim 0: give 1 to 16"),
        ((None, "int4"), "precision 'int4' is unknown; give one of float32, int8"),
        ((12, "binary"), "precision 'binary' packs 8 dimensions into a byte, and 12 is"),
    ],
)
def test_a_form_that_vectors_do_not_have(arguments: tuple[int | None, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_form(*arguments, 16)


@pytest.mark.parametrize(
    ("first", "second", "precision"),
    [
        (torch.ones(2, 8), torch.ones(2, 9), "float32"),
        (torch.ones(2, 8, dtype=torch.int8), torch.ones(2, 8, dtype=torch.int8), "float32"),
        (torch.ones(2, 8), torch.ones(2, 8), "int8"),
        (torch.ones(2, 8), torch.ones(2, 8, dtype=torch.int8), "float32"),
    ],
)
def test_what_cannot_be_compared(first: Any, second: Any, precision: Precision) -> None:
    with pytest.raises(UserError):
        similarity(first, second, precision)


def test_forms_of_a_model(model: MultilingualCLIP, images: list[np.ndarray]) -> None:
    texts, pictures = model.encode_text(TEXTS), model.encode_image(images)
    torch.testing.assert_close(model.similarity(texts, pictures), texts @ pictures.T)
    assert torch.equal(model.encode_text(TEXTS, precision="int8"), quantize(texts, "int8"))
    assert torch.equal(model.encode_image(images, precision="binary"), quantize(pictures, "binary"))
    short = model.encode_text(TEXTS, truncate_dim=8)
    torch.testing.assert_close(short, F.normalize(texts[:, :8], dim=1))
    assert model.encode_image(images, truncate_dim=8).shape == (5, 8)
    with pytest.raises(UserError, match=r"^truncate_dim 17: "):
        model.encode_text(TEXTS, truncate_dim=model.dim + 1)
    with pytest.raises(UserError, match=r"^precision 'int4' is unknown"):
        model.encode_image(images, precision="int4")


def test_several_devices_give_the_vectors_of_one(
    folder: Path, model: MultilingualCLIP, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = MultilingualCLIP.from_pretrained(folder, device=["cpu", torch.device("cpu"), "cpu"])
    counts = []
    for one in (both, *both.others):
        encode = one.image_features

        def counted(share: Any, *more: Any, encode: Any = encode) -> torch.Tensor:
            counts.append(len(share))
            return encode(share, *more)

        monkeypatch.setattr(one, "image_features", counted)
    torch.testing.assert_close(both.encode_image(images), model.encode_image(images), rtol=0, atol=2e-6)
    assert sorted(counts) == [1, 2, 2]
    torch.testing.assert_close(both.encode_text(TEXTS), model.encode_text(TEXTS), rtol=0, atol=2e-6)
    pixels = model.transform([Image.fromarray(image) for image in images])
    torch.testing.assert_close(both.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=2e-6)
    assert both.encode_text([]).shape == (0, model.dim)
    assert both.for_language("de").others == both.others
    assert model.others == []


def test_shares_keep_the_order() -> None:
    workers = [lambda share: torch.tensor(share)[:, None].float() for _ in range(3)]
    assert encode_in_shares(workers, list(range(10)))[:, 0].tolist() == list(range(10))


def test_labels_are_ranked_by_their_sentences(model: MultilingualCLIP, images: list[np.ndarray]) -> None:
    labels = ["dog", "cat", "Haus"]
    found = model.classify(images, labels)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))
    scale = model.logit_scale
    assert scale is not None
    cosines = model.similarity(model.encode_image(images), model.encode_text(labels))
    torch.testing.assert_close(found, (float(scale) * cosines).softmax(dim=1))
    templates = ["a photo of a {}", "ein Foto: {}"]
    sentences = torch.stack([model.encode_text([text.format(name) for name in labels]) for text in templates])
    averaged = F.normalize(sentences.mean(dim=0), dim=1)
    expected = (float(scale) * model.similarity(model.encode_image(images), averaged)).softmax(dim=1)
    torch.testing.assert_close(model.classify(images, labels, templates), expected)
    torch.testing.assert_close(
        model.classify(images, labels, templates[:1]), model.classify(images, labels, templates[0])
    )
    assert model.classify(images[0], labels).shape == (1, 3)


@pytest.mark.parametrize(("labels", "templates"), [([], None), ("dog", None), (["dog"], "a photo")])
def test_labels_and_templates_that_say_nothing(
    labels: Any, templates: Any, model: MultilingualCLIP, images: list[np.ndarray]
) -> None:
    with pytest.raises(UserError):
        model.classify(images, labels, templates)
