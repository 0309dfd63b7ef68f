"""What a model does with texts and images together: matching of pairs, similarity, zero-shot classification."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mclip_fairseq.encoding import vectors
from mclip_fairseq.encoding.inputs import ImageInput, check_texts, to_pil
from mclip_fairseq.storage.errors import UserError

if TYPE_CHECKING:
    from mclip_fairseq.formats.towers import Tower

# The scale of CLIP, for models that have none of their own.
SCALE = 100.0


def is_single_image(images: Any) -> bool:
    """Whether the caller passed one image instead of several."""
    return isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)


class Pairs:
    """The part of `MultilingualCLIP` that brings texts and images together."""

    tower: "Tower"
    device: torch.device
    max_pixels: int

    @property
    def name(self) -> str:
        """Short name for tables."""
        return self.tower.name

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """PIL images to (images, channels, height, width)."""
        return self.tower.transform

    def to_device(self, tensor: Tensor) -> Tensor:
        """Move floats to the model's device and dtype."""
        return tensor.to(device=self.device, dtype=next(self.tower.module.parameters()).dtype)

    @property
    def can_match(self) -> bool:
        """Whether the model can look at a text and an image together, as CCRK does to re-rank."""
        return self.tower.matcher is not None

    def match(
        self,
        texts: str | Sequence[str] | Tensor,
        images: ImageInput | Sequence[ImageInput] | Tensor,
        batch_size: int = 64,
    ) -> Tensor:
        """How well each text matches the image of the same number.

        Args:
            texts: n texts, or (n, length) token ids.
            images: n images, or (n, channels, height, width) floats that `transform` made.
            batch_size: pairs at a time.

        Returns:
            (n,) float32 matching logits on the CPU; larger is better.

        Raises:
            UserError: the model compares features only, or the numbers of texts and images differ.
        """
        texts = [texts] if isinstance(texts, str) else texts
        items: Any = [images] if is_single_image(images) else images
        if len(texts) != len(items):
            raise UserError(f"{len(texts)} texts and {len(items)} images; give one image for each text")
        scores = [torch.zeros(0)]
        for start in range(0, len(texts), batch_size):
            rows = slice(start, start + batch_size)
            text, padding = self.text_states(texts[rows])
            scores.append(self.match_states(text, padding, self.image_states(items[rows])).float().cpu())
        return torch.cat(scores)

    @torch.inference_mode()
    def text_states(self, texts: Sequence[str] | Tensor) -> tuple[Tensor, Tensor]:
        """States of texts for `match_states`, in one batch on the model's device.

        Args:
            texts: n texts, or (n, length) token ids.

        Returns:
            (n, length, dim) and (n, length) bool, True at pads.
        """
        matcher = self._matcher()
        if not isinstance(texts, Tensor):
            check_texts(texts)
        inputs = self.tower.model_input(texts) if isinstance(texts, Tensor) else self.tower.tokenize(texts)
        return matcher.text_states(**{name: tensor.to(self.device) for name, tensor in inputs.items()})

    @torch.inference_mode()
    def image_states(self, images: Sequence[ImageInput] | Tensor) -> Tensor:
        """(n, tokens, dim) states of images for `match_states`, in one batch on the model's device."""
        matcher = self._matcher()
        pixels = images
        if not isinstance(images, Tensor):
            pixels = self.transform([to_pil(image, self.max_pixels) for image in images])
        assert isinstance(pixels, Tensor)
        return matcher.image_states(self.to_device(pixels))

    @torch.inference_mode()
    def match_states(self, text: Tensor, padding: Tensor, image: Tensor) -> Tensor:
        """(n,) matching logits from the states of both sides, on the model's device."""
        states = self._matcher().match_states(self.to_device(text), padding.to(self.device), self.to_device(image))
        return states[:, 1]

    def _matcher(self) -> Any:
        if self.tower.matcher is None:
            raise UserError(
                f"{self.name} compares features of texts and images and cannot look at both together; matching and "
                "re-ranking need a model such as ccrk"
            )
        return self.tower.matcher

    def similarity(
        self,
        first: Tensor | np.ndarray,
        second: Tensor | np.ndarray,
        precision: vectors.Precision = "float32",
    ) -> Tensor:
        """How similar encoded texts and images are.

        Args:
            first: (n, width) what `encode_text` or `encode_image` returned, or one row of it.
            second: (m, width), likewise.
            precision: with which both were encoded.

        Returns:
            (n, m) float32: cosines, or for `binary` and `ubinary` 1 minus twice the share of bits that differ.

        Raises:
            UserError: widths or types that cannot be compared.
        """
        return vectors.similarity(first, second, precision)

    def classify(
        self,
        images: ImageInput | Sequence[ImageInput] | Tensor,
        labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Zero-shot classification: how likely each label is for each image.

        Args:
            images: see `encode_image`.
            labels: names of the classes, in any language of the model.
            templates: one or several sentences with `{}` where the label goes, such as `a photo of a {}`; the features
                of a label's sentences are averaged. None takes the labels as they are.
            batch_size: images at a time.

        Returns:
            (images, labels) float32 probabilities; each row adds up to 1. `argmax(dim=1)` is the best label.

        Raises:
            UserError: no labels, or a template without `{}`.
        """
        from mclip_fairseq.evaluation.metrics.classification import class_features

        prompts = [templates] if isinstance(templates, str) else list(templates or ["{}"])
        without = next((prompt for prompt in prompts if "{}" not in prompt), None)
        if without is not None:
            raise UserError(f"template {without!r}: has no place for the label; put {{}} where it goes")
        if isinstance(labels, str) or not len(labels):
            raise UserError("labels: give a list with at least one name")
        classes = class_features(list(labels), prompts, self.encode_text)  # type: ignore[attr-defined]
        encoded = self.encode_image(images, batch_size=batch_size)  # type: ignore[attr-defined]
        scale = SCALE if self.tower.scale is None else float(self.tower.scale)
        return (scale * vectors.similarity(encoded, classes)).softmax(dim=1)
