"""What is frozen, and how a checkpoint names it without storing it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import parse_json

# Key of the frozen parts' identity in a state dict.
IDENTITY = "frozen_identity"


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict: an identity that knows no path."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def encode_identity(identity: Mapping[str, Any]) -> Tensor:
    """A JSON object as a uint8 tensor, so that it travels in a state dict that holds only tensors."""
    return torch.frombuffer(bytearray(json.dumps(identity, sort_keys=True).encode()), dtype=torch.uint8).clone()


def decode_identity(tensor: Tensor) -> dict[str, Any]:
    """The inverse of `encode_identity`."""
    try:
        value = parse_json(bytes(tensor.cpu().tolist()))
    except (ValueError, TypeError) as error:
        raise UserError(f"the checkpoint's identity record cannot be read ({error}); the file is damaged") from error
    if not isinstance(value, dict):
        raise UserError("the checkpoint's identity record is not a JSON object; the file is damaged")
    return value


def holds_text_encoder(cfg: Any) -> bool:
    """Whether a checkpoint of this model configuration holds the text encoder's weights, so that no archive is needed.

    `teacher_learning` has no `save_frozen`: it always stores its encoder.
    """
    return bool(cfg.freeze_text == "none" or getattr(cfg, "save_frozen", True))


def frozen_names(module: nn.Module, prefixes: Iterable[str]) -> set[str]:
    """Names of parameters and buffers below `prefixes` that training never changes."""
    prefixes = tuple(prefixes)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in module.named_buffers()}
    return {name for name in names if name.startswith(prefixes) and name not in trained}
