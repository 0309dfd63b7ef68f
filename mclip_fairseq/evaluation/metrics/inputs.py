"""The door of the metrics: shapes, finite features and image indices are checked here, once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.storage.errors import UserError

Features = Tensor | np.ndarray
ROWS_AT_ONCE = 1 << 14


def check_choice(what: str, choice: str, choices: Iterable[str]) -> None:
    """Refuse a name that is not one of the choices.

    Raises:
        UserError: listing the choices.
    """
    if choice not in choices:
        raise UserError(f"unknown {what} {choice!r}; choose one of {', '.join(choices)}")


def feature_matrices(text: Features, image: Features) -> tuple[Tensor, Tensor]:
    """Both sides as matrices on the device of the images.

    Args:
        text: (T, D) features of any float type.
        image: (I, D) features of any float type.

    Raises:
        UserError: a side is not a matrix, is empty or not finite, or the dimensions differ.
    """
    image = _matrix(image, "image")
    text = _matrix(text, "text").to(image.device)
    if text.shape[1] != image.shape[1]:
        raise UserError(
            f"text features have {text.shape[1]} dimensions and image features {image.shape[1]}; both must come from "
            "one joint space"
        )
    return text, image


def image_indices(text_to_image: Features | Sequence[int], captions: int, image: Tensor) -> Tensor:
    """(T,) int64 row of each caption's own image, on the device of the images.

    Args:
        text_to_image: (T,) integers.
        captions: T.
        image: (I, D) features.

    Raises:
        UserError: not one integer per caption, or one that names no row of `image`.
    """
    own = as_tensor(text_to_image)
    if own.shape != (captions,) or own.is_floating_point() or own.dtype == torch.bool:
        raise UserError(
            f"text_to_image must hold one integer image index per caption, shape ({captions},), got {tuple(own.shape)} "
            f"{own.dtype}"
        )
    own = own.to(image.device, torch.long)
    outside = ((own < 0) | (own >= len(image))).nonzero()
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"caption {row} names image {int(own[row])}, but there are {len(image)} images; indices run from 0 to "
            f"{len(image) - 1}"
        )
    return own


def rank_matrix(ranks: Features) -> Tensor:
    """(languages, items) float64 ranks.

    Raises:
        UserError: not a matrix, empty, or not finite.
    """
    matrix = as_tensor(ranks)
    if matrix.ndim != 2 or not matrix.numel() or not matrix.isfinite().all():
        raise UserError(
            f"ranks must be a finite matrix (languages, items) with at least one of each, got shape "
            f"{tuple(matrix.shape)}; give every item a rank in every language"
        )
    return matrix.double()


def as_tensor(values: Features | Sequence[int]) -> Tensor:
    """A tensor of the same values; shares memory where it may."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch warns about memory that it must not write, such as a read-only memory map
    return torch.as_tensor(values)


def _matrix(features: Features, name: str) -> Tensor:
    matrix = as_tensor(features).detach()
    if matrix.device.type == "mps":  # Apple's GPUs have no float64
        matrix = matrix.cpu()
    if matrix.ndim != 2 or not matrix.numel():
        raise UserError(
            f"{name} features must be a matrix (items, dimensions) with at least one of each, got shape "
            f"{tuple(matrix.shape)}"
        )
    for number, rows in enumerate(matrix.split(ROWS_AT_ONCE)):
        infinite = (~rows.isfinite().all(1)).nonzero()
        if len(infinite):
            raise UserError(
                f"the {name} feature of row {number * ROWS_AT_ONCE + int(infinite[0])} is not finite; the model "
                "overflowed or the feature file is damaged"
            )
    return matrix
