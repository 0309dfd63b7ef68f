"""Where the parts of the model `mla` come from: CLIP's text tower, a table of word embeddings, an earlier `mla`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line, read_json
from mclip_fairseq.storage.self_contained import check_self_contained

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHARED = ("embedding.weight", "embedding_linear.weight", "embedding_linear.bias")


def text_tower(clip: Any) -> tuple[Any, nn.Linear]:
    """The text model and the text projection of a CLIP, with a ViT or with a ResNet.

    Raises:
        UserError: another dual encoder.
    """
    holder = getattr(clip, "text", clip)  # CLIPResNetModel keeps both in one module
    text_model, projection = getattr(holder, "text_model", None), getattr(holder, "text_projection", None)
    if type(text_model).__name__ not in ("CLIPTextModel", "CLIPTextTransformer") or not isinstance(
        projection, nn.Linear
    ):
        raise UserError(f"--teacher: holds a {type(clip).__name__}; acquirers need the text tower of a CLIP")
    return text_model, projection


def word_embeddings(name_or_path: str) -> Tensor:
    """The (rows, width) input embeddings of a `transformers` model, float32.

    Raises:
        UserError: it cannot be loaded.
    """
    shield_torchaudio()
    from transformers import AutoModel

    check_self_contained(name_or_path)
    try:
        model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32, weights_only=True, trust_remote_code=False)
        weight: Tensor = model.get_input_embeddings().weight.detach()
    except Exception as error:  # its loaders raise whatever broken files lead them to
        raise UserError(
            f"--embedding {name_or_path}: cannot be loaded as a transformers model: {first_line(error)}"
        ) from error
    return weight


def clip_vocabulary(config: Any) -> tuple[int, int]:
    """Rows of CLIP's token table, and the id that ends a text.

    Args:
        config: of a `transformers.CLIPTextModel`.
    """
    # Early configurations say 2 and mean the last entry.
    return config.vocab_size, config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id


def read_base(path: Path, shared: bool = True) -> dict[str, Tensor]:
    """The weights of an earlier `mla`: table, linear map and acquirers, and its CLIP if that was trained.

    Args:
        path: a training checkpoint, or a directory of `mclip-convert mla`.
        shared: whether it must have a shared table; False: it must have none.

    Raises:
        UserError: it cannot be read, or is another model.
    """
    if (path / WEIGHTS).is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Mapping[str, Any] = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / WEIGHTS}: cannot be read: {error}; copy the directory again") from error
    else:
        state = load_checkpoint(path).get("model") or {}
    missing = [name for name in SHARED if name not in state]
    if shared and missing:
        raise UserError(f"{path}: lacks {missing[0]}; give a checkpoint of the model mla that holds its shared table")
    if not shared and len(missing) < len(SHARED):
        raise UserError(
            f"{path}: holds a shared table, but --clip-embedding reads all languages with CLIP's; leave it out"
        )
    return dict(state)


def end_token_of(path: Path) -> int:
    """The id that ends a text of the other languages in an earlier `mla`; -1 where it does not say."""
    if (path / WEIGHTS).is_file():
        options = read_json(path / CONFIG).get("model")
    else:
        options = (load_checkpoint(path).get("cfg") or {}).get("model")
    end = options.get("end_token") if isinstance(options, dict) else None
    return end if isinstance(end, int) else -1


def covered_languages(state: Mapping[str, Tensor], languages: Sequence[str]) -> set[str]:
    """Those of some languages whose acquirers are in a state dict."""
    return {language for language in languages if any(name.startswith(f"acquirers.{language}.") for name in state)}


def projected(output: Any) -> Tensor:
    """The (batch, dim) projections in what transformers 4 (a tensor) or 5 (an output object) returns."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def check_unchanged(own: Mapping[str, Tensor], given: Mapping[str, Tensor], cfg: Any) -> None:
    """Refuse a checkpoint whose frozen weights are not those of the file that holds them.

    Raises:
        UserError: naming the first weight that differs.
    """
    for name, tensor in given.items():
        if tensor.shape != own[name].shape or not torch.equal(tensor.to(own[name]), own[name]):
            raise UserError(
                f"--drop-frozen: {name} of the checkpoint differs from that of {cfg.base or cfg.embedding}; give the "
                "checkpoint itself as --base"
            )
