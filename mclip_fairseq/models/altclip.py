"""Model `altclip`: AltCLIP (Chen et al., Findings of ACL 2023), a student before the teacher's text projection."""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from mclip_fairseq.models.adapters import ADAPTERS
from mclip_fairseq.models.altclip_options import AltCLIPModelConfig
from mclip_fairseq.models.architectures import XLMR_LARGE, XLMR_TINY, set_defaults
from mclip_fairseq.models.autocast import unit, widened
from mclip_fairseq.models.dual_encoder import Columns, ImageTransform
from mclip_fairseq.models.inverse import INVERSE, InverseTower
from mclip_fairseq.models.sizes import ENCODER, SizeGroup
from mclip_fairseq.models.student import StudentModel
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.teacher_learning import TeacherLearningModel
from mclip_fairseq.models.text_encoder import TextEncoder
from mclip_fairseq.models.transformers_encoder import build_text_encoder
from mclip_fairseq.models.vision.trained_tower import VisionTower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.projection import Projection

CITATION = """@inproceedings{chen-etal-2023-altclip,
  title = {{AltCLIP}: Altering the Language Encoder in {CLIP} for Extended Language Capabilities},
  author = {Chen, Zhongzhi and Liu, Guang and Zhang, Bo-Wen and Yang, Qinghong and Wu, Ledell},
  booktitle = {Findings of ACL},
  year = {2023},
}"""
TOWER = "inverse.text."
# There is no stack of layers here, only widths.
WIDTHS = SizeGroup(
    "projections",
    "projections.",
    {
        "pooled_dim": (("text_projection.weight", 1),),
        "teacher_dim": (("text_projection.weight", 0),),
        "pooled_image_dim": (("visual_projection.weight", 1),),
    },
)


@register_model("altclip", dataclass=AltCLIPModelConfig)
class AltCLIPModel(TeacherLearningModel):
    """The teacher's dual encoder with another text tower in its place.

    The student predicts the teacher's text state before the projection; the teacher's projections and scale do the
    rest. All of it is in the checkpoint, except an image tower that is not trained.

    Args:
        cfg: options.
        text_encoder: the student.
        teacher: where pixels are encoded by it.
        teacher_identity: of `teacher`, or of the feature directories.
        projections: the teacher's, by `text` and `image`; without them, weights are random, to be loaded.
        inverse: with `inverse_layers`, the layers and the teacher's text tower; without it, its weights are random.
    """

    columns = Columns(
        required=(("text_tokens", "text_states"),),
        optional=(
            *("text_padding", "image_features", "pixel_values", "teacher_text"),
            *("masked_tokens", "masked_labels"),
        ),
    )
    citation = CITATION
    # Its student is compared before the projection, where there are no images.
    reads_image_bank = False
    size_groups = ((ENCODER, StudentModel.text_encoder_prefix), (WIDTHS, ""), (ADAPTERS, ""), (INVERSE, ""))

    def __init__(
        self,
        cfg: AltCLIPModelConfig,
        text_encoder: TextEncoder,
        teacher: DualEncoderTeacher | None,
        teacher_identity: Mapping[str, Any],
        projections: Mapping[str, Projection],
        inverse: InverseTower | None = None,
    ) -> None:
        super().__init__(cfg, text_encoder, teacher, teacher_identity)
        self.identity["text_encoder"] = None  # its weights are in the checkpoint
        if cfg.text_config:  # no output layer for words
            hidden = ("masked_tokens", "masked_labels")
            self.columns = self.columns._replace(optional=tuple(set(self.columns.optional) - set(hidden)))
        self.text_projection = _projection(cfg.teacher_dim, cfg.pooled_dim, projections.get("text"))
        self.visual_projection = None
        if cfg.pooled_image_dim:
            self.visual_projection = _projection(cfg.teacher_dim, cfg.pooled_image_dim, projections.get("image"))
        self.logit_scale = nn.Parameter(torch.tensor(_log_scale(cfg, projections)))
        self.vision: VisionTower | None = None
        if cfg.vision_tower:
            self.vision = VisionTower(cfg.vision_tower) if teacher is None else VisionTower.copy(teacher)
        self.inverse = inverse
        if cfg.inverse_layers and inverse is None:
            self.inverse = InverseTower(cfg.text_tower, cfg.inverse_layers, cfg.dropout, cfg.attention_dropout)
        if self.inverse is not None:
            self.inverse.layers.requires_grad_(not text_encoder.frozen)
        self.projection.requires_grad_(not text_encoder.frozen)
        for part in (self.text_projection, self.visual_projection):
            if part is not None:
                part.requires_grad_(cfg.train_projections)
        self.logit_scale.requires_grad_(cfg.train_scale)
        if cfg.train_word_head:
            text_encoder.encoder.lm_head.requires_grad_(True)

    @classmethod
    def fit_to_stores(cls, cfg: Any, images: FeatureStore | None, texts: FeatureStore | None) -> None:
        """The text features are pooled ones, the image features of either space."""
        if texts is not None:
            if texts.projection is None:
                raise UserError(
                    f"{texts.paths[0]}: holds projected features, but altclip learns the states before the "
                    "projection; make them with mclip-features --space pooled"
                )
            cfg.teacher_dim, cfg.pooled_dim = texts.projection.weight.shape
        if images is not None:
            joint = images.dim if images.projection is None else len(images.projection.weight)
            if cfg.teacher_dim not in (0, joint):
                raise UserError(
                    f"{images.paths[0]}: its images end in {joint} dimensions, but the teacher's texts in "
                    f"{cfg.teacher_dim}; make both with one teacher"
                )
            cfg.teacher_dim = joint
            cfg.pooled_image_dim = 0 if images.projection is None else images.dim

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "AltCLIPModel":
        """Build from options; see `StudentModel.build_model`.

        Args:
            cfg: options.
            task: with `projections`, of the feature directories, too.

        Raises:
            UserError: options that contradict each other, or sizes that nothing gives.
        """
        if cfg.train_vision and not (cfg.teacher and task.needs_teacher) and not cfg.vision_tower:
            raise UserError("--train-vision needs --teacher, and --image-root with its images")
        text_encoder = build_text_encoder(cfg, task.source_dictionary)
        if cfg.train_word_head and cfg.text_config:
            raise UserError("--train-word-head needs XLM-R, whose archive has an output layer for words")
        projections, teacher = dict(task.projections), None
        known = cfg.pooled_dim and cfg.teacher_dim and (cfg.text_tower or not cfg.inverse_layers)
        if cfg.teacher and (task.needs_teacher or not known):
            teacher = DualEncoderTeacher.from_pretrained(cfg.teacher, revision=cfg.teacher_revision or None)
            projections = {name: teacher.projection(name) for name in ("text", "image")} | projections
            cfg.teacher_dim, cfg.pooled_dim = projections["text"].weight.shape
        if not (cfg.teacher_dim and cfg.pooled_dim):
            raise UserError("the teacher's projections are unknown; give --text-features of space pooled or --teacher")
        identity = task.teacher_identity if teacher is None else teacher.identity
        inverse = None
        if cfg.inverse_layers and not cfg.text_tower:
            if teacher is None:
                raise UserError("--inverse-layers needs --teacher, whose text tower reads the student's states")
            cfg.text_tower = InverseTower.describe(teacher)
            inverse = InverseTower.copy(teacher, cfg.inverse_layers, cfg.dropout, cfg.attention_dropout)
        if task.needs_teacher and teacher is not None:
            cfg.pooled_image_dim = projections["image"].weight.shape[1]
            cfg.vision_tower = VisionTower.describe(teacher) if cfg.train_vision else ""
        else:
            teacher = None
        return cls(cfg, text_encoder, teacher, identity, projections, inverse)

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return int(self.cfg.teacher_dim)

    @property
    def target_dim(self) -> int:
        """Width of the teacher's text states before the projection."""
        return int(self.cfg.pooled_dim)

    def student(
        self, tokens: Tensor | None = None, states: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Text as the teacher's state before the projection, (batch, pooled dim); see `StudentModel.token_states`."""
        if self.inverse is None:
            return super().student(tokens, states, padding)
        states, padding = self.token_states(tokens, states, padding)
        pooled: Tensor = self.inverse(self.projection(states.to(self.text_projection.weight.dtype)), padding)
        return pooled

    @property
    def state_pooling(self) -> str:
        """As M-CLIP's; the layers of the variant `invert` read the states of all tokens."""
        return super().state_pooling if self.inverse is None else ""

    def max_positions(self) -> int:
        """Longest caption in tokens."""
        longest = super().max_positions()
        return longest if self.inverse is None else min(longest, self.inverse.max_positions)

    def portable_text(self) -> nn.Module:
        """Text encoder, adapters and heads, for other runtimes."""
        if self.inverse is None:
            return super().portable_text()
        from mclip_fairseq.models.portable import PortableInverse

        return PortableInverse(self.text_encoder, self.projection, self.inverse, self.text_projection)

    @property
    def text_head(self) -> nn.Module:
        """From a pooled state of the student to the joint space."""
        return nn.Sequential(self.projection, self.text_projection)

    @property
    def scale(self) -> Tensor:
        """The factor of the cosine, 0-d, without an upper limit, as published."""
        return widened(self.logit_scale).exp()

    @property
    def image_space(self) -> str:
        """`pooled` where this model projects images itself."""
        return "joint" if self.visual_projection is None else "pooled"

    @property
    def feature_dim(self) -> int:
        """Width of the image features that `encode_image` takes."""
        return int(self.cfg.pooled_image_dim or self.cfg.teacher_dim)

    @property
    def image_transform(self) -> ImageTransform | None:
        """That of the trained image tower, or of the teacher."""
        return super().image_transform if self.vision is None else self.vision.transform

    def external_parts(self) -> tuple[str, ...]:
        """The teacher; a student that a later stage freezes was trained before, so its weights are kept."""
        return () if self.cfg.save_frozen else ("teacher.",)

    @classmethod
    def stores_text_encoder(cls, cfg: Any) -> bool:
        """Always."""
        return True

    @classmethod
    def check_sizes(cls, place: Path, options: Any, weights: Mapping[str, Tensor]) -> None:
        """See `DualEncoder.check_sizes`; the trained image tower, too."""
        super().check_sizes(place, options, weights)
        if options.inverse_layers:
            tower = {name.removeprefix(TOWER): weights[name] for name in weights if name.startswith(TOWER)}
            InverseTower.check_size(place, options.text_tower, tower)
        if options.vision_tower:
            own = {name: tensor for name, tensor in weights.items() if name.startswith("vision.")}
            VisionTower.check_size(place, options.vision_tower, own)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load a checkpoint; the image side and the adapters that an earlier stage did not have stay as they are."""
        own = nn.Module.state_dict(self)
        new = ("visual_projection.", "vision.", "text_encoder.adapters.")
        kept = {name: own[name] for name in own if name.startswith(new)}
        return super().load_state_dict({**kept, **state_dict}, strict, model_cfg, args)

    def encode_text(
        self, tokens: Tensor | None = None, states: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Text in the joint space, (batch, dim), L2-normalised."""
        return unit(self.text_projection(self.student(tokens, states, padding)))

    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Images in the joint space.

        Args:
            pixel_values: (batch, channels, height, width) from `image_transform`; or
            features: (batch, feature dim) of the space `image_space`.

        Returns:
            (batch, dim), L2-normalised.

        Raises:
            UserError: pixels are given to a model that was built without its teacher.
        """
        if features is None and self.vision is not None:
            features = self.vision(pixel_values)
        if features is None and self.teacher is not None:
            features = self.teacher.encoder("image", self.image_space)(pixel_values)
        if features is None:
            raise UserError("this model was built without its teacher; pass --teacher to encode pixels")
        if self.visual_projection is not None:
            features = self.visual_projection(features)
        return unit(features)

    def word_logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Scores of all words at some positions: XLM-R's output layer on the head's normalised states, as published.

        Args:
            tokens: (batch, length) ids.
            positions: (batch, length) bool.

        Returns:
            (n, entries).
        """
        states = self.text_encoder(tokens)[positions]
        head: Any = self.projection
        normalised = head.norm(states) if str(self.cfg.student_head) == "norm_linear" else states
        scores: Tensor = self.text_encoder.encoder.lm_head(normalised)
        return scores

    def forward(
        self,
        text_tokens: Tensor | None = None,
        text_states: Tensor | None = None,
        text_padding: Tensor | None = None,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        teacher_text: Tensor | None = None,
        masked_tokens: Tensor | None = None,
        masked_labels: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """What both stages compare.

        Args:
            text_tokens: (batch, length) ids; or
            text_states: token states of the frozen encoder, see `token_states`, with
            text_padding: (batch, length) bool.
            image_features: (batch, feature dim); or
            pixel_values: (batch, channels, height, width); or neither.
            teacher_text: (batch, pooled dim) targets of the first stage.
            masked_tokens: (batch, length) ids with words hidden, and
            masked_labels: (batch, length) those words, -100 elsewhere.

        Returns:
            `student` and `teacher_text`, (batch, pooled dim) as they are; `text` and `image`, (batch, dim),
            L2-normalised; `scale`, 0-d; `distillation_scale`, see `TeacherLearningModel`; `words`, (n, entries) logits
            of the hidden words, and `word_labels`, (n,). None where the input was.
        """
        student = self.student(text_tokens, text_states, text_padding)
        has_image = image_features is not None or pixel_values is not None
        words, word_labels = None, None
        if masked_tokens is not None and masked_labels is not None:
            hidden = masked_labels.ge(0)
            words, word_labels = self.word_logits(masked_tokens, hidden), masked_labels[hidden]
        return {
            "student": student,
            "text": unit(self.text_projection(student)),
            "image": self.encode_image(pixel_values, image_features) if has_image else None,
            "teacher_text": teacher_text,
            "scale": self.scale,
            "distillation_scale": None
            if self.distillation_log_scale is None
            else widened(self.distillation_log_scale).exp(),
            "words": words,
            "word_labels": word_labels,
        }


def _projection(joint_dim: int, pooled_dim: int, teacher: Projection | None) -> nn.Linear:
    """A linear layer without bias, the teacher's where it is known."""
    layer = nn.Linear(pooled_dim, joint_dim, bias=False)
    if teacher is not None:
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(teacher.weight))
    return layer


def _log_scale(cfg: AltCLIPModelConfig, projections: Mapping[str, Projection]) -> float:
    """The logarithm of the initial scale: the option's, the teacher's, or that of CLIP after training."""
    if cfg.logit_scale_init > 0:
        return math.log(cfg.logit_scale_init)
    known = [each.log_scale for each in projections.values() if each.log_scale is not None]
    return known[0] if known else math.log(100.0)


@register_model_architecture("altclip", "altclip_base")
def altclip_base(args: Namespace) -> None:
    """XLM-R base (beside ViT-B/16 or ViT-B/32)."""


@register_model_architecture("altclip", "altclip_large")
def altclip_large(args: Namespace) -> None:
    """XLM-R large (beside ViT-L/14, as published)."""
    set_defaults(args, **XLMR_LARGE)


@register_model_architecture("altclip", "altclip_tiny")
def altclip_tiny(args: Namespace) -> None:
    """For tests."""
    set_defaults(args, **XLMR_TINY)
