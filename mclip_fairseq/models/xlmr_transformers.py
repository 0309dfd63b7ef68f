"""XLM-R as a module of `transformers`, and back: no files, only modules."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from fairseq.data import Dictionary

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from mclip_fairseq.storage.errors import UserError

LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
EMBEDDINGS = {
    "embed_tokens": "word_embeddings",
    "embed_positions": "position_embeddings",
    "layernorm_embedding": "LayerNorm",
}
HEAD = {
    "lm_head.weight": "lm_head.decoder.weight",
    "lm_head.bias": "lm_head.bias",
    **{
        f"lm_head.{part}.{kind}": f"lm_head.{part}.{kind}"
        for part in ("dense", "layer_norm")
        for kind in ("weight", "bias")
    },
}
POSITIONS = "sentence_encoder.embed_positions.weight"
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"


def weight_names(layers: int) -> dict[str, str]:
    """Fairseq's names of the encoder's weights -> those of `XLMRobertaForMaskedLM`."""
    names = dict(HEAD)
    kinds = ("weight", "bias")
    for ours, theirs in EMBEDDINGS.items():
        for kind in kinds if ours == "layernorm_embedding" else kinds[:1]:
            names[f"sentence_encoder.{ours}.{kind}"] = f"roberta.embeddings.{theirs}.{kind}"
    for layer in range(layers):
        for ours, theirs in LAYER.items():
            for kind in kinds:
                theirs_in_layer = f"roberta.encoder.layer.{layer}.{theirs}.{kind}"
                names[f"sentence_encoder.layers.{layer}.{ours}.{kind}"] = theirs_in_layer
    return names


def to_transformers(encoder: XLMREncoder) -> Any:
    """The encoder as `transformers.XLMRobertaForMaskedLM`, with equal hidden states.

    Args:
        encoder: fairseq's.
    """
    shield_torchaudio()
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    args, weights = encoder.args, encoder.encoder.state_dict()
    config = XLMRobertaConfig(
        vocab_size=len(encoder.embed_tokens.weight),
        hidden_size=encoder.dim,
        num_hidden_layers=args.encoder_layers,
        num_attention_heads=args.encoder_attention_heads,
        intermediate_size=args.encoder_ffn_embed_dim,
        hidden_act=getattr(args, "activation_fn", None) or "gelu",
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.attention_dropout,
        max_position_embeddings=len(weights[POSITIONS]),
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=encoder.encoder.dictionary.bos(),
        pad_token_id=encoder.encoder.dictionary.pad(),
        eos_token_id=encoder.encoder.dictionary.eos(),
        tie_word_embeddings=True,
    )
    model = XLMRobertaForMaskedLM(config)
    renamed = {theirs: weights[ours] for ours, theirs in weight_names(args.encoder_layers).items()}
    renamed[TOKEN_TYPES] = torch.zeros(1, encoder.dim)  # fairseq has no token types
    # transformers registers the bias of the output layer under two names, and ties them.
    renamed["lm_head.decoder.bias"] = weights["lm_head.bias"]
    model.load_state_dict(renamed, strict=True)
    return model.eval()


def from_transformers(model: Any, dictionary: Dictionary, source: str) -> XLMREncoder:
    """`transformers.XLMRobertaForMaskedLM` as fairseq's encoder, with equal hidden states.

    Args:
        model: of `transformers`, with a single token type.
        dictionary: one entry per row of the embedding table.
        source: for messages.

    Raises:
        UserError: the dictionary has another size.
    """
    config = model.config
    if len(dictionary) != config.vocab_size:
        raise UserError(
            f"{source}: has {config.vocab_size} token embeddings but its dictionary has {len(dictionary)} entries; "
            "give the SentencePiece model that belongs to it"
        )
    options = Namespace(
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        # RoBERTa's positions start after the padding index.
        encoder_max_positions=config.max_position_embeddings - config.pad_token_id - 1,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
    )
    encoder = XLMREncoder(xlmr_args(options), dictionary, source)
    theirs = {name: tensor.float() for name, tensor in model.state_dict().items()}
    weights = {ours: theirs[name] for ours, name in weight_names(config.num_hidden_layers).items()}
    # fairseq has no token types. There is only one, so its embedding can be added to every position.
    weights[POSITIONS] = weights[POSITIONS] + theirs[TOKEN_TYPES][0]
    # fairseq's state dict also holds the number of its format, which is not a weight.
    own = {name: tensor for name, tensor in encoder.encoder.state_dict().items() if not name.endswith("version")}
    check_weights(weights, own, source)
    encoder.encoder.load_state_dict(weights, strict=False)
    return encoder.eval()
