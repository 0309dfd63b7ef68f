"""M-CLIP's published text towers (Carlsson et al., LREC 2022): mean pooling and a linear layer on a base model.

`config.json` names the base model and the width of the image tower's space; the weights stand below `transformer.` and
`LinearTransformation.`. The image tower is published elsewhere: OpenAI's or open_clip's CLIP.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.formats.openai_clip import refuse_mismatch
from mclip_fairseq.formats.towers import PairTower
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.sizes import model_without_memory
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line

MAX_TOKENS = 512


class MCLIPText(nn.Module):
    """The text tower.

    Args:
        transformer: the base model.
        dim: width of the image tower's space.
    """

    def __init__(self, transformer: Any, dim: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.LinearTransformation = nn.Linear(transformer.config.hidden_size, dim)  # the published name

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(texts, length) -> (texts, dim), not normalised."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projected: Tensor = self.LinearTransformation(pool_mean(states, attention_mask.eq(0)))
        return projected


def is_m_clip(config: Any) -> bool:
    """Whether a `config.json` is that of a text tower of M-CLIP."""
    return isinstance(config, dict) and "modelBase" in config and "imageDimSize" in config


def load_m_clip(source: str, config: dict[str, Any], teacher: str = "") -> PairTower:
    """Load a published text tower.

    Args:
        source: Hub name or directory.
        config: its `config.json`.
        teacher: Hub name or directory of the image tower; empty where images come as its features.

    Raises:
        UserError: files are missing, or weights are not those of the configuration, all of them named.
    """
    shield_torchaudio()
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        safe = {"trust_remote_code": False}
        base = AutoConfig.from_pretrained(str(config["modelBase"]), **safe)
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
        dim = int(config["imageDimSize"])
        with torch.device("meta"):
            own = dict(MCLIPText(model_without_memory(base), dim).named_parameters())
    except Exception as error:  # its loaders raise whatever broken files lead them to
        raise UserError(f"{source}: its base model or tokenizer cannot be loaded: {first_line(error)}") from error
    weights = read_weights(source)
    # Poolers and position ids of other versions of transformers play no part.
    weights = {name: tensor.float() for name, tensor in weights.items() if not is_unused(name)}
    refuse_mismatch(weights, {name: tensor for name, tensor in own.items() if not is_unused(name)}, [], source)
    text = MCLIPText(AutoModel.from_config(base, **safe), dim)
    text.load_state_dict(weights, strict=False)
    limit = min(MAX_TOKENS, int(tokenizer.model_max_length))

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        found = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    images = DualEncoderTeacher.from_pretrained(teacher) if teacher else None
    text.requires_grad_(False).eval()
    return PairTower(text, tokenize, int(tokenizer.pad_token_id), Path(source).name, images, dim)


def is_unused(name: str) -> bool:
    """Whether a weight plays no part in the embeddings."""
    return name.startswith("transformer.pooler.") or name.endswith("position_ids")


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict of a Hub name or directory: safetensors where there is one, never an unsafe pickle."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            try:
                state = load_file(found) if name.endswith("safetensors") else load_checkpoint(found)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{found}: cannot be read: {first_line(error)}") from error
            return {key: tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    raise UserError(f"{source}: holds neither model.safetensors nor pytorch_model.bin")
