"""A trainable copy of a teacher's image tower, described well enough to be built again without the teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.teacher import DualEncoderTeacher, ImageTransform
from mclip_fairseq.models.teacher_loading import call_transformers, model_without_memory
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import parse_json

KINDS = ("clip_vision_model", "altclip_vision_model")
# What of an image processor's settings decides the pixels.
SETTINGS = (
    *("crop_size", "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"),
    *("image_mean", "image_std", "resample", "rescale_factor", "size"),
)


class VisionTower(nn.Module):
    """The vision transformer of a CLIP: pixels to states before the projection.

    Args:
        description: JSON of its configuration and its image processor, from `describe`.

    Attributes:
        transform: RGB images -> (n, channels, height, width).
        dim: width of a pooled state.
    """

    def __init__(self, description: str) -> None:
        super().__init__()
        shield_torchaudio()
        from transformers import CLIPVisionConfig, CLIPVisionModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        facts = json.loads(description)
        self.config = CLIPVisionConfig(**facts["config"])
        self.model: Any = CLIPVisionModel(self.config)
        self.transform = ImageTransform(CLIPImageProcessorPil(**facts["processor"]))
        self.dim = int(self.config.hidden_size)

    @staticmethod
    def check_size(place: Path, description: str, weights: Mapping[str, Tensor]) -> None:
        """Refuse a description from a file that claims more parameters than its weights have.

        Raises:
            UserError: or it is damaged.
        """
        from transformers import CLIPVisionConfig

        remedy = "restore the file that belongs to the weights"
        facts = check_fields(place, parse_json(description), {"config": dict, "processor": dict}, remedy)
        config = call_transformers(place, "an image tower", lambda: CLIPVisionConfig(**facts["config"]))
        claimed = sum(tensor.numel() for tensor in model_without_memory(config, str(place)).parameters())
        stored = sum(tensor.numel() for tensor in weights.values())
        if claimed > stored:
            raise UserError(f"{place}: its vision_tower has {claimed} parameters, but its weights {stored}; {remedy}")

    @classmethod
    def copy(cls, teacher: DualEncoderTeacher) -> VisionTower:
        """A trainable tower that starts where the teacher's is.

        Raises:
            UserError: the teacher's image tower is of another kind.
        """
        tower = cls(cls.describe(teacher))
        tower.model.load_state_dict(teacher.model.vision_model.state_dict())
        return tower

    @staticmethod
    def describe(teacher: DualEncoderTeacher) -> str:
        """What the constructor needs to build a tower like the teacher's.

        Raises:
            UserError: the teacher's image tower is of another kind.
        """
        config: Any = getattr(teacher.model.config, "vision_config", None)
        if getattr(config, "model_type", "") not in KINDS:
            raise UserError(
                f"{teacher.identity['name']}: has no vision transformer of CLIP, and only that can be trained here; "
                "leave out --train-vision"
            )
        settings = teacher.transform.processor.to_dict()
        config = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "dtype")}
        processor = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
        return json.dumps({"config": config, "processor": processor}, sort_keys=True)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, dim)."""
        pooled: Tensor = self.model(pixel_values=pixel_values).pooler_output
        return pooled
