"""The options of the model `ccrk`."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass

from mclip_fairseq.models.vision.swin import SwinSizes
from mclip_fairseq.storage.errors import UserError


@dataclass
class CCRKModelConfig(FairseqDataclass):
    """Both towers, the fusion encoder and the joint space."""

    text_encoder: str = field(
        default="",
        metadata={
            "help": "XLM-R archive to start from (a directory with model.pt); empty: random weights. --xlmr is its old "
            "name",
            "argparse_alias": "--xlmr",
        },
    )
    text_layers: str = field(
        default="",
        metadata={
            "help": "layers of --text-encoder to keep, counted from 0, such as 1,3,...,23: the first half encodes the "
            "text, the second half sees the image, too; empty: all"
        },
    )
    text_tokenizer: str = field(
        default="",
        metadata={
            "help": "directory with dict.txt and sentencepiece.bpe.model, for inference; empty: that of --text-encoder"
        },
    )
    encoder_layers: int = field(default=6, metadata={"help": "layers of a random text encoder"})
    fusion_layers: int = field(default=6, metadata={"help": "layers of a random fusion encoder"})
    encoder_embed_dim: int = field(default=1024, metadata={"help": "width of a random text and fusion encoder"})
    encoder_ffn_embed_dim: int = field(
        default=4096, metadata={"help": "feed-forward width of a random text and fusion encoder"}
    )
    encoder_attention_heads: int = field(
        default=16, metadata={"help": "attention heads of a random text and fusion encoder"}
    )
    encoder_max_positions: int = field(
        default=512, metadata={"help": "longest input of a random text encoder, in tokens"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of the text and fusion encoder"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    image_encoder: str = field(
        default="",
        metadata={"help": "Swin to start from (Hub name or directory of transformers); empty: random weights"},
    )
    image_size: int = field(default=224, metadata={"help": "pixels along an edge of an image"})
    image_window: int = field(
        default=7,
        metadata={"help": "attention window of the image tower (12 at 384 pixels); position tables are resized to it"},
    )
    image_patch_size: int = field(default=4, metadata={"help": "patch size of a random image tower"})
    image_embed_dim: int = field(default=128, metadata={"help": "width of the first stage of a random image tower"})
    image_depths: str = field(default="2,2,18,2", metadata={"help": "blocks of each stage of a random image tower"})
    image_heads: str = field(
        default="4,8,16,32", metadata={"help": "attention heads of each stage of a random image tower"}
    )
    drop_path: float = field(default=0.1, metadata={"help": "largest rate at which blocks of the image tower drop out"})
    joint_dim: int = field(default=256, metadata={"help": "width of the joint space"})
    temperature: float = field(
        default=0.07, metadata={"help": "initial temperature of the contrast, which is learned within 0.001 and 0.5"}
    )


def swin_sizes(cfg: Any) -> SwinSizes:
    """The sizes of the image tower in the options.

    Raises:
        UserError: they are not lists of numbers, or do not fit together.
    """
    depths, heads = numbers(cfg.image_depths, "--image-depths"), numbers(cfg.image_heads, "--image-heads")
    if len(depths) != len(heads):
        raise UserError(f"--image-depths names {len(depths)} stages and --image-heads {len(heads)}; give one of each")
    edge = cfg.image_patch_size * 2 ** (len(depths) - 1)
    if cfg.image_size < edge or cfg.image_size % edge:
        raise UserError(f"--image-size is {cfg.image_size}; {len(depths)} stages need a multiple of {edge} pixels")
    return SwinSizes(
        image_size=cfg.image_size,
        patch_size=cfg.image_patch_size,
        embed_dim=cfg.image_embed_dim,
        depths=depths,
        heads=heads,
        window=cfg.image_window,
        drop_path=cfg.drop_path,
    )


def check_window(sizes: SwinSizes) -> SwinSizes:
    """The sizes of an image tower to build, where an attention window fits into the map of every stage.

    Raises:
        UserError: it does not; `transformers` would build such a tower and fail at the first image.
    """
    positions = sizes.image_size // (sizes.patch_size * 2 ** (len(sizes.depths) - 1))
    if sizes.window > positions:
        raise UserError(
            f"--image-window is {sizes.window}, but the last stage has {positions} x {positions} positions; give "
            f"{positions} at most, or a larger --image-size"
        )
    return sizes


def numbers(text: str, option: str) -> tuple[int, ...]:
    """A comma-separated list of positive numbers.

    Raises:
        UserError: it is something else.
    """
    items = [item.strip() for item in str(text).split(",")]
    if not all(item.isdecimal() and int(item) for item in items):
        raise UserError(f"{option} is {text!r}; give positive numbers separated by commas")
    return tuple(map(int, items))


def chosen_layers(text: str, layers: int) -> list[int]:
    """The layers that `--text-layers` names, `a,b,...,z` standing for a series; all for an empty text.

    Args:
        text: the option.
        layers: of the archive.

    Raises:
        UserError: no such layers, not in ascending order, or an odd number of them.
    """
    items = [item.strip() for item in text.split(",")] if text else [str(number) for number in range(layers)]
    if "..." in items[2:-1]:
        at = items.index("...")
        ends = [*items[at - 2 : at], items[at + 1]]
        if all(end.isdecimal() for end in ends) and int(ends[0]) < int(ends[1]):
            first, second, last = map(int, ends)
            series = range(second + second - first, last + 1, second - first)
            items[at : at + 2] = map(str, series)
    chosen = [int(item) if item.isdecimal() else -1 for item in items]
    if min(chosen) < 0 or max(chosen) >= layers or chosen != sorted(set(chosen)) or len(chosen) % 2:
        raise UserError(
            f"--text-layers is {text!r}; give an even number of layers from 0 to {layers - 1} in ascending order"
        )
    return chosen
