"""Model `teacher_learning`: M-CLIP's text tower (Carlsson et al., LREC 2022): mean pooling and a linear layer."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.architectures import set_defaults
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.errors import UserError


@dataclass
class TeacherLearningModelConfig(FairseqDataclass):
    """The student text encoder."""

    text_encoder: str = field(default="", metadata={"help": "XLM-R archive to start from; empty: random weights"})
    text_tokenizer: str = field(
        default="",
        metadata={
            "help": "directory with dict.txt and sentencepiece.bpe.model, for inference; empty: that of --text-encoder"
        },
    )
    freeze_text: ChoiceEnum(["embeddings", "none"]) = field(  # type: ignore[valid-type]
        default="none", metadata={"help": "what of the text encoder is not trained"}
    )
    teacher: str = field(default="", metadata={"help": "transformers dual encoder that gives the images at inference"})
    teacher_revision: str = field(default="", metadata={"help": "Hub revision of the teacher"})
    teacher_dim: int = field(default=0, metadata={"help": "width of teacher features; 0: read it off the features"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of the text encoder"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    encoder_layers: int = field(default=12, metadata={"help": "layers of a random text encoder"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of a random text encoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width of a random text encoder"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads of a random text encoder"})
    encoder_max_positions: int = field(default=512, metadata={"help": "longest input of a random text encoder"})


@register_model("teacher_learning", dataclass=TeacherLearningModelConfig)
class TeacherLearningModel(BaseFairseqModel):
    """A student of the teacher's text tower; images stay where the teacher puts them.

    Args:
        cfg: options.
        text_encoder: the student, trained as a whole.
        teacher_identity: path-free identity of the teacher.
    """

    text_encoder_prefix = "text_encoder.encoder."

    def __init__(
        self, cfg: TeacherLearningModelConfig, text_encoder: XLMREncoder, teacher_identity: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.text_encoder = text_encoder
        self.padding_idx = text_encoder.encoder.dictionary.pad()
        self.projection = nn.Linear(text_encoder.dim, cfg.teacher_dim)
        self.identity = {"text_encoder": None, "teacher": dict(teacher_identity)}
        text_encoder.freeze(str(cfg.freeze_text))

    @classmethod
    def build_model(cls, cfg: TeacherLearningModelConfig, task: Any) -> "TeacherLearningModel":
        """Build from options."""
        if not cfg.teacher_dim:
            raise UserError("the teacher's width is unknown; give --text-features")
        encoder = XLMREncoder.build(cfg.text_encoder, cfg, task.source_dictionary)
        return cls(cfg, encoder, task.teacher_identity)

    @property
    def dim(self) -> int:
        """Width of the joint space, which is the teacher's."""
        return int(self.cfg.teacher_dim)

    def student(self, tokens: Tensor) -> Tensor:
        """Text in the teacher's space, not normalised, (batch, length) -> (batch, teacher dim)."""
        return self.projection(pool_mean(self.text_encoder(tokens), tokens.eq(self.padding_idx)))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text in the teacher's space, L2-normalised."""
        return F.normalize(self.student(tokens), dim=1)

    def project_teacher(self, features: Tensor) -> Tensor:
        """Teacher features as they are, L2-normalised."""
        return F.normalize(features, dim=1)

    def forward(self, text_tokens: Tensor, teacher_text: Tensor | None = None, **unused: Any) -> dict[str, Tensor]:
        """Student features and, untouched, what they should be.

        Args:
            text_tokens: (batch, length) ids.
            teacher_text: (batch, teacher dim).
            **unused: image features of the same captions.
        """
        if teacher_text is None:
            raise UserError("teacher_learning needs a teacher text feature for every caption; give --text-features")
        return {"student": self.student(text_tokens), "teacher_text": teacher_text}

    def max_positions(self) -> int:
        """Longest caption in tokens."""
        return self.text_encoder.max_positions


@register_model_architecture("teacher_learning", "teacher_learning_base")
def teacher_learning_base(args: Namespace) -> None:
    """XLM-R base."""


@register_model_architecture("teacher_learning", "teacher_learning_tiny")
def teacher_learning_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(
        args,
        encoder_layers=2,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=4,
        encoder_max_positions=128,
    )
