"""Task `trikd`: English image-caption pairs, with the teacher's features of both (mCLIP, section 3.2)."""

from dataclasses import dataclass

from fairseq.tasks import register_task

from mclip_fairseq.tasks.captions import CaptionTask, CaptionTaskConfig


@dataclass
class TriKDTaskConfig(CaptionTaskConfig):
    """Captions, images and the teacher's features; the defaults are mCLIP's."""


@register_task("trikd", dataclass=TriKDTaskConfig)
class TriKDTask(CaptionTask):
    """Data for Triangle Cross-modal Knowledge Distillation.

    | batch entry | shape | needed by |
    |---|---|---|
    | `net_input.text_tokens` or `text_states`, `text_padding` | (batch, length[, dim]) | every model |
    | `net_input.image_features` or `pixel_values` | (batch, teacher dim) or (batch, 3, h, w) | image-text term |
    | `net_input.teacher_text` | (batch, teacher dim) | text-text term, `teacher_learning` |
    | `group` | (batch,) int64 | `--positives image` |
    """

    cfg: TriKDTaskConfig
