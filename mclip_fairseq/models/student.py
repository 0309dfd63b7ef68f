"""A text encoder that learns the space of a frozen image-text teacher: what `mclip` and M-CLIP share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mclip_fairseq.models.autocast import unit
from mclip_fairseq.models.dual_encoder import Columns, DualEncoder, ImageTransform
from mclip_fairseq.models.kept_states import KeptStates
from mclip_fairseq.models.pooling import pad_rows
from mclip_fairseq.models.sizes import ENCODER, PROJECTORS, SizeGroup
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.text_options import StudentConfig, frozen_part
from mclip_fairseq.models.transformers_encoder import build_text_encoder
from mclip_fairseq.storage.errors import UserError


class StudentModel(DualEncoder):
    """A multilingual text encoder and the teacher's image tower.

    Args:
        cfg: options.
        text_encoder: the multilingual text encoder.
        teacher: the image-text teacher where pixels are encoded here; None where features come from files.
        teacher_identity: path-free identity of the teacher, of `teacher` or of the feature directories.
    """

    columns = Columns(
        required=(("text_tokens", "text_states"),),
        optional=("text_padding", "image_features", "pixel_values", "teacher_text", "translation_tokens"),
    )
    text_encoder_prefix = "text_encoder.encoder."
    size_groups: ClassVar[tuple[tuple[SizeGroup, str], ...]] = ((ENCODER, text_encoder_prefix), (PROJECTORS, ""))
    # The output layer of the masked-language model is the token table.
    tied_weights: ClassVar = {
        f"{text_encoder_prefix}lm_head.weight": f"{text_encoder_prefix}sentence_encoder.embed_tokens.weight"
    }

    def __init__(
        self,
        cfg: StudentConfig,
        text_encoder: TextEncoder,
        teacher: DualEncoderTeacher | None,
        teacher_identity: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.cfg: Any = cfg
        self.text_encoder = text_encoder
        self.teacher = teacher
        self.padding_idx = text_encoder.padding_idx
        self.kept_states = KeptStates()
        self.identity = {
            "text_encoder": text_encoder.identity() if cfg.text_encoder else None,
            "teacher": dict(teacher_identity),
        }
        text_encoder.freeze(frozen_part(cfg))

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> StudentModel:
        """Build from options; sizes of a given text encoder replace those of the options and are kept with them.

        Args:
            cfg: options.
            task: with `source_dictionary`, `needs_teacher` (pixels are encoded here) and `teacher_identity` (of the
                feature directories).

        Raises:
            UserError: an archive or a teacher that cannot be read, or a teacher of unknown width.
        """
        text_encoder = build_text_encoder(cfg, task.source_dictionary)
        teacher = None
        if cfg.teacher and task.needs_teacher:
            teacher = DualEncoderTeacher.from_pretrained(cfg.teacher, revision=cfg.teacher_revision or None)
            cfg.teacher_dim = teacher.dim
        if not cfg.teacher_dim:
            raise UserError("the teacher's width is unknown; give --image-features, --text-features or --teacher")
        return cls(cfg, text_encoder, teacher, task.teacher_identity if teacher is None else teacher.identity)

    @classmethod
    def fit_to_features(cls, cfg: Any, dim: int) -> None:
        """The features' width is the teacher's."""
        if cfg.teacher_dim not in (0, dim):
            raise UserError(f"--teacher-dim is {cfg.teacher_dim} but the features have {dim} columns")
        cfg.teacher_dim = dim

    @property
    def feature_dim(self) -> int:
        """Width of the teacher's features."""
        return int(self.cfg.teacher_dim)

    @property
    def image_transform(self) -> ImageTransform | None:
        """The teacher's image preprocessing; None where the model was built without it."""
        return None if self.teacher is None else self.teacher.transform

    @property
    def text_description(self) -> str:
        """The text encoder and its width."""
        return self.text_encoder.description

    @property
    def encoder_languages(self) -> list[str]:
        """The languages of MTE, where the text encoder comes from it."""
        return self.text_encoder.languages

    @property
    def frozen_text_encoder(self) -> TextEncoder | None:
        """The text encoder, where nothing of it is trained."""
        return self.text_encoder if self.text_encoder.frozen else None

    @classmethod
    def stores_text_encoder(cls, cfg: Any) -> bool:
        """Whether the text encoder's weights are in the checkpoint."""
        return bool(cfg.freeze_text == "none" or cfg.save_frozen)

    def external_parts(self) -> tuple[str, ...]:
        """The teacher, and the text encoder where its frozen weights are in the archive."""
        if self.cfg.save_frozen:
            return ()
        in_archive = self.cfg.text_encoder and self.cfg.freeze_text != "none"
        return ("text_encoder.", "teacher.") if in_archive else ("teacher.",)

    def token_states(
        self, tokens: Tensor | None, states: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Token states of the text encoder: cached ones, or computed from ids.

        Args:
            tokens: (batch, length) ids, padded; or
            states: (tokens, dim) cached states of all captions, back to back, in any floating type, or their (tokens,)
                int64 places in `kept_states`, or (batch, length, dim), with
            padding: (batch, length) bool, True at pads.

        Returns:
            states (batch, length, dim) of the encoder's type, and padding (batch, length).
        """
        if states is None or padding is None:
            assert tokens is not None
            # The encoder runs without gradients where it is frozen; see `TextEncoder.forward`.
            return self.text_encoder(tokens), tokens.eq(self.padding_idx)
        states = states if states.is_floating_point() else self.kept_states.at(states)
        states = pad_rows(states, padding) if states.dim() == 2 else states
        return states.to(next(self.text_encoder.parameters()).dtype), padding

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Images in the joint space.

        Args:
            pixel_values: (batch, channels, height, width) from `image_transform`; or
            features: (batch, teacher dim) teacher image features.

        Returns:
            (batch, dim), L2-normalised.

        Raises:
            UserError: pixels are given to a model that was built without its teacher.
        """
        if features is None:
            if self.teacher is None:
                raise UserError("this model was built without its teacher; pass --teacher to encode pixels")
            assert pixel_values is not None
            features = self.teacher.encode_image(pixel_values)
        return self.project_teacher(features)

    def project_teacher(self, features: Tensor) -> Tensor:
        """Teacher features, image or text, (batch, teacher dim) -> (batch, dim), L2-normalised."""
        return unit(features)

    def max_positions(self) -> int:
        """Longest caption in tokens."""
        return self.text_encoder.max_positions

    def portable_image(self, image_tower: nn.Module | None) -> nn.Module:
        """The teacher and `project_teacher`, for other runtimes."""
        from mclip_fairseq.models.portable import PortableImage

        return PortableImage(self, image_tower)
