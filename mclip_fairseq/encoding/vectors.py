"""What is done to vectors after they are encoded: shorter ones, fewer bits, and comparing them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.storage.errors import UserError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PACKED = ("binary", "ubinary")


def check_form(truncate_dim: int | None, precision: str, dim: int) -> None:
    """Refuse a form that vectors of a width do not have.

    Args:
        truncate_dim: leading dimensions to keep; None for all.
        precision: one of `Precision`.
        dim: width of the vectors.

    Raises:
        UserError: naming the argument.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is unknown; give one of {', '.join(get_args(Precision))}")
    if truncate_dim is not None and not 1 <= truncate_dim <= dim:
        raise UserError(f"truncate_dim {truncate_dim}: give 1 to {dim}, the width of the vectors")
    width = truncate_dim or dim
    if precision in PACKED and width % 8:
        raise UserError(f"precision {precision!r} packs 8 dimensions into a byte, and {width} is not a multiple of 8")


def finish(features: Tensor, truncate_dim: int | None, normalize: bool, precision: Precision) -> Tensor:
    """Truncate, normalise and quantise, in this order.

    Args:
        features: (n, dim) float32.
        truncate_dim: leading dimensions to keep; None for all.
        normalize: L2-normalise what is left.
        precision: see `quantize`.

    Returns:
        (n, width) of the precision's type; (n, width / 8) for `binary` and `ubinary`.
    """
    if truncate_dim is not None:
        features = features[:, :truncate_dim]
    if normalize:
        features = F.normalize(features, dim=1)
    return quantize(features, precision)


def quantize(features: Tensor, precision: Precision) -> Tensor:
    """Store vectors in fewer bits, under the names that sentence-transformers has for it.

    `int8` and `uint8` give each vector a scale of its own, the largest absolute value, so that cosines are kept, and
    vectors of texts and images need no common calibration. `binary` and `ubinary` keep the signs, eight in a byte.

    Args:
        features: (n, width) float32.
        precision: `float32` changes nothing; `int8` -127 to 127; `uint8` the same plus 128; `ubinary` packed bits,
            the first dimension highest; `binary` the same minus 128.

    Returns:
        (n, width) float32, int8 or uint8; (n, width / 8) int8 for `binary`, uint8 for `ubinary`.
    """
    if precision == "float32":
        return features
    if precision in PACKED:
        bits = torch.from_numpy(np.packbits(features.numpy() > 0, axis=1))
        return bits if precision == "ubinary" else (bits.short() - 128).to(torch.int8)
    scale = features.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    steps = (features / scale * 127).round()
    return steps.to(torch.int8) if precision == "int8" else (steps + 128).to(torch.uint8)


def similarity(first: Tensor | np.ndarray, second: Tensor | np.ndarray, precision: Precision = "float32") -> Tensor:
    """How similar each vector of one side is to each of the other.

    Args:
        first: (n, width) vectors, or one of (width,).
        second: (m, width) vectors, or one of (width,).
        precision: of both sides, as they were encoded. `float32` stands for any float type.

    Returns:
        (n, m) float32: cosines; for `binary` and `ubinary` 1 minus twice the share of bits that differ.

    Raises:
        UserError: the widths differ, or integers were passed as floats.
    """
    a, b = (torch.as_tensor(side) for side in (first, second))
    a, b = (side[None] if side.ndim == 1 else side for side in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(f"vectors of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
    if (precision == "float32") != a.is_floating_point() or a.is_floating_point() != b.is_floating_point():
        raise UserError(f"vectors of types {a.dtype} and {b.dtype} are not of precision {precision!r}; name theirs")
    if precision in PACKED:
        a, b = (_signs(side, precision) for side in (a, b))
        return a @ b.T / a.shape[1]
    offset = 128.0 if precision == "uint8" else 0.0
    a, b = (F.normalize(side.float() - offset, dim=1) for side in (a, b))
    return a @ b.T


def _signs(packed: Tensor, precision: Precision) -> Tensor:
    """(n, 8 * bytes) float32 of -1 and 1."""
    bits = packed.cpu() if precision == "ubinary" else (packed.cpu().short() + 128).to(torch.uint8)
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1)).float() * 2 - 1
