"""Task `image_text`: captions in any language with their images, as features or as pixels."""

from dataclasses import dataclass

from fairseq.tasks import register_task

from mclip_fairseq.tasks.captions import CaptionTask, CaptionTaskConfig


@dataclass
class ImageTextTaskConfig(CaptionTaskConfig):
    """Captions and images."""


@register_task("image_text", dataclass=ImageTextTaskConfig)
class ImageTextTask(CaptionTask):
    """Data for a contrast of images and captions.

    | batch entry | shape | needed by |
    |---|---|---|
    | `net_input.text_tokens` or `text_states`, `text_padding` | (batch, length[, dim]) | every model |
    | `net_input.image_features` or `pixel_values` | (batch, feature dim) or (batch, 3, h, w) | the contrast |
    | `group` | (batch,) int64 | `--positives image` |
    """

    cfg: ImageTextTaskConfig
    needed = (("image_features", "pixel_values"),)
