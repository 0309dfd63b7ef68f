"""A model as the directory that immich's machine-learning server loads: two ONNX towers and their preprocessing.

config.json                 longest text (`text_cfg`) and image size (`vision_cfg`)
textual/model.onnx          text (batch, length) int32 -> text_embedding (batch, dim), L2-normalised
textual/tokenizer.json      with our ids; tokenizer_config.json names the pad token
visual/model.onnx           image (batch, 3, height, width) float32 -> image_embedding (batch, dim), L2-normalised
visual/preprocess_cfg.json  size, mean, std, interpolation
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.export.onnx import TOLERANCE, image_axes, sample_tokens, text_axes, write_tower
from mclip_fairseq.export.tokenizer_json import write_tokenizer_json
from mclip_fairseq.formats.saved import CONFIG
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import write_json

LONGEST = 77  # tokens; the server pads every query to the longest text
TEXT, IMAGE, TOWER, PREPROCESSING = "textual", "visual", "model.onnx", "preprocess_cfg.json"


class FromInt32(nn.Module):
    """A text path for int32 ids, which is what the server sends.

    Args:
        path: from int64 ids to embeddings.
    """

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.path = path
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) int32 -> (batch, dim)."""
        embedding: Tensor = self.path(ids.long())
        return embedding


def write_immich(tower: TrainedTower, output: Path) -> None:
    """Write a model for immich.

    Args:
        tower: the model, on the CPU.
        output: existing directory.

    Raises:
        UserError: onnx is not installed; the server cannot do the model's preprocessing; a tower differs from torch.
    """
    for module in ("onnx", "onnxruntime", "onnxscript"):
        import_extra(module, "export")
    if tower.module.image_transform is not None:
        raise UserError(
            f"{tower.name}: has an image tower of its own, which immich cannot load; export one with a teacher"
        )
    preprocessing = preprocessing_of(tower)
    size, longest = preprocessing["size"], min(tower.tokenizer.max_tokens, LONGEST)
    for name in (TEXT, IMAGE):
        (output / name).mkdir(parents=True)
    if not write_tokenizer_json(tower.tokenizer, output / TEXT):
        raise UserError(
            f"{tower.tokenizer.directory}/dict.txt: lacks pieces of the SentencePiece model, so tokenizer.json, which "
            "immich reads, cannot give the model's ids; export a model whose dictionary has all pieces"
        )
    write_json(output / IMAGE / PREPROCESSING, preprocessing)
    tokens = [batch.int() for batch in sample_tokens(tower)]
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    text, image = FromInt32(tower.module.portable_text()), tower.module.portable_image(tower.teacher)
    differences = {
        TEXT: write_tower(text, output / TEXT / TOWER, "text", "text_embedding", tokens, text_axes(tower)),
        IMAGE: write_tower(
            image, output / IMAGE / TOWER, "image", "image_embedding", [pixels, pixels[:1]], image_axes()
        ),
    }
    for name, difference in differences.items():
        if difference > TOLERANCE:
            raise UserError(
                f"{name}/{TOWER}: differs from torch by {difference:.1e}, more than {TOLERANCE}; try other versions of "
                "onnxscript and onnxruntime"
            )
    config = {
        "embed_dim": tower.dim,
        "vision_cfg": {"image_size": size},
        "text_cfg": {"context_length": longest, "vocab_size": len(tower.tokenizer.dictionary)},
    }
    write_json(output / CONFIG, config)


def preprocessing_of(tower: TrainedTower) -> dict[str, Any]:
    """The teacher's image processor in open_clip's terms, which the server reads.

    Raises:
        UserError: it does something that the server does not.
    """
    given: dict[str, Any] = tower.teacher.transform.processor.to_dict()
    size, crop = dict(given.get("size") or {}), dict(given.get("crop_size") or {})
    edges = {crop.get("height"), crop.get("width")} if given.get("do_center_crop") else set(size.values())
    edge = next(iter(edges), None)
    shortest = bool(given.get("do_center_crop")) and size == {"shortest_edge": edge}
    squash = not given.get("do_center_crop") and size == {"height": edge, "width": edge}
    if len(edges) != 1 or not (shortest or squash) or not given.get("do_normalize"):
        raise UserError(
            f"{tower.teacher.identity['name']}: its image processor resizes to {size} and crops to {crop}, which "
            "immich does not do; export a model whose teacher makes square images in one step"
        )
    return {
        "size": edge,
        "mode": "RGB",
        "mean": list(given["image_mean"]),
        "std": list(given["image_std"]),
        "interpolation": Image.Resampling(given["resample"]).name.lower(),
        "resize_mode": "shortest" if shortest else "squash",
    }
