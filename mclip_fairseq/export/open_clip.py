"""The `(model, transform, tokenizer)` triple of open_clip, which CLIP_benchmark and clip-retrieval use."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.images import upright_rgb

Triple = tuple["OpenCLIPModel", Callable[[Image.Image], Tensor], Callable[[str | Sequence[str]], Tensor]]


class OpenCLIPModel(nn.Module):
    """A `MultilingualCLIP` with open_clip's methods.

    Args:
        model: the model to wrap.
    """

    def __init__(self, model: MultilingualCLIP) -> None:
        super().__init__()
        self.tower = model.tower
        self.module = model.tower.module  # registered, so that `to` and `eval` reach it
        scale = model.logit_scale
        self.logit_scale = None if scale is None else nn.Parameter(scale.log(), requires_grad=False)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(batch, channels, height, width) pixels -> (batch, dim)."""
        features = self.tower.encode_pixels(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(batch, length) token ids -> (batch, dim)."""
        features = self.tower.encode_text(self.tower.model_input(text))
        return F.normalize(features, dim=-1) if normalize else features


def open_clip_triple(model: MultilingualCLIP) -> Triple:
    """Model, transform and tokenizer.

    Args:
        model: a loaded model, on the device it will run on.

    Returns:
        the model; a function from a PIL image to (channels, height, width) pixels; a function from one or several
        texts to (texts, length) token ids.
    """

    def transform(image: Image.Image) -> Tensor:
        return model.transform([upright_rgb(image)])[0]

    def tokenize(texts: str | Sequence[str]) -> Tensor:
        inputs = model.tower.tokenize([texts] if isinstance(texts, str) else list(texts))
        return next(iter(inputs.values()))

    return OpenCLIPModel(model).eval(), transform, tokenize
