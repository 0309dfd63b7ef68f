"""The fast image preprocessing gives the pixels of `transformers`, or is not used."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.fast_transform import PROBES, fast_transform
from mclip_fairseq.models.teacher import ImageTransform

SIZES = ((50, 41), (224, 224), (640, 427), (90, 1200), (517, 517))


def processor_of(name: str, **settings: Any) -> Any:
    shield_torchaudio()
    import transformers

    return getattr(transformers, name)(**settings)


def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", {}),
    "a large crop": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 200}},
    ),
    "bilinear": ("CLIPImageProcessor", {"resample": 2, "image_mean": [0.1, 0.5, 0.9]}),
    "siglip": ("SiglipImageProcessor", {}),
    "not normalised": ("CLIPImageProcessor", {"do_normalize": False}),
}


@pytest.mark.parametrize("name", SAME)
def test_no_pixel_differs(name: str) -> None:
    kind, settings = SAME[name]
    processor = processor_of(kind, **settings)
    transform = ImageTransform(processor)
    assert transform.fast is not None
    for image in images():
        expected = processor(images=[image], return_tensors="pt")["pixel_values"]
        assert torch.equal(transform([image]), expected)
    copy = pickle.loads(pickle.dumps(transform))  # for data loader processes
    assert torch.equal(copy(images()), transform(images()))


OTHER: dict[str, dict[str, Any]] = {
    "black borders": {"size": {"shortest_edge": 100}, "crop_size": {"height": 224, "width": 224}},
    "no resize": {"do_resize": False},
}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_take_the_processor(name: str) -> None:
    processor = processor_of("CLIPImageProcessor", **OTHER[name])
    assert fast_transform(processor) is None
    image = images()[1]
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ImageTransform(processor)([image]), expected)


class Odd:
    """A processor that changes one pixel of one of the sizes that are compared."""

    def __init__(self, inner: Any, changed: tuple[int, int] | None) -> None:
        self.inner, self.changed = inner, changed

    def to_dict(self) -> Any:
        return self.inner.to_dict()

    def __call__(self, images: list[Image.Image], **options: Any) -> Any:
        result = self.inner(images=images, **options)
        if images[0].size == self.changed:
            result["pixel_values"][0, 1, 100, 7] += 1e-6
        return result


@pytest.mark.parametrize("size", PROBES)
def test_one_different_pixel_is_noticed(size: tuple[int, int]) -> None:
    inner = processor_of("CLIPImageProcessor")
    assert fast_transform(Odd(inner, size)) is None
    assert fast_transform(Odd(inner, None)) is not None


def test_a_processor_that_fails_is_left_to_fail_later() -> None:
    assert fast_transform(object()) is None
