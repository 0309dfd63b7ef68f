"""Model `mclip`: a frozen teacher and a multilingual text encoder joined by two light projectors (mCLIP)."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.architectures import XLMR_LARGE, XLMR_TINY, set_defaults
from mclip_fairseq.models.autocast import unit, widened
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.projectors import PROJECTOR_STARTS, XProjector, c_projector, text_head
from mclip_fairseq.models.sizes import check_chosen_sizes
from mclip_fairseq.models.student import StudentModel
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.text_options import FREEZING, StudentConfig, TextEncoderConfig

CITATION = """@inproceedings{chen-etal-2023-mclip,
  title = {{mCLIP}: Multilingual {CLIP} via Cross-lingual Transfer},
  author = {Chen, Guanhua and Hou, Lu and Chen, Yun and Dai, Wenliang and Shang, Lifeng and Jiang, Xin and Liu, Qun
            and Pan, Jia and Wang, Wenping},
  booktitle = {Proceedings of ACL},
  year = {2023},
}"""


@dataclass
class MCLIPModelConfig(StudentConfig):
    """The frozen parts, the projectors and the learned scale."""

    freeze_text: ChoiceEnum(FREEZING) = field(  # type: ignore[valid-type]
        default="all", metadata=TextEncoderConfig.__dataclass_fields__["freeze_text"].metadata
    )
    projector_layers: int = field(default=2, metadata={"help": "transformer layers of the X-projector"})
    projector_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width of the X-projector"})
    projector_attention_heads: int = field(default=12, metadata={"help": "attention heads of the X-projector"})
    projector_positions: ChoiceEnum(["all", "pooled"]) = field(  # type: ignore[valid-type]
        default="pooled",
        metadata={
            "help": "pooled: the X-projector's last layer at the one position that is kept, up to 1.9 times as fast "
            "with --text-state-cache; all: at every position, as in the released code, with its draws of dropout"
        },
    )
    projector_start: ChoiceEnum(PROJECTOR_STARTS) = field(  # type: ignore[valid-type]
        default="random",
        metadata={
            "help": "random (as published), or identity: the joint space starts as the teacher's, which a linear text "
            "head reaches where the text encoder has another width"
        },
    )
    fixed_target: bool = field(
        default=False,
        metadata={"help": "do not train the C-projector: the text encoder learns the space that the teacher has now"},
    )
    pooling: ChoiceEnum(["last", "mean"]) = field(  # type: ignore[valid-type]
        default="last",
        metadata={
            "help": "last: state of </s> after the projector (as published); mean: project the mean-pooled encoder "
            "states (what MTE's contrastive loss aligns)"
        },
    )
    dropout: float = field(
        default=0.3, metadata={"help": "dropout of the X-projector, and of the text encoder if trained"}
    )
    logit_scale_init: float = field(default=1 / 0.07, metadata={"help": "initial value of the learned scale"})
    logit_scale_max: float = field(default=100.0, metadata={"help": "upper limit of the learned scale"})


@register_model("mclip", dataclass=MCLIPModelConfig)
class MCLIPModel(StudentModel):
    """Two light projectors between a frozen teacher and a multilingual text encoder (mCLIP, section 3.2).

    The joint space has the text encoder's width, or the teacher's with `--projector-start identity`. See `StudentModel`
    for the arguments.
    """

    citation = CITATION
    reads_image_bank = True

    def __init__(
        self,
        cfg: MCLIPModelConfig,
        text_encoder: TextEncoder,
        teacher: DualEncoderTeacher | None,
        teacher_identity: Mapping[str, Any],
    ) -> None:
        super().__init__(cfg, text_encoder, teacher, teacher_identity)
        check_chosen_sizes(cfg, "projector", text_encoder.dim, "the text encoder's width")
        start = str(cfg.projector_start)
        joint_dim = cfg.teacher_dim if start == "identity" else text_encoder.dim
        self.c_projector = c_projector(cfg.teacher_dim, joint_dim, start)
        self.text_head = text_head(text_encoder.dim, joint_dim)
        self.c_projector.requires_grad_(not cfg.fixed_target)
        self.x_projector = XProjector(
            layers=cfg.projector_layers,
            dim=text_encoder.dim,
            ffn_dim=cfg.projector_ffn_embed_dim,
            heads=cfg.projector_attention_heads,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            all_positions=cfg.projector_positions == "all",
            start=start,
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(cfg.logit_scale_init)))

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return int(self.c_projector.weight.shape[0])

    @property
    def scale(self) -> Tensor:
        """The learned scale, 0-d, at most `--logit-scale-max`; it multiplies the cosine."""
        return widened(self.logit_scale).exp().clamp(max=self.cfg.logit_scale_max)

    def encode_text(
        self, tokens: Tensor | None = None, states: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Text in the joint space.

        Args:
            tokens: (batch, length) ids `<s> ... </s>`, padded on either side; or
            states: token states of the frozen encoder, see `token_states`, with
            padding: (batch, length) bool, True at pads.

        Returns:
            (batch, dim), L2-normalised.
        """
        states, padding = self.token_states(tokens, states, padding)
        states = states.to(self.c_projector.weight.dtype)
        if self.cfg.pooling == "mean":
            # One state per sentence is left, so the projector's attention has a single position to look at.
            states, padding = pool_mean(states, padding)[:, None], padding.new_zeros(len(padding), 1)
        return unit(self.text_head(self.x_projector(states, padding)))

    def project_teacher(self, features: Tensor) -> Tensor:
        """Teacher features, image or text, (batch, teacher dim) -> (batch, dim), L2-normalised.

        They are normalised first, so that directories stored with and without normalisation give the same.
        """
        normalised = unit(features).to(self.c_projector.weight.dtype)
        return unit(self.c_projector(normalised))

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
        """Everything a training step compares.

        Args:
            text_tokens: (batch, length) caption ids; or
            text_states: their cached token states or the places of these, see `token_states`, with
            text_padding: (batch, length) bool.
            image_features: (batch, teacher dim); or
            pixel_values: (batch, channels, height, width); or neither.
            teacher_text: (batch, teacher dim) teacher features of the English caption, or None.
            image_bank: (images, teacher dim) images that all texts are compared with, or None.
            translation_tokens: (batch, length) ids of each caption in another language, or None.

        Returns:
            `text`, `image`, `teacher_text`, `translation`: (batch, dim), and `image_bank`: (images, dim),
            L2-normalised, None where the input was; `scale`: 0-d.
        """
        has_text = text_tokens is not None or text_states is not None
        has_image = image_features is not None or pixel_values is not None
        return {
            "text": self.encode_text(text_tokens, text_states, text_padding) if has_text else None,
            "image": self.encode_image(pixel_values, image_features) if has_image else None,
            "teacher_text": None if teacher_text is None else self.project_teacher(teacher_text),
            "image_bank": None if image_bank is None else self.project_teacher(image_bank),
            "translation": None if translation_tokens is None else self.encode_text(translation_tokens),
            "scale": self.scale,
        }

    def portable_text(self) -> nn.Module:
        """XLM-R, the X-projector and the text head, for other runtimes."""
        from mclip_fairseq.models.portable import PortableText

        layers = list(self.x_projector.layers)
        return PortableText(self.text_encoder, str(self.cfg.pooling), layers, self.text_head)


@register_model_architecture("mclip", "mclip_base")
def mclip_base(args: Namespace) -> None:
    """As published: XLM-R base, two projector layers of its width."""


@register_model_architecture("mclip", "mclip_large")
def mclip_large(args: Namespace) -> None:
    """XLM-R large."""
    set_defaults(
        args,
        projector_ffn_embed_dim=4096,
        projector_attention_heads=16,
        **XLMR_LARGE,
    )


@register_model_architecture("mclip", "mclip_tiny")
def mclip_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(
        args,
        projector_layers=1,
        projector_ffn_embed_dim=64,
        projector_attention_heads=4,
        dropout=0.1,
        **XLMR_TINY,
    )
