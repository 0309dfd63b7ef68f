"""Checkpoints of CCRK (and CCLM, whose layout it shares): both layouts in, the retrieval layout out.

`model_state_epoch_N.th` and the files on the Hub hold the pre-training model (`text_encoder.bert.*` and
`text_encoder.cls.*`), `checkpoint_best.pth` the retrieval model (`text_encoder.*`, no head for masked words). Two
things differ from ours besides names: the released code counts positions from row 0 of XLM-R's table where fairseq
begins with row 2, and adds an embedding of the token type, of which there is one.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.models.ccrk import CCRKModel
from mclip_fairseq.models.ccrk_options import CCRKModelConfig
from mclip_fairseq.models.vision.swin import TABLE, SwinTower, window_of
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line

REMEDY = "give a checkpoint of CCRK or CCLM with a Swin image tower"
HEAD_DIM = 64  # of XLM-R; the published files do not say it
FIRST_POSITION = 2  # fairseq's row of the first token: the row of padding plus one
# transformers gives XLM-R two rows more than it has positions; the released code takes its table as it is.
XLMR_ROWS = 514
STRIDE = 32
SWIN = "vision_encoder."
OURS = "image_tower.model."
RELEASED_TABLE = "attn.relative_position_bias_table"
BUFFERS = ("relative_position_index", "attn_mask", "position_ids")
WORDS = "text_encoder.embeddings.word_embeddings.weight"
POSITIONS = "text_encoder.embeddings.position_embeddings.weight"
TYPES = "text_encoder.embeddings.token_type_embeddings.weight"
OUR_POSITIONS = "text_encoder.encoder.sentence_encoder.embed_positions.weight"
OUR_WORDS = "text_encoder.encoder.sentence_encoder.embed_tokens.weight"
QKV = (("q_proj", 0), ("k_proj", 1), ("v_proj", 2))
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "crossattention.self.query": "encoder_attn.q_proj",
    "crossattention.self.key": "encoder_attn.k_proj",
    "crossattention.self.value": "encoder_attn.v_proj",
    "crossattention.output.dense": "encoder_attn.out_proj",
    "crossattention.output.LayerNorm": "encoder_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
WORD_HEAD = {
    "text_encoder.cls.predictions.transform.dense.weight": "text_encoder.encoder.lm_head.dense.weight",
    "text_encoder.cls.predictions.transform.dense.bias": "text_encoder.encoder.lm_head.dense.bias",
    "text_encoder.cls.predictions.transform.LayerNorm.weight": "text_encoder.encoder.lm_head.layer_norm.weight",
    "text_encoder.cls.predictions.transform.LayerNorm.bias": "text_encoder.encoder.lm_head.layer_norm.bias",
    "text_encoder.cls.predictions.bias": "text_encoder.encoder.lm_head.bias",
}
# Copies of other weights, and heads that no retrieval needs.
LEFT_OUT = re.compile(r"text_encoder\.cls\.predictions\.decoder\.|bbox_head\.|vision_encoder\.head\.|.*\.attn_mask$")


def load_released_ccrk(file: Path, text_encoder: Path, head_dim: int = HEAD_DIM) -> TrainedTower:
    """Read a published checkpoint as a model of this project.

    Args:
        file: `model_state_epoch_N.th`, a file of the Hub, or `checkpoint_best.pth`.
        text_encoder: directory with `dict.txt` and `sentencepiece.bpe.model` of XLM-R.
        head_dim: width of an attention head of the text layers.

    Raises:
        UserError: it is something else, or its sizes do not fit the dictionary.
    """
    state = load_checkpoint(file)
    weights = state.get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{file}: has no weights under `model`; {REMEDY}")
    tokenizer = XLMRTokenizer(text_encoder)
    module = build_released(weights, tokenizer.dictionary, head_dim, str(file))
    config = state.get("config")
    longest = config.get("max_tokens") if isinstance(config, dict) else None
    tokenizer.max_tokens = min(module.max_positions(), longest if isinstance(longest, int) and longest > 2 else 40)
    return TrainedTower(module, tokenizer, file.stem, [], load_teacher=_no_teacher)


def build_released(weights: Mapping[str, Tensor], dictionary: Any, head_dim: int, place: str) -> CCRKModel:
    """The model of a published state dict, sizes read off its weights.

    Raises:
        UserError: names or shapes are not those of CCRK.
    """
    weights = {name.replace("text_encoder.bert.", "text_encoder.", 1): tensor for name, tensor in weights.items()}
    weights = {name: tensor for name, tensor in weights.items() if not LEFT_OUT.match(name)}
    cfg = released_sizes(weights, head_dim, place)
    if len(weights[WORDS]) != len(dictionary):
        raise UserError(
            f"{place}: has {len(weights[WORDS])} token embeddings, but the dictionary of --text-encoder has "
            f"{len(dictionary)} entries; give the XLM-R it was trained with"
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.endswith(BUFFERS):
            renamed |= from_released(name, tensor, cfg.encoder_layers, place)
    positions = weights[POSITIONS] + weights[TYPES][0]
    renamed[OUR_POSITIONS] = torch.cat([positions.new_zeros(FIRST_POSITION, positions.shape[1]), positions])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the head for masked words where there is none: the same at every conversion
        module = build_ccrk(cfg, dictionary)
    own = module.state_dict()
    for name, source in module.tied_weights.items():
        renamed[name] = renamed[source]
    for name in set(WORD_HEAD.values()) - renamed.keys():
        renamed[name] = own[name]
    try:
        module.load_state_dict(renamed)
    except RuntimeError as error:  # what torch says of weights that are missing, unknown or misshapen
        raise UserError(f"{place}: is not a CCRK of these sizes: {first_line(error)}; {REMEDY}") from error
    return module


def build_ccrk(cfg: CCRKModelConfig, dictionary: Any) -> CCRKModel:
    """A random model of these sizes."""
    module: CCRKModel = CCRKModel.build_model(cfg, Namespace(source_dictionary=dictionary))
    return module


def released_sizes(weights: Mapping[str, Tensor], head_dim: int, place: str) -> CCRKModelConfig:
    """Options with the sizes of a published state dict.

    Raises:
        UserError: the weights that show them are missing.
    """
    patches = f"{SWIN}patch_embed.proj.weight"
    for name in (WORDS, POSITIONS, TYPES, patches, "text_proj.weight"):
        if name not in weights or weights[name].dim() < 2:
            raise UserError(f"{place}: lacks {name}; {REMEDY}")
    width = weights[WORDS].shape[1]
    if head_dim < 1 or width % head_dim:
        raise UserError(f"--head-dim is {head_dim}; give a divisor of the text width {width}")
    layers = _numbers(weights, r"text_encoder\.encoder\.layer\.(\d+)\.")
    seeing = _numbers(weights, r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.")
    stages = _numbers(weights, rf"{SWIN}layers\.(\d+)\.blocks\.0\.")
    tables = [f"{SWIN}layers.{stage}.blocks.0.{RELEASED_TABLE}" for stage in sorted(stages)]
    dense = "text_encoder.encoder.layer.0.intermediate.dense.weight"
    if not seeing or not stages or dense not in weights or any(table not in weights for table in tables):
        raise UserError(f"{place}: has no text layers that see an image, or no Swin; {REMEDY}")
    window = window_of(weights[tables[0]])
    return CCRKModelConfig(
        encoder_layers=len(layers - seeing),
        fusion_layers=len(seeing),
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=len(weights[dense]),
        encoder_attention_heads=width // head_dim,
        encoder_max_positions=len(weights[POSITIONS]),
        image_size=STRIDE * window,
        image_window=window,
        image_patch_size=weights[patches].shape[2],
        image_embed_dim=len(weights[patches]),
        image_depths=",".join(
            str(len(_numbers(weights, rf"{SWIN}layers\.{stage}\.blocks\.(\d+)\."))) for stage in sorted(stages)
        ),
        image_heads=",".join(str(weights[table].shape[1]) for table in tables),
        joint_dim=len(weights["text_proj.weight"]),
    )


def from_released(name: str, tensor: Tensor, text_layers: int, place: str) -> dict[str, Tensor]:
    """One published weight under our names: three for the joint queries, keys and values of Swin.

    Args:
        name: published, without `bert.`.
        tensor: the weight.
        text_layers: layers that see no image.
        place: for the message.

    Raises:
        UserError: an unknown name.
    """
    if name in (POSITIONS, TYPES):  # these go into one table
        return {}
    if name.startswith(SWIN):
        inside = name.removeprefix(SWIN)
        if inside.startswith("norm."):
            return {f"{OURS}layernorm.{inside.removeprefix('norm.')}": tensor}
        if inside.startswith("patch_embed."):
            inside = inside.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
            return {OURS + inside.replace("patch_embed.norm.", "embeddings.norm."): tensor}
        if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)attn\.qkv\.(weight|bias)", inside):
            parts = tensor.chunk(3)
            return {f"{OURS}encoder.{match[1]}attention.{part}.{match[2]}": parts[at].clone() for part, at in QKV}
        if inside.endswith(RELEASED_TABLE):
            return {f"{OURS}encoder.{inside.removesuffix(RELEASED_TABLE)}{TABLE}": tensor}
        if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)(.+)\.(weight|bias)", inside):
            if match[2] in BLOCK:
                return {f"{OURS}encoder.{match[1]}{BLOCK[match[2]]}.{match[3]}": tensor}
        elif re.fullmatch(r"layers\.\d+\.downsample\.(norm|reduction)\.(weight|bias)", inside):
            return {f"{OURS}encoder.{inside}": tensor}
    elif match := re.fullmatch(r"text_encoder\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name):
        number = int(match[1])
        half = "text_encoder.encoder.sentence_encoder.layers." if number < text_layers else "fusion.layers."
        if match[2] in LAYER:
            place_in_half = number if number < text_layers else number - text_layers
            return {f"{half}{place_in_half}.{LAYER[match[2]]}.{match[3]}": tensor}
    elif name == WORDS:
        return {OUR_WORDS: tensor}
    elif name.startswith("text_encoder.embeddings.LayerNorm."):
        kind = name.rpartition(".")[2]
        return {f"text_encoder.encoder.sentence_encoder.layernorm_embedding.{kind}": tensor}
    elif name in WORD_HEAD:
        return {WORD_HEAD[name]: tensor}
    elif name == "temp" or name.startswith(("text_proj.", "vision_proj.", "itm_head.")):
        return {name: tensor}
    raise UserError(f"{place}: holds {name}, which CCRK does not have; {REMEDY}")


def to_released(module: CCRKModel) -> dict[str, Any]:
    """A model in the layout of `checkpoint_best.pth`, for the released retrieval scripts.

    The token type, which ours has added into the positions, becomes zero.

    Args:
        module: of any training.
    """
    own = {name: tensor.detach().cpu().float() for name, tensor in module.state_dict().items()}
    released: dict[str, Tensor] = {"temp": own["temp"]}
    for name, tensor in own.items():
        if name.startswith(("text_proj.", "vision_proj.", "itm_head.")):
            released[name] = tensor
    released |= _text_to_released(own, module.cfg.encoder_layers)
    released |= _swin_to_released(own, module.image_tower)
    config = {
        "use_swin": True,
        "use_clip_vit": False,
        "image_res": module.cfg.image_size,
        "patch_size": STRIDE,
        "embed_dim": module.cfg.joint_dim,
        "temp": 0.07,
        "text_num_hidden_layers": module.cfg.encoder_layers + module.cfg.fusion_layers,
        "max_tokens": 40,
    }
    return {"model": {name: tensor.contiguous().clone() for name, tensor in released.items()}, "config": config}


def _text_to_released(own: Mapping[str, Tensor], text_layers: int) -> dict[str, Tensor]:
    table = own[OUR_POSITIONS][FIRST_POSITION:]
    rows = XLMR_ROWS if len(table) == XLMR_ROWS - FIRST_POSITION else len(table)
    positions = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
    released = {
        WORDS: own[OUR_WORDS],
        POSITIONS: positions,
        TYPES: positions.new_zeros(1, positions.shape[1]),
        "text_encoder.embeddings.position_ids": torch.arange(rows)[None],
    }
    for kind in ("weight", "bias"):
        norm = own[f"text_encoder.encoder.sentence_encoder.layernorm_embedding.{kind}"]
        released[f"text_encoder.embeddings.LayerNorm.{kind}"] = norm
    names = {ours: theirs for theirs, ours in LAYER.items()}
    for name, tensor in own.items():
        for prefix, first in (("text_encoder.encoder.sentence_encoder.layers.", 0), ("fusion.layers.", text_layers)):
            if name.startswith(prefix):
                number, _, inside = name.removeprefix(prefix).partition(".")
                part, _, kind = inside.rpartition(".")
                released[f"text_encoder.encoder.layer.{int(number) + first}.{names[part]}.{kind}"] = tensor
    return released


def _swin_to_released(own: Mapping[str, Tensor], tower: SwinTower) -> dict[str, Tensor]:
    released: dict[str, Tensor] = {}
    names = {ours: theirs for theirs, ours in BLOCK.items()}
    for name, tensor in own.items():
        if not name.startswith(OURS) or name.endswith("relative_position_index"):
            continue
        inside = name.removeprefix(OURS).removeprefix("encoder.")
        inside = inside.replace("embeddings.patch_embeddings.projection.", "patch_embed.proj.")
        inside = inside.replace("embeddings.norm.", "patch_embed.norm.").replace("layernorm.", "norm.", 1)
        if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)attention\.([qkv])_proj\.(weight|bias)", inside):
            if match[2] == "q":
                joint = [own[name.replace("q_proj", part)] for part, _ in QKV]
                released[f"{SWIN}{match[1]}attn.qkv.{match[3]}"] = torch.cat(joint)
        elif inside.endswith(TABLE):
            block = inside.removesuffix(TABLE)
            released[f"{SWIN}{block}{RELEASED_TABLE}"] = tensor
        elif match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)(.+)\.(weight|bias)", inside):
            released[f"{SWIN}{match[1]}{names[match[2]]}.{match[3]}"] = tensor
        else:
            released[SWIN + inside] = tensor
    return released | _swin_buffers(tower)


def _swin_buffers(tower: SwinTower) -> dict[str, Tensor]:
    """What the released Swin stores besides weights: offsets within a window, and which positions may not meet."""
    buffers: dict[str, Tensor] = {}
    sizes = tower.sizes
    for stage, depth in enumerate(sizes.depths):
        edge = sizes.image_size // sizes.patch_size // 2**stage
        window = min(sizes.window, edge)
        for block in range(depth):
            place = f"{SWIN}layers.{stage}.blocks.{block}."
            buffers[f"{place}attn.relative_position_index"] = _offsets(window)
            if block % 2 and window < edge:
                buffers[f"{place}attn_mask"] = _shifted_mask(edge, window)
    return buffers


def _offsets(window: int) -> Tensor:
    """(w^2, w^2) rows of the position table, by query and key within a window."""
    at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = at[:, :, None] - at[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _shifted_mask(edge: int, window: int) -> Tensor:
    """(windows, w^2, w^2): -100 between positions that only the rolling of the map has put into one window."""
    along = torch.zeros(edge, dtype=torch.long)
    along[-window:], along[-(window // 2) :] = 1, 2
    region = along[:, None] * 3 + along[None, :]
    count = edge // window
    windows = region.view(count, window, count, window).transpose(1, 2).reshape(count * count, window * window)
    return torch.where(windows[:, :, None] == windows[:, None, :], 0.0, -100.0)


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for match in map(re.compile(pattern).match, weights) if match}


def _no_teacher() -> Any:
    raise UserError("CCRK has an image tower of its own and no teacher")
