"""An exported directory as a module of sentence-transformers: `SentenceTransformer(DIR)` encodes texts and images.

`modules.json` in the directory names the class below, so mclip_fairseq must be installed where the model is loaded.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from sentence_transformers.base.modules import InputModule
from sentence_transformers.util import load_dir_path
from torch import Tensor

from mclip_fairseq.formats.directory import load_saved
from mclip_fairseq.formats.towers import Tower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import upright_rgb


class MCLIPModule(InputModule):
    """Both towers; a batch is texts or images.

    Args:
        tower: the model.
    """

    save_in_root = True

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        self.text_model = tower.module  # registered, so that `to` moves it
        self.image_model = tower.image_module

    @property
    def modalities(self) -> list[Any]:
        """Texts and images."""
        return ["text", "image"]

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens."""
        return int(self.tower.max_tokens or 0)

    def get_embedding_dimension(self) -> int:
        """Width of the joint space."""
        return self.tower.dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Texts to token ids, or PIL images to pixels.

        Args:
            inputs: all strings or all images.
            prompt: text put before every text.
            **kwargs: unused; sentence-transformers passes the task.
        """
        images = [item for item in inputs if isinstance(item, Image.Image)]
        if images and len(images) != len(inputs):
            raise UserError("a batch holds both texts and images; encode them in two calls")
        if images:
            return {"pixel_values": self.tower.transform([upright_rgb(image) for image in images])}
        return dict(self.tower.tokenize([(prompt or "") + text for text in inputs]))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, (batch, dim), L2-normalised."""
        pixels: Tensor | None = features.get("pixel_values")
        if pixels is not None:
            embedding = self.tower.encode_pixels(pixels)
        else:
            embedding = self.tower.encode_text({"tokens": features["tokens"]})
        return {**features, "sentence_embedding": embedding}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the directory again."""
        importlib.import_module(self.tower.writer).save_directory(self.tower, Path(output_path), into=True)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "MCLIPModule":
        """Read an exported directory, local or from the Hub; the arguments are those of sentence-transformers."""
        folder = load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        if folder is None:
            raise UserError(f"{model_name_or_path}: is not a directory written by mclip-export; give one")
        return cls(load_saved(Path(folder)))
