"""Captions of one language and what they point to: image rows, teacher text rows."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mclip_fairseq.data.states import TokenStates
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import read_lines

NONE = "-"
# Image ids -> the numbers of those that could be read, and their (readable, channels, height, width) pixels.
Pixels = Callable[[Sequence[str]], tuple[list[int], Tensor]]


def read_ids(path: str | Path, lines: int) -> tuple[list[str] | None, list[str] | None]:
    """Read a caption file's ids: per line an image id and, after a tab, the id of a teacher text feature.

    Args:
        path: the file; `-` stands for no image.
        lines: captions it must match.

    Returns:
        image ids or None, text ids or None.

    Raises:
        UserError: missing file, another number of lines, or a column that only some lines fill.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; write one image id per caption (and, after a tab, a teacher text id)")
    rows = [line.split("\t") for line in read_lines(path)]
    if len(rows) != lines:
        raise UserError(f"{path}: {len(rows)} lines for {lines} captions; write exactly one line per caption")
    columns: list[list[str] | None] = []
    for column, what in ((0, "image id"), (1, "teacher text id")):
        values = [row[column].strip() if len(row) > column else NONE for row in rows]
        empty = [number for number, value in enumerate(values, 1) if value in ("", NONE)]
        if empty and len(empty) < len(values):
            raise UserError(
                f"{path}, line {empty[0]}: no {what}, while other lines have one; put captions without into a data "
                "directory of their own"
            )
        columns.append(None if empty or not values else values)
    return columns[0], columns[1]


class CaptionDataset:
    """Captions of one language with their images, all or none of them.

    Args:
        tokens: the captions.
        image_ids: image id per caption, or None.
        text_ids: teacher text id per caption, or None.
        images: teacher image features that hold the image ids, or
        pixels: a function from image ids to the numbers of those that it can read and their pixels; without any, one
            blank image.
        texts: teacher text features that hold the text ids.
        states: cached token states in place of ids.

    Raises:
        UserError: an id that the features do not have.
    """

    def __init__(
        self,
        tokens: FlatTokens,
        image_ids: Sequence[str] | None = None,
        text_ids: Sequence[str] | None = None,
        images: FeatureStore | None = None,
        pixels: Pixels | None = None,
        texts: FeatureStore | None = None,
        states: TokenStates | None = None,
    ) -> None:
        self.tokens = tokens
        self.images = images if image_ids is not None else None
        self.pixels = pixels if image_ids is not None and images is None else None
        self.texts = texts if text_ids is not None else None
        self.states = states
        self.image_ids = np.asarray(image_ids) if self.pixels is not None else None
        self.image_rows = None if self.images is None or image_ids is None else self.images.rows(image_ids)
        self.text_rows = None if self.texts is None or text_ids is None else self.texts.rows(text_ids)
        self.groups = self.group_numbers()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(captions,) tokens as the encoder sees them."""
        return self.tokens.sizes

    def group_numbers(self) -> npt.NDArray[np.int64]:
        """(captions,) numbers that agree on all ranks and languages: the image, else the teacher text, else itself."""
        if self.image_rows is not None:
            return self.image_rows
        if self.image_ids is not None:
            unique, inverse = np.unique(self.image_ids, return_inverse=True)
            return np.array([id_number(image_id) for image_id in unique.tolist()], dtype=np.int64)[inverse]
        rows = np.arange(len(self)) if self.text_rows is None else self.text_rows
        # Negative, so that a text never shares its number with an image.
        return -1 - rows

    def rows(self, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """A batch, without the captions whose images are left out.

        Returns:
            `net_input` for `MCLIPModel.forward`, and `group`, (batch,) int64, equal for captions of one image (without
            images, of one teacher text). Where all images are left out, one caption with a blank image, marked
            `is_dummy`: it counts nothing and is no negative of any other.
        """
        net_input: dict[str, Tensor] = {}
        dummy = False
        if self.pixels is not None and self.image_ids is not None and len(rows):
            readable, net_input["pixel_values"] = self.pixels(self.image_ids[rows].tolist())
            dummy = not readable
            rows = rows[readable or [0]]
        if self.states is None:
            net_input["text_tokens"] = self.tokens.batch(rows)
        else:
            net_input["text_states"], net_input["text_padding"] = self.states.batch(rows)
        if self.images is not None and self.image_rows is not None:
            net_input["image_features"] = to_float(self.images.take(self.image_rows[rows]))
        if self.texts is not None and self.text_rows is not None:
            net_input["teacher_text"] = to_float(self.texts.take(self.text_rows[rows]))
        return {
            "id": torch.from_numpy(rows),
            "nsentences": len(rows),
            "ntokens": int(self.sizes[rows].sum()),
            "net_input": net_input,
            "group": torch.from_numpy(self.groups[rows]),
            **({"is_dummy": True} if dummy else {}),
        }


def id_number(identifier: str) -> int:
    """A number for an id that is the same in every process and run (Python's own hash is not)."""
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=7).digest(), "big")


def to_float(features: npt.NDArray[np.floating]) -> Tensor:
    """float32 tensor of stored features."""
    return torch.from_numpy(np.asarray(features, dtype=np.float32))
