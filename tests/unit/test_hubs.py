"""Retrieval with hubs corrected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.evaluation.metrics.hubs import hub_bias, without_hubs
from mclip_fairseq.evaluation.metrics.languages import evaluate_languages


def units(rows: int, seed: int, dim: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # A common direction makes hubs.
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64) + 0.7, dim=1)


def corrected_scores(queries: Tensor, items: Tensor, bank: Tensor, scale: float) -> Tensor:
    """The definition, one number at a time."""
    scores = torch.empty(len(queries), len(items), dtype=torch.float64)
    for q, query in enumerate(queries):
        for j, item in enumerate(items):
            scores[q, j] = query @ item - torch.stack([scale * (b @ item) for b in bank]).exp().sum().log() / scale
    return scores


def test_features_rank_as_the_corrected_scores() -> None:
    """In both directions and each language, whose bank is its own; also where the features are not normalised."""
    text, banks = {"de": units(8, 1), "fr": units(8, 2)}, {"de": units(20, 3), "fr": units(30, 4)}
    image, image_bank = units(5, 5), units(12, 6)
    scaled = {language: 3 * rows for language, rows in text.items()}
    features, images = without_hubs(scaled, 2 * image, banks, image_bank, 15.0)
    for language, rows in features.items():
        cosines = F.normalize(rows, dim=1) @ F.normalize(images, dim=1).T
        to_image = corrected_scores(text[language], image, banks[language], 15.0)
        to_text = corrected_scores(image, text[language], image_bank, 15.0)
        assert torch.equal(cosines.argsort(dim=1), to_image.argsort(dim=1))
        assert torch.equal(cosines.T.argsort(dim=1), to_text.argsort(dim=1))
    plain = text["de"] @ image.T
    assert not torch.equal(plain.argsort(dim=1), corrected_scores(text["de"], image, banks["de"], 15.0).argsort(dim=1))


def test_a_hub_is_lowered_and_its_own_query_still_finds_it() -> None:
    """Image 0 is near to every text; without the correction it is what each of them finds."""
    own, hub = torch.eye(3, 4), torch.tensor([0.0, 0.0, 0.0, 1.0])
    text = F.normalize(torch.cat([own[1:] + 1.2 * hub, hub[None]]), dim=1)
    image = F.normalize(torch.cat([hub[None], own[1:] + 0.1 * hub]), dim=1)
    numbers = torch.tensor([1, 2, 0])
    bank = F.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).abs() + 2 * hub, dim=1)
    plain = evaluate_languages({"en": text}, image, {"en": numbers})["results"]["en"]
    features, images = without_hubs({"en": text}, image, {"en": bank}, bank, 10.0)
    corrected = evaluate_languages(features, images, {"en": numbers})["results"]["en"]
    assert plain["t2i_R@1"] == pytest.approx(100 / 3)
    assert corrected["t2i_R@1"] == 100
    assert hub_bias(image, bank, 10.0).argmin() == 0
