"""Retrieval with hubs corrected: what many other queries find as well is lowered.

Some images are near to most texts of a joint space, and some texts to most images. With a bank of queries that are not
evaluated, item j of the gallery gets the score

    s(q, j) - 1 / scale * log sum_b exp(scale * s(b, j)),

the logarithm of the inverted softmax (Smith et al., ICLR 2017), on which QB-Norm builds (Bogolin et al., CVPR 2022).
QB-Norm corrects only queries whose nearest item is a hub; here every query is corrected.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

ITEMS_AT_ONCE = 4096


def hub_bias(items: Tensor, bank: Tensor, scale: float) -> Tensor:
    """What is added to the cosine of each item: (n,) float64, with mean zero, negative for hubs.

    Args:
        items: (n, dim), L2-normalised, of the gallery.
        bank: (m, dim), L2-normalised, queries of the other modality.
        scale: multiplies the cosine; larger values look only at the nearest queries.
    """
    queries = bank.double().T
    sums = [(scale * part.double() @ queries).logsumexp(dim=1) for part in items.split(ITEMS_AT_ONCE)]
    bias = -torch.cat(sums) / scale
    return bias - bias.mean()


def without_hubs(
    text: Mapping[str, Tensor], image: Tensor, text_bank: Mapping[str, Tensor], image_bank: Tensor, scale: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Features whose cosines rank as the corrected scores do, in both directions.

    A column per language holds the images' biases, another the texts', and the last two give all rows of a side one
    length, because metrics normalise what they get.

    Args:
        text: language -> (T, dim) features.
        image: (I, dim) features.
        text_bank: language -> (m, dim) features of captions that are not evaluated.
        image_bank: (k, dim) features of images that are not evaluated.
        scale: see `hub_bias`.

    Returns:
        language -> (T, dim + languages + 3), and (I, dim + languages + 3), float64.
    """
    image, image_bank = F.normalize(image.double(), dim=1), F.normalize(image_bank.double(), dim=1)
    biases = [hub_bias(image, F.normalize(text_bank[language].double(), dim=1), scale) for language in text]
    images = torch.cat([image, torch.stack(biases, dim=1), image.new_ones(len(image), 1)], dim=1)
    corrected = {}
    for number, (language, features) in enumerate(text.items()):
        unit = F.normalize(features.double().to(image.device), dim=1)
        chosen = unit.new_zeros(len(unit), len(text))
        chosen[:, number] = 1
        bias = hub_bias(unit, image_bank, scale)
        corrected[language] = _equally_long(torch.cat([unit, chosen, bias[:, None]], dim=1), first=True)
    return corrected, _equally_long(images, first=False)


def _equally_long(rows: Tensor, first: bool) -> Tensor:
    """Rows with two more columns, of which one makes all of them equally long and the other is zero."""
    squares = rows.square().sum(dim=1, keepdim=True)
    filling = (squares.max() - squares).clamp(min=0).sqrt()
    zeros = torch.zeros_like(filling)
    return torch.cat([rows, *((filling, zeros) if first else (zeros, filling))], dim=1)
