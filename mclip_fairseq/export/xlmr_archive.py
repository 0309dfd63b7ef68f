"""The text encoder of a trained model as an ordinary fairseq XLM-R archive: what `mclip-extract-mte` does."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor

from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.formats.xlmr import write_archive
from mclip_fairseq.models.sizes import ENCODER, check_heads, check_sizes
from mclip_fairseq.models.weights import check_state_dict, check_weights
from mclip_fairseq.models.xlmr_encoder import COMMON_OPTIONS, TOKEN_TABLE, XLMREncoder, xlmr_args
from mclip_fairseq.registration import import_components
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields
from mclip_fairseq.storage.pieces import TOKENIZER_FILES, load_sentencepiece

REMEDY = "give a checkpoint that trained its text encoder, such as one of --arch mte_base"
# The options that name a model and describe its text encoder, as `xlmr_args` reads them.
OPTIONS: dict[str, Kind] = {**COMMON_OPTIONS, "_name": str, "encoder_max_positions": int, "langs": str | None}


def extract_text_encoder(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Write `model.pt`, `dict.txt` and `sentencepiece.bpe.model`.

    Args:
        checkpoint: of a training that stored its text encoder.
        tokenizer: directory with the text encoder's `dict.txt` and `sentencepiece.bpe.model`.
        output: directory to make.

    Raises:
        UserError: the checkpoint holds no text encoder, or the dictionary has another size.
    """
    state = load_checkpoint(checkpoint)
    cfg = state.get("cfg")
    stored = cfg.get("model") if isinstance(cfg, dict) else None
    options = check_fields(f"{checkpoint}: model options", stored, OPTIONS, REMEDY)
    weights = text_encoder_weights(state, options["_name"], checkpoint)
    missing = [name for name in TOKENIZER_FILES if not (tokenizer / name).is_file()]
    if missing:
        raise UserError(
            f"{tokenizer}: {' and '.join(missing)} not found; pass the text encoder's directory as --tokenizer"
        )
    load_sentencepiece(tokenizer / TOKENIZER_FILES[1])
    args = archive_args(options)
    check_sizes(checkpoint, args, weights, ENCODER)
    check_heads(checkpoint, "encoder_attention_heads", args.encoder_attention_heads, args.encoder_embed_dim)
    encoder = XLMREncoder(args, load_dictionary(tokenizer), checkpoint)
    entries, rows = len(encoder.embed_tokens.weight), len(weights[TOKEN_TABLE])
    if entries != rows:
        raise UserError(
            f"{tokenizer}/dict.txt: has {entries} entries (specials and <mask> included) but {checkpoint} has {rows} "
            "rows; pass the dictionary it was trained with"
        )
    check_weights(weights, encoder.encoder.state_dict(), checkpoint)
    encoder.encoder.load_state_dict(weights, strict=True)
    write_archive(encoder, tokenizer, output)


def text_encoder_weights(state: dict[str, Any], name: str, checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the text encoder in a training checkpoint, without the prefix that its model gives them.

    Raises:
        UserError: the model has no text encoder, or its checkpoint does not hold it.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

    import_components("models")
    kind = ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)
    # Models of fairseq are registered too; only ours state where their text encoder is.
    prefix = getattr(kind, "text_encoder_prefix", "")
    if not prefix:
        raise UserError(f"{checkpoint}: is of a model {name!r}, which has no multilingual text encoder; {REMEDY}")
    stored = check_state_dict(f"{checkpoint}: model", state.get("model"), REMEDY)
    weights = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    if TOKEN_TABLE not in weights or weights[TOKEN_TABLE].ndim != 2:
        raise UserError(f"{checkpoint}: holds no text encoder, because it was frozen in training; {REMEDY}")
    return weights


def archive_args(options: dict[str, Any]) -> Namespace:
    """XLM-R's options from those of the model, with the languages it was trained on."""
    args = xlmr_args(Namespace(**options))
    args.langs = options.get("langs") or ""
    return args
