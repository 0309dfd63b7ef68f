"""The kinds of model behind `MultilingualCLIP`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.models.freezing import state_hash
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.hub import stated_languages

if TYPE_CHECKING:  # these need fairseq, which a model of `transformers` does not
    from mclip_fairseq.data.tokenizer import XLMRTokenizer
    from mclip_fairseq.models.dual_encoder import DualEncoder


class Tower(Protocol):
    """What `MultilingualCLIP` needs of a model."""

    name: str
    dim: int
    feature_dim: int
    languages: list[str]
    identity: dict[str, Any]
    module: Any
    tokenizer: Any

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model input of texts, over-long ones cut."""

    def model_input(self, tokens: Tensor) -> dict[str, Tensor]:
        """Model input of (texts, length) token ids, padded on either side."""

    def token_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """(texts, length) bool, False at pads that may be cut off; None where all texts must keep their length."""

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, dim), not necessarily normalised."""

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(images, dim), not necessarily normalised."""

    def project(self, features: Tensor) -> Tensor:
        """Teacher image features (images, teacher dim) -> (images, dim)."""

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""

    @property
    def scale(self) -> Tensor | None:
        """Factor of the cosine, 0-d float32 on the CPU; None where the model has none."""


class TrainedTower:
    """A model trained here, and the teacher whose image features it takes.

    Args:
        module: the model, without its teacher.
        tokenizer: of its text encoder.
        name: for tables.
        languages: that the text encoder was strengthened or trained on.
        load_teacher: called once, when the image tower is first needed.
    """

    def __init__(
        self,
        module: DualEncoder,
        tokenizer: XLMRTokenizer,
        name: str,
        languages: Sequence[str],
        load_teacher: Callable[[], DualEncoderTeacher],
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.name = name
        self.languages = list(languages)
        self.identity: dict[str, Any] = dict(module.identity)
        self.dim = module.dim
        self.feature_dim = module.feature_dim
        self._load_teacher = load_teacher
        self._teacher: DualEncoderTeacher | None = None

    @property
    def teacher(self) -> DualEncoderTeacher:
        """The image tower, loaded when first needed, and checked to be the one of the training."""
        if self._teacher is None:
            teacher = self._load_teacher()
            trained = self.identity["teacher"].get("sha256")
            if trained and trained != teacher.identity.get("sha256"):
                raise UserError(
                    f"{teacher.identity['name']}: has weights {teacher.identity.get('sha256')} but the model was "
                    f"trained with {trained}; pass the teacher of the training"
                )
            parameter = next(self.module.parameters())
            self._teacher = teacher.to(device=parameter.device, dtype=parameter.dtype)
        return self._teacher

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model input of texts, over-long ones cut."""
        return self.model_input(self.tokenizer(texts))

    def model_input(self, tokens: Tensor) -> dict[str, Tensor]:
        """Model input of (texts, length) token ids.

        Raises:
            UserError: ids of another tokenizer.
        """
        if tokens.numel() and int(tokens.max()) >= len(self.tokenizer.dictionary):
            raise UserError(
                f"token id {int(tokens.max())} is beyond the {len(self.tokenizer.dictionary)} entries of the text "
                "encoder's dictionary; tokenise with this model's tokenizer"
            )
        return {"tokens": tokens}

    def token_mask(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, length) bool, False at pads."""
        return inputs["tokens"].ne(self.tokenizer.dictionary.pad())

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, dim), L2-normalised."""
        return self.module.encode_text(**inputs)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) -> (images, dim), L2-normalised."""
        if self.module.image_transform is not None:  # a model with an image tower of its own
            return self.module.encode_image(pixel_values)
        return self.project(self.teacher.encode_image(pixel_values))

    def project(self, features: Tensor) -> Tensor:
        """(images, feature dim) -> (images, dim), L2-normalised."""
        return self.module.encode_image(features=features)

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""
        return self.module.image_transform or self.teacher.transform

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, 0-d."""
        return self.module.scale.detach().float().cpu()


class TeacherTower:
    """A `transformers` dual encoder on its own, to be compared in the same tables."""

    def __init__(self, name: str) -> None:
        self.module = DualEncoderTeacher.from_pretrained(name)
        self.name = Path(name).name
        self.dim = self.feature_dim = self.module.dim
        self.identity = {"teacher": dict(self.module.identity)}
        self.languages = stated_languages(name)
        self.tokenizer = self.module.tokenize

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model input of texts, over-long ones cut."""
        return dict(self.module.tokenize(list(texts)))

    def model_input(self, tokens: Tensor) -> dict[str, Tensor]:
        """Model input of (texts, length) token ids."""
        if self.module.tokenizer is None:  # CLIP's text tower is causal: what follows the end does not matter
            return {"input_ids": tokens}
        pad = self.module.tokenizer.pad_token_id
        return {"input_ids": tokens, "attention_mask": tokens.ne(pad).long()}

    def token_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """(texts, length) bool, False at pads; None for a model that reads them."""
        return self.module.token_mask(inputs)

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, dim), not normalised."""
        return self.module.encode_text(**inputs)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) -> (images, dim), not normalised."""
        return self.module.encode_image(pixel_values)

    def project(self, features: Tensor) -> Tensor:
        """Its own features are final already."""
        return features

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""
        return self.module.transform

    @property
    def scale(self) -> Tensor | None:
        """Factor of the cosine, 0-d, where the model has one."""
        return None if self.module.logit_scale is None else torch.tensor(self.module.logit_scale)


class PairTower:
    """A text tower of another project beside the image tower whose space it was trained for.

    Args:
        text: (texts, dim) from what `tokenizer` gives.
        tokenizer: texts to model inputs by name, of the arguments of `text.forward`.
        padding_idx: its padding id.
        name: for tables.
        teacher: the image tower; None where images come as its features.
        dim: width of the texts' embeddings.

    Raises:
        UserError: the two towers differ in width.
    """

    def __init__(
        self,
        text: nn.Module,
        tokenizer: Callable[[list[str]], dict[str, Tensor]],
        padding_idx: int,
        name: str,
        teacher: DualEncoderTeacher | None,
        dim: int,
    ) -> None:
        if teacher is not None and teacher.dim != dim:
            raise UserError(
                f"{name}: its texts have {dim} dimensions but the images of {teacher.identity['name']} have "
                f"{teacher.dim}; give the image tower it was trained for as teacher"
            )
        self.module: Any = nn.ModuleDict({"text": text} | ({} if teacher is None else {"teacher": teacher}))
        self.tokenizer = tokenizer
        self.padding_idx = padding_idx
        self.name = name
        self.dim = self.feature_dim = dim
        self.languages: list[str] = []
        self.identity = {
            "text_encoder": {"architecture": type(text).__name__, "sha256": state_hash(text.state_dict())},
            "teacher": {} if teacher is None else dict(teacher.identity),
        }

    @property
    def teacher(self) -> DualEncoderTeacher:
        """The image tower."""
        if "teacher" not in self.module:
            raise UserError(f"{self.name}: is a text tower; pass teacher= with the image tower it was trained for")
        found: DualEncoderTeacher = self.module["teacher"]
        return found

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model input of texts, over-long ones cut."""
        return self.tokenizer(list(texts))

    def model_input(self, tokens: Tensor) -> dict[str, Tensor]:
        """Model input of (texts, length) token ids."""
        return {"input_ids": tokens, "attention_mask": tokens.ne(self.padding_idx).long()}

    def token_mask(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, length) bool, False at pads."""
        return inputs["attention_mask"].bool()

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, dim), not normalised."""
        return self.module["text"](**inputs)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) -> (images, dim), not normalised."""
        return self.teacher.encode_image(pixel_values)

    def project(self, features: Tensor) -> Tensor:
        """The image tower's features are final already."""
        return features

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""
        return self.teacher.transform

    @property
    def scale(self) -> None:
        """None: text towers are published without the factor of the cosine."""
        return None
