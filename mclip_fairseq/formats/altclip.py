"""AltCLIP's `transformers` directories: read as a model `altclip`, and written from one under the published names.

The published names are those of transformers 4: `text_model.roberta.encoder.layer.N`, but
`vision_model.encoder.layers.N`. transformers 5 writes `layer` in both; version 4 reads such a directory with a random
image tower and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.formats.training import dual_encoder_class, stored_options
from mclip_fairseq.formats.xlmr import write_tokenizer
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_loading import call_transformers
from mclip_fairseq.models.vision.trained_tower import KINDS as CLIP_VISION
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.models.xlmr_transformers import from_transformers, to_transformers
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.hub import published_file, stated_languages
from mclip_fairseq.storage.pieces import SENTENCEPIECE, write_dictionary

PUBLISHED_LAYERS = (("text_model.", "layer."), ("vision_model.", "layers."))
TEXT = "text_model."
TEXT_SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "bos_token_id", "pad_token_id", "eos_token_id"),
)


def published_name(name: str) -> str:
    """A weight of `transformers.AltCLIPModel`, in whichever version's name, under its published name."""
    for prefix, layers in PUBLISHED_LAYERS:
        if name.startswith(prefix):
            return re.sub(r"encoder\.layers?\.", f"encoder.{layers}", name, count=1)
    return name


def load_altclip(source: str, folder: Path) -> TrainedTower:
    """Read a published AltCLIP.

    Args:
        source: Hub name or directory.
        folder: where `dict.txt` and the SentencePiece model are put; the tower's tokenizer reads them there.

    Raises:
        UserError: it is another model, or has no SentencePiece model.
    """
    shield_torchaudio()
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    teacher = DualEncoderTeacher.from_pretrained(source)
    config = teacher.model.config
    if config.model_type != "altclip":
        raise UserError(f"{source}: is a model {config.model_type!r}; give a directory of AltCLIP")
    pieces = published_file(source, SENTENCEPIECE)
    if pieces is None:
        raise UserError(f"{source}: has no {SENTENCEPIECE}; copy XLM-R's into the directory")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SENTENCEPIECE).write_bytes(pieces.read_bytes())
    write_dictionary(folder)
    tokenizer = XLMRTokenizer(folder)
    text = {published_name(name): tensor for name, tensor in teacher.model.state_dict().items()}
    settings = {name: value for name, value in config.text_config.to_dict().items() if name != "model_type"}
    masked = call_transformers(
        source, "XLM-R", lambda: XLMRobertaForMaskedLM(XLMRobertaConfig(**settings, tie_word_embeddings=True))
    )
    roberta = {name.removeprefix(TEXT): tensor for name, tensor in text.items() if name.startswith(f"{TEXT}roberta.")}
    own = {name: tensor for name, tensor in masked.state_dict().items() if name.startswith("roberta.")}
    check_weights({name: tensor for name, tensor in roberta.items() if name in own}, own, source)
    masked.load_state_dict(roberta, strict=False)
    encoder = from_transformers(masked, tokenizer.dictionary, source)
    kind: Any = dual_encoder_class("altclip", Path(source))
    options = stored_options(kind, {"save_frozen": True}, Path(source))
    joint, pooled = text["text_projection.weight"].shape
    options.teacher_dim, options.pooled_dim = int(joint), int(pooled)
    encoder.store_sizes(options)
    projection = {"text": teacher.projection("text")}
    module = kind(options, encoder, None, teacher.identity, projection)
    head = {"norm.weight": "pre_LN.weight", "norm.bias": "pre_LN.bias"}
    head |= {"linear.weight": "transformation.weight", "linear.bias": "transformation.bias"}
    module.projection.load_state_dict({ours: text[TEXT + theirs] for ours, theirs in head.items()})
    tokenizer.max_tokens = min(tokenizer.max_tokens, encoder.max_positions)
    return TrainedTower(module.eval(), tokenizer, Path(source).name, stated_languages(source), lambda: teacher)


def altclip_model(tower: TrainedTower) -> Any:
    """A trained model as `transformers.AltCLIPModel`: student, projections, scale, and the image tower.

    Args:
        tower: of a model `altclip`; its teacher is loaded for the image tower.

    Raises:
        UserError: another model, another head than AltCLIP's, or a teacher that is not a CLIP.
    """
    shield_torchaudio()
    from transformers import AltCLIPConfig, AltCLIPModel

    module: Any = tower.module
    cfg = module.cfg
    layout = (module.registered_name(), str(cfg.pooling), str(cfg.student_head))
    if layout != ("altclip", "first", "norm_linear") or cfg.inverse_layers:
        raise UserError(
            f"{tower.name}: is not an AltCLIP; --format altclip takes a model altclip with --pooling first, "
            "--student-head norm_linear and no --inverse-layers"
        )
    encoder = to_transformers(module.plain_xlmr)
    text_config = {name: value for name, value in encoder.config.to_dict().items() if name in TEXT_SETTINGS}
    vision_config, vision = _vision(tower)
    text = {f"{TEXT}{name}": tensor for name, tensor in encoder.state_dict().items() if name.startswith("roberta.")}
    config = AltCLIPConfig(
        text_config={**text_config, "project_dim": int(cfg.pooled_dim)},
        vision_config={**vision_config, "projection_dim": module.dim},
        projection_dim=module.dim,
    )
    model = AltCLIPModel(config)
    head = module.projection
    visual = module.visual_projection
    image_weight = tower.teacher.model.visual_projection.weight if visual is None else visual.weight
    weights = {
        **text,
        **{f"vision_model.{name}": tensor for name, tensor in vision.items()},
        "text_model.pre_LN.weight": head.norm.weight,
        "text_model.pre_LN.bias": head.norm.bias,
        "text_model.transformation.weight": head.linear.weight,
        "text_model.transformation.bias": head.linear.bias,
        "text_projection.weight": module.text_projection.weight,
        "visual_projection.weight": image_weight,
        "logit_scale": module.logit_scale,
    }
    own = {published_name(name): name for name in model.state_dict()}
    given = {published_name(name): tensor.detach().cpu() for name, tensor in weights.items()}
    given = {name: tensor for name, tensor in given.items() if name in own or not name.endswith("position_ids")}
    check_weights(given, {name: model.state_dict()[key] for name, key in own.items()}, tower.name)
    model.load_state_dict({own[name]: tensor for name, tensor in given.items()}, strict=True)
    return model.eval()


def _vision(tower: TrainedTower) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Settings and weights of the image tower: the trained one, or the teacher's."""
    trained: Any = tower.module.vision
    config: Any = getattr(tower.teacher.model.config, "vision_config", None) if trained is None else trained.config
    if getattr(config, "model_type", "") not in CLIP_VISION:
        raise UserError(f"{tower.name}: its image tower is not a vision transformer of CLIP, which AltCLIP needs")
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "dtype")}
    model = tower.teacher.model.vision_model if trained is None else trained.model
    return settings, model.state_dict()


def write_altclip(tower: TrainedTower, output: Path) -> None:
    """Write a trained model as AltCLIP's directory: weights, configuration, image processor and XLM-R's tokenizer.

    Args:
        tower: see `altclip_model`.
        output: directory to make.

    Raises:
        UserError: see `altclip_model`; or the dictionary is not in the order of the SentencePiece model.
    """
    from safetensors.torch import save_file

    model = altclip_model(tower)
    output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tower.tokenizer, output)
    model.config.architectures = ["AltCLIPModel"]
    model.config.save_pretrained(output)
    weights = {published_name(name): tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    vision: Any = tower.module.vision
    (tower.teacher.transform if vision is None else vision.transform).processor.save_pretrained(output)
