"""What is frozen, and how a checkpoint names it without storing it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import same_teacher
from mclip_fairseq.storage.files import parse_json

# Key of the frozen parts' identity in a state dict.
IDENTITY = "frozen_identity"


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict: an identity that knows no path."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.view(torch.uint8).numpy().data)
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


def check_same_parts(mine: Mapping[str, Any], stored: Mapping[str, Any], archive: str | None) -> None:
    """Refuse a text encoder or a teacher other than the one a checkpoint was trained with.

    Args:
        mine: identities of this model's parts.
        stored: those in the checkpoint.
        archive: where this model's text encoder comes from; None where its weights come from the checkpoint.

    Raises:
        UserError: naming both identities.
    """
    if archive is not None and stored.get("text_encoder") != mine.get("text_encoder"):
        raise UserError(
            f"the checkpoint was trained on text encoder {stored.get('text_encoder')}, but {archive} is "
            f"{mine.get('text_encoder')}; pass the archive it was trained with as --text-encoder"
        )
    teacher, trained_with = mine.get("teacher"), stored.get("teacher")
    if teacher and trained_with and not same_teacher(teacher, trained_with):
        raise UserError(
            f"the checkpoint was trained with teacher {trained_with}, but this is {teacher}; use the same one"
        )


def frozen_names(module: nn.Module, prefixes: Iterable[str]) -> set[str]:
    """Names of parameters and buffers below `prefixes` that training never changes."""
    prefixes = tuple(prefixes)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in module.named_buffers()}
    return {name for name in names if name.startswith(prefixes) and name not in trained}
