"""Model `teacher_learning`: M-CLIP's text tower (Carlsson et al., LREC 2022), mean pooling and a linear layer."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.adapters import ADAPTERS, add_adapters
from mclip_fairseq.models.architectures import XLMR_LARGE, XLMR_TINY, set_defaults
from mclip_fairseq.models.autocast import unit, widened
from mclip_fairseq.models.dual_encoder import Columns
from mclip_fairseq.models.pooling import POOLING
from mclip_fairseq.models.student import StudentModel
from mclip_fairseq.models.student_heads import HEADS, student_head
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.text_options import StudentConfig, frozen_part
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.errors import UserError

# CLIP's training ends at this factor of the cosine (Radford et al. 2021, section 2.5).
CLIP_SCALE = 100.0
CITATION = """@inproceedings{carlsson-etal-2022-cross,
  title = {Cross-lingual and Multilingual {CLIP}},
  author = {Carlsson, Fredrik and Eisen, Philipp and Rekathati, Faton and Sahlgren, Magnus},
  booktitle = {Proceedings of LREC},
  year = {2022},
}"""


@dataclass
class TeacherLearningModelConfig(StudentConfig):
    """The student text encoder, its pooling and head, and the scale of a contrast with the teacher."""

    pooling: ChoiceEnum(list(POOLING)) = field(  # type: ignore[valid-type]
        default="mean",
        metadata={"help": "state of a text: mean of its token states (M-CLIP), first (AltCLIP) or last token"},
    )
    student_head: ChoiceEnum(HEADS) = field(  # type: ignore[valid-type]
        default="linear",
        metadata={
            "help": "linear (M-CLIP), linear_2 to linear_4: as many linear layers in a row (METAL), norm_linear: "
            "LayerNorm first (AltCLIP), tanh: two layers and a tanh"
        },
    )

    adapter_dim: int = field(
        default=0,
        metadata={
            "help": "train adapters of this width after each layer, and the head, while the text encoder is frozen; 0: "
            "no adapters"
        },
    )
    distillation_scale_init: float = field(
        default=0.0,
        metadata={
            "help": "initial value of the learned factor of the cosine in criterion distillation's contrast (AltCLIP: "
            "4.48, e to the 1.5); 0: no such factor"
        },
    )


@register_model("teacher_learning", dataclass=TeacherLearningModelConfig)
class TeacherLearningModel(StudentModel):
    """A student of the teacher's text tower; images stay where the teacher puts them.

    See `StudentModel` for the arguments.
    """

    columns = Columns(
        required=(("text_tokens", "text_states"), ("teacher_text",)),
        optional=("text_padding", "image_features", "pixel_values", "translation_tokens"),
    )
    citation = CITATION
    reads_image_bank = True
    size_groups = (*StudentModel.size_groups, (ADAPTERS, ""))

    def __init__(
        self,
        cfg: TeacherLearningModelConfig,
        text_encoder: TextEncoder,
        teacher: DualEncoderTeacher | None,
        teacher_identity: Mapping[str, Any],
    ) -> None:
        super().__init__(cfg, text_encoder, teacher, teacher_identity)
        if cfg.adapter_dim:
            add_adapters(text_encoder, cfg.adapter_dim, trained=frozen_part(cfg) != "all")
        self.projection = student_head(str(cfg.student_head), text_encoder.dim, self.target_dim)
        # The logarithm, without an upper limit, as in AltCLIP's code.
        start = cfg.distillation_scale_init
        self.distillation_log_scale = nn.Parameter(torch.tensor(math.log(start))) if start > 0 else None

    @property
    def target_dim(self) -> int:
        """Width of what the student predicts."""
        return int(self.cfg.teacher_dim)

    @property
    def text_head(self) -> nn.Module:
        """From a pooled state, (batch, text dim), to the joint space, (batch, dim), not normalised."""
        return self.projection

    @property
    def plain_encoder(self) -> TextEncoder:
        """The text encoder for published layouts, which have no place for adapters.

        Raises:
            UserError: there are adapters.
        """
        if self.cfg.adapter_dim:
            raise UserError("the model has adapters, which only --format directory can hold")
        return self.text_encoder

    @property
    def plain_xlmr(self) -> XLMREncoder:
        """`plain_encoder` where it is XLM-R.

        Raises:
            UserError: it is another one, or there are adapters.
        """
        encoder = self.plain_encoder
        if not isinstance(encoder, XLMREncoder):
            raise UserError(f"the text encoder is {encoder.description}, but the layout is for XLM-R as fairseq has it")
        return encoder

    @property
    def state_pooling(self) -> str:
        """The head reads the pooled state alone."""
        return str(self.cfg.pooling)

    @property
    def dim(self) -> int:
        """Width of the joint space, which is the teacher's."""
        return self.feature_dim

    @property
    def scale(self) -> Tensor:
        """The teacher's scale, 0-d; CLIP's where the model was built without its teacher."""
        stored = None if self.teacher is None else self.teacher.logit_scale
        parameter = next(self.projection.parameters())
        return parameter.new_full((), CLIP_SCALE if stored is None else stored, dtype=torch.float32)

    def external_parts(self) -> tuple[str, ...]:
        """The teacher, and a text encoder of which nothing is trained."""
        parts = super().external_parts()
        return parts if self.text_encoder.frozen else tuple(part for part in parts if part == "teacher.")

    @classmethod
    def stores_text_encoder(cls, cfg: Any) -> bool:
        """Whether the text encoder's weights are in the checkpoint: unless all of it was frozen."""
        return super().stores_text_encoder(cfg) or cfg.freeze_text == "embeddings"

    def student(
        self, tokens: Tensor | None = None, states: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Text in the teacher's space, not normalised; see `StudentModel.token_states` for the arguments.

        Returns:
            (batch, teacher dim).
        """
        states, padding = self.token_states(tokens, states, padding)
        pooled = POOLING[str(self.cfg.pooling)](states, padding)
        return self.projection(pooled.to(next(self.projection.parameters()).dtype))

    def encode_text(
        self, tokens: Tensor | None = None, states: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Text in the teacher's space, (batch, teacher dim), L2-normalised."""
        return unit(self.student(tokens, states, padding))

    def forward(
        self,
        text_tokens: Tensor | None = None,
        text_states: Tensor | None = None,
        text_padding: Tensor | None = None,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        teacher_text: Tensor | None = None,
        image_bank: Tensor | None = None,
        translation_tokens: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Student features and, untouched, what they should be.

        Args:
            text_tokens: (batch, length) ids; or
            text_states: token states of the frozen encoder, see `token_states`, with
            text_padding: (batch, length) bool.
            image_features: (batch, teacher dim) of the images, for retrieval in validation; or
            pixel_values: (batch, channels, height, width). Training needs neither.
            teacher_text: (batch, teacher dim) targets.
            image_bank: (images, teacher dim) images that all texts are compared with, or None.
            translation_tokens: (batch, length) ids of each caption in another language, or None.

        Returns:
            `student` and `teacher_text`, (batch, teacher dim) as they are; `text`, `translation`, and `image` in
            validation, (batch, teacher dim), and `image_bank`, (images, teacher dim), L2-normalised; `scale`: 0-d. None
            where the input was. `distillation_scale`: 0-d, the learned factor of the cosine of student and teacher, or
            None.
        """
        student = self.student(text_tokens, text_states, text_padding)
        has_image = not self.training and (image_features is not None or pixel_values is not None)
        with torch.no_grad():
            image = self.encode_image(pixel_values, image_features) if has_image else None
        return {
            "student": student,
            "text": unit(student),
            "image": image,
            "teacher_text": teacher_text,
            "image_bank": None if image_bank is None else self.project_teacher(image_bank),
            "translation": None if translation_tokens is None else self.encode_text(translation_tokens),
            "scale": self.scale,
            "distillation_scale": None
            if self.distillation_log_scale is None
            else widened(self.distillation_log_scale).exp(),
        }

    def portable_text(self) -> nn.Module:
        """Text encoder, adapters, pooling and head, for other runtimes."""
        from mclip_fairseq.models.portable import PortableText

        return PortableText(self.text_encoder, str(self.cfg.pooling), [], self.text_head)


@register_model_architecture("teacher_learning", "teacher_learning_base")
def teacher_learning_base(args: Namespace) -> None:
    """XLM-R base."""


@register_model_architecture("teacher_learning", "m_clip_base")
def m_clip_base(args: Namespace) -> None:
    """M-CLIP on XLM-R base: masked mean and a linear layer; the same as `teacher_learning_base`."""


@register_model_architecture("teacher_learning", "m_clip_large")
def m_clip_large(args: Namespace) -> None:
    """M-CLIP on XLM-R large, as published beside ViT-B/32, ViT-B/16+ and ViT-L/14."""
    set_defaults(args, **XLMR_LARGE)


@register_model_architecture("teacher_learning", "teacher_learning_tiny")
def teacher_learning_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(args, **XLMR_TINY)
