"""Retrieval over a whole validation set while a model is trained, to choose checkpoints by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from fairseq import utils
from torch import Tensor, nn

from mclip_fairseq.data.captions import CaptionDataset
from mclip_fairseq.evaluation.metrics.languages import average_languages, evaluate_languages

BATCH = 256


@torch.no_grad()
def validation_recalls(
    model: nn.Module, parts: Mapping[str, CaptionDataset], between_batches: Callable[[], None]
) -> dict[str, float]:
    """Mean recall of each language, its captions searched in all images of the set, and of all languages.

    Args:
        model: `MCLIPModel`; it is put into eval mode, and back.
        parts: `language:number` -> captions; those without images are left out.
        between_batches: called before each batch.

    Returns:
        ``mean_recall`` (over languages) and ``mean_recall_LANG``, in percent, strict protocol; empty where no caption
        has an image.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        texts: dict[str, list[Tensor]] = {}
        groups: dict[str, list[np.ndarray]] = {}
        order: list[np.ndarray] = []  # of all groups, as the images come
        images: list[Tensor] = []
        for name, part in parts.items():
            if part.images is None and part.pixels is None:
                continue
            language = name.split(":")[0]
            for start in range(0, len(part), BATCH):
                between_batches()
                sample = part.rows(np.arange(start, min(start + BATCH, len(part))))
                rows = sample["group"].numpy()
                sample["net_input"].pop("teacher_text", None)
                out = model(**utils.apply_to_sample(lambda tensor: tensor.to(device), sample["net_input"]))
                texts.setdefault(language, []).append(out["text"].float().cpu())
                groups.setdefault(language, []).append(rows)
                order.append(rows)
                images.append(out["image"].float().cpu())
    finally:
        model.train(training)
    if not images:
        return {}
    captioned = {lang: np.concatenate(found) for lang, found in groups.items()}
    numbers, first = np.unique(np.concatenate(order), return_index=True)
    image = torch.cat(images)[torch.from_numpy(first)]
    own = {lang: torch.from_numpy(np.searchsorted(numbers, found)) for lang, found in captioned.items()}
    results = evaluate_languages({lang: torch.cat(found) for lang, found in texts.items()}, image, own)["results"]
    recalls = {f"mean_recall_{lang}": metrics["mean_recall"] for lang, metrics in results.items()}
    return {"mean_recall": average_languages(results)["all"]["mean_recall"], **recalls}
