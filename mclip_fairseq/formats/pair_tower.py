"""A text tower of another project beside the image tower whose space it was trained for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.formats.towers import OneTextPath, count_known_by
from mclip_fairseq.models.freezing import state_hash
from mclip_fairseq.models.settings import structure_settings, tokenizer_settings
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError


class PairTower(OneTextPath):
    """A text tower of another project beside the image tower whose space it was trained for.

    Args:
        text: (texts, dim) from what `tokenizer` gives.
        tokenizer: texts to model inputs by name, of the arguments of `text.forward`.
        rules: the tokenizer of `transformers` behind it.
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
        rules: Any = None,
    ) -> None:
        if teacher is not None and teacher.dim != dim:
            raise UserError(
                f"{name}: its texts have {dim} dimensions but the images of {teacher.identity['name']} have "
                f"{teacher.dim}; give the image tower it was trained for as teacher"
            )
        self.module: Any = nn.ModuleDict({"text": text} | ({} if teacher is None else {"teacher": teacher}))
        self.tokenizer = tokenizer
        self.rules = rules
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

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Per text, how many of its tokens the tokenizer knows, and how many it has."""
        return count_known_by(self.rules, self.tokenize(texts)["input_ids"])

    def text_settings(self) -> Any:
        """Structure and tokenizer."""
        return [structure_settings(self.module["text"]), tokenizer_settings(self.rules), self.padding_idx]

    def image_settings(self) -> Any:
        """Those of the image tower; None without one."""
        return self.teacher.image_settings if "teacher" in self.module else None

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
