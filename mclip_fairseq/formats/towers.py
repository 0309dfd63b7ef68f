"""The kinds of model behind `MultilingualCLIP`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.models.settings import plain_value, structure_settings, tokenizer_settings, transform_settings
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.hub import stated_languages
from mclip_fairseq.storage.pieces import WORD_START

if TYPE_CHECKING:  # these need fairseq, which a model of `transformers` does not
    from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
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

    @property
    def tokenizer(self) -> Any:
        """Texts to model input."""

    @property
    def writer(self) -> str:
        """Module with `save_directory` and `write_onnx` for such a tower; empty for models of other projects."""

    @property
    def image_module(self) -> nn.Module | None:
        """The image tower, where it is not part of `module`."""

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the longest text; None where the model does not say."""

    @property
    def reads_any_language(self) -> bool:
        """Whether texts can be encoded before `for_language` has named their language."""

    def for_language(self, language: str) -> Tower:
        """The tower that reads texts of one language; itself where all languages share one text path."""

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

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Per text, how many of its tokens the tokenizer knows, and how many it has."""

    def text_settings(self) -> Any:
        """What text vectors and projected features depend on besides the weights of `module`; free of paths."""

    def image_settings(self) -> Any:
        """What image vectors depend on besides; None where the image tower is not on this machine."""

    @property
    def matcher(self) -> DualEncoder | None:
        """The model, where it can look at a text and an image together."""

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""

    @property
    def scale(self) -> Tensor | None:
        """Factor of the cosine, 0-d float32 on the CPU; None where the model has none."""


# Options that name files of the machine that trained, or what only training uses.
NOT_STORED = (
    "text_encoder",
    "text_tokenizer",
    "image_encoder",
    "teacher",
    "teacher_revision",
    "save_frozen",
    "_name",
    "_parent",
)


def option_settings(module: DualEncoder) -> dict[str, Any]:
    """The options of a model that differ from their defaults, without those that name files."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY

    cfg = module.cfg
    options = dict(cfg) if isinstance(cfg, Mapping) else vars(cfg)
    fields = dataclasses.fields(MODEL_DATACLASS_REGISTRY[module.registered_name()])
    defaults = {field.name: plain_value(field.default) for field in fields}
    values = {name: plain_value(options[name]) for name in defaults if name in options and name not in NOT_STORED}
    return {name: value for name, value in values.items() if value != defaults[name]}


def count_known_ids(ids: Tensor, unknown: int | None, special: Iterable[int]) -> list[tuple[int, int]]:
    """Known tokens and all tokens of each row.

    Args:
        ids: (texts, length).
        unknown: id of unknown tokens; None where the tokenizer has none.
        special: ids that stand for no part of a text.
    """
    ignored = set(special) - {unknown}
    rows = [[token for token in row if token not in ignored] for row in ids.tolist()]
    return [(sum(token != unknown for token in row), len(row)) for row in rows]


def count_known_by(tokenizer: Any, ids: Tensor) -> list[tuple[int, int]]:
    """`count_known_ids` with the ids of a tokenizer of `transformers`."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown in (getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "pad_token_id", None)):
        unknown = None  # CLIP's tokenizer knows every byte, and names its end as the unknown token
    return count_known_ids(ids, unknown, getattr(tokenizer, "all_special_ids", ()))


def right_padded(tokens: Tensor, pad: int) -> Tensor:
    """(texts, length) ids with all pads moved to the end: some text encoders count positions from the left edge."""
    order = tokens.eq(pad).to(torch.uint8).argsort(dim=1, stable=True)
    return tokens.gather(1, order)


class OneTextPath:
    """A tower that reads all languages in the same way."""

    tokenizer: Any
    writer = ""
    image_module: nn.Module | None = None
    reads_any_language = True
    matcher: DualEncoder | None = None

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the longest text, where the tokenizer says so."""
        limit: int | None = getattr(self.tokenizer, "max_tokens", None)
        return limit

    def for_language(self, language: str) -> Self:
        """Itself."""
        return self


class TrainedTower(OneTextPath):
    """A model trained here, and the teacher whose image features it takes.

    Args:
        module: the model, without its teacher.
        tokenizer: of its text encoder.
        name: for tables.
        languages: that the text encoder was strengthened or trained on.
        load_teacher: called once, when the image tower is first needed.
        read_settings: gives the image settings of that teacher without its weights, or None where its files are not on
            this machine; without it, the teacher is loaded for them.
    """

    writer = "mclip_fairseq.export.directory"

    def __init__(
        self,
        module: DualEncoder,
        tokenizer: XLMRTokenizer | PieceTokenizer,
        name: str,
        languages: Sequence[str],
        load_teacher: Callable[[], DualEncoderTeacher],
        read_settings: Callable[[], Any] | None = None,
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.name = name
        self.languages = list(languages)
        self.identity: dict[str, Any] = dict(module.identity)
        self.dim = module.dim
        self.feature_dim = module.feature_dim
        self._load_teacher = load_teacher
        self._read_settings = read_settings
        self._teacher: DualEncoderTeacher | None = None

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Per text, how many of its pieces are in the dictionary, and how many it has."""
        entries = self.tokenizer.dictionary
        # The mark of a space alone is a piece where the word behind it is unknown.
        special = (entries.bos(), entries.pad(), entries.eos(), entries.index(WORD_START))
        return count_known_ids(self.tokenizer(list(texts)), entries.unk(), special)

    def text_settings(self) -> Any:
        """Structure, options and tokenizer."""
        tokenizer = tokenizer_settings(self.tokenizer)
        return [structure_settings(self.module), option_settings(self.module), tokenizer]

    def image_settings(self) -> Any:
        """The teacher's weights and settings, or those of the model's own image tower."""
        if self.module.image_transform is not None:
            return transform_settings(self.module.image_transform)
        if self._teacher is None and self._read_settings is not None:
            settings = self._read_settings()
        else:
            settings = self.teacher.image_settings
        return settings and [self.identity["teacher"].get("sha256"), settings]

    @property
    def image_module(self) -> nn.Module | None:  # type: ignore[override]
        """The teacher; None for a model without images."""
        return self.teacher if self.module.has_images else None

    @property
    def teacher(self) -> DualEncoderTeacher:
        """The image tower, loaded when first needed, and checked to be the one of the training.

        Raises:
            UserError: it is another one, or the model has none.
        """
        if not self.module.has_images:
            raise UserError(f"{self.name}: embeds sentences; it has no image side")
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
            UserError: ids of a different tokenizer.
        """
        if tokens.numel() and int(tokens.max()) >= len(self.tokenizer.dictionary):
            raise UserError(
                f"token id {int(tokens.max())} is beyond the {len(self.tokenizer.dictionary)} entries of the text "
                "encoder's dictionary; tokenise with this model's tokenizer"
            )
        return {"tokens": right_padded(tokens, self.tokenizer.dictionary.pad())}

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
        return self.project(self.teacher.encoder("image", self.module.image_space)(pixel_values))

    def project(self, features: Tensor) -> Tensor:
        """(images, feature dim) -> (images, dim), L2-normalised."""
        return self.module.encode_image(features=features)

    @property
    def matcher(self) -> DualEncoder | None:  # type: ignore[override]
        """The model, where it can look at a text and an image together."""
        return self.module if self.module.can_match else None

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""
        return self.module.image_transform or self.teacher.transform

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, 0-d."""
        return self.module.scale.detach().float().cpu()


class TeacherTower(OneTextPath):
    """A `transformers` dual encoder on its own, to be compared in the same tables."""

    def __init__(self, name: str) -> None:
        self.module = DualEncoderTeacher.from_pretrained(name)
        self.name = Path(name).name
        self.dim = self.feature_dim = self.module.dim
        self.identity = {"teacher": dict(self.module.identity)}
        self.languages = stated_languages(name)
        self.tokenizer = self.module.tokenize

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Per text, how many of its tokens the tokenizer knows, and how many it has."""
        return count_known_by(self.module.tokenizer, self.tokenize(texts)["input_ids"])

    def text_settings(self) -> Any:
        """Structure and tokenizer."""
        return self.module.text_settings

    def image_settings(self) -> Any:
        """Configuration and image processor."""
        return self.module.image_settings

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
