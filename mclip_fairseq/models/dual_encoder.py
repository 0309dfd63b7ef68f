"""What every model of images and texts offers, and what it says about itself.

Everything outside `models/` asks these attributes and methods, never a model's name or class: a new system is a new
subclass in a file of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fairseq.models import MODEL_REGISTRY, BaseFairseqModel
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.models.freezing import IDENTITY, check_same_parts, decode_identity, encode_identity, frozen_names
from mclip_fairseq.models.sizes import ENCODER, SizeGroup, check_sizes
from mclip_fairseq.models.transformers_encoder import TransformersEncoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore

ImageTransform = Callable[[Sequence[Image.Image]], Tensor]


class Columns(NamedTuple):
    """The batch columns that a model's `forward` reads; see `mclip_fairseq.data.columns`.

    Attributes:
        required: groups of alternatives; the data must give one column of each group.
        optional: further columns it reads where they are given.
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> set[str]:
        """Every column that the model reads."""
        return {name for group in self.required for name in group} | set(self.optional)


class DualEncoder(BaseFairseqModel):
    """Images and texts in one joint space.

    Checkpoints hold what is trained and the identity of what is not: `external_parts` names the frozen parts that are
    stored elsewhere, and loading checks that they are the same ones.

    Attributes:
        columns: the batch columns it reads.
        size_groups: where its sizes show in its weights, with the prefix of their names.
        tied_weights: name of a weight -> the weight it shares its values with.
        text_encoder_prefix: what the names of the text encoder's weights begin with; empty without an XLM-R.
        one_dictionary: whether all its languages share one dictionary; else each data directory has its own.
        format_module: module with `load_checkpoint`, which reads its checkpoints into a tower; empty: XLM-R beside a
            teacher, which `formats.training` reads itself.
        citation: the paper, for model cards.
        reads_image_bank: whether `forward` takes an `image_bank`, (images, feature dim), and returns it in the space of
            `text`, for soft labels.
        has_images: whether it has an image side, in itself or in a teacher.
        can_match: whether it can look at a text and an image together (`match_states`), to re-rank.
        cfg: its options.
        identity: part -> path-free identity of its weights.
    """

    columns: Columns
    size_groups: ClassVar[tuple[tuple[SizeGroup, str], ...]] = ()
    tied_weights: ClassVar[Mapping[str, str]] = {}
    text_encoder_prefix: ClassVar[str] = ""
    one_dictionary: ClassVar[bool] = True
    format_module: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    reads_image_bank: ClassVar[bool] = False
    can_match: ClassVar[bool] = False
    has_images: ClassVar[bool] = True

    cfg: Any
    identity: dict[str, Any]

    @classmethod
    def registered_name(cls) -> str:
        """The name under which fairseq knows the model."""
        return next(name for name, kind in MODEL_REGISTRY.items() if kind is cls)

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the joint space."""

    @property
    @abstractmethod
    def scale(self) -> Tensor:
        """Factor of the cosine in a contrast, 0-d."""

    @abstractmethod
    def encode_text(self, *args: Any, **kwargs: Any) -> Tensor:
        """Texts -> (batch, dim), L2-normalised."""

    @abstractmethod
    def encode_image(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Pixels from `image_transform`, or features of the image tower -> (batch, dim), L2-normalised."""

    def text_states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Where `can_match`: ids -> (batch, length, text dim) states and (batch, length) bool, True at pads."""
        raise NotImplementedError(f"{type(self).__name__} cannot match")

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """Where `can_match`: pixels -> (batch, tokens, image dim) states."""
        raise NotImplementedError(f"{type(self).__name__} cannot match")

    def match_states(self, text: Tensor, padding: Tensor, image: Tensor) -> Tensor:
        """Where `can_match`: the states of n texts and n images -> (n, 2) logits of a mismatch and a match."""
        raise NotImplementedError(f"{type(self).__name__} cannot match")

    @property
    def image_transform(self) -> ImageTransform | None:
        """RGB images -> (n, channels, height, width); None where the model was built without an image tower."""
        return None

    @property
    def image_space(self) -> str:
        """The space of the image features that `encode_image` takes: `joint`, or `pooled` before the projection."""
        return "joint"

    @property
    def feature_dim(self) -> int:
        """Width of the image features that `encode_image` takes."""
        return self.dim

    @property
    def text_description(self) -> str:
        """The text tower in a few words, for model cards."""
        return "a text encoder"

    @property
    def encoder_languages(self) -> list[str]:
        """Languages the text encoder was strengthened on before this training; empty if unknown."""
        return []

    @property
    def frozen_text_encoder(self) -> Any:
        """The text encoder whose token states can be computed once, or None where it is trained."""
        return None

    @property
    def state_pooling(self) -> str:
        """How these states are pooled before they are kept; empty: those of all tokens are kept."""
        return ""

    @classmethod
    def fit_to_features(cls, cfg: Any, dim: int) -> None:
        """Take the width of the data's features into the options, before the model is built.

        Args:
            cfg: options, changed in place.
            dim: columns of the image and text features.

        Raises:
            UserError: the options give a different width.
        """

    @classmethod
    def fit_to_stores(cls, cfg: Any, images: FeatureStore | None, texts: FeatureStore | None) -> None:
        """Take what the feature directories say into the options; at least one is given.

        Models that read states before the teacher's projection (space `pooled`) override this.

        Raises:
            UserError: the features are not in the joint space, or the options say another width.
        """
        stores = [store for store in (images, texts) if store is not None]
        for store in stores:
            if store.space != "joint" or store.dim != stores[0].dim:
                raise UserError(
                    f"{store.paths[0]}: holds {store.dim} columns of the space {store.space}, but this model needs "
                    "images and texts in one joint space; make them with mclip-features --space joint"
                )
        cls.fit_to_features(cfg, stores[0].dim)

    @classmethod
    def stores_text_encoder(cls, cfg: Any) -> bool:
        """Whether a checkpoint with these options holds all text weights, so that no archive is needed to load it."""
        return True

    @classmethod
    def use_stored_weights(cls, cfg: Any) -> None:
        """Change stored options so that the model is built without the archives whose weights the checkpoint holds."""
        if cls.text_encoder_prefix and cls.stores_text_encoder(cfg):
            cfg.text_encoder = ""

    @classmethod
    def check_sizes(cls, place: Path, options: Any, weights: Mapping[str, Tensor]) -> None:
        """Refuse options that claim larger sizes than the weights have, before a model of these sizes is built.

        Args:
            place: the file with the options.
            options: stored options.
            weights: a state dict of this model.

        Raises:
            UserError: naming the option.
        """
        described = getattr(options, "text_config", "")
        if described and not options.text_encoder:
            prefix = cls.text_encoder_prefix
            own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            TransformersEncoder.check_size(place, described, own)
        for group, prefix in cls.size_groups:
            in_archive = prefix == cls.text_encoder_prefix and options.text_encoder
            if not (in_archive or (described and group is ENCODER)):
                check_sizes(place, options, weights, group, prefix=prefix)

    @classmethod
    def ties(cls, options: Any) -> Mapping[str, str]:
        """`tied_weights` of a model with these options: an encoder of `transformers` has none."""
        return {} if getattr(options, "text_config", "") else cls.tied_weights

    def check_text_path(self, language: str, dictionary: Any) -> None:
        """Refuse captions whose token ids are not those of their language; a model of one dictionary has no paths.

        Args:
            language: of the captions.
            dictionary: of their data directory.

        Raises:
            UserError: the captions were made with another tokenizer.
        """

    def external_parts(self) -> tuple[str, ...]:
        """Prefixes of the frozen weights that a checkpoint leaves out because they are stored elsewhere."""
        return ()

    def dropped_names(self) -> set[str]:
        """The weights that a checkpoint leaves out."""
        return frozen_names(self, self.external_parts())

    def portable_text(self) -> nn.Module:
        """The text path in plain torch and `transformers` modules: (batch, length) ids -> `encode_text`'s rows.

        Raises:
            NotImplementedError: the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no portable text module")

    def portable_image(self, image_tower: nn.Module | None) -> nn.Module:
        """The image path likewise: pixels -> `encode_image`'s rows.

        Args:
            image_tower: with `encode_image`, for models that are stored without it; None for those with their own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no portable image module")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights that are stored nowhere else, and the identity of the others."""
        state = super().state_dict(*args, **kwargs)
        for name in self.dropped_names():
            state.pop(name, None)
        state[IDENTITY] = encode_identity(self.identity)
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load stored weights beside the frozen ones that this model was built with.

        Raises:
            UserError: the frozen parts are not those the checkpoint was trained with.
        """
        state = dict(state_dict)
        stored = state.pop(IDENTITY, None)
        own = super().state_dict()
        absent = {name for name in self.dropped_names() if name in own}  # a teacher has buffers that are never stored
        text = self.text_encoder_prefix
        archive = self.cfg.text_encoder if text else ""
        if archive and not any(name.startswith(text) for name in state):
            # The encoder was frozen there and is trained here: its weights come from the archive.
            absent |= {name for name in own if name.startswith(text)}
        absent -= state.keys()
        if stored is not None:
            check_same_parts(self.identity, decode_identity(stored), (archive or "random weights") if absent else None)
        state.update({name: own[name] for name in absent})
        return super().load_state_dict(state, strict, model_cfg, args)
