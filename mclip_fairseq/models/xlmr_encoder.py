"""XLM-R as fairseq builds and stores it: the multilingual text encoder of every model here."""

import copy
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models.roberta.model import RobertaEncoder
from torch import Tensor, nn

from mclip_fairseq.models.recomputing import keep_less
from mclip_fairseq.models.sizes import ENCODER, check_chosen_sizes, check_heads, check_sizes
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.weights import check_state_dict, check_weights
from mclip_fairseq.storage.checkpoints import load_checkpoint, untrained_bookkeeping
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields
from mclip_fairseq.storage.files import first_line

PREFIX = "encoder."
TOKEN_TABLE = "sentence_encoder.embed_tokens.weight"
REMEDY = "give a fairseq XLM-R checkpoint (model.pt), or the output of mclip-extract-mte"
FEW_TOKENS = 1024  # pads included: a group of fewer is not worth its own call
# The options that every encoder has, in an XLM-R checkpoint and in those of our models.
COMMON_OPTIONS: dict[str, Kind] = {
    "encoder_layers": int,
    "encoder_embed_dim": int,
    "encoder_ffn_embed_dim": int,
    "encoder_attention_heads": int,
    "dropout": float,
    "attention_dropout": float,
}
# Those of an XLM-R checkpoint that this project reads. fairseq completes the others.
OPTIONS: dict[str, Kind] = {**COMMON_OPTIONS, "max_positions": int | None, "activation_fn": str | None}


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint of an XLM-R archive directory (`model.pt`), or the file itself."""
    path = Path(path)
    return path / "model.pt" if path.is_dir() else path


def xlmr_args(cfg: Any) -> Namespace:
    """The options of a random XLM-R, complete enough for fairseq's `XLMRModel` to load its checkpoint.

    Args:
        cfg: a model configuration with the fields `encoder_layers`, `encoder_embed_dim`, `encoder_ffn_embed_dim`,
            `encoder_attention_heads`, `encoder_max_positions`, `dropout` and `attention_dropout`.
    """
    return Namespace(
        task="multilingual_masked_lm",
        arch="roberta_base",
        criterion="masked_lm",
        data="",
        encoder_layers=cfg.encoder_layers,
        encoder_embed_dim=cfg.encoder_embed_dim,
        encoder_ffn_embed_dim=cfg.encoder_ffn_embed_dim,
        encoder_attention_heads=cfg.encoder_attention_heads,
        max_positions=cfg.encoder_max_positions,
        tokens_per_sample=cfg.encoder_max_positions,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        activation_dropout=0.0,
        pooler_dropout=0.0,
        activation_fn="gelu",
        pooler_activation_fn="tanh",
        sample_break_mode="complete",
        mask_prob=0.15,
        leave_unmasked_prob=0.1,
        random_token_prob=0.1,
        freq_weighted_replacement=False,
        mask_whole_words=False,
        multilang_sampling_alpha=1.0,
        seed=1,
    )


class XLMREncoder(TextEncoder):
    """fairseq's RoBERTa encoder with token states as output.

    Args:
        args: fairseq's RoBERTa options (`xlmr_args`, or those stored in a checkpoint).
        dictionary: one entry per row of the embedding table.
        source: of the options, for messages.

    Raises:
        UserError: no encoder can be built from the options.
    """

    kind = "xlmr"

    def __init__(self, args: Namespace, dictionary: Dictionary, source: str | Path = "the model's options") -> None:
        super().__init__()
        # RobertaEncoder completes the options in place; the original stays as stored.
        self.args = copy.deepcopy(args)
        try:
            self.encoder = RobertaEncoder(copy.deepcopy(args), dictionary)
        except Exception as error:  # fairseq asserts, divides and looks up as odd options lead it to
            raise UserError(f"{source}: fairseq cannot build an XLM-R of these options: {first_line(error)}") from error
        keep_less(self.layers)
        # Checkpoints keep the masked-language-model head so that fairseq can load them; it is never trained here.
        for name, parameter in self.encoder.lm_head.named_parameters():
            if name != "weight":
                parameter.requires_grad_(False)

    @classmethod
    def from_checkpoint(cls, path: str | Path, dictionary: Dictionary, **overrides: Any) -> "XLMREncoder":
        """Load fairseq's `model.pt`.

        Args:
            path: the archive directory or the checkpoint in it; a checkpoint without optimizer bookkeeping will do.
            dictionary: the text encoder's dictionary, `<mask>` included.
            **overrides: options that replace stored ones (`dropout=...`).

        Raises:
            UserError: the file is missing or not an XLM-R checkpoint, or its table and the dictionary differ in size.
        """
        file = checkpoint_file(path)
        state = load_checkpoint(file)
        args, weights = stored_args(state, file), stored_weights(state, file)
        rows = len(weights[TOKEN_TABLE])
        if rows != len(dictionary):
            raise UserError(
                f"{file}: the embedding table has {rows} rows but the dictionary has {len(dictionary)} entries; "
                "use the dict.txt that belongs to this checkpoint"
            )
        check_sizes(file, args, weights, ENCODER)
        for name, value in overrides.items():
            setattr(args, name, value)
        encoder = cls(args, dictionary, file)
        check_weights(weights, encoder.encoder.state_dict(), file)
        encoder.encoder.load_state_dict(weights, strict=True)
        return encoder

    @classmethod
    def build(cls, archive: str, cfg: Any, dictionary: Dictionary) -> "XLMREncoder":
        """The encoder of an archive, or a random one.

        Args:
            archive: XLM-R archive, whose sizes replace those in `cfg`; empty for random weights.
            cfg: a model configuration, see `xlmr_args`.
            dictionary: one entry per row of the embedding table.

        Raises:
            UserError: the archive cannot be used, or no encoder has the sizes in `cfg`.
        """
        if not archive:
            check_chosen_sizes(cfg, "encoder", cfg.encoder_embed_dim, "--encoder-embed-dim")
            return cls(xlmr_args(cfg), dictionary)
        encoder = cls.from_checkpoint(archive, dictionary, dropout=cfg.dropout, attention_dropout=cfg.attention_dropout)
        encoder.store_sizes(cfg)
        return encoder

    @property
    def dim(self) -> int:
        """Width of a token state."""
        return int(self.args.encoder_embed_dim)

    @property
    def max_positions(self) -> int:
        """Longest input in tokens, `<s>` and `</s>` included."""
        return int(getattr(self.args, "max_positions", None) or 512)

    def store_sizes(self, cfg: Any) -> None:
        """Write this encoder's sizes into a model configuration, so that its checkpoint needs no archive to rebuild."""
        for name in ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"):
            setattr(cfg, name, int(getattr(self.args, name)))
        cfg.encoder_max_positions = self.max_positions

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The token embedding table, (entries, dim)."""
        table: nn.Embedding = self.encoder.sentence_encoder.embed_tokens
        return table

    def embedding_modules(self) -> list[nn.Module]:
        """Token embeddings, positions and embedding LayerNorm, which stage 2 keeps frozen."""
        stack = self.encoder.sentence_encoder
        return [stack.embed_tokens, stack.embed_positions, stack.layernorm_embedding]

    @property
    def padding_idx(self) -> int:
        """Id of `<pad>`."""
        return int(self.encoder.dictionary.pad())

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        layers: Sequence[nn.Module] = self.encoder.sentence_encoder.layers
        return layers

    @property
    def description(self) -> str:
        """XLM-R and its width."""
        return f"XLM-R of {self.dim} dimensions"

    @property
    def languages(self) -> list[str]:
        """The languages of MTE, which `mclip-extract-mte` writes into the archive."""
        languages = getattr(self.args, "langs", None) or ""
        return [lang for lang in languages.split(",") if lang]

    def states(self, tokens: Tensor) -> Tensor:
        """(batch, length) ids, padded on either side -> (batch, length, dim)."""
        stack = self.encoder.sentence_encoder
        return run_layers(stack, tokens) if tokens.is_cuda else run_by_length(stack, tokens)

    def plain_module(self) -> Any:
        """`transformers.XLMRobertaModel`, with the adapters where there are some."""
        from mclip_fairseq.models.adapters import hook_adapters
        from mclip_fairseq.models.xlmr_transformers import to_transformers

        plain = to_transformers(self).roberta
        hook_adapters(self, plain.encoder.layer)
        return plain

    def checkpoint(self) -> dict[str, Any]:
        """The encoder as an ordinary fairseq XLM-R checkpoint; `torch.save` stores a tied table once."""
        copies: dict[Tensor, Tensor] = {}  # tensors are keys by identity
        parameters = dict(self.encoder.named_parameters(remove_duplicate=False))
        weights = {}
        for name, tensor in self.encoder.state_dict().items():
            own = parameters.get(name, tensor)
            if own not in copies:
                copies[own] = tensor.detach().cpu().clone()
            weights[PREFIX + name] = copies[own]
        return {
            "args": self.args,
            "model": weights,
            **untrained_bookkeeping("MaskedLmLoss"),
        }


def run_layers(stack: Any, tokens: Tensor) -> Tensor:
    """What fairseq's transformer encoder computes, without asking a GPU in each layer whether there are pads.

    Args:
        stack: fairseq's `TransformerEncoder`.
        tokens: (batch, length) ids.

    Returns:
        (batch, length, dim) states of the last layer.
    """
    padding = tokens.eq(stack.padding_idx)
    # Attention without a mask is a little faster, and asking a CPU costs nothing.
    mask = padding if tokens.is_cuda or padding.any() else None
    states, _ = stack.forward_embedding(tokens)
    # Contiguous, so that the layers need not copy it for each of their products.
    states = (states * (1 - padding.unsqueeze(-1).type_as(states))).transpose(0, 1).contiguous()
    for layer in stack.layers:
        states = layer(states, encoder_padding_mask=mask)
    if stack.layer_norm is not None:
        states = stack.layer_norm(states)
    return states.transpose(0, 1)


def run_by_length(stack: Any, tokens: Tensor) -> Tensor:
    """`run_layers` over groups of sentences of similar length, so that a CPU computes fewer pads.

    A batch drawn at random is as long as its longest sentence, often three times as long as the mean.

    Args:
        stack: fairseq's `TransformerEncoder`.
        tokens: (batch, length) ids, padded on either side.

    Returns:
        (batch, length, dim) states of the last layer; zeros at pads that were not computed.
    """
    real = tokens.ne(stack.padding_idx)
    groups = similar_lengths(real.sum(1))
    if len(groups) == 1:
        return run_layers(stack, tokens)
    places = [(rows[:, None], real[rows].any(0).nonzero()[:, 0]) for rows in groups]
    parts = [run_layers(stack, tokens[place]) for place in places]
    states = parts[0].new_zeros(*tokens.shape, parts[0].shape[-1])
    for place, part in zip(places, parts, strict=True):
        states[place] = part
    return states


def similar_lengths(lengths: Tensor) -> list[Tensor]:
    """Rows in groups: all longer than half of the longest, and so on with the others while they are worth a group."""
    groups: list[Tensor] = []
    rows = torch.arange(len(lengths), device=lengths.device)
    while True:
        longest = lengths[rows].max()
        short = 2 * lengths[rows] <= longest
        if short.sum() * longest < FEW_TOKENS:
            return [*groups, rows]
        groups.append(rows[~short])
        rows = rows[short]


def stored_xlmr_options(state: dict[str, Any], file: Path) -> Namespace:
    """The model options in a fairseq checkpoint, old (`args`) or new (`cfg.model`).

    Raises:
        UserError: it has none.
    """
    cfg = state.get("cfg")
    options = state.get("args") or (cfg.get("model") if isinstance(cfg, dict) else None)
    if isinstance(options, Namespace):
        return copy.deepcopy(options)
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"{file}: has no model options; give a checkpoint written by fairseq")
    return Namespace(**copy.deepcopy(options))


def stored_args(state: dict[str, Any], file: Path) -> Namespace:
    """The checked options in an XLM-R checkpoint.

    Raises:
        UserError: an option is missing, has another type, or is not a size that an encoder can have.
    """
    args = stored_xlmr_options(state, file)
    check_encoder_options(file, vars(args))
    return args


def check_encoder_options(place: str | Path, options: dict[str, Any]) -> None:
    """Check the types of an encoder's options, and the sizes that its weights do not show.

    Raises:
        UserError: naming the option.
    """
    check_fields(place, options, OPTIONS, REMEDY)
    check_heads(place, "encoder_attention_heads", options["encoder_attention_heads"], options["encoder_embed_dim"])


def stored_weights(state: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """The encoder's weights in an XLM-R checkpoint, under the names of this version of fairseq.

    Raises:
        UserError: it holds no encoder.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in check_state_dict(f"{file}: model", state.get("model"), REMEDY).items():
        # Before fairseq 0.10, the encoder was called decoder and the LayerNorm of the embeddings emb_layer_norm.
        name = name.replace("decoder.", PREFIX, 1) if name.startswith("decoder.") else name
        if name.startswith(PREFIX):
            weights[name.removeprefix(PREFIX).replace(".emb_layer_norm.", ".layernorm_embedding.")] = tensor
    if TOKEN_TABLE not in weights or weights[TOKEN_TABLE].ndim != 2:
        raise UserError(f"{file}: holds no XLM-R encoder; {REMEDY}")
    return weights
