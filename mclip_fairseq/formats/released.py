"""The checkpoints that the authors of mCLIP released (`mclip_base.pt`, `mclip_plus_base.pt`).

One file holds the text encoder (`encoder.xlmr`), CLIP under OpenAI's names (`encoder.clip`), the C-projector
(`encoder.dim_proj`), the X-projector (`encoder.encoder_adapter`) and, in the criterion's state, the learned scale.
Dictionary, SentencePiece model and the encoder's sizes are in the XLM-R archive that the training started from.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.openai_clip import Preprocessing, image_processor, pixels_along_an_edge, to_clip_model
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.models.mclip import MCLIPModel, MCLIPModelConfig
from mclip_fairseq.models.mte import MTEModel, MTEModelConfig
from mclip_fairseq.models.sizes import DECODER, PROJECTORS, check_heads, check_sizes
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.weights import check_state_dict, check_weights
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, stored_xlmr_options
from mclip_fairseq.storage.checkpoints import load_checkpoint, untrained_bookkeeping
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields

# The released code resizes to 248 and crops 224: a margin of 24 pixels.
RELEASED_RESIZE = 248
SCALE = "it_logit_scale"
# Theirs -> ours. A constant of the released code decides which of its two names a projector has.
PREFIXES = {
    "encoder.xlmr.model.encoder.": "text_encoder.encoder.",
    "encoder.clip.": "clip.",
    "encoder.dim_proj.": "c_projector.",
    "encoder.c_projector.": "c_projector.",
    "encoder.encoder_adapter.": "x_projector.layers.",
    "encoder.x_projector.": "x_projector.layers.",
}
BOOKKEEPING = ("encoder.version", "encoder.xlmr._float_tensor", "encoder.xlmr.model.encoder.sentence_encoder.version")
PROJECTOR_LAYER = re.compile(r"x_projector\.layers\.(\d+)\.")
REMEDY = "give a checkpoint that the authors of mCLIP released"
MCLIP_OPTIONS: dict[str, Kind] = {
    "encoder_ffn_embed_dim": int,
    "encoder_attention_heads": int,
    "dropout": float,
    "attention_dropout": float,
    "langs": list | None,
}
MTE_OPTIONS: dict[str, Kind] = {
    "decoder_layers": int,
    "decoder_ffn_embed_dim": int,
    "decoder_attention_heads": int,
    "max_target_positions": int,
    "dropout": float,
    "attention_dropout": float,
    "langs": list,
}
# Sinusoidal positions have no weights to compare with, but take memory.
MAX_POSITIONS = 100_000


def load_released(checkpoint: Path, xlmr: Path, resize: int = 0, tokenizer: Any = None) -> TrainedTower:
    """Rebuild a released model.

    Args:
        checkpoint: the file.
        xlmr: the XLM-R archive: `model.pt`, `dict.txt`, `sentencepiece.bpe.model`.
        resize: pixels of an image's shorter edge before the crop; 0: CLIP's own resolution; the released code uses
            `RELEASED_RESIZE`.
        tokenizer: CLIP's own, of `transformers`; None: CLIP cannot encode English text.

    Raises:
        UserError: another kind of checkpoint, or weights that are missing, unknown or misshapen (all are named).
    """
    state = load_checkpoint(checkpoint)
    weights = check_state_dict(f"{checkpoint}: model", state.get("model"), REMEDY)
    if "encoder.xlmr._float_tensor" not in weights:
        raise UserError(f"{checkpoint}: is not a checkpoint of the released mCLIP: it has no encoder.xlmr; {REMEDY}")
    options = stored_xlmr_options(state, checkpoint)
    check_fields(checkpoint, vars(options), MCLIP_OPTIONS, REMEDY)
    parts = split_parts(weights, checkpoint)
    scale = learned_scale(state, checkpoint)
    clip = to_clip_model(parts["clip"], f"{checkpoint} (encoder.clip)")
    processor = image_processor(pixels_along_an_edge(clip), Preprocessing(resize=resize))
    teacher = DualEncoderTeacher(clip, processor, tokenizer, checkpoint.stem + "/clip", None, source=str(checkpoint))
    module = build_mclip(options, xlmr, parts["mclip"], scale, teacher, checkpoint)
    # The released code counts images among the languages.
    languages = [lang for lang in stored_languages(options, checkpoint) if lang != "im"]
    text_tokenizer = XLMRTokenizer(xlmr, max_tokens=module.max_positions())
    return TrainedTower(module, text_tokenizer, checkpoint.stem, languages, lambda: teacher)


def learned_scale(state: Mapping[str, Any], checkpoint: Path) -> Tensor:
    """The logarithm of the learned scale, 0-d float32, from the criterion's state."""
    criterion = state.get("criterion")
    scale = criterion.get(SCALE) if isinstance(criterion, dict) else None
    if not isinstance(scale, Tensor) or scale.numel() != 1:
        raise UserError(f"{checkpoint}: has no learned scale: its criterion's state lacks {SCALE}; {REMEDY}")
    return scale.float().reshape(())


def stored_languages(options: Namespace, checkpoint: Path) -> list[str]:
    """The languages of a released checkpoint, in its order."""
    languages = getattr(options, "langs", None) or []
    if not all(isinstance(language, str) for language in languages):
        raise UserError(f"{checkpoint}: its langs are not a list of names; {REMEDY}")
    return list(languages)


def split_parts(weights: Mapping[str, Tensor], checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """CLIP's weights under OpenAI's names (`clip`), and the others under ours (`mclip`).

    Raises:
        UserError: a weight belongs to neither.
    """
    parts: dict[str, dict[str, Tensor]] = {"clip": {}, "mclip": {}}
    unknown = []
    for name, tensor in weights.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if name in BOOKKEEPING:
            continue
        if prefix is None:
            unknown.append(name)
        elif PREFIXES[prefix] == "clip.":
            parts["clip"][name.removeprefix(prefix)] = tensor
        else:
            parts["mclip"][PREFIXES[prefix] + name.removeprefix(prefix)] = tensor.float()
    if unknown:
        raise UserError(f"{checkpoint}: holds unknown weights: {', '.join(unknown)}; {REMEDY}")
    return parts


def build_mclip(
    options: Namespace,
    xlmr: Path,
    weights: dict[str, Tensor],
    scale: Tensor,
    teacher: DualEncoderTeacher,
    checkpoint: Path,
) -> MCLIPModel:
    """The model, with the checkpoint's text encoder instead of the archive's."""
    encoder = XLMREncoder.from_checkpoint(xlmr, XLMRTokenizer(xlmr).dictionary)
    cfg = MCLIPModelConfig(
        teacher_dim=teacher.dim,
        projector_layers=len({match[1] for match in map(PROJECTOR_LAYER.match, weights) if match}),
        projector_ffn_embed_dim=options.encoder_ffn_embed_dim,
        projector_attention_heads=options.encoder_attention_heads,
        dropout=options.dropout,
        attention_dropout=options.attention_dropout,
        save_frozen=True,
    )
    sizes = Namespace(projector_layers=cfg.projector_layers, projector_ffn_embed_dim=cfg.projector_ffn_embed_dim)
    check_sizes(checkpoint, sizes, weights, PROJECTORS)
    check_heads(checkpoint, "encoder_attention_heads", cfg.projector_attention_heads, encoder.dim)
    encoder.store_sizes(cfg)
    model = MCLIPModel(cfg, encoder, None, teacher.identity)
    copy_weights(model, weights | {"logit_scale": scale}, f"{checkpoint} with {xlmr}")
    model.identity["text_encoder"] = encoder.identity()
    return model.eval()


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy all weights into a model.

    Raises:
        UserError: a weight is missing, unknown or misshapen, or is tied in the model and not in the file.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    check_weights(weights, own, source)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    # Where two names share one parameter, the second copy has overwritten the first.
    untied = [name for name, parameter in own.items() if not torch.equal(parameter, weights[name])]
    if untied:
        raise UserError(f"{source}: {', '.join(untied)} differ from the token table, but the model ties them; {REMEDY}")


# ------------------------------------------------------------------------------------------ the translation model

MTE_BOOKKEEPING = (
    "encoder.xlmr._float_tensor",
    "encoder.xlmr.model.encoder.sentence_encoder.version",
    "decoder.version",
    "decoder.embed_positions._float_tensor",
)


def load_released_mte(checkpoint: Path, xlmr: Path) -> tuple[MTEModel, MTEModelConfig]:
    """Rebuild a translation model of the released code (`--xlmr-task ... --enable-lang-proj`, stage 1 or 2).

    Args:
        checkpoint: the file.
        xlmr: the XLM-R archive that the training started from.

    Returns:
        the model, and its options without a path.

    Raises:
        UserError: another kind of checkpoint, or weights that are missing, unknown or misshapen (all are named).
    """
    state = load_checkpoint(checkpoint)
    weights = check_state_dict(f"{checkpoint}: model", state.get("model"), REMEDY)
    if "encoder.lang_proj.0.weight" not in weights:
        raise UserError(
            f"{checkpoint}: is not a translation model of the released mCLIP: it has no encoder.lang_proj; {REMEDY}"
        )
    options = stored_xlmr_options(state, checkpoint)
    check_fields(checkpoint, vars(options), MTE_OPTIONS, REMEDY)
    check_sizes(checkpoint, options, weights, DECODER)
    if not 0 < options.max_target_positions <= MAX_POSITIONS:
        raise UserError(f"{checkpoint}: says max_target_positions {options.max_target_positions}; {REMEDY}")
    languages = stored_languages(options, checkpoint)
    cfg = MTEModelConfig(
        text_encoder=str(xlmr),
        decoder_layers=options.decoder_layers,
        decoder_ffn_embed_dim=options.decoder_ffn_embed_dim,
        decoder_attention_heads=options.decoder_attention_heads,
        decoder_max_positions=options.max_target_positions,
        dropout=options.dropout,
        attention_dropout=options.attention_dropout,
    )
    dictionary = XLMRTokenizer(xlmr).dictionary
    table = weights.get("decoder.embed_tokens.weight")
    width = table.shape[1] if table is not None and table.ndim == 2 else 0
    check_heads(checkpoint, "decoder_attention_heads", options.decoder_attention_heads, width)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary, langs=languages)
    model = MTEModel.build_model(cfg, task)
    copy_weights(model, rename_mte(weights, len(languages)), f"{checkpoint} with {xlmr}")
    cfg.text_encoder, cfg.langs = "", ",".join(languages)
    return model.eval(), cfg


def rename_mte(weights: Mapping[str, Tensor], languages: int) -> dict[str, Tensor]:
    """The released names to ours; the projections, one per language, become rows of one parameter."""
    renamed = {
        name.replace("encoder.xlmr.model.encoder.", "encoder.xlmr.encoder."): tensor.float()
        for name, tensor in weights.items()
        if name not in MTE_BOOKKEEPING
    }
    for kind in ("weight", "bias"):
        rows = [renamed.pop(f"encoder.lang_proj.{row}.{kind}", None) for row in range(languages + 1)]
        present = [row for row in rows if row is not None]
        if len(present) == len(rows) and len({row.shape for row in present}) == 1:
            renamed[f"encoder.lang_proj.{kind}"] = torch.stack(present)
    return renamed


def mte_checkpoint(model: MTEModel, cfg: MTEModelConfig) -> dict[str, Any]:
    """A checkpoint that `fairseq-generate --task mte` reads, and `fairseq-train --finetune-from-model` too."""
    options = {**vars(cfg), "_name": "mte"}
    return {
        "cfg": {"model": {key: getattr(value, "value", value) for key, value in options.items()}},
        "model": model.state_dict(),
        **untrained_bookkeeping("MTECriterion"),
    }
