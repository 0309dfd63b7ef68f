"""Model `mte`: XLM-R as the encoder of a translation model (mCLIP, section 3.1: the enhanced text encoder)."""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, register_model, register_model_architecture
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, TransformerConfig
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from torch import Tensor, nn

from mclip_fairseq.models.architectures import XLMR_LARGE, XLMR_TINY, set_defaults
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.recomputing import keep_less, recompute
from mclip_fairseq.models.sizes import check_chosen_sizes
from mclip_fairseq.models.text_options import TextEncoderConfig, frozen_part
from mclip_fairseq.models.xlmr_encoder import XLMREncoder


@dataclass
class MTEModelConfig(TextEncoderConfig):
    """The text encoder, which becomes the translation model's encoder, and the decoder."""

    decoder_layers: int = field(default=12, metadata={"help": "decoder layers"})
    decoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width of the decoder"})
    decoder_attention_heads: int = field(default=12, metadata={"help": "attention heads of the decoder"})
    decoder_max_positions: int = field(default=1024, metadata={"help": "longest output, in tokens"})
    checkpoint_activations: bool = field(
        default=False,
        metadata={
            "help": "keep only the inputs of the layers and compute the rest again in the backward pass: less memory, "
            "more time"
        },
    )
    langs: str = field(
        default="",
        metadata={"help": "languages in the order of the projections; taken from the task and kept for later runs"},
    )


class LanguageProjection(nn.Module):
    """One linear layer per target language; row 0 serves an unknown language.

    Args:
        languages: number of known languages.
        dim: width.
    """

    def __init__(self, languages: int, dim: int) -> None:
        super().__init__()
        # One stacked parameter: every step gives every language a gradient, possibly zero, as DDP requires.
        self.weight = nn.Parameter(torch.empty(languages + 1, dim, dim))
        self.bias = nn.Parameter(torch.zeros(languages + 1, dim))
        for matrix in self.weight:
            nn.init.xavier_uniform_(matrix)

    def forward(self, states: Tensor, lang_id: Tensor, one: int | None = None) -> Tensor:
        """Project each sentence by its target language.

        Args:
            states: (batch, length, dim).
            lang_id: (batch,) int64.
            one: the language of all of them, where the batch says so; otherwise a GPU is asked, and waited for.

        Returns:
            (batch, length, dim).
        """
        # Batches hold one direction, so nearly always one matrix serves the whole batch.
        present = lang_id.unique().tolist() if one is None else [one]
        if len(present) == 1:
            return F.linear(states, self.weight[present[0]], self.bias[present[0]])
        return torch.baddbmm(self.bias[lang_id].unsqueeze(1), states, self.weight[lang_id].transpose(1, 2))


class MTEEncoder(FairseqEncoder):
    """XLM-R followed by the projection of the target language."""

    def __init__(self, xlmr: XLMREncoder, languages: int) -> None:
        super().__init__(xlmr.encoder.dictionary)
        self.xlmr = xlmr
        self.lang_proj = LanguageProjection(languages, xlmr.dim)
        self.padding_idx = xlmr.encoder.dictionary.pad()

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        src_lang_id: Tensor | None = None,
        tgt_lang_id: Tensor | None = None,
        tgt_lang: int | None = None,
        **unused: Any,
    ) -> dict[str, list[Tensor]]:
        """Encode sources for the decoder.

        Args:
            src_tokens: (batch, length) ids, padded on either side.
            src_lengths: unused; fairseq passes it.
            src_lang_id: unused; XLM-R needs no language.
            tgt_lang_id: (batch,) language to translate into; None leaves the states unprojected.
            tgt_lang: that of all sentences, where the batch holds one direction.
            **unused: what else a batch holds.

        Returns:
            fairseq's encoder output: `encoder_out` (length, batch, dim), `encoder_padding_mask` (batch, length), and
            `encoder_states`, the states (batch, length, dim) before the projection.
        """
        states = self.xlmr(src_tokens)
        projected = states if tgt_lang_id is None else self.lang_proj(states, tgt_lang_id.view(-1), tgt_lang)
        padding = src_tokens.eq(self.padding_idx)
        return {
            # Contiguous, so that the decoder's layers need not copy it twice each.
            "encoder_out": [projected.transpose(0, 1).contiguous()],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [],
            "encoder_states": [states],
            "src_tokens": [],
            "src_lengths": [],
        }

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        """Follow beam search's choice of hypotheses."""
        reordered = {
            name: [tensor.index_select(1 if name == "encoder_out" else 0, new_order) for tensor in tensors]
            for name, tensors in encoder_out.items()
        }
        return reordered

    def max_positions(self) -> int:
        """Longest source in tokens."""
        return self.xlmr.max_positions


@register_model("mte", dataclass=MTEModelConfig)
class MTEModel(FairseqEncoderDecoderModel):
    """Translation model whose encoder becomes the multilingual text encoder."""

    text_encoder_prefix: ClassVar[str] = "encoder.xlmr.encoder."

    encoder: MTEEncoder
    decoder: TransformerDecoderBase

    @classmethod
    def use_stored_weights(cls, cfg: Any) -> None:
        """Build the encoder from its sizes: a checkpoint holds all of its weights."""
        cfg.text_encoder = ""

    @classmethod
    def build_model(cls, cfg: MTEModelConfig, task: Any) -> "MTEModel":
        """Build from options; sizes of a given XLM-R replace those of the options and are kept with them.

        Raises:
            UserError: the archive cannot be used, or no model has the sizes that were chosen.
        """
        dictionary = task.source_dictionary
        xlmr = XLMREncoder.build(cfg.text_encoder, cfg, dictionary)
        check_chosen_sizes(cfg, "decoder", xlmr.dim, "the text encoder's width")
        encoder = MTEEncoder(xlmr, len(task.langs))
        # The decoder shares XLM-R's table; a language model head of its own would be a second 250,002-row matrix.
        decoder = TransformerDecoderBase(decoder_config(cfg, xlmr.dim), dictionary, xlmr.embed_tokens)
        keep_less(decoder.layers)
        if cfg.checkpoint_activations:
            recompute([*xlmr.layers, *decoder.layers])
        xlmr.freeze(frozen_part(cfg))
        return cls(encoder, decoder)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor | None,
        src_lang_id: Tensor | None = None,
        tgt_lang_id: Tensor | None = None,
        tgt_lang: int | None = None,
        contrast_tokens: Tensor | None = None,
        pool_projected: bool = False,
        features_only: bool = False,
    ) -> tuple[Tensor | None, dict[str, Tensor | None]]:
        """Translate and, for the contrastive term, encode both sides.

        Args:
            src_tokens: (batch, length) sources.
            src_lengths: (batch,) their lengths.
            prev_output_tokens: (batch, target length) decoder input; None skips the decoder.
            src_lang_id: (batch,) language of the sources.
            tgt_lang_id: (batch,) language to translate into.
            tgt_lang: the same as a number.
            contrast_tokens: (batch, length) target sentences as encoder input, or None.
            pool_projected: pool the source after the language projection, as the released code does.
            features_only: return decoder states (batch, target length, dim) instead of logits.

        Returns:
            logits (batch, target length, entries) or None; `source_pooled` and `target_pooled`, (batch, dim), each
            mean-pooled once from the same encoder, not normalised; `output_weight`, the table that gives logits.
        """
        encoder_out = self.encoder(src_tokens, src_lengths, tgt_lang_id=tgt_lang_id, tgt_lang=tgt_lang)
        logits = None
        if prev_output_tokens is not None:
            logits, _ = self.decoder(prev_output_tokens, encoder_out=encoder_out, features_only=features_only)
        extra: dict[str, Tensor | None] = {
            "source_pooled": None,
            "target_pooled": None,
            "output_weight": self.decoder.output_projection.weight,
        }
        if contrast_tokens is not None:
            # The paper pools the encoder's own states; the released code pools them after the language projection.
            states = (
                encoder_out["encoder_out"][0].transpose(0, 1) if pool_projected else encoder_out["encoder_states"][0]
            )
            extra["source_pooled"] = pool_mean(states, encoder_out["encoder_padding_mask"][0])
            extra["target_pooled"] = self.pool(contrast_tokens)
        return logits, extra

    def pool(self, tokens: Tensor) -> Tensor:
        """Mean-pooled encoding of sentences without language projection, (batch, dim)."""
        return pool_mean(self.encoder.xlmr(tokens), tokens.eq(self.encoder.padding_idx))


def decoder_config(cfg: MTEModelConfig, dim: int) -> TransformerConfig:
    """Fairseq's options of the published decoder: pre-norm, tanh GELU, sinusoidal positions, tied table."""
    return TransformerConfig(
        activation_fn="gelu_accurate",
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        encoder=EncDecBaseConfig(embed_dim=dim),
        decoder=DecoderConfig(
            embed_dim=dim,
            input_dim=dim,
            output_dim=dim,
            ffn_embed_dim=cfg.decoder_ffn_embed_dim,
            layers=cfg.decoder_layers,
            attention_heads=cfg.decoder_attention_heads,
            normalize_before=True,
        ),
        max_target_positions=cfg.decoder_max_positions,
        share_decoder_input_output_embed=True,
    )


@register_model_architecture("mte", "mte_base")
def mte_base(args: Namespace) -> None:
    """As published: XLM-R base, 12 decoder layers."""


@register_model_architecture("mte", "mte_large")
def mte_large(args: Namespace) -> None:
    """XLM-R large; the decoder has its width because they share the embeddings."""
    set_defaults(
        args,
        **XLMR_LARGE,
        decoder_ffn_embed_dim=4096,
        decoder_attention_heads=16,
    )


@register_model_architecture("mte", "mte_tiny")
def mte_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(
        args,
        **XLMR_TINY,
        decoder_layers=1,
        decoder_ffn_embed_dim=64,
        decoder_attention_heads=4,
        decoder_max_positions=128,
    )
