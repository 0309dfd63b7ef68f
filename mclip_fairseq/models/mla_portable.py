"""The paths of an `mla` as modules that other runtimes can be given."""

from typing import Any

from torch import Tensor, nn


class TextPath(nn.Module):
    """One language of an `mla`: ids to the rows of `encode_text`, for other runtimes.

    Args:
        model: the model.
        language: one of its languages, or `en`.
    """

    def __init__(self, model: Any, language: str) -> None:
        super().__init__()
        self.model, self.language = model, language

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) right-padded ids -> (batch, dim), L2-normalised."""
        return self.model.encode_text(input_ids, self.language)


class ImagePath(nn.Module):
    """The image tower of an `mla` likewise.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, dim), L2-normalised."""
        return self.model.encode_image(pixel_values)
