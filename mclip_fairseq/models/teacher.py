"""The frozen image-text teacher: any CLIP-like dual encoder of `transformers`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.models.fast_transform import fast_transform
from mclip_fairseq.models.freezing import state_hash
from mclip_fairseq.models.settings import image_side_settings, structure_settings, tokenizer_settings
from mclip_fairseq.models.teacher_loading import load_dual_encoder, position_limits
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.projection import Projection

# SigLIP pools the last position even if it is padding: in training, all texts were padded to one length.
PADDED_TO_MAX_LENGTH = ("siglip", "siglip2")
# A tokenizer without a limit reports about 1e30.
NO_LIMIT = 1_000_000


class ImageTransform:
    """The teacher's image preprocessing without its weights, so that data loading workers can hold it.

    Args:
        processor: a `transformers` image processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.fast = fast_transform(processor)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> (n, channels, height, width) float32."""
        if self.fast is not None:
            return self.fast(images)
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        if pixels.ndim != 4:
            raise UserError(
                f"{type(self.processor).__name__} gives images of shape {tuple(pixels.shape[1:])}; choose a teacher "
                "that reads (channels, height, width)"
            )
        return pixels.float()

    @property
    def description(self) -> str:
        """The processor and its settings as text; equal for equal preprocessing."""
        settings = self.processor.to_dict()
        names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
        return ", ".join([type(self.processor).__name__, *(f"{name}={settings.get(name)}" for name in names)])


class DualEncoderTeacher(nn.Module):
    """A frozen dual encoder, always in eval mode; see `from_pretrained`.

    Args:
        model: with `get_image_features` and `get_text_features`.
        processor: its image processor.
        tokenizer: its tokenizer; without one (None), `tokenize` raises.
        name: Hub name, or directory name without its parents.
        revision: of a Hub name.
        source: where its files are, for messages; default: `name`.

    Attributes:
        dim: width of the projections.
        image_size: pixels along an edge after `transform`.
        transform: RGB images -> (n, channels, height, width).
        identity: `name`, `revision`, `architecture` and `sha256` of the weights; no path.
    """

    def __init__(
        self, model: nn.Module, processor: Any, tokenizer: Any, name: str, revision: str | None, source: str = ""
    ) -> None:
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
        # Configurations state these sizes in different fields, or not at all: a blank image always shows them.
        try:
            pixels = self.transform([Image.new("RGB", (64, 64))])
            features = self.encode_image(pixels)
        except Exception as error:  # transformers raises whatever odd settings of processor and model lead it to
            raise UserError(f"{source or name}: cannot encode an image: {first_line(error)}") from error
        self.image_size = int(pixels.shape[-1])
        self.dim = int(features.shape[1])

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, revision: str | None = None, fetch: bool = True
    ) -> DualEncoderTeacher:
        """Load weights in float32, image processor and tokenizer.

        Args:
            name_or_path: Hub name or local directory, also of a CLIP that sentence-transformers packed.
            revision: branch, tag or commit of a Hub name.
            fetch: whether a Hub name may be downloaded.

        Raises:
            UserError: a file is missing or damaged, weights are missing, or the model is not a dual encoder.
        """
        files = load_dual_encoder(name_or_path, revision, fetch)
        return cls(files.model, files.processor, files.tokenizer, files.name, files.revision, source=files.source)

    def save(self, path: Path) -> None:
        """Write a `transformers` directory: weights as safetensors, image processor and tokenizer."""
        self.model.save_pretrained(path, safe_serialization=True)
        self.transform.processor.save_pretrained(path)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)

    def train(self, mode: bool = True) -> DualEncoderTeacher:
        """Stay in eval mode, whatever mode the parent module is put in."""
        return super().train(False)

    @property
    def image_settings(self) -> dict[str, Any]:
        """What image vectors depend on besides the weights."""
        return image_side_settings(self.model.config, self.transform.processor)

    @property
    def text_settings(self) -> dict[str, Any]:
        """What text vectors depend on besides the weights."""
        tokenizer = tokenizer_settings(self.tokenizer)
        return {"structure": structure_settings(self.model), "tokenizer": tokenizer, "limit": self.max_tokens}

    @property
    def logit_scale(self) -> float | None:
        """The learned factor of the cosine (the exponential of the stored value); None if it has none."""
        stored = getattr(self.model, "logit_scale", None)
        return None if stored is None else float(stored.detach().float().exp())

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts as (n, length) model inputs; longer ones are cut to what the model can read."""
        if self.tokenizer is None:
            raise UserError(f"{self.identity['name']}: has no tokenizer; add CLIP's to encode English text with it")
        padding = "max_length" if self.reads_padding else "longest"
        try:
            encoded = self.tokenizer(
                list(texts), padding=padding, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
        except Exception as error:  # its library raises whatever a damaged vocabulary leads it to
            raise UserError(
                f"{self.identity['name']}: its tokenizer cannot be used: {first_line(error)}; copy the directory again"
            ) from error
        self._check_ids(encoded["input_ids"])
        # Tokenizers also return fields that some models do not take, such as BERT's token types.
        accepted = inspect.signature(self.model.get_text_features).parameters
        return {name: tensor for name, tensor in encoded.items() if name in accepted}

    @property
    def reads_padding(self) -> bool:
        """Whether the text tower needs all texts padded to one length."""
        return self.model.config.model_type in PADDED_TO_MAX_LENGTH

    def token_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """(n, length) bool of `tokenize`'s output, False at pads that may be cut off; None if none may."""
        mask = inputs.get("attention_mask")
        return None if mask is None or self.reads_padding else mask.bool()

    def _check_ids(self, ids: Tensor) -> None:
        # Behind this, an id beyond the table is an index error on the CPU and a dead CUDA context on a GPU.
        entries = getattr(self.model.config.get_text_config(), "vocab_size", None)
        if entries is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < entries:
            raise UserError(
                f"{self.identity['name']}: its tokenizer gives the id {int(ids.max())}, but the model has {entries} "
                "token embeddings; one of the two belongs to another model"
            )

    def projection(self, modality: str) -> Projection:
        """The linear layer behind the pooled states of `image` or `text`.

        Raises:
            UserError: the model has no such layer.
        """
        layer: Any = getattr(self.model, {"image": "visual_projection", "text": "text_projection"}[modality], None)
        if type(layer) is not nn.Linear or getattr(layer, "bias", None) is not None:
            raise UserError(
                f"{self.identity['name']}: has no plain {modality} projection, so it has no states before one; use a "
                "CLIP-like teacher or --space joint"
            )
        stored = getattr(self.model, "logit_scale", None)
        log_scale = None if stored is None else float(stored.detach().float())
        return Projection(layer.weight.detach().float().cpu().numpy(), log_scale)

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

    @torch.no_grad()
    def pooled_image(self, pixel_values: Tensor) -> Tensor:
        """As `encode_image`, but the states before the projection, (n, width of the image tower)."""
        dtype = next(self.model.parameters()).dtype
        return _projection(self.model.vision_model(pixel_values=pixel_values.to(dtype)))

    @torch.no_grad()
    def pooled_text(self, **inputs: Tensor) -> Tensor:
        """As `encode_text`, but the states before the projection, (n, width of the text tower)."""
        return _projection(self.model.text_model(**inputs))

    def encoder(self, modality: str, space: str) -> Callable[..., Tensor]:
        """The method that encodes `image` or `text` into the space `joint` or `pooled`."""
        encoders: dict[tuple[str, str], Callable[..., Tensor]] = {
            ("image", "joint"): self.encode_image,
            ("text", "joint"): self.encode_text,
            ("image", "pooled"): self.pooled_image,
            ("text", "pooled"): self.pooled_text,
        }
        return encoders[modality, space]


def _projection(output: Any) -> Tensor:
    """The (n, dim) projections in what transformers 4 (a tensor) or 5 (an output object) returns."""
    features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError(f"the teacher returned a {type(output).__name__} without one vector per input")
    return features


def _longest_text(model: nn.Module, tokenizer: Any) -> int:
    """Tokens the text tower can read: the smallest of the tokenizer's limit and the sizes of the position tables."""
    return min([int(min(tokenizer.model_max_length, NO_LIMIT)), *position_limits(model, "text")])
