"""`mclip-features --draft`: large JPEGs are decoded at a smaller size, and the features say so."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from mclip_fairseq.cli.features import build_parser, check_options
from mclip_fairseq.encoding.images import ImageSource
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import MAX_PIXELS


class Sizes:
    """A transform that gives the sizes of images."""

    description = "sizes"

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([image.size for image in images])


def sizes(images: Sequence[tuple[str, Path]], near: int | None) -> tuple[str, list[list[int]]]:
    """What the source says of its preprocessing, and the sizes of the decoded images."""
    source = ImageSource(images, Sizes(), torch.Tensor.float, 0, MAX_PIXELS, near=near)
    (batch,) = source.batches([list(range(len(images)))], torch.device("cpu"))
    return source.preprocessing, batch.inputs["pixel_values"].tolist()


def test_jpegs_alone_are_decoded_smaller(tmp_path: Path) -> None:
    images = [(name, tmp_path / name) for name in ("large.jpg", "large.png", "small.jpg")]
    for name, file in images:
        Image.new("RGB", (1600, 800) if "large" in name else (300, 300), (200, 10, 10)).save(file)
    assert sizes(images, None) == ("sizes", [[1600, 800], [1600, 800], [300, 300]])
    assert sizes(images, 200) == ("sizes, JPEGs decoded near 200 pixels", [[400, 200], [1600, 800], [300, 300]])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_of_the_model_chooses_how_to_decode(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders: list[dict[str, object]] = []

    def load(images: object, **options: object) -> list[str]:
        loaders.append(options)
        return ["by processes"]

    monkeypatch.setattr("mclip_fairseq.encoding.images.DataLoader", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: device == "cpu")  # a GPU that another program uses
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    source = ImageSource([("a", tmp_path / "a.png")], Sizes(), torch.Tensor.float, 2, MAX_PIXELS)
    (batch,) = source.batches([[0]], torch.device(device))
    if device == "cpu":
        assert not loaders
        assert batch.inputs["pixel_values"].tolist() == [[30, 30]]
    else:
        assert (loaders[0]["pin_memory"], loaders[0]["num_workers"]) == (True, 1)
        assert str(batch) == "by processes"


def test_texts_have_no_draft() -> None:
    options = build_parser().parse_args(["--model", "m", "--captions", "c", "--output", "o", "--draft"])
    with pytest.raises(UserError, match="--draft is for images; leave it out"):
        check_options(options)
