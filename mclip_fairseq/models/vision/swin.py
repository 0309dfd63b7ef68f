"""A trainable Swin Transformer (Liu et al. 2021) from `transformers`, and its position tables in another window."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.self_contained import check_self_contained

logger = logging.getLogger(__name__)

TABLE = "attention.relative_position_bias.relative_position_bias_table"
# CLIP's, which CCRK uses with Swin, too.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class SwinSizes:
    """Sizes of a Swin Transformer.

    Attributes:
        image_size: pixels along an edge.
        patch_size: pixels along the edge of a patch.
        embed_dim: width of the first stage; it doubles with each further one.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: positions along the edge of an attention window.
        drop_path: the largest rate at which a training leaves out a block.
    """

    image_size: int = 224
    patch_size: int = 4
    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 7
    drop_path: float = 0.1

    @property
    def dim(self) -> int:
        """Width of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


class SwinTower(nn.Module):
    """Swin with the mean of its tokens in front of them.

    `transformers` drops paths of the attention branches only; here both branches of a block are dropped, as in the
    original.

    Args:
        sizes: of the tower.
    """

    def __init__(self, sizes: SwinSizes) -> None:
        super().__init__()
        shield_torchaudio()
        from transformers import SwinConfig, SwinModel

        self.sizes = sizes
        self.transform = SquarePixels(sizes.image_size)
        self.model = SwinModel(
            SwinConfig(
                image_size=sizes.image_size,
                patch_size=sizes.patch_size,
                embed_dim=sizes.embed_dim,
                depths=list(sizes.depths),
                num_heads=list(sizes.heads),
                window_size=sizes.window,
                drop_path_rate=sizes.drop_path,
            )
        )
        for stage in self.model.encoder.layers:
            for block in stage.blocks:
                block.mlp.register_forward_hook(_DropPath(block.drop_path))

    @property
    def dim(self) -> int:
        """Width of an image state."""
        return self.sizes.dim

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Image states.

        Args:
            pixel_values: (batch, 3, image size, image size).

        Returns:
            (batch, 1 + tokens, dim): the mean of the tokens, then the tokens.
        """
        out = self.model(pixel_values)
        return torch.cat([out.pooler_output[:, None], out.last_hidden_state], dim=1)

    def use_plain_attention(self) -> None:
        """Compute attention by matrix products from now on, with the same result.

        torch's exporter takes the fused attention apart into steps of another memory layout, on which it then fails.
        """
        self.model.set_attn_implementation("eager")

    def load(self, weights: Mapping[str, Tensor], place: str) -> None:
        """Load the weights of a `SwinModel`, with position tables of any window.

        Args:
            weights: under the names that the model has in memory.
            place: where they come from, for the message.

        Raises:
            UserError: they do not fit.
        """
        try:
            self.model.load_state_dict(resize_tables(weights, self.sizes.window), strict=True)
        except RuntimeError as error:  # what torch says of weights that are missing, unknown or misshapen
            raise UserError(f"{place}: is not a Swin of these sizes: {first_line(error)}") from error


class _DropPath:
    """Forward hook that drops the output of a block's feed-forward branch at the block's rate."""

    def __init__(self, drop_path: nn.Module) -> None:
        self.drop_path = drop_path

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dropped: Tensor = self.drop_path(output)
        return dropped


@dataclass(frozen=True)
class SquarePixels:
    """RGB images resized to a square, the aspect ratio given up, with CLIP's mean and deviation."""

    size: int

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Images -> (n, 3, size, size) float32."""
        squares = [image.resize((self.size, self.size), Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in squares])) / 255
        return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()

    @property
    def description(self) -> str:
        """What is done, as text; equal for equal preprocessing."""
        return f"SquarePixels, size={self.size}, resample=bicubic, image_mean={MEAN}, image_std={STD}"


def load_swin(source: str) -> tuple[SwinSizes, dict[str, Tensor]]:
    """Read a pre-trained Swin.

    Args:
        source: Hub name or directory of `transformers`.

    Returns:
        its sizes, and its weights under the names of `SwinModel`.

    Raises:
        UserError: it is something else.
    """
    shield_torchaudio()
    from transformers import AutoConfig, SwinConfig, SwinModel

    check_self_contained(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model = None
        if isinstance(config, SwinConfig):
            model = SwinModel.from_pretrained(source, dtype=torch.float32, weights_only=True)
    except Exception as error:  # its loaders raise whatever broken files lead them to
        raise UserError(f"{source}: cannot be loaded as a Swin of transformers: {first_line(error)}") from error
    if model is None:
        raise UserError(f"{source}: is a {config.model_type} model, not a Swin; give one such as swin-base")
    sizes = SwinSizes(
        image_size=int(config.image_size),
        patch_size=int(config.patch_size),
        embed_dim=int(config.embed_dim),
        depths=tuple(config.depths),
        heads=tuple(config.num_heads),
        window=int(config.window_size),
        drop_path=float(config.drop_path_rate),
    )
    return sizes, dict(model.state_dict())


def window_of(table: Tensor) -> int:
    """The window of a relative position table, whose ((2 w - 1)^2, heads) entries are the offsets within it."""
    return (math.isqrt(len(table)) + 1) // 2


def resize_tables(weights: Mapping[str, Tensor], window: int, names: str = TABLE) -> dict[str, Tensor]:
    """Weights with all relative position tables in another window.

    Args:
        weights: of a Swin.
        window: wanted.
        names: how the names of the tables end.
    """
    resized = dict(weights)
    for name, table in weights.items():
        if name.endswith(names) and window_of(table) != window:
            resized[name] = resize_table(table, window)
    windows = {window_of(table) for name, table in weights.items() if name.endswith(names)}
    if windows and max(windows) > window:
        logger.warning("position tables of window %d are cropped, not scaled, to window %d", max(windows), window)
    return resized


def resize_table(table: Tensor, window: int) -> Tensor:
    """A relative position table in another window, as BEiT and CCRK do it.

    Entries near the centre keep their distance, those further out are spread in a geometric series, so that the
    outermost meet the new edge: near offsets mean the same in a larger window. In a smaller one the series would have
    to shrink, which its bounds do not allow; what is left is a crop.

    Args:
        table: ((2 w - 1)^2, heads).
        window: wanted.

    Returns:
        ((2 window - 1)^2, heads) of the same dtype.
    """
    spline_of = import_extra("scipy.interpolate", "evaluate").RectBivariateSpline
    old, new = math.isqrt(len(table)), 2 * window - 1
    positions = geometric_positions(old, new)
    wanted = np.arange(-(new // 2), new // 2 + 1)
    wanted = np.clip(wanted, positions[0], positions[-1])  # a spline must not be asked beyond its ends
    columns = []
    for head in table.detach().float().cpu().numpy().T:
        spline = spline_of(positions, positions, head.reshape(old, old), kx=3, ky=3, s=0)
        columns.append(spline(wanted, wanted).ravel())
    return torch.from_numpy(np.stack(columns, axis=1)).to(table)


def geometric_positions(old: int, new: int) -> npt.NDArray[np.float64]:
    """Where the entries of a table of `old` offsets lie among `new` ones: 0, 1, 1 + q, 1 + q + q^2, ... both ways."""
    low, high = 1.01, 1.5
    half = old // 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1 - ratio**half) / (1 - ratio)
        low, high = (low, ratio) if reach > new // 2 else (ratio, high)
    steps = np.cumsum(ratio ** np.arange(half))
    return np.concatenate([-steps[::-1], [0.0], steps])
