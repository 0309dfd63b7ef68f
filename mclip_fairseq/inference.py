"""`MultilingualCLIP`: load what was trained, encode text and images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mclip_fairseq.compat import load_checkpoint
from mclip_fairseq.data.images import load_image
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.teacher import DualEncoderTeacher

ImageInput = str | Path | Image.Image | np.ndarray


class Tower(Protocol):
    """What `MultilingualCLIP` needs of a model."""

    name: str
    dim: int
    languages: list[str]
    identity: dict[str, Any]
    module: nn.Module

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model input of texts, over-long ones cut."""

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(texts, dim), not necessarily normalised."""

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(images, dim), not necessarily normalised."""

    def project(self, features: Tensor) -> Tensor:
        """Teacher image features (images, teacher dim) -> (images, dim)."""

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """Image preprocessing."""


class TrainedTower:
    """A `mclip` or `teacher_learning` model from a training checkpoint.

    Args:
        state: the checkpoint.
        file: where it is, for messages.
        text_encoder: directory with the text encoder's archive, in place of the one named in the checkpoint.
        teacher: Hub name or directory of the teacher, likewise.
    """

    def __init__(self, state: dict[str, Any], file: Path, text_encoder: str | None, teacher: str | None) -> None:
        cfg = state["cfg"]["model"]
        name = cfg.get("_name", "") if isinstance(cfg, Mapping) else getattr(cfg, "_name", "")
        self.file = file
        self.directory = self.find(
            text_encoder or cfg.get("text_encoder") or cfg.get("text_tokenizer") or "", "text_encoder"
        )
        self.tokenizer = XLMRTokenizer(self.directory)
        self.teacher_name = teacher or cfg.get("teacher") or ""
        self.teacher_revision = None if teacher else cfg.get("teacher_revision") or None
        self.module = self.build(name, cfg, state["model"])
        self.tokenizer.max_tokens = int(
            min(self.module.max_positions(), state["cfg"]["task"].get("max_caption_tokens") or 512)
        )
        self.name = file.parent.name + "/" + file.stem
        self.identity: dict[str, Any] = dict(self.module.identity)
        self.dim = int(self.module.text_encoder.dim if hasattr(self.module, "c_projector") else cfg["teacher_dim"])
        stored = getattr(self.module.text_encoder.args, "langs", None) or state["cfg"]["task"].get("langs") or ""
        self.languages = [lang for lang in stored.split(",") if lang]
        self._teacher: DualEncoderTeacher | None = None

    def find(self, path: str, argument: str) -> Path:
        """Resolve a directory named in the checkpoint: as it stands, or beside the checkpoint."""
        if not path:
            raise ValueError(
                f"{self.file}: the checkpoint names no {argument}; pass {argument}= with the directory that holds "
                "dict.txt and sentencepiece.bpe.model"
            )
        for place in (Path(path), self.file.parent / path):
            if place.is_dir():
                return place
        raise ValueError(
            f"{self.file}: its {argument} {path} is not here; pass {argument}= with the directory as it is now"
        )

    def build(self, name: str, cfg: Mapping[str, Any], weights: dict[str, Tensor]) -> Any:
        """Rebuild the model and load the weights."""
        from argparse import Namespace

        from fairseq.models import ARCH_MODEL_REGISTRY

        import mclip_fairseq  # noqa: F401  (registers the models)
        from mclip_fairseq.models.freezing import decode_identity, holds_text_encoder
        from mclip_fairseq.models.mclip import IDENTITY

        builder = ARCH_MODEL_REGISTRY.get(name)
        if not hasattr(builder, "project_teacher"):
            raise ValueError(
                f"{self.file}: holds a model {name!r}, which has no image side; train with --arch mclip_base"
            )
        options = Namespace(**cfg)
        if holds_text_encoder(options):
            options.text_encoder = ""
        elif options.text_encoder:
            options.text_encoder = str(self.directory)
        stored = decode_identity(weights[IDENTITY]) if IDENTITY in weights else {}
        task = Namespace(
            source_dictionary=load_dictionary(self.directory),
            needs_teacher=False,
            teacher_identity=stored.get("teacher") or {},
        )
        model = builder.build_model(options, task)
        model.load_state_dict(weights, strict=True)
        return model

    @property
    def teacher(self) -> DualEncoderTeacher:
        """The image tower, loaded when first needed, and checked to be the one of the training."""
        if self._teacher is None:
            if not self.teacher_name:
                raise ValueError(
                    f"{self.file}: was trained on features and names no teacher; pass teacher= to encode images"
                )
            teacher = DualEncoderTeacher.from_pretrained(self.teacher_name, revision=self.teacher_revision)
            trained = self.identity["teacher"].get("sha256")
            if trained and trained != teacher.identity.get("sha256"):
                raise ValueError(
                    f"{self.teacher_name}: has weights {teacher.identity.get('sha256')} but the model was trained with "
                    f"{trained}; pass the teacher of the training"
                )
            parameter = next(self.module.parameters())
            self._teacher = teacher.to(device=parameter.device, dtype=parameter.dtype)
        return self._teacher

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """See `Tower`."""
        return {"tokens": self.tokenizer(texts)}

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Tower`."""
        return self.module.encode_text(**inputs)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """See `Tower`."""
        return self.project(self.teacher.encode_image(pixel_values))

    def project(self, features: Tensor) -> Tensor:
        """See `Tower`."""
        return self.module.project_teacher(features)

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """See `Tower`."""
        return self.teacher.transform


class TeacherTower:
    """A `transformers` dual encoder by itself, for comparison in the same tables."""

    def __init__(self, name: str) -> None:
        self.module = DualEncoderTeacher.from_pretrained(name)
        self.name = Path(name).name
        self.dim = self.module.dim
        self.identity = {"teacher": dict(self.module.identity)}
        self.languages = ["en"]
        self.tokenizer = self.module.tokenize

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """See `Tower`."""
        return dict(self.module.tokenize(list(texts)))

    def encode_text(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Tower`."""
        return self.module.encode_text(**inputs)

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """See `Tower`."""
        return self.module.encode_image(pixel_values)

    def project(self, features: Tensor) -> Tensor:
        """Its own features are final already."""
        return features

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """See `Tower`."""
        return self.module.transform


class MultilingualCLIP:
    """Images and text of any language in one space.

    Args:
        tower: the model.
        device: where it runs; None picks CUDA if there is one.
        dtype: of the weights; None keeps float32.
    """

    def __init__(
        self,
        tower: TrainedTower | TeacherTower,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tower = tower
        tower.module.to(device=self.device, dtype=dtype or torch.float32).eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        text_encoder: str | Path | None = None,
        teacher: str | Path | None = None,
    ) -> "MultilingualCLIP":
        """Load a model.

        Args:
            path_or_name: a training checkpoint (`.pt`), or a `transformers` dual encoder (Hub name or directory).
            device: see the class.
            dtype: see the class.
            text_encoder: where the text encoder's archive is now, if not where the training found it.
            teacher: where the teacher is now, likewise.

        Raises:
            ValueError: a file is missing or of another kind, or the frozen parts are not those of the training.
        """
        path = Path(path_or_name)
        if path.suffix == ".pt" or path.is_file():
            state = load_checkpoint(path)
            if not isinstance(state.get("cfg"), dict) or "model" not in state:
                raise ValueError(f"{path}: is not a training checkpoint of this project; it has no configuration")
            tower: TrainedTower | TeacherTower = TrainedTower(
                state,
                path,
                None if text_encoder is None else str(text_encoder),
                None if teacher is None else str(teacher),
            )
        else:
            tower = TeacherTower(str(path_or_name))
        return cls(tower, device, dtype)

    @property
    def name(self) -> str:
        """Short name for tables."""
        return self.tower.name

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return self.tower.dim

    @property
    def logit_scale(self) -> Tensor | None:
        """The learned scale that multiplies cosines, 0-d; None where the model has none."""
        scale = getattr(self.tower.module, "scale", None)
        return None if scale is None else scale.detach().float().cpu()

    @property
    def languages(self) -> list[str]:
        """Languages the text encoder was strengthened or trained on."""
        return self.tower.languages

    @property
    def identity(self) -> dict[str, Any]:
        """Path-free identities of the frozen parts."""
        return self.tower.identity

    @property
    def tokenizer(self) -> Any:
        """Texts to model input."""
        return self.tower.tokenizer

    @property
    def transform(self) -> Callable[[list[Image.Image]], Tensor]:
        """PIL images to (images, channels, height, width)."""
        return self.tower.transform

    def encode_text(
        self,
        texts: str | Sequence[str],
        batch_size: int = 256,
        normalize: bool = True,
        show_progress_bar: bool = False,
    ) -> Tensor:
        """Encode texts of any language.

        Args:
            texts: one or several; over-long ones are cut.
            batch_size: texts at a time.
            normalize: L2-normalise.
            show_progress_bar: draw one.

        Returns:
            (texts, dim) float32 on the CPU.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        # Texts of like length share a batch, so that little padding is computed.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))

        def encode(rows: list[int]) -> Tensor:
            inputs = self.tower.tokenize([texts[i] for i in rows])
            return self.tower.encode_text({name: tensor.to(self.device) for name, tensor in inputs.items()})

        return self.run(order, encode, batch_size, normalize, show_progress_bar, "texts")

    def encode_image(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 64,
        normalize: bool = True,
        show_progress_bar: bool = False,
    ) -> Tensor:
        """Encode images.

        Args:
            images: paths, PIL images or (height, width, 3) uint8 arrays; one or several.
            batch_size: images at a time.
            normalize: L2-normalise.
            show_progress_bar: draw one.

        Returns:
            (images, dim) float32 on the CPU.

        Raises:
            ValueError: an image cannot be read, or the model has no image tower.
        """
        single = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
        items: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]

        def encode(rows: list[int]) -> Tensor:
            pixels = self.transform([to_pil(items[i]) for i in rows])
            return self.tower.encode_pixels(self.to_device(pixels))

        return self.run(list(range(len(items))), encode, batch_size, normalize, show_progress_bar, "images")

    def encode_image_features(
        self, features: np.ndarray | Tensor, batch_size: int = 8192, normalize: bool = True
    ) -> Tensor:
        """Bring teacher image features, as `mclip-features` stores them, into the joint space.

        Args:
            features: (images, teacher dim).
            batch_size: rows at a time.
            normalize: L2-normalise.

        Returns:
            (images, dim) float32 on the CPU.
        """
        rows = torch.as_tensor(np.asarray(features), dtype=torch.float32)

        def encode(numbers: list[int]) -> Tensor:
            return self.tower.project(self.to_device(rows[numbers]))

        return self.run(list(range(len(rows))), encode, batch_size, normalize, False, "features")

    def to_device(self, tensor: Tensor) -> Tensor:
        """Move floats to the model's device and dtype."""
        return tensor.to(device=self.device, dtype=next(self.tower.module.parameters()).dtype)

    @torch.inference_mode()
    def run(
        self,
        order: list[int],
        encode: Callable[[list[int]], Tensor],
        batch_size: int,
        normalize: bool,
        show_progress_bar: bool,
        unit: str,
    ) -> Tensor:
        """Encode in batches, in any order, and give the rows back in the order of the input."""
        out = torch.zeros(len(order), self.dim)
        with tqdm(total=len(order), unit=unit, disable=not show_progress_bar) as progress:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                out[rows] = encode(rows).float().cpu()
                progress.update(len(rows))
        return F.normalize(out, dim=1) if normalize else out


def to_pil(image: ImageInput) -> Image.Image:
    """Read a path, or turn an array into an RGB image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert("RGB")
    return load_image(image)
