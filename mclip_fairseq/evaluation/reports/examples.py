"""Examples of a retrieval: a few queries with the images nearest to them."""

from __future__ import annotations

import torch

from mclip_fairseq.evaluation.benchmarks.retrieval import Encoded
from mclip_fairseq.evaluation.metrics.languages import gallery_of_captions
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks, top_images
from mclip_fairseq.evaluation.reports.pictures import Example, pick_queries

SHOWN_IMAGES = 5


def examples_of(encoded: Encoded, number: int) -> list[Example]:
    """The nearest images of a few queries, searched in the images that the recalls were measured on.

    Args:
        encoded: captions and images of a benchmark.
        number: how many queries, spread over languages and files.
    """
    texts = {each.language: each.texts for each in encoded.captions}
    everything = torch.arange(len(encoded.image))
    examples = []
    for language, row in pick_queries({key: len(captions) for key, captions in texts.items()}, number):
        searched, own = gallery_of_captions(everything, encoded.own[language], encoded.captioned_only)
        query, target, image = encoded.text[language][row, None], own[row, None], encoded.image[searched]
        scores, nearest = top_images(query, image, min(SHOWN_IMAGES, len(image)))
        hits = (nearest[0] == target).nonzero()
        examples.append(
            Example(
                text=texts[language][row],
                language=language,
                images=[encoded.gallery.picture(int(encoded.used[searched[place]])) for place in nearest[0]],
                scores=scores[0].tolist(),
                own=int(hits[0]) if len(hits) else None,
                rank=int(retrieval_ranks(query, image, target).t2i),
            )
        )
    return examples
