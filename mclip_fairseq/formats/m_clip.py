"""M-CLIP's published text encoders (Carlsson et al., LREC 2022): mean pooling and a linear layer on a base model.

`config.json` names the base model and the width of the image tower's space; the weights have the prefixes
`transformer.` and `LinearTransformation.`. The image tower is published elsewhere: OpenAI's or open_clip's CLIP.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.formats.towers import PairTower
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_loading import check_text_limit, load_with_transformers, model_without_memory
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.hub import published_file

MAX_TOKENS = 512
# Recorded in identities, and through them in indexes and features on disk.
ARCHITECTURE = "MCLIPText"


class DistilledTextEncoder(nn.Module):
    """A base model distilled from CLIP's text tower (teacher learning): mean pooling and a linear layer.

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
    """Whether a `config.json` is that of a text encoder of M-CLIP."""
    return isinstance(config, dict) and "modelBase" in config and "imageDimSize" in config


def load_m_clip(source: str, config: dict[str, Any], teacher: str = "") -> PairTower:
    """Load a published text encoder.

    Args:
        source: Hub name or directory.
        config: its `config.json`.
        teacher: Hub name or directory of the image tower; empty if images come as its features.

    Raises:
        UserError: files are missing or damaged, or weights are not those of the configuration (all are named).
    """
    shield_torchaudio()
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    remedy = "restore the published config.json"
    base_name = check_fields(f"{source}/config.json", config, {"modelBase": str, "imageDimSize": int}, remedy)[
        "modelBase"
    ]
    dim = config["imageDimSize"]
    base = load_with_transformers(
        source, "M-CLIP: its base model", lambda: AutoConfig.from_pretrained(base_name, trust_remote_code=False)
    )
    tokenizer = load_with_transformers(
        source, "M-CLIP: its tokenizer", lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    )
    check_text_limit(tokenizer, source)
    if dim < 1 or not isinstance(getattr(base, "hidden_size", None), int) or tokenizer.pad_token_id is None:
        raise UserError(
            f"{source}: needs a positive imageDimSize, a base model with a hidden_size and a tokenizer with a padding "
            f"token; {remedy}, or the tokenizer's files"
        )
    # The sizes of the base model are anybody's: compare them with the weights before memory is allocated.
    with torch.device("meta"):
        expected = dict(DistilledTextEncoder(model_without_memory(base, source), dim).named_parameters())
    weights = {name: tensor.float() for name, tensor in read_weights(source).items() if not is_unused(name)}
    check_weights(weights, {name: tensor for name, tensor in expected.items() if not is_unused(name)}, source)
    text = DistilledTextEncoder(AutoModel.from_config(base, trust_remote_code=False), dim)
    text.load_state_dict(weights, strict=False)
    limit = min(MAX_TOKENS, tokenizer.model_max_length)

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=int(limit), return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    images = DualEncoderTeacher.from_pretrained(teacher) if teacher else None
    text.requires_grad_(False).eval()
    tower = PairTower(text, tokenize, int(tokenizer.pad_token_id), Path(source).name, images, dim, tokenizer)
    tower.identity["text_encoder"]["architecture"] = ARCHITECTURE
    return tower


def is_unused(name: str) -> bool:
    """Whether a weight does not affect the embeddings: poolers and position ids of other versions of transformers."""
    return name.startswith("transformer.pooler.") or name.endswith("position_ids")


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict of a Hub name or directory, preferably from safetensors; code in a pickle is never run.

    Raises:
        UserError: there are no weights, or they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("model.safetensors", "pytorch_model.bin"):
        file = published_file(source, name)
        if file is not None:
            try:
                state = load_file(file) if file.suffix == ".safetensors" else load_checkpoint(file)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: cannot be read: {first_line(error)}") from error
            return {key: tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    raise UserError(
        f"{source}: has neither model.safetensors nor pytorch_model.bin, or the Hub cannot be reached; download one"
    )
