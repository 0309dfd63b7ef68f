"""Retrieval over a whole validation set while a model is trained, to choose checkpoints by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Sized

import numpy as np
import numpy.typing as npt
import torch
from fairseq import utils
from torch import Tensor, nn

from mclip_fairseq.batching import batch_cost, batches_by_tokens
from mclip_fairseq.data.captions import CaptionDataset
from mclip_fairseq.evaluation.metrics.languages import average_languages, evaluate_languages
from mclip_fairseq.storage.errors import UserError

logger = logging.getLogger(__name__)
BATCH = 256
IMAGES = {"image_features", "pixel_values"}


@torch.no_grad()
def validation_recalls(
    model: nn.Module, parts: Mapping[str, CaptionDataset], between_batches: Callable[[], None]
) -> dict[str, float]:
    """Mean recall of each language, its captions searched in all images of the set, and of all languages.

    Args:
        model: a `DualEncoder`, possibly wrapped for distribution; it is put into eval mode, and back.
        parts: `language:number` -> captions; those without images are left out.
        between_batches: called before each batch.

    Returns:
        `mean_recall` (over languages) and `mean_recall_LANG`, in percent, strict protocol; empty where no caption has
        an image.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    texts: dict[str, list[Tensor]] = {}
    groups: dict[str, list[np.ndarray]] = {}
    images: list[Tensor] = []
    image_groups: list[np.ndarray] = []
    try:
        for name, part in parts.items():
            if not part.names & IMAGES:
                continue
            language = name.split(":")[0]
            for rows in batches_by_tokens(part.sizes, batch_cost(device), BATCH):
                between_batches()
                sample = part.rows(rows)
                out = model(**utils.apply_to_sample(lambda tensor: tensor.to(device), sample["net_input"]))
                texts.setdefault(language, []).append(out["text"].float().cpu())
                groups.setdefault(language, []).append(sample["group"].numpy())
                image_groups.append(sample["group"].numpy())
                images.append(out["image"].float().cpu())
    finally:
        model.train(training)
    if not images:
        return {}
    # Every caption brought its image along: keep the first copy of each, and number the captions by it.
    numbers, first = np.unique(np.concatenate(image_groups), return_index=True)
    image = torch.cat(images)[torch.from_numpy(first)]
    own = {lang: torch.from_numpy(np.searchsorted(numbers, np.concatenate(rows))) for lang, rows in groups.items()}
    results = evaluate_languages({lang: torch.cat(rows) for lang, rows in texts.items()}, image, own)["results"]
    recalls = {f"mean_recall_{lang}": metrics["mean_recall"] for lang, metrics in results.items()}
    return {"mean_recall": average_languages(results)["all"]["mean_recall"], **recalls}


def check_rankable(split: str, groups: npt.NDArray[np.int64], retrieval: bool) -> None:
    """Refuse, or warn of, captions of one image only: every loss over negatives is 0 on them, and every recall 100.

    Args:
        split: for the message.
        groups: (captions,) numbers of their images, in all languages.
        retrieval: whether checkpoints are to be compared by recall.

    Raises:
        UserError: there is one image, and recall is to be measured on it.
    """
    if len(np.unique(groups)) != 1:
        return
    what = f"{split}: has one image only ({len(groups)} captions), so nothing can be ranked"
    if retrieval:
        raise UserError(f"{what}, and --valid-retrieval would always find 100 %; give more images")
    logger.warning("%s: a contrastive loss says nothing there; give more images, or --disable-validation", what)


def warn_of_single_rows(batches: Sequence[Sized]) -> None:
    """Warn where no batch of a validation has a negative."""
    if len(batches) > 1 and max(map(len, batches)) == 1:
        logger.warning(
            "every batch of the validation has one caption, so a contrastive loss is 0 there whatever the model does; "
            "raise --batch-size-valid or --max-tokens-valid, or choose checkpoints by --valid-retrieval"
        )
