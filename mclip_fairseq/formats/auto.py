"""An exported directory as `transformers` loads it: `AutoModel.from_pretrained(DIR, trust_remote_code=True)`.

The directory's `modeling_mclip.py` names the classes below, so mclip_fairseq must be installed where it is loaded.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.formats.saved import MODEL_TYPE
from mclip_fairseq.formats.towers import Tower
from mclip_fairseq.storage.errors import UserError

shield_torchaudio()

from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402


class MCLIPConfig(PreTrainedConfig):
    """`config.json` of an exported directory, as it stands there."""

    model_type = MODEL_TYPE


@dataclass
class MCLIPOutput(ModelOutput):
    """What the model computes; absent where its input was.

    Attributes:
        logits_per_image: (images, texts) cosines times the scale.
        logits_per_text: (texts, images), the same.
        text_embeds: (texts, dim), L2-normalised.
        image_embeds: (images, dim), L2-normalised.
    """

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class MCLIPModel(PreTrainedModel):
    """Both towers with the methods of `CLIPModel`.

    Args:
        config: of the directory.
        tower: the model.
    """

    config_class = MCLIPConfig
    base_model_prefix = "mclip"
    main_input_name: ClassVar[str] = "input_ids"

    def __init__(self, config: MCLIPConfig, tower: Tower) -> None:
        super().__init__(config)
        self.tower = tower
        self.text_model = tower.module  # registered, so that `to` moves it
        self.vision_model = tower.image_module

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> MCLIPModel:
        """Load a directory, or a repository of the Hub.

        Args:
            pretrained_model_name_or_path: the directory, or `USER/NAME`.
            *args: unused.
            **kwargs: `language` (of a model with a text path per language), `dtype`, `revision`, `token`, `cache_dir`
                and `local_files_only`; others are those of `transformers`, and change nothing here.

        Raises:
            UserError: a file is missing or damaged, or the model needs a language.
        """
        from mclip_fairseq.formats.directory import load_saved

        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            names = ("revision", "token", "cache_dir", "local_files_only")
            wanted = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **wanted))
        tower = load_saved(folder)
        if kwargs.get("language"):
            tower = tower.for_language(kwargs["language"])
        elif not tower.reads_any_language:
            raise UserError(
                f"{folder}: reads each language in its own way; pass language, such as {tower.languages[0]}"
            )
        model = cls(kwargs.get("config") or MCLIPConfig.from_pretrained(folder), tower)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        return model.to(getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else _type(dtype)).eval()

    def get_text_features(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """(texts, length) ids of the directory's tokenizer -> (texts, dim), L2-normalised."""
        return F.normalize(self.tower.encode_text(self.tower.model_input(input_ids)), dim=1)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """(images, channels, height, width) pixels of the image processor -> (images, dim), L2-normalised."""
        return F.normalize(self.tower.encode_pixels(pixel_values), dim=1)

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> MCLIPOutput:
        """Encode texts, images, or both, and compare them.

        Args:
            input_ids: see `get_text_features`.
            pixel_values: see `get_image_features`.
            **kwargs: unused, such as the attention mask, which follows from the ids.
        """
        text = None if input_ids is None else self.get_text_features(input_ids)
        image = None if pixel_values is None else self.get_image_features(pixel_values)
        if text is None or image is None:
            return MCLIPOutput(text_embeds=text, image_embeds=image)
        scale = self.tower.scale
        logits = (1.0 if scale is None else scale.to(text)) * image @ text.T
        return MCLIPOutput(logits, logits.T, text, image)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the directory again; the other arguments of `transformers` change nothing here."""
        importlib.import_module(self.tower.writer).save_directory(self.tower, Path(save_directory), into=True)


def _type(dtype: Any) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
