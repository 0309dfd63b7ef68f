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
from torch import Tensor

from mclip_fairseq.compat import load_checkpoint
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.openai_clip import Preprocessing, image_processor, refuse_mismatch, to_clip_model
from mclip_fairseq.formats.towers import ProjectedTower
from mclip_fairseq.models.mclip import MCLIPModel, MCLIPModelConfig
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.text_encoder import XLMREncoder, checkpoint_file, stored_args

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


def load_released(checkpoint: Path, xlmr: Path, resize: int = 0, tokenizer: Any = None) -> ProjectedTower:
    """Rebuild a released model.

    Args:
        checkpoint: the file.
        xlmr: the XLM-R archive: `model.pt`, `dict.txt`, `sentencepiece.bpe.model`.
        resize: pixels that the shorter edge of an image is resized to before the crop; 0 is CLIP's own resolution,
            `RELEASED_RESIZE` what the released code does.
        tokenizer: CLIP's own, of `transformers`; None leaves CLIP without its English text side.

    Raises:
        ValueError: another kind of checkpoint, or weights that are missing, unknown or misshapen, all of them named.
    """
    state = load_checkpoint(checkpoint)
    options = (state.get("cfg") or {}).get("model") or state.get("args")
    if not isinstance(options, Namespace) or "encoder.xlmr._float_tensor" not in state.get("model", {}):
        raise ValueError(f"{checkpoint}: is no checkpoint of the released mCLIP; it has no encoder.xlmr")
    parts = split_parts(state["model"], checkpoint)
    if SCALE not in (state.get("criterion") or {}):
        raise ValueError(f"{checkpoint}: has no learned scale; its criterion's state lacks {SCALE}")
    clip = to_clip_model(parts.pop("clip"), f"{checkpoint} (encoder.clip)")
    processor = image_processor(clip.config.vision_config.image_size, Preprocessing(resize=resize))
    teacher = DualEncoderTeacher(clip, processor, tokenizer, checkpoint.stem + "/clip", None)
    module = build(options, xlmr, parts["mclip"], state["criterion"][SCALE], teacher, checkpoint)
    langs = [lang for lang in getattr(options, "langs", None) or [] if lang != "im"]
    text_tokenizer = XLMRTokenizer(xlmr, max_tokens=module.max_positions())
    return ProjectedTower(module, text_tokenizer, checkpoint.stem, langs, lambda: teacher)


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
        raise ValueError(f"{checkpoint}: holds weights of no known part: {', '.join(unknown)}")
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
    weights = weights | {"logit_scale": scale.float().reshape(())}
    own = dict(model.named_parameters(remove_duplicate=False))
    refuse_mismatch(weights, own, [], f"{checkpoint} with {xlmr}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    model.identity["text_encoder"] = encoder.identity()
    return model.eval()
