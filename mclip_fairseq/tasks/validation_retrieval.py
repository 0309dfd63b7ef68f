"""Retrieval over a whole validation set while a model is trained, to choose checkpoints by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from fairseq import utils
from torch import Tensor, nn

from mclip_fairseq.batching import batch_cost, batches_by_tokens
from mclip_fairseq.data.captions import CaptionDataset
from mclip_fairseq.evaluation.metrics.languages import average_languages, evaluate_languages
from mclip_fairseq.losses.gather import every_nth, gather_rows, objects_of_all_ranks
from mclip_fairseq.storage.errors import UserError

logger = logging.getLogger(__name__)
BATCH = 256
IMAGES = {"image_features", "pixel_values"}


@torch.no_grad()
def validation_recalls(
    model: nn.Module, parts: Mapping[str, CaptionDataset], between_batches: Callable[[], None]
) -> dict[str, float]:
    """Mean recall of each language, its captions searched in all images of the set, and of all languages.

    Every rank must call it. Each encodes its share of the batches and ranks its share of the languages.

    Args:
        model: a `DualEncoder`, possibly wrapped for distribution; it is put into eval mode, and back.
        parts: `language:number` -> captions; those without images are left out.
        between_batches: called before each batch, equally often on all ranks.

    Returns:
        `mean_recall` (over languages) and `mean_recall_LANG`, in percent, strict protocol; empty where no caption has
        an image.
    """
    training, device = model.training, next(model.parameters()).device
    with_images = {name: part for name, part in parts.items() if part.names & IMAGES}
    if not with_images:
        return {}
    model.eval()
    try:
        encoded = encode_share(model, with_images, device, between_batches)
    finally:
        model.train(training)
    # Every caption brought its image along: keep the first copy of each, and number the captions by it.
    numbers, first = np.unique(np.concatenate([one.group for one in encoded.values()]), return_index=True)
    image = torch.cat([one.image for one in encoded.values()])[torch.from_numpy(first).to(device)]
    results: dict[str, dict[str, float]] = {}
    for language in list(encoded)[every_nth()]:
        own = torch.from_numpy(np.searchsorted(numbers, encoded[language].group)).to(device)
        results |= evaluate_languages({language: encoded[language].text}, image, {language: own})["results"]
    of_all = {name: metrics for some in objects_of_all_ranks(results) for name, metrics in some.items()}
    ordered = {language: of_all[language] for language in encoded}
    recalls = {f"mean_recall_{lang}": metrics["mean_recall"] for lang, metrics in ordered.items()}
    return {"mean_recall": average_languages(ordered)["all"]["mean_recall"], **recalls}


class Encoded(NamedTuple):
    """Captions of one language, from all ranks.

    Attributes:
        text: (captions, dim) on the model's device.
        image: (captions, dim), the image of each.
        group: (captions,) number of the image.
    """

    text: Tensor
    image: Tensor
    group: npt.NDArray[np.int64]


def encode_share(
    model: nn.Module, parts: Mapping[str, CaptionDataset], device: torch.device, between_batches: Callable[[], None]
) -> dict[str, Encoded]:
    """Encode this rank's share of the batches, and gather those of all ranks by language.

    Args:
        model: in eval mode.
        parts: `language:number` -> captions with images.
        device: of the model.
        between_batches: see `validation_recalls`.
    """
    cost = batch_cost(device)
    plan = [(name, rows) for name, part in parts.items() for rows in batches_by_tokens(part.sizes, cost, BATCH)]
    mine, ranks = plan[every_nth()], len(objects_of_all_ranks(None))
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name.split(":")[0]: [] for name in parts}
    nothing: tuple[Tensor, ...] = ()
    for number in range(-(-len(plan) // ranks)):
        between_batches()
        # A rank without a batch in the last round encodes another, so that wrappers meet the same collectives.
        name, rows = mine[number] if number < len(mine) else plan[0]
        sample = parts[name].rows(rows)
        out = model(**utils.apply_to_sample(lambda tensor: tensor.to(device), sample["net_input"]))
        batch = out["text"].float(), out["image"].float(), sample["group"].to(device)
        nothing = tuple(tensor[:0] for tensor in batch)
        if number < len(mine):
            found[name.split(":")[0]].append(batch)
    encoded = {}
    for language, batches in found.items():
        columns = zip(*batches, strict=True) if batches else ((tensor,) for tensor in nothing)
        text, image, group = (gather_rows(torch.cat(list(column)))[0] for column in columns)
        encoded[language] = Encoded(text, image, group.cpu().numpy())
    return encoded


def check_rankable(split: str, groups: Mapping[str, npt.NDArray[np.int64]], retrieval: bool) -> None:
    """Refuse, or warn of, captions of one image only: every loss over negatives is 0 on them, and every recall 100.

    Args:
        split: for the message.
        groups: language -> (captions,) numbers of their images; a batch, and what is searched, holds one language.
        retrieval: whether checkpoints are to be compared by recall.

    Raises:
        UserError: a language has one image, and recall is to be measured on it.
    """
    for language, numbers in groups.items():
        if len(np.unique(numbers)) != 1:
            continue
        what = f"{split} {language}: has one image only ({len(numbers)} captions), so nothing can be ranked"
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
