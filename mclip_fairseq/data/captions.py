"""Captions of one language and what they point to: images, teacher texts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mclip_fairseq.data.columns import Column, PixelColumn, Rows
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

NONE = "-"


def read_caption_ids(path: str | Path, lines: int) -> tuple[list[str] | None, list[str] | None]:
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
    """Captions of one language: lengths, columns, and a group number for each caption.

    | batch entry | shape | present |
    |---|---|---|
    | `net_input` | the entries of all columns, see `mclip_fairseq.data.columns` | always |
    | `group` | (batch,) int64, equal for captions of one image | always |
    | `id` | (batch,) int64, rows of this dataset | always |
    | `nsentences`, `ntokens` | int | always |
    | `is_dummy` | True | if no image of the batch could be read |

    Args:
        sizes: (captions,) tokens as the encoder sees them.
        columns: what a batch holds.
        groups: (captions,) int64, equal for captions of one image; see `group_numbers`.
        pixels: images that are decoded for each batch, or None.
    """

    def __init__(
        self,
        sizes: npt.NDArray[np.int64],
        columns: Sequence[Column],
        groups: npt.NDArray[np.int64],
        pixels: PixelColumn | None = None,
    ) -> None:
        self.sizes = sizes
        self.columns = list(columns)
        self.groups = groups
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def names(self) -> set[str]:
        """The entries of `net_input` that a batch has."""
        own = {name for column in self.columns for name in column.names}
        return own if self.pixels is None else own | set(self.pixels.names)

    def set_epoch(self, epoch: int) -> None:
        """Let the columns and images change with the epoch, where anything of them is drawn."""
        for column in self.columns:
            column.set_epoch(epoch)
        if self.pixels is not None:
            self.pixels.set_epoch(epoch)

    def rows(self, rows: Rows) -> dict[str, Any]:
        """A batch, without the captions whose images cannot be read.

        Returns:
            the entries of the class's table. If no image can be read, one caption with a blank image, marked
            `is_dummy`: it counts as nothing and is not a negative of any other.
        """
        net_input: dict[str, torch.Tensor | str] = {}
        dummy = False
        if self.pixels is not None and len(rows):
            readable, net_input["pixel_values"] = self.pixels.read(rows)
            dummy = not readable
            rows = rows[readable or [0]]
        for column in self.columns:
            net_input.update(column.batch(rows))
        return {
            "id": torch.from_numpy(rows),
            "nsentences": len(rows),
            "ntokens": int(self.sizes[rows].sum()),
            "net_input": net_input,
            "group": torch.from_numpy(self.groups[rows]),
            **({"is_dummy": True} if dummy else {}),
        }


def group_numbers(
    captions: int,
    image_rows: npt.NDArray[np.int64] | None,
    image_ids: Sequence[str] | None,
    text_rows: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int64]:
    """Numbers that agree on all ranks and languages: of the image, else of the teacher text, else of the caption.

    Args:
        captions: how many there are.
        image_rows: (captions,) rows in the image features, or None.
        image_ids: image id of each caption where there are no features, or None.
        text_rows: (captions,) rows in the teacher's text features, or None.

    Returns:
        (captions,) int64.
    """
    if image_rows is not None:
        return image_rows
    if image_ids is not None:
        unique, inverse = np.unique(np.asarray(image_ids), return_inverse=True)
        return np.array([id_number(image_id) for image_id in unique.tolist()], dtype=np.int64)[inverse]
    # Negative, so that a text never shares its number with an image.
    return -1 - (np.arange(captions) if text_rows is None else text_rows)


def id_number(identifier: str) -> int:
    """A number for an id that is the same in every process and run (Python's own hash is not)."""
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=7).digest(), "big")
