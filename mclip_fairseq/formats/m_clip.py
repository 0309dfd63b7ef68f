"""M-CLIP's published text encoders (Carlsson et al., LREC 2022): mean pooling and a linear layer on a base model.

`config.json` names the base model and the width of the image tower's space; the weights have the prefixes
`transformer.` and `LinearTransformation.`. The image tower is published elsewhere: OpenAI's or open_clip's CLIP.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.formats.pair_tower import PairTower
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.formats.xlmr import write_tokenizer
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_loading import check_text_limit, load_with_transformers, model_without_memory
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import first_line, write_json
from mclip_fairseq.storage.hub import published_file
from mclip_fairseq.storage.staging import staged

MAX_TOKENS = 512
# Recorded in identities, and through them in indexes and features on disk.
ARCHITECTURE = "MCLIPText"
# The width under the name that the authors' class saves, and under that of its constructor.
WIDTH_NAMES = ("numDims", "imageDimSize")
WEIGHTS = "pytorch_model.bin"
BERT = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
XLMR = {"model_type": "xlm-roberta", "vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}
XLMR |= {"layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DISTILBERT = {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
# What their own config.json say of the base models that M-CLIP's authors used.
PUBLISHED_BASES: dict[str, dict[str, Any]] = {
    "xlm-roberta-base": XLMR,
    "xlm-roberta-large": XLMR
    | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "bert-base-multilingual-cased": BERT | {"vocab_size": 119547},
    "distilbert-base-multilingual-cased": DISTILBERT | {"vocab_size": 119547},
    "sentence-transformers/LaBSE": BERT | {"vocab_size": 501153},
}
# The base models of M-CLIP by layers, width and number of tokens.
BASES = {(12, 768, 250002): "xlm-roberta-base", (24, 1024, 250002): "xlm-roberta-large"}


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
    return isinstance(config, dict) and "modelBase" in config and any(name in config for name in WIDTH_NAMES)


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
    from transformers import AutoModel, AutoTokenizer

    remedy = "restore the published config.json"
    width_name = next(name for name in WIDTH_NAMES if name in config)
    check_fields(f"{source}/config.json", config, {"modelBase": str, width_name: int}, remedy)
    dim = config[width_name]
    base = base_config(source, config["modelBase"])
    tokenizer = load_with_transformers(
        source, "M-CLIP: its tokenizer", lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    )
    check_text_limit(tokenizer, source)
    if dim < 1 or not isinstance(getattr(base, "hidden_size", None), int) or tokenizer.pad_token_id is None:
        raise UserError(
            f"{source}: needs a positive {width_name}, a base model with a hidden_size and a tokenizer with a padding "
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


def base_config(source: str, name: str) -> Any:
    """The configuration of the base model that a text encoder names.

    A name in a downloaded file must not choose what is read or fetched, so a base model of one's own is below the
    directory, and those of the published models are described here.

    Args:
        source: Hub name or directory of the text encoder.
        name: its `modelBase`.

    Raises:
        UserError: the name means neither of these, or the configuration cannot be read.
    """
    from transformers import AutoConfig

    own = (Path(source) / name).resolve()
    if own.is_dir() and own != Path(source).resolve() and own.is_relative_to(Path(source).resolve()):
        return load_with_transformers(
            own, "M-CLIP: its base model", lambda: AutoConfig.from_pretrained(str(own), trust_remote_code=False)
        )
    if name not in PUBLISHED_BASES:
        raise UserError(
            f"{source}: names the base model {name!r}, which is neither a folder in it nor one of "
            f"{', '.join(PUBLISHED_BASES)}; copy that model's config.json into the folder base of a local copy, and "
            "write base as modelBase in its config.json"
        )
    settings = dict(PUBLISHED_BASES[name])
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def is_unused(name: str) -> bool:
    """Whether a weight does not affect the embeddings: poolers and position ids of other versions of transformers."""
    return name.startswith("transformer.pooler.") or name.endswith("position_ids")


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict of a Hub name or directory, preferably from safetensors; code in a pickle is never run.

    Raises:
        UserError: the weights are missing or cannot be read.
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


def write_m_clip(tower: TrainedTower, output: Path) -> None:
    """Write a trained text encoder as M-CLIP's directory, which the published class reads, with its tokenizer.

    Args:
        tower: of a model `teacher_learning` with mean pooling and a linear head.
        output: directory to make.

    Raises:
        UserError: another model; or the dictionary is not in the order of the SentencePiece model.
    """
    module: Any = tower.module
    cfg = module.cfg
    if module.registered_name() != "teacher_learning" or (str(cfg.pooling), str(cfg.student_head)) != (
        "mean",
        "linear",
    ):
        raise UserError(
            f"{tower.name}: is not an M-CLIP; --format m-clip takes a model teacher_learning with --pooling mean and "
            "--student-head linear"
        )
    encoder = module.plain_encoder
    base_model = encoder.plain_module()
    config = base_model.config
    output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tower.tokenizer, output)
    weights = {f"transformer.{name}": tensor.detach().cpu().clone() for name, tensor in base_model.state_dict().items()}
    base = "base"
    if isinstance(encoder, XLMREncoder):
        # The published class loads the base model first, weights and all, and replaces them afterwards.
        base = BASES.get((config.num_hidden_layers, config.hidden_size, config.vocab_size), base)
        # It loads strictly, and its base model has these, which play no part and which fairseq's XLM-R lacks.
        weights |= {
            "transformer.pooler.dense.weight": torch.zeros(config.hidden_size, config.hidden_size),
            "transformer.pooler.dense.bias": torch.zeros(config.hidden_size),
        }
    weights |= {
        "LinearTransformation.weight": module.projection.weight.detach().cpu().clone(),
        "LinearTransformation.bias": module.projection.bias.detach().cpu().clone(),
    }
    if base == "base":
        base_model.save_pretrained(output / base)
    torch.save(weights, output / WEIGHTS)
    names = {"modelBase": base, "transformerDimensions": config.hidden_size, "numDims": module.dim}
    write_json(output / "config.json", {"model_type": "M-CLIP", **names})


def write_legacy_m_clip(encoder: str, head: Path, output: Path) -> None:
    """Write a legacy text encoder, whose linear layer was published apart, as M-CLIP's directory.

    Args:
        encoder: Hub name or directory of the base model, of any kind, with its tokenizer.
        head: `.npz` or `.safetensors` with `W`, (width of the encoder, dim), and `b`, (dim,). The published file is a
            pickle, which can run code, so it is not read here.
        output: directory to make.

    Raises:
        UserError: a file cannot be read, or the two do not fit.
    """
    shield_torchaudio()
    from transformers import AutoModel, AutoTokenizer

    weight, bias = read_head(head)
    model, info = load_with_transformers(
        encoder,
        "a text encoder",
        lambda: AutoModel.from_pretrained(
            encoder, dtype=torch.float32, weights_only=True, output_loading_info=True, trust_remote_code=False
        ),
    )
    if missing := sorted(name for name in info["missing_keys"] if not is_unused(f"transformer.{name}")):
        raise UserError(f"{encoder}: lacks {len(missing)} weights, such as {missing[0]}; give the published directory")
    width = getattr(model.config, "hidden_size", None)
    if weight.shape[0] != width or bias.shape != weight.shape[1:]:
        raise UserError(
            f"{head}: has W {tuple(weight.shape)} and b {tuple(bias.shape)}, but the encoder has {width} columns; give "
            "the head that was published with it"
        )
    tokenizer = load_with_transformers(
        encoder, "a tokenizer", lambda: AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
    )
    weights = {f"transformer.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    weights |= {"LinearTransformation.weight": weight.T.contiguous(), "LinearTransformation.bias": bias}
    names = {"modelBase": "base", "transformerDimensions": width, "numDims": len(bias)}
    with staged(output) as staging:
        model.save_pretrained(staging / "base")
        torch.save(weights, staging / WEIGHTS)
        tokenizer.save_pretrained(staging)
        write_json(staging / "config.json", {"model_type": "M-CLIP", **names})


def read_head(file: Path) -> tuple[Tensor, Tensor]:
    """The arrays `W` and `b` of a `.npz` or `.safetensors` file, as float32.

    Raises:
        UserError: it cannot be read, or has other arrays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # Neither reader unpickles.
        stored = load_file(file) if file.suffix == ".safetensors" else np.load(file, allow_pickle=False)
        names = [name for name in ("W", "b") if isinstance(stored, Mapping) and name in stored]
        arrays = {name: torch.as_tensor(stored[name]) for name in names}
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        reason = first_line(error)
        raise UserError(f"{file}: cannot be read as .npz or .safetensors: {reason}; write W and b again") from error
    weight, bias = arrays.get("W"), arrays.get("b")
    if weight is None or bias is None or weight.ndim != 2 or bias.ndim != 1:
        raise UserError(f"{file}: holds no matrix W and vector b; write the published pickle's two arrays into it")
    return weight.float(), bias.float()
