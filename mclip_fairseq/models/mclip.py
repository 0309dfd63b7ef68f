"""Model `mclip`: a frozen teacher and a multilingual text encoder joined by two light projectors (mCLIP)."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.architectures import set_defaults
from mclip_fairseq.models.freezing import IDENTITY, decode_identity, encode_identity, frozen_names
from mclip_fairseq.models.pooling import pool_last, pool_mean
from mclip_fairseq.models.projectors import XProjector, c_projector
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import same_teacher

FROZEN_PREFIXES = ("text_encoder.", "teacher.")


@dataclass
class MCLIPModelConfig(FairseqDataclass):
    """The frozen parts, the projectors and the learned scale."""

    text_encoder: str = field(
        default="",
        metadata={"help": "XLM-R archive (mclip-extract-mte's output, or XLM-R itself); empty: random weights"},
    )
    text_tokenizer: str = field(
        default="",
        metadata={
            "help": "directory with dict.txt and sentencepiece.bpe.model, for inference; empty: that of --text-encoder"
        },
    )
    freeze_text: ChoiceEnum(["all", "embeddings", "none"]) = field(  # type: ignore[valid-type]
        default="all", metadata={"help": "what of the text encoder is not trained"}
    )
    teacher: str = field(
        default="",
        metadata={
            "help": "transformers dual encoder (Hub name or directory) when the data are pixels, and for inference"
        },
    )
    teacher_revision: str = field(default="", metadata={"help": "Hub revision of the teacher"})
    teacher_dim: int = field(default=0, metadata={"help": "width of teacher features; 0: read it off the features"})
    projector_layers: int = field(default=2, metadata={"help": "transformer layers of the X-projector"})
    projector_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width of the X-projector"})
    projector_attention_heads: int = field(default=12, metadata={"help": "attention heads of the X-projector"})
    pooling: ChoiceEnum(["last", "mean"]) = field(  # type: ignore[valid-type]
        default="last",
        metadata={
            "help": "sentence vector: the last projected state, </s> (published), or the projection of the mean of "
            "the encoder's states, which is what MTE's contrast aligns"
        },
    )
    dropout: float = field(
        default=0.3, metadata={"help": "dropout of the X-projector, and of the text encoder if trained"}
    )
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    logit_scale_init: float = field(default=1 / 0.07, metadata={"help": "first value of the learned scale"})
    logit_scale_max: float = field(default=100.0, metadata={"help": "the learned scale never exceeds this"})
    save_frozen: bool = field(default=False, metadata={"help": "store frozen weights in checkpoints too"})
    encoder_layers: int = field(default=12, metadata={"help": "layers of a random text encoder"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of a random text encoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width of a random text encoder"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads of a random text encoder"})
    encoder_max_positions: int = field(default=512, metadata={"help": "longest input of a random text encoder"})


@register_model("mclip", dataclass=MCLIPModelConfig)
class MCLIPModel(BaseFairseqModel):
    """Dual encoder in the joint space of width `text_encoder.dim`.

    Args:
        cfg: options.
        text_encoder: the multilingual text encoder.
        teacher: the image-text teacher, when pixels are encoded here; None when features come from files.
        teacher_identity: path-free identity of the teacher, of `teacher` or of the feature directories.
    """

    text_encoder_prefix = "text_encoder.encoder."

    def __init__(
        self,
        cfg: MCLIPModelConfig,
        text_encoder: XLMREncoder,
        teacher: DualEncoderTeacher | None,
        teacher_identity: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.text_encoder = text_encoder
        self.teacher = teacher
        self.padding_idx = text_encoder.encoder.dictionary.pad()
        self.c_projector = c_projector(cfg.teacher_dim, text_encoder.dim)
        self.x_projector = XProjector(
            layers=cfg.projector_layers,
            dim=text_encoder.dim,
            ffn_dim=cfg.projector_ffn_embed_dim,
            heads=cfg.projector_attention_heads,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(cfg.logit_scale_init)))
        self.identity = {
            "text_encoder": text_encoder.identity() if cfg.text_encoder else None,
            "teacher": dict(teacher_identity),
        }
        text_encoder.freeze(str(cfg.freeze_text))

    @classmethod
    def build_model(cls, cfg: MCLIPModelConfig, task: Any) -> "MCLIPModel":
        """Build from options; sizes of a given text encoder replace those of the options and are kept with them."""
        text_encoder = XLMREncoder.build(cfg.text_encoder, cfg, task.source_dictionary)
        teacher = None
        if cfg.teacher and task.needs_teacher:
            teacher = DualEncoderTeacher.from_pretrained(cfg.teacher, revision=cfg.teacher_revision or None)
            cfg.teacher_dim = teacher.dim
        if not cfg.teacher_dim:
            raise UserError("the teacher's width is unknown; give --image-features, --text-features or --teacher")
        identity = teacher.identity if teacher is not None else task.teacher_identity
        return cls(cfg, text_encoder, teacher, identity)

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return self.text_encoder.dim

    @property
    def scale(self) -> Tensor:
        """The learned scale, 0-d, at most `--logit-scale-max`; it multiplies the cosine."""
        return self.logit_scale.exp().clamp(max=self.cfg.logit_scale_max)

    def encode_text(
        self, tokens: Tensor | None = None, states: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Text in the joint space.

        Args:
            tokens: (batch, length) ids `<s> ... </s>`, padded on either side.
            states: (batch, length, dim) token states of the frozen encoder in place of ids.
            padding: (batch, length) bool, True at pads, with `states`.

        Returns:
            (batch, dim), L2-normalised.
        """
        if states is None or padding is None:
            assert tokens is not None
            states, padding = self.text_encoder(tokens), tokens.eq(self.padding_idx)
        states = states.to(self.c_projector.weight.dtype)
        if self.cfg.pooling == "mean":
            states, padding = pool_mean(states, padding)[:, None], padding.new_zeros(len(padding), 1)
        return F.normalize(pool_last(self.x_projector(states, padding), padding), dim=1)

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Images in the joint space.

        Args:
            pixel_values: (batch, channels, height, width) as the teacher's processor gives them.
            features: (batch, teacher dim) teacher image features in place of pixels.

        Returns:
            (batch, dim), L2-normalised.
        """
        if features is None:
            if self.teacher is None:
                raise UserError("this model was built without its teacher; pass --teacher to encode pixels")
            assert pixel_values is not None
            features = self.teacher.encode_image(pixel_values)
        return self.project_teacher(features)

    def project_teacher(self, features: Tensor) -> Tensor:
        """Teacher features, image or text, (batch, teacher dim) -> (batch, dim), L2-normalised.

        The features are normalised first, so that directories stored with and without normalisation give the same.
        """
        normalised = F.normalize(features.float(), dim=1).to(self.c_projector.weight.dtype)
        return F.normalize(self.c_projector(normalised), dim=1)

    def forward(
        self,
        text_tokens: Tensor | None = None,
        text_states: Tensor | None = None,
        text_padding: Tensor | None = None,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        teacher_text: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Everything a training step compares.

        Args:
            text_tokens: (batch, length) caption ids, or
            text_states: (batch, length, dim) their cached token states with
            text_padding: (batch, length) bool.
            image_features: (batch, teacher dim), or
            pixel_values: (batch, channels, height, width), or neither.
            teacher_text: (batch, teacher dim) teacher features of the English caption, or None.

        Returns:
            `text`, `image`, `teacher_text`: (batch, dim), L2-normalised, None where the input was; `scale`: 0-d.
        """
        has_image = image_features is not None or pixel_values is not None
        return {
            "text": None
            if text_tokens is None and text_states is None
            else self.encode_text(text_tokens, text_states, text_padding),
            "image": self.encode_image(pixel_values, image_features) if has_image else None,
            "teacher_text": None if teacher_text is None else self.project_teacher(teacher_text),
            "scale": self.scale,
        }

    def max_positions(self) -> int:
        """Longest caption in tokens."""
        return self.text_encoder.max_positions

    def dropped_names(self) -> set[str]:
        """What a checkpoint leaves out: frozen weights that the archive and the teacher hold already."""
        if self.cfg.save_frozen:
            return set()
        in_archive = self.cfg.text_encoder and self.cfg.freeze_text != "none"
        prefixes = FROZEN_PREFIXES if in_archive else FROZEN_PREFIXES[1:]
        return frozen_names(self, prefixes)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trained parts and the identity of the frozen ones (all weights with `--save-frozen`)."""
        state = super().state_dict(*args, **kwargs)
        for name in self.dropped_names():
            state.pop(name, None)
        state[IDENTITY] = encode_identity(self.identity)
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load the trained parts onto the frozen ones that this model was built with.

        Raises:
            UserError: the frozen parts are not those the checkpoint was trained with.
        """
        state = dict(state_dict)
        stored = state.pop(IDENTITY, None)
        own = super().state_dict()
        # A teacher has buffers that no state dict holds.
        dropped = self.dropped_names()
        if self.cfg.text_encoder and not any(name.startswith(FROZEN_PREFIXES[0]) for name in state):
            # It was frozen there; here it may be trained on.
            dropped |= {name for name in own if name.startswith(FROZEN_PREFIXES[0])}
        absent = {name for name in dropped if name in own and name not in state}
        if stored is not None and (absent or self.identity["teacher"]):
            self.check_identity(decode_identity(stored), check_text=bool(absent))
        state.update({name: own[name] for name in absent})
        return super().load_state_dict(state, strict, model_cfg, args)

    def check_identity(self, stored: dict[str, Any], check_text: bool) -> None:
        """Refuse a text encoder or teacher other than the one the checkpoint was trained with."""
        if check_text and stored.get("text_encoder") != self.identity["text_encoder"]:
            raise UserError(
                f"the checkpoint was trained on text encoder {stored.get('text_encoder')}, but "
                f"{self.cfg.text_encoder or 'random weights'} is {self.identity['text_encoder']}; pass the archive it "
                "was trained with as --text-encoder"
            )
        mine, theirs = self.identity["teacher"], stored.get("teacher")
        if mine and theirs and not same_teacher(mine, theirs):
            raise UserError(f"the checkpoint was trained with teacher {theirs}, but this is {mine}; use the same one")


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
        encoder_layers=24,
        encoder_embed_dim=1024,
        encoder_ffn_embed_dim=4096,
        encoder_attention_heads=16,
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
        encoder_layers=2,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=4,
        encoder_max_positions=128,
    )
