"""The frozen image-text teacher: any CLIP-like dual encoder of `transformers`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.freezing import state_hash
from mclip_fairseq.models.sizes import refuse_oversized_directory
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting, first_line
from mclip_fairseq.storage.hub import packed_dual_encoder

# SigLIP pools the last position, whatever it holds: it was trained with all texts padded to one length.
PADDED_TO_MAX_LENGTH = ("siglip", "siglip2")
# Processors may make images larger than the model's own size (to crop them), but not so many times larger.
MOST_TIMES, UNKNOWN_SIZE = 4, 1024
# Tokenizers without a limit of their own claim about 1e30.
NO_LIMIT = 1_000_000


class ImageTransform:
    """The teacher's image preprocessing without its weights, so that worker processes can hold it.

    Args:
        processor: a `transformers` image processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> (n, channels, height, width) float32."""
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        if pixels.ndim != 4:
            raise UserError(
                f"{type(self.processor).__name__} gives images of shape {tuple(pixels.shape[1:])}; a teacher whose "
                "images are (channels, height, width) is needed"
            )
        return pixels.float()

    @property
    def description(self) -> str:
        """The processor and its settings, in words that say whether two are the same."""
        settings = self.processor.to_dict()
        shown = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
        return ", ".join([type(self.processor).__name__, *(f"{name}={settings.get(name)}" for name in shown)])


class DualEncoderTeacher(nn.Module):
    """A frozen dual encoder, always in eval mode; see `from_pretrained`.

    Args:
        model: with `get_image_features` and `get_text_features`.
        processor: its image processor.
        tokenizer: its tokenizer; None where there is none, and texts are then refused.
        name: Hub name, or directory name without its parents.
        revision: of a Hub name.

    Attributes:
        dim: width of the projections.
        image_size: pixels along an edge after `transform`.
        transform: RGB images -> (n, channels, height, width).
        identity: `name`, `revision`, `architecture` and `sha256` of the weights; no path.
    """

    def __init__(self, model: nn.Module, processor: Any, tokenizer: Any, name: str, revision: str | None) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.transform = ImageTransform(processor)
        self.max_tokens = 0 if tokenizer is None else _longest_text(model, tokenizer)
        self.identity: dict[str, Any] = {
            "name": name,
            "revision": revision,
            "architecture": type(model).__name__,
            "sha256": state_hash({key: torch.atleast_1d(tensor) for key, tensor in model.state_dict().items()}),
        }
        self.eval()
        pixels = self.transform([Image.new("RGB", (64, 64))])
        self.image_size = int(pixels.shape[-1])
        self.dim = int(self.encode_image(pixels).shape[1])

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str | None = None) -> DualEncoderTeacher:
        """Load weights in float32, image processor and tokenizer.

        Weights are read from safetensors where there are any, and otherwise without running code that a file may hold.

        Args:
            name_or_path: Hub name or local directory, also of a CLIP that sentence-transformers packed.
            revision: branch, tag or commit of a Hub name.

        Raises:
            UserError: nothing usable there, weights are missing, or it is no dual encoder.
        """
        shield_torchaudio()
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        import mclip_fairseq.models.vision.clip_resnet  # noqa: F401  (registers it with AutoModel)

        named = str(name_or_path)
        source = packed_dual_encoder(named) or named
        options: dict[str, Any] = {"revision": revision} if revision else {}
        options["trust_remote_code"] = False
        local = Path(source).is_dir()
        try:
            if local:
                refuse_oversized_directory(Path(source), AutoConfig.from_pretrained(source, trust_remote_code=False))
            model, info = AutoModel.from_pretrained(
                source, dtype=torch.float32, weights_only=True, output_loading_info=True, **options
            )
            # The same pixels with and without torchvision.
            processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
            tokenizer = None if _has_no_tokenizer(source) else AutoTokenizer.from_pretrained(source, **options)
        except Exception as error:  # its loaders raise whatever broken files lead them to
            raise UserError(
                f"{source}: cannot be loaded as a transformers dual encoder, image processor and tokenizer: "
                f"{first_line(error)}"
            ) from error
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise UserError(f"{source}: holds a {type(model).__name__}, which is no dual encoder of images and texts")
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{source}: lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}")
        commit = None if local else getattr(model.config, "_commit_hash", None) or revision
        name = Path(named).resolve().name if Path(named).is_dir() else named
        with expecting(source, "a transformers dual encoder with an image processor"):
            _refuse_large_pixels(processor, model, source)
            return cls(model, processor, tokenizer, name, commit)

    def save(self, path: Path) -> None:
        """Write a `transformers` directory: weights as safetensors, image processor and tokenizer."""
        self.model.save_pretrained(path, safe_serialization=True)
        self.transform.processor.save_pretrained(path)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)

    def train(self, mode: bool = True) -> DualEncoderTeacher:
        """Stay in eval mode, whatever the parent does."""
        return super().train(False)

    @property
    def logit_scale(self) -> float | None:
        """The learned factor of the cosine (the exponential of the stored value); None where there is none."""
        stored = getattr(self.model, "logit_scale", None)
        return None if stored is None else float(stored.detach().float().exp())

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts as (n, length) model inputs; over-long ones are cut to what the model can read."""
        if self.tokenizer is None:
            raise UserError(f"{self.identity['name']}: has no tokenizer; add CLIP's to encode English text with it")
        padding = "max_length" if self.model.config.model_type in PADDED_TO_MAX_LENGTH else "longest"
        try:
            encoded = self.tokenizer(
                list(texts), padding=padding, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
        except Exception as error:  # its library raises whatever a broken vocabulary leads it to
            raise UserError(
                f"{self.identity['name']}: its tokenizer cannot be used: {first_line(error)}; copy the directory again"
            ) from error
        self._refuse_foreign_ids(encoded["input_ids"])
        read = inspect.signature(self.model.get_text_features).parameters
        return {name: tensor for name, tensor in encoded.items() if name in read}

    def _refuse_foreign_ids(self, ids: Tensor) -> None:
        known = getattr(self.model.config.get_text_config(), "vocab_size", None)
        if known is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < known:
            raise UserError(
                f"{self.identity['name']}: its tokenizer gives the id {int(ids.max())}, but the model knows {known}; "
                "one of the two belongs to another model"
            )

    @torch.no_grad()
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(n, channels, height, width) pixels from `transform` -> (n, dim) projections, not normalised."""
        dtype = next(self.model.parameters()).dtype
        return _projection(self.model.get_image_features(pixel_values=pixel_values.to(dtype)))

    @torch.no_grad()
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Tensor) -> Tensor:
        """(n, length) inputs from `tokenize` -> (n, dim) projections, not normalised."""
        if attention_mask is not None:
            others["attention_mask"] = attention_mask
        return _projection(self.model.get_text_features(input_ids=input_ids, **others))


def _projection(output: Any) -> Tensor:
    """The (n, dim) projections in what transformers 4 (a tensor) or 5 (an output object) returns."""
    features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError(f"the teacher returned a {type(output).__name__} without one vector per input")
    return features


def _refuse_large_pixels(processor: Any, model: nn.Module, place: str) -> None:
    """Refuse settings that would make gigabytes of an image before the model can say that it is too large."""
    config: Any = getattr(model, "config", None)
    own = getattr(getattr(config, "vision_config", config), "image_size", None)
    most = MOST_TIMES * (own if isinstance(own, int) else UNKNOWN_SIZE)
    settings = processor.to_dict()
    for name, switch in (("size", "do_resize"), ("crop_size", "do_center_crop"), ("pad_size", "do_pad")):
        edges = settings.get(name) if settings.get(switch) is not False else None
        for edge in edges.values() if isinstance(edges, dict) else [edges]:
            if isinstance(edge, int | float) and not edge <= most:
                raise UserError(
                    f"{place}: its image processor has a {name} of {edge} pixels, but the model reads "
                    f"{own or 'far fewer'}; put back the preprocessor_config.json that belongs to it"
                )


def _has_no_tokenizer(source: str) -> bool:
    """Whether a local directory holds no tokenizer at all; on the Hub that is never presumed."""
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
    return Path(source).is_dir() and not any((Path(source) / name).is_file() for name in files)


def _longest_text(model: nn.Module, tokenizer: Any) -> int:
    """Tokens the text tower can read: the least of the tokenizer's limit and the position tables."""
    limits = [min(int(tokenizer.model_max_length), NO_LIMIT)]
    for name, module in model.named_modules():
        table = "text" in name and name.endswith(("position_embedding", "position_embeddings"))
        if table and isinstance(module, nn.Embedding):
            # RoBERTa's positions start after the padding index.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)
