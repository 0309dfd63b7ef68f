"""XLM-R between fairseq's archive and a `transformers` directory.

The token ids are the same on both sides only if the dictionary lists the SentencePiece pieces in their own order, as
XLM-R's does: fairseq counts `<s> <pad> </s> <unk>`, then the dictionary, then `<mask>`; `transformers` counts the same
four, then the pieces from the model file, then `<mask>`.
"""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.tokenizer import SENTENCEPIECE, XLMRTokenizer, sentencepiece_pieces, write_dictionary
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.formats.openai_clip import refuse_mismatch
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from mclip_fairseq.storage.errors import UserError

SPECIALS = 4
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
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"


def names(layers: int) -> dict[str, str]:
    """Fairseq's names of the encoder's weights -> those of `XLMRobertaForMaskedLM`."""
    found = dict(HEAD)
    kinds = ("weight", "bias")
    for ours, theirs in EMBEDDINGS.items():
        for kind in kinds if ours == "layernorm_embedding" else kinds[:1]:
            found[f"sentence_encoder.{ours}.{kind}"] = f"roberta.embeddings.{theirs}.{kind}"
    for layer in range(layers):
        for ours, theirs in LAYER.items():
            for kind in kinds:
                found[f"sentence_encoder.layers.{layer}.{ours}.{kind}"] = (
                    f"roberta.encoder.layer.{layer}.{theirs}.{kind}"
                )
    return found


def check_order(directory: Path, dictionary: Dictionary) -> None:
    """Refuse a dictionary whose ids are not those that `transformers` computes from the SentencePiece model."""
    pieces = sentencepiece_pieces(directory)
    entries = dictionary.symbols[SPECIALS : SPECIALS + len(pieces)]
    for row, (piece, entry) in enumerate(zip(pieces, entries, strict=False), start=1):
        if piece != entry:
            raise UserError(
                f"{directory}/dict.txt line {row}: is {entry!r} where {SENTENCEPIECE} has {piece!r}; transformers "
                "counts pieces in the model's order, so that only a dictionary in that order can be converted"
            )
    if len(entries) != len(pieces):
        raise UserError(
            f"{directory}/dict.txt: has {len(entries)} entries but {SENTENCEPIECE} has {len(pieces)} pieces; convert "
            "with the dictionary that belongs to it"
        )


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
        hidden_act=getattr(args, "activation_fn", "gelu"),
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.attention_dropout,
        max_position_embeddings=len(weights["sentence_encoder.embed_positions.weight"]),
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=encoder.encoder.dictionary.bos(),
        pad_token_id=encoder.encoder.dictionary.pad(),
        eos_token_id=encoder.encoder.dictionary.eos(),
        tie_word_embeddings=True,
    )
    model = XLMRobertaForMaskedLM(config)
    renamed = {theirs: weights[ours] for ours, theirs in names(args.encoder_layers).items()}
    renamed[TOKEN_TYPES] = torch.zeros(1, encoder.dim)  # fairseq has none
    _load(model, renamed, "the fairseq archive")
    return model.eval()


def from_transformers(model: Any, dictionary: Dictionary, source: str) -> XLMREncoder:
    """`transformers.XLMRobertaForMaskedLM` as fairseq's encoder, with equal hidden states.

    Args:
        model: of `transformers`; a single token type, whose embedding goes into the positions.
        dictionary: one entry per row of the embedding table.
        source: for messages.
    """
    config = model.config
    if len(dictionary) != config.vocab_size:
        raise UserError(
            f"{source}: has {config.vocab_size} token embeddings but its dictionary has {len(dictionary)} entries"
        )
    options = Namespace(
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        encoder_max_positions=config.max_position_embeddings - config.pad_token_id - 1,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
    )
    encoder = XLMREncoder(xlmr_args(options), dictionary)
    theirs = {name: tensor.float() for name, tensor in model.state_dict().items()}
    weights = {ours: theirs[name] for ours, name in names(config.num_hidden_layers).items()}
    weights["sentence_encoder.embed_positions.weight"] = (
        weights["sentence_encoder.embed_positions.weight"] + theirs[TOKEN_TYPES][0]
    )
    missing, unexpected = encoder.encoder.load_state_dict(weights, strict=False)
    if unexpected or [name for name in missing if not name.endswith("version")]:
        raise UserError(f"{source}: is not an XLM-R; missing {missing}, unknown {unexpected}")
    return encoder.eval()


def _load(model: Any, weights: dict[str, Tensor], source: str) -> None:
    """Load all weights, refusing any difference; the tied output table and its bias come with theirs."""
    own = dict(model.named_parameters(remove_duplicate=False))
    given = {**weights, "lm_head.decoder.bias": weights["lm_head.bias"]}
    refuse_mismatch({name: given[name] for name in given if name in own or name in weights}, own, [], source)
    model.load_state_dict(given, strict=False)


def write_transformers(archive: Path, output: Path) -> None:
    """Convert an archive to a `transformers` directory with the same token ids."""
    shield_torchaudio()
    from transformers import XLMRobertaTokenizer

    tokenizer = XLMRTokenizer(archive)
    check_order(archive, tokenizer.dictionary)
    encoder = XLMREncoder.from_checkpoint(archive, tokenizer.dictionary).eval()
    output.mkdir(parents=True, exist_ok=True)
    to_transformers(encoder).save_pretrained(output)
    shutil.copyfile(archive / SENTENCEPIECE, output / SENTENCEPIECE)
    XLMRobertaTokenizer.from_pretrained(output, model_max_length=encoder.max_positions).save_pretrained(output)


def write_fairseq(source: str, output: Path, revision: str | None = None) -> None:
    """Convert a Hub name or `transformers` directory to an archive with the same token ids."""
    shield_torchaudio()
    from transformers import XLMRobertaForMaskedLM
    from transformers.utils import cached_file

    try:
        model = XLMRobertaForMaskedLM.from_pretrained(source, revision=revision, dtype=torch.float32, weights_only=True)
        pieces = cached_file(source, SENTENCEPIECE, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: cannot be loaded as XLM-R of transformers: {str(error).splitlines()[0]}") from error
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pieces, output / SENTENCEPIECE)
    write_dictionary(output)
    encoder = from_transformers(model.eval(), load_dictionary(output), source)
    torch.save(encoder.checkpoint(), output / "model.pt")
