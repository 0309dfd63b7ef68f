"""Zero-shot classification with the names of classes in any language (Babel-ImageNet; Geigle et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.evaluation.metrics.confidence import Interval, mean_interval
from mclip_fairseq.evaluation.metrics.inputs import Features
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks

TOP = (1, 5)


def class_features(names: Sequence[str], prompts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
    """(classes, D) mean over prompts of the normalised features of each name, normalised (CLIP; Radford et al., 2021).

    Args:
        names: one per class.
        prompts: with `{}` where the name goes.
        encode: texts -> (n, D).
    """
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    features = F.normalize(encode(texts).float(), dim=1).unflatten(0, (len(names), len(prompts)))
    return F.normalize(features.mean(dim=1), dim=1)


def zero_shot_accuracy(
    image: Features, classes: Features, labels: Tensor
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Share of images whose class is among the nearest, in percent; a tie counts against the image.

    Args:
        image: (n, D) images.
        classes: (C, D) class features.
        labels: (n,) int64 row of each image's class.

    Returns:
        `top1`, `top5` and `ties`; and the 95 per cent intervals of both accuracies.

    Raises:
        UserError: as `retrieval_ranks`.
    """
    # Images are the queries here instead of captions, and they search classes instead of images.
    ranks = retrieval_ranks(image, classes, labels)
    hits = {f"top{k}": ranks.t2i.lt(k) for k in TOP}
    accuracies = {name: 100 * values.double().mean().item() for name, values in hits.items()}
    intervals = {name: mean_interval(values.cpu().numpy()) for name, values in hits.items()}
    return accuracies | {"ties": int(ranks.t2i_tied.sum())}, intervals
