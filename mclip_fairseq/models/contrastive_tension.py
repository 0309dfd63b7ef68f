"""Model `contrastive_tension`: two encoders of one start (Carlsson et al., ICLR 2021), from sentences alone."""

import copy
import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.architectures import XLMR_LARGE, XLMR_TINY, set_defaults
from mclip_fairseq.models.autocast import unit, widened
from mclip_fairseq.models.dual_encoder import Columns, DualEncoder
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.sizes import ENCODER
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.text_options import TEXT_CONFIG_HELP, TextEncoderConfig
from mclip_fairseq.models.transformers_encoder import build_text_encoder
from mclip_fairseq.storage.errors import UserError

CITATION = """@inproceedings{carlsson2021semantic,
  title = {Semantic Re-tuning with Contrastive Tension},
  author = {Carlsson, Fredrik and Gyllensten, Amaru Cuba and Gogoulou, Evangelia and Hellqvist, Erik Ylip{\\"a}{\\"a}
            and Sahlgren, Magnus},
  booktitle = {ICLR},
  year = {2021},
}"""
ENCODERS = ("first", "second")


@dataclass
class ContrastiveTensionModelConfig(TextEncoderConfig):
    """The text encoder that both start from, and the scale of in-batch negatives."""

    dropout: float = field(default=0.0, metadata={"help": "dropout (the authors train without)"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    text_tokenizer: str = field(
        default="",
        metadata={
            "help": "directory with dict.txt and sentencepiece.bpe.model (or with a tokenizer of transformers, if the "
            "text encoder is one), for --valid-sts and inference; empty: that of --text-encoder"
        },
    )
    text_config: str = field(default="", metadata={"help": TEXT_CONFIG_HELP})
    in_batch_scale_init: float = field(
        default=20.0, metadata={"help": "initial value of the learned factor of the cosine, with --negatives in_batch"}
    )


@register_model("contrastive_tension", dataclass=ContrastiveTensionModelConfig)
class ContrastiveTensionModel(DualEncoder):
    """Two encoders that shall agree on one sentence and disagree on two; mean pooling.

    Sentences are embedded by one of them: the second, or the one that validation found better (`use`).

    Args:
        cfg: options.
        text_encoder: both start from it, with separate weights.
    """

    columns = Columns(required=(("first_tokens",), ("second_tokens",)))
    size_groups = tuple((ENCODER, f"{name}.encoder.") for name in ENCODERS)
    text_encoder_prefix = "second.encoder."
    has_images = False
    tied_weights: ClassVar = {
        f"{name}.encoder.lm_head.weight": f"{name}.encoder.sentence_encoder.embed_tokens.weight" for name in ENCODERS
    }
    citation = CITATION

    def __init__(self, cfg: ContrastiveTensionModelConfig, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.cfg: Any = cfg
        self.identity = {"text_encoder": None, "teacher": {}}
        self.first, self.second = text_encoder, copy.deepcopy(text_encoder)
        for name in ENCODERS:
            self.encoder(name).freeze("embeddings" if cfg.freeze_text == "embeddings" else "none")
        self.padding_idx = text_encoder.padding_idx
        self.log_scale = nn.Parameter(torch.tensor(math.log(cfg.in_batch_scale_init)))
        # A buffer, so that the checkpoint of a validation says which encoder was the better one.
        self.better: Tensor
        self.register_buffer("better", torch.tensor(ENCODERS.index("second")))

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "ContrastiveTensionModel":
        """Build from options.

        Raises:
            UserError: an archive that cannot be read, or a frozen text encoder.
        """
        if str(cfg.freeze_text) in ("all", "encoder"):
            raise UserError("contrastive_tension trains its text encoders; leave out --freeze-text all")
        return cls(cfg, build_text_encoder(cfg, task.source_dictionary))

    def encoder(self, name: str) -> TextEncoder:
        """The encoder `first` or `second`."""
        encoder: TextEncoder = getattr(self, name)
        return encoder

    def use(self, name: str) -> None:
        """Embed sentences with this encoder from now on."""
        self.better.fill_(ENCODERS.index(name))

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder that embeds sentences."""
        return self.encoder(ENCODERS[int(self.better)])

    @property
    def dim(self) -> int:
        """Width of a sentence vector."""
        return self.first.dim

    @property
    def scale(self) -> Tensor:
        """The learned factor of the cosine, 0-d, for negatives from within the batch."""
        return widened(self.log_scale).exp()

    def max_positions(self) -> int:
        """Longest sentence in tokens."""
        return self.first.max_positions

    def pooled(self, name: str, tokens: Tensor) -> Tensor:
        """Sentences through one encoder, not normalised.

        Args:
            name: `first` or `second`.
            tokens: (batch, length) ids.

        Returns:
            (batch, dim), the mean of the token states.
        """
        return pool_mean(self.encoder(name)(tokens), tokens.eq(self.padding_idx))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Sentences, (batch, length) ids -> (batch, dim), L2-normalised."""
        return unit(self.pooled(ENCODERS[int(self.better)], tokens))

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Never.

        Raises:
            UserError: always.
        """
        raise UserError("contrastive_tension embeds sentences; it has no image side")

    def forward(self, first_tokens: Tensor, second_tokens: Tensor) -> dict[str, Tensor]:
        """Both sides of every pair.

        Args:
            first_tokens: (pairs, length) ids for the first encoder.
            second_tokens: (pairs, length) ids for the second.

        Returns:
            `first` and `second`, (pairs, dim), not normalised; `scale`, 0-d.
        """
        return {
            "first": self.pooled("first", first_tokens),
            "second": self.pooled("second", second_tokens),
            "scale": self.scale,
        }

    def portable_text(self) -> nn.Module:
        """The better encoder and mean pooling, for other runtimes."""
        from mclip_fairseq.models.portable import PortableText

        return PortableText(self.text_encoder, "mean", [], nn.Identity())


@register_model_architecture("contrastive_tension", "contrastive_tension_base")
def contrastive_tension_base(args: Namespace) -> None:
    """XLM-R base."""


@register_model_architecture("contrastive_tension", "contrastive_tension_large")
def contrastive_tension_large(args: Namespace) -> None:
    """XLM-R large."""
    set_defaults(args, **XLMR_LARGE)


@register_model_architecture("contrastive_tension", "contrastive_tension_tiny")
def contrastive_tension_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(args, **XLMR_TINY)
