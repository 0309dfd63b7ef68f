"""A model for mteb, the Massive Text Embedding Benchmark, which needs the extra `mteb`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from torch import Tensor

from mclip_fairseq.evaluation.costs import count_parameters
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.errors import UserError


class MTEBEncoder:
    """A `MultilingualCLIP` with the encoder interface of mteb: `mteb.evaluate(MTEBEncoder("mclip-base"), tasks)`.

    Texts go to the model as they are, without prompts. An input that has both a text and an image gets the sum of the
    two vectors, as mteb's own CLIP models do it.

    Args:
        model_name: whatever `MultilingualCLIP.from_pretrained` reads, or a loaded model.
        revision: of the model, for mteb's tables; None takes the fingerprint of its weights.
        device: where it runs; see `MultilingualCLIP`.
        language: of the texts, for a model that reads each language in its own way.

    Raises:
        UserError: the model cannot be loaded, or needs a language.
    """

    def __init__(
        self,
        model_name: str | Path | MultilingualCLIP,
        revision: str | None = None,
        *,
        device: str | None = None,
        language: str | None = None,
    ) -> None:
        if isinstance(model_name, MultilingualCLIP):
            self.model = model_name if language is None else model_name.for_language(language)
        else:
            self.model = MultilingualCLIP.from_pretrained(model_name, device=device, language=language)
        if not self.model.reads_any_language:
            raise UserError(f"{self.model.tower.name}: reads each language in its own way; give the tasks' language")
        self.mteb_model_meta = describe(self.model, revision)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        batch_size: int = 256,
        show_progress_bar: bool = False,
        **task: Any,
    ) -> Tensor:
        """Encode what a data loader of mteb gives.

        Args:
            inputs: batches with `text`, `image` (PIL images) or both.
            batch_size: most inputs in one pass of the model.
            show_progress_bar: draw one.
            **task: what mteb says of the task; the vectors do not depend on it.

        Returns:
            (inputs, dim) float32, L2-normalised unless an input has two parts.

        Raises:
            UserError: the inputs are neither texts nor images, or only some have an image.
        """
        columns: dict[str, list[Any]] = {"text": [], "image": []}
        for batch in inputs:
            for name, column in columns.items():
                column.extend(batch.get(name, ()))
        texts, images = columns["text"], columns["image"]
        if not (texts or images) or (texts and images and len(texts) != len(images)):
            raise UserError(
                f"{len(texts)} texts and {len(images)} images; a task has texts, images, or one of each per input"
            )
        encoded = []
        if texts:
            encoded.append(self.model.encode_text(texts, batch_size, show_progress_bar=show_progress_bar))
        if images:
            encoded.append(self.model.encode_image(images, batch_size, show_progress_bar=show_progress_bar))
        return torch.stack(encoded).sum(dim=0)

    def similarity(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """(n, dim) and (m, dim) -> (n, m) cosines."""
        cosines: Tensor = cos_sim(embeddings1, embeddings2)
        return cosines

    def similarity_pairwise(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """(n, dim) and (n, dim) -> (n,) cosines."""
        cosines: Tensor = pairwise_cos_sim(embeddings1, embeddings2)
        return cosines


def describe(model: MultilingualCLIP, revision: str | None = None) -> ModelMeta:
    """What mteb's tables say of a model.

    Args:
        model: the model.
        revision: see `MTEBEncoder`.
    """
    return ModelMeta.create_empty(
        {
            "name": f"mclip_fairseq/{Path(model.tower.name).name}",
            "revision": revision or model.fingerprint[:16],
            "n_parameters": count_parameters(model),
            "embed_dim": model.dim,
            "max_tokens": model.tower.max_tokens,
            "modalities": ["image", "text"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
        }
    )
