"""Choices of an evaluation and what they mean; needs nothing, so that `--help` can list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mclip_fairseq.encoding.captions import Captions

GALLERIES = {
    "captioned": "search the images that the captions of a language name (default)",
    "all": "search all images; those without a caption are distractors",
}
CAPTIONS = {"all": "evaluate every caption of an image (default)", "first": "only the first caption of each image"}


@dataclass(frozen=True)
class Settings:
    """Choices that hold for every model and benchmark of a call.

    Attributes:
        batch_size: captions or images at once.
        protocol: of retrieval, one of `metrics.protocols.PROTOCOLS`.
        gallery: one of `GALLERIES`.
        captions: one of `CAPTIONS`.
        rerank: how many nearest items a model that can match puts in order again; 0 for none.
        hubs: captions of each language, with their images, that are not evaluated: a bank that shows the hubs of
            retrieval (`metrics.hubs`); empty: hubs are not corrected.
        hub_scale: multiplies the cosine there.
    """

    batch_size: int = 256
    protocol: str = "strict"
    gallery: str = "captioned"
    captions: str = "all"
    rerank: int = 0
    hubs: Sequence[Captions] = ()
    hub_scale: float = 20.0
