"""`MultilingualCLIP`: load what was trained, encode text and images."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mclip_fairseq.batching import batch_cost, one_behind, split_padded
from mclip_fairseq.encoding.devices import encode_in_shares
from mclip_fairseq.encoding.inputs import ImageInput, check_texts, to_pil
from mclip_fairseq.encoding.vectors import Precision, check_form, finish
from mclip_fairseq.formats.saved import is_saved_directory
from mclip_fairseq.models.freezing import state_hash
from mclip_fairseq.models.settings import digest
from mclip_fairseq.pairs import Pairs, is_single_image
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fingerprints import HALF, NO_IMAGE_TOWER
from mclip_fairseq.storage.images import MAX_PIXELS
from mclip_fairseq.storage.machine import cores
from mclip_fairseq.storage.texts import without_splitters

if TYPE_CHECKING:
    from mclip_fairseq.formats.towers import Tower

# Texts that are tokenised at once.
WINDOW = 8192
# Numbers of inputs and their features.
Encoded = Iterator[tuple[list[int], Tensor]]
Device = str | torch.device


class MultilingualCLIP(Pairs):
    """Images and text of any language in one space.

    Args:
        tower: the model.
        device: where it runs; None picks CUDA if there is one. A list of several has a copy of the model on each, and
            texts and images are shared among them.
        dtype: of the weights; None keeps float32.
    """

    def __init__(
        self,
        tower: "Tower",
        device: Device | Sequence[Device] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        devices = [device] if isinstance(device, str | torch.device) else list(device or ())
        first, *others = devices or ["cuda" if torch.cuda.is_available() else "cpu"]
        self.others = [MultilingualCLIP(copy.deepcopy(tower), other, dtype) for other in others]
        self.device = torch.device(first)
        self.tower = tower
        self.max_pixels = MAX_PIXELS
        tower.module.to(device=self.device, dtype=dtype or torch.float32).eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: Device | Sequence[Device] | None = None,
        dtype: torch.dtype | None = None,
        language: str | None = None,
        *,
        text_encoder: str | Path | None = None,
        teacher: str | Path | None = None,
    ) -> "MultilingualCLIP":
        """Load a model.

        Args:
            path_or_name: a training checkpoint (`.pt`); a directory of `mclip-export` or `mclip-convert released`; or,
                by Hub name or directory, a `transformers` dual encoder, a text tower of M-CLIP or one of
                sentence-transformers.
            device: see the class.
            dtype: see the class.
            language: of the texts, for a model that reads each in its own way; see `for_language`.
            text_encoder: where the text encoder's archive is now, if not where the training found it.
            teacher: where the teacher is now, likewise; for a text tower, the image tower it was trained for.

        Raises:
            UserError: a file is missing or of the wrong kind, or the frozen parts are not those of the training.
        """
        # Each loader imports what its models need; one of `transformers` alone needs no fairseq.
        path, tower = Path(path_or_name), None  # type: Path, Any
        if path.suffix == ".pt" or path.is_file():
            from mclip_fairseq.formats.training import load_training_checkpoint

            tower = load_training_checkpoint(path, str(text_encoder or ""), str(teacher or ""))
        elif is_saved_directory(path):
            from mclip_fairseq.formats.directory import load_saved

            tower = load_saved(path)
        else:
            from mclip_fairseq.formats.peers import load_peer

            tower = load_peer(str(path_or_name), str(teacher or ""))
        model = cls(tower, device, dtype)
        return model if language is None else model.for_language(language)

    def for_language(self, language: str) -> "MultilingualCLIP":
        """The view that reads texts of one language, over the same weights.

        Args:
            language: a code such as `de`. A model that reads all languages in the same way takes any.

        Raises:
            UserError: a model with a text path per language does not have this one.
        """
        tower = self.tower.for_language(language)
        if tower is self.tower:
            return self
        view = copy.copy(self)
        view.tower = tower
        view.others = [other.for_language(language) for other in self.others]
        return view

    @property
    def reads_any_language(self) -> bool:
        """Whether texts can be encoded before `for_language` has named their language."""
        return self.tower.reads_any_language

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return self.tower.dim

    @property
    def logit_scale(self) -> Tensor | None:
        """The scale that multiplies cosines, 0-d; None where the model has none."""
        return self.tower.scale

    @property
    def languages(self) -> list[str]:
        """Languages the text encoder was strengthened or trained on."""
        return self.tower.languages

    @property
    def identity(self) -> dict[str, Any]:
        """Path-free identities of the frozen parts."""
        return self.tower.identity

    @property
    def fingerprint(self) -> str:
        """What the vectors depend on, free of paths; compare two with `same_vectors`.

        The first half stands for the text side and the projections: weights, heads and other structure, tokenizer,
        longest text, numeric type. The second half stands for the image tower and its image processor; it is zeros
        where these are not on this machine.
        """
        tower, named = self.tower, [*self.tower.module.named_parameters(), *self.tower.module.named_buffers()]
        tied = getattr(tower.module, "tied_weights", {})
        # Also the frozen weights that a checkpoint leaves out: its exported directory has the same fingerprint.
        weights = state_hash({name: torch.atleast_1d(tensor) for name, tensor in named if name not in tied})
        dtype = str(next(tower.module.parameters()).dtype)
        # Where there is a hash, it identifies a part without the name of its directory.
        parts = {part: value and (value.get("sha256") or value) for part, value in self.identity.items()}
        text = digest([weights, parts.get("teacher"), tower.text_settings(), dtype])
        settings = tower.image_settings()
        image = digest([weights, parts.get("teacher"), settings, dtype]) if settings else NO_IMAGE_TOWER
        return text[:HALF] + image[:HALF]

    @property
    def tokenizer(self) -> Any:
        """Texts to model input."""
        return self.tower.tokenizer

    def count_known(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Per text, how many of its tokens the tokenizer knows, and how many it has.

        A text of unknown tokens has a vector like any other, which says nothing about it.
        """
        return self.tower.count_known([without_splitters(text) for text in texts])

    def encode_text(
        self,
        texts: str | Sequence[str] | Tensor,
        batch_size: int = 256,
        normalize: bool = True,
        show_progress_bar: bool = False,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
    ) -> Tensor:
        """Encode texts of any language, in batches of similar numbers of tokens.

        Args:
            texts: one or several, over-long ones are cut; or (texts, length) int64 token ids, padded on either side.
            batch_size: most texts at a time.
            normalize: L2-normalise.
            show_progress_bar: draw one.
            truncate_dim: keep this many leading dimensions, for models trained for it; None keeps all.
            precision: `float32`, `int8`, `uint8`, `binary` or `ubinary`; see `similarity` and
                `encoding.vectors.quantize`.

        Returns:
            (texts, dim) float32 on the CPU, or the type and width of the precision.

        Raises:
            UserError: something else than texts, or a form that the vectors do not have.
        """
        check_form(truncate_dim, precision, self.dim)
        if not isinstance(texts, Tensor):
            texts = [texts] if isinstance(texts, str | bytes | None) else list(texts)
            check_texts(texts)

        def encode(model: "MultilingualCLIP", share: Any, progress: bool) -> Tensor:
            return model.text_features(share, batch_size, progress)

        return finish(self.on_devices(encode, texts, show_progress_bar), truncate_dim, normalize, precision)

    def text_features(self, texts: list[str] | Tensor, batch_size: int, progress: bool) -> Tensor:
        """(texts, dim) float32 features on the CPU, before they are normalised; see `encode_text`."""
        if isinstance(texts, Tensor):
            tokens, windows = texts, [list(range(len(texts)))]

            def inputs_of(rows: list[int]) -> dict[str, Tensor]:
                return self.tower.model_input(tokens)
        else:
            strings = [without_splitters(text) for text in texts]
            # Tokenised window by window, which bounds the memory. A window holds texts of similar length.
            order = sorted(range(len(strings)), key=lambda i: len(strings[i]))
            windows = [order[start : start + WINDOW] for start in range(0, len(order), WINDOW)]

            def inputs_of(rows: list[int]) -> dict[str, Tensor]:
                return self.tower.tokenize([strings[i] for i in rows])

        batches = self.text_batches(windows, inputs_of, batch_size)
        return self.run(batches, sum(map(len, windows)), False, progress, "texts")

    def on_devices(
        self, encode: Callable[["MultilingualCLIP", Any, bool], Tensor], inputs: Any, progress: bool
    ) -> Tensor:
        """Encode inputs on all devices; the first one draws the progress of its share."""
        models = [self, *self.others]
        if len(models) == 1 or len(inputs) < len(models):
            return encode(self, inputs, progress)

        def worker(model: "MultilingualCLIP") -> Callable[[Any], Tensor]:
            return lambda share: encode(model, share, progress and model is self)

        return encode_in_shares([worker(model) for model in models], inputs)

    def text_batches(
        self, windows: Iterable[list[int]], inputs_of: Callable[[list[int]], dict[str, Tensor]], batch_size: int
    ) -> Encoded:
        """Encode windows of texts, each tokenised at once and then split into batches by tokens."""
        cost = batch_cost(self.device)
        for window in windows:
            if window:
                inputs = inputs_of(window)
                for rows, batch in split_padded(inputs, self.tower.token_mask(inputs), cost, batch_size):
                    on_device = {name: tensor.to(self.device) for name, tensor in batch.items()}
                    yield [window[row] for row in rows], self.tower.encode_text(on_device)

    def encode_image(
        self,
        images: ImageInput | Sequence[ImageInput] | Tensor,
        batch_size: int = 64,
        normalize: bool = True,
        show_progress_bar: bool = False,
        max_pixels: int | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
    ) -> Tensor:
        """Encode images.

        Args:
            images: paths, PIL images or (height, width, 3) uint8 arrays, one or several; or (images, channels, height,
                width) floats that `transform` made.
            batch_size: images at a time.
            normalize: L2-normalise.
            show_progress_bar: draw one.
            max_pixels: a file whose header claims more is refused before it is decoded; None is `self.max_pixels`.
            truncate_dim: see `encode_text`.
            precision: see `encode_text`.

        Returns:
            (images, dim) float32 on the CPU, or the type and width of the precision.

        Raises:
            UserError: an image cannot be read, the model has no image tower, or the vectors do not have this form.
        """
        check_form(truncate_dim, precision, self.dim)
        if isinstance(images, Tensor) and images.ndim != 4:
            raise UserError(f"pixels of shape {tuple(images.shape)}; a batch is (images, channels, height, width)")
        limit = self.max_pixels if max_pixels is None else max_pixels
        items: Any = images
        if not isinstance(images, Tensor):
            items = [images] if is_single_image(images) else list(items)
        for model in (self, *self.others):
            _ = model.transform  # loads the teacher, if need be, before threads share it

        def encode(model: "MultilingualCLIP", share: Any, progress: bool) -> Tensor:
            return model.image_features(share, batch_size, limit, progress)

        return finish(self.on_devices(encode, items, show_progress_bar), truncate_dim, normalize, precision)

    def image_features(self, images: list[ImageInput] | Tensor, batch_size: int, limit: int, progress: bool) -> Tensor:
        """(images, dim) float32 features on the CPU, before they are normalised; see `encode_image`."""

        def encode(rows: list[int]) -> Tensor:
            if isinstance(images, Tensor):
                return self.encode_pixels(images[rows])
            return self.encode_pixels(self.decoded([images[i] for i in rows], limit))

        return self.run(in_batches(encode, len(images), batch_size), len(images), False, progress, "images")

    def decoded(self, images: Sequence[ImageInput], limit: int) -> Tensor:
        """Images as `transform` makes them, (images, channels, height, width); threads decode on all cores."""

        def pixels(image: ImageInput) -> Tensor:
            return self.transform([to_pil(image, limit)])

        with ThreadPoolExecutor(min(len(images), cores())) as pool:
            return torch.cat(list(pool.map(pixels, images)))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode images that `transform` made.

        Args:
            pixels: (images, channels, height, width), on any device.

        Returns:
            (images, dim) on the model's device, in the type the model computes in, not normalised.
        """
        return self.tower.encode_pixels(self.to_device(pixels))

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

        Raises:
            UserError: features whose width is not the teacher's.
        """
        rows = torch.as_tensor(np.asarray(features), dtype=torch.float32)
        if rows.ndim != 2 or rows.shape[1] != self.tower.feature_dim:
            raise UserError(
                f"features of shape {tuple(rows.shape)}, but {self.name} takes (images, {self.tower.feature_dim}); "
                "store them with the teacher it was trained with"
            )

        def encode(numbers: list[int]) -> Tensor:
            return self.tower.project(self.to_device(rows[numbers]))

        return self.run(in_batches(encode, len(rows), batch_size), len(rows), normalize, False, "features")

    @torch.inference_mode()
    def run(self, batches: Encoded, count: int, normalize: bool, show_progress_bar: bool, unit: str) -> Tensor:
        """Collect features that come batch by batch, in any order, in the order of the input."""
        out = torch.zeros(count, self.dim)
        with tqdm(total=count, unit=unit, disable=not show_progress_bar) as progress:
            for rows, features in one_behind(batches):
                out[rows] = features.float().cpu()
                progress.update(len(rows))
        return F.normalize(out, dim=1) if normalize else out


def in_batches(encode: Callable[[list[int]], Tensor], count: int, size: int) -> Encoded:
    """Encode the inputs 0 ... `count` - 1, `size` at a time."""
    for start in range(0, count, size):
        rows = list(range(start, min(start + size, count)))
        yield rows, encode(rows)
