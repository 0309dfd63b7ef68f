"""The checkpoints that the authors of mCLIP released (`mclip_base.pt`, `mclip_plus_base.pt`).

One file holds the text encoder (`encoder.xlmr`), CLIP under OpenAI's names (`encoder.clip`), the C-projector
(`encoder.dim_proj`), the X-projector (`encoder.encoder_adapter`) and, in the criterion's state, the learned scale.
Dictionary, SentencePiece model and the encoder's sizes stand in the XLM-R archive that the training began from.
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.openai_clip import Preprocessing, image_processor, refuse_mismatch, to_clip_model
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.models.mclip import MCLIPModel, MCLIPModelConfig
from mclip_fairseq.models.mte import MTEModel, MTEModelConfig
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, checkpoint_file, stored_args
from mclip_fairseq.storage.checkpoints import load_checkpoint, untrained_bookkeeping
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting

# The released code resizes to 248 and crops 224: a margin of 24 pixels.
RELEASED_RESIZE = 248
SCALE = "it_logit_scale"
# Theirs -> ours. The second name of each projector stands behind a constant of the released code.
PREFIXES = {
    "encoder.xlmr.model.encoder.": "text_encoder.encoder.",
    "encoder.clip.": "clip.",
    "encoder.dim_proj.": "c_projector.",
    "encoder.c_projector.": "c_projector.",
    "encoder.encoder_adapter.": "x_projector.layers.",
    "encoder.x_projector.": "x_projector.layers.",
}
BOOKKEEPING = ("encoder.version", "encoder.xlmr._float_tensor", "encoder.xlmr.model.encoder.sentence_encoder.version")


def load_released(checkpoint: Path, xlmr: Path, resize: int = 0, tokenizer: Any = None) -> TrainedTower:
    """Rebuild a released model.

    Args:
        checkpoint: the file.
        xlmr: the XLM-R archive: `model.pt`, `dict.txt`, `sentencepiece.bpe.model`.
        resize: pixels that the shorter edge of an image is resized to before the crop; 0 is CLIP's own resolution,
            `RELEASED_RESIZE` what the released code does.
        tokenizer: CLIP's own, of `transformers`; None leaves CLIP without its English text side.

    Raises:
        UserError: another kind of checkpoint, or weights that are missing, unknown or misshapen, all of them named.
    """
    with expecting(checkpoint, "a checkpoint of the released mCLIP"):
        return _load_released(checkpoint, xlmr, resize, tokenizer)


def _load_released(checkpoint: Path, xlmr: Path, resize: int, tokenizer: Any) -> TrainedTower:
    state = load_checkpoint(checkpoint)
    options = (state.get("cfg") or {}).get("model") or state.get("args")
    if not isinstance(options, Namespace) or "encoder.xlmr._float_tensor" not in state.get("model", {}):
        raise UserError(f"{checkpoint}: is no checkpoint of the released mCLIP; it has no encoder.xlmr")
    parts = split_parts(state["model"], checkpoint)
    if SCALE not in (state.get("criterion") or {}):
        raise UserError(f"{checkpoint}: has no learned scale; its criterion's state lacks {SCALE}")
    clip = to_clip_model(parts.pop("clip"), f"{checkpoint} (encoder.clip)")
    processor = image_processor(clip.config.vision_config.image_size, Preprocessing(resize=resize))
    teacher = DualEncoderTeacher(clip, processor, tokenizer, checkpoint.stem + "/clip", None)
    module = build(options, xlmr, parts["mclip"], state["criterion"][SCALE], teacher, checkpoint)
    langs = [lang for lang in getattr(options, "langs", None) or [] if lang != "im"]
    text_tokenizer = XLMRTokenizer(xlmr, max_tokens=module.max_positions())
    return TrainedTower(module, text_tokenizer, checkpoint.stem, langs, lambda: teacher)


def split_parts(weights: Mapping[str, Tensor], checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """CLIP's weights under OpenAI's names, and the others under ours."""
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
        raise UserError(f"{checkpoint}: holds weights of no known part: {', '.join(unknown)}")
    return parts


def build(
    options: Namespace,
    xlmr: Path,
    weights: dict[str, Tensor],
    scale: Tensor,
    teacher: DualEncoderTeacher,
    checkpoint: Path,
) -> MCLIPModel:
    """The model with the checkpoint's weights in place of those in the archive."""
    tokenizer = XLMRTokenizer(xlmr)
    file = checkpoint_file(xlmr)
    encoder = XLMREncoder(stored_args(load_checkpoint(file), file), tokenizer.dictionary)
    layers = 1 + max((int(name.split(".")[2]) for name in weights if name.startswith("x_projector.")), default=-1)
    cfg = MCLIPModelConfig(
        teacher_dim=teacher.dim,
        projector_layers=layers,
        projector_ffn_embed_dim=options.encoder_ffn_embed_dim,
        projector_attention_heads=options.encoder_attention_heads,
        dropout=options.dropout,
        attention_dropout=options.attention_dropout,
        save_frozen=True,
    )
    encoder.store_sizes(cfg)
    model = MCLIPModel(cfg, encoder, None, teacher.identity)
    copy_weights(model, weights | {"logit_scale": scale.float().reshape(())}, f"{checkpoint} with {xlmr}")
    model.identity["text_encoder"] = encoder.identity()
    return model.eval()


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy all weights, refusing any that is missing, unknown, misshapen, or tied in the model and not in the file."""
    own = dict(model.named_parameters(remove_duplicate=False))
    refuse_mismatch(weights, own, [], source)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    untied = [name for name, parameter in own.items() if not torch.equal(parameter, weights[name])]
    if untied:
        raise UserError(f"{source}: {', '.join(untied)} differ from the token table, with which the model ties them")


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
        xlmr: the XLM-R archive that the training began from.

    Returns:
        the model, and its options without a path.

    Raises:
        UserError: another kind of checkpoint, or weights that are missing, unknown or misshapen, all of them named.
    """
    with expecting(checkpoint, "a translation model of the released mCLIP"):
        return _load_released_mte(checkpoint, xlmr)


def _load_released_mte(checkpoint: Path, xlmr: Path) -> tuple[MTEModel, MTEModelConfig]:
    state = load_checkpoint(checkpoint)
    options = (state.get("cfg") or {}).get("model") or state.get("args")
    if not isinstance(options, Namespace) or "encoder.lang_proj.0.weight" not in state.get("model", {}):
        raise UserError(f"{checkpoint}: is no translation model of the released mCLIP; it has no encoder.lang_proj")
    languages = list(options.langs)
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
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary, langs=languages)
    model = MTEModel.build_model(cfg, task)
    copy_weights(model, rename_mte(state["model"], len(languages)), f"{checkpoint} with {xlmr}")
    cfg.text_encoder, cfg.langs = "", ",".join(languages)
    return model.eval(), cfg


def rename_mte(weights: Mapping[str, Tensor], languages: int) -> dict[str, Tensor]:
    """The released names to ours; the projections, one a language, become rows of one parameter."""
    renamed = {
        name.replace("encoder.xlmr.model.encoder.", "encoder.xlmr.encoder."): tensor.float()
        for name, tensor in weights.items()
        if name not in MTE_BOOKKEEPING
    }
    for kind in ("weight", "bias"):
        rows = [renamed.pop(f"encoder.lang_proj.{row}.{kind}", None) for row in range(languages + 1)]
        found = [row for row in rows if row is not None]
        if len(found) == len(rows):
            renamed[f"encoder.lang_proj.{kind}"] = torch.stack(found)
    return renamed


def mte_checkpoint(model: MTEModel, cfg: MTEModelConfig) -> dict[str, Any]:
    """A checkpoint that `fairseq-generate --task mte` reads, and `fairseq-train --finetune-from-model` too."""
    options = {**vars(cfg), "_name": "mte"}
    return {
        "cfg": {"model": {key: getattr(value, "value", value) for key, value in options.items()}},
        "model": model.state_dict(),
        **untrained_bookkeeping("MTECriterion"),
    }
