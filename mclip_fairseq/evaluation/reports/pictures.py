"""Pictures of an evaluation: recall per language, and the nearest images of a few queries.

matplotlib draws them, without pyplot: no window, no global state. Version 3.11 and later order and join the letters of
right-to-left and other complex scripts themselves.
"""

from __future__ import annotations

import io
import logging
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from mclip_fairseq.evaluation.metrics.retrieval import RECALL_AT
from mclip_fairseq.evaluation.reports.fonts import add_fonts, families_for
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import write_bytes
from mclip_fairseq.storage.images import PIXEL_CEILING, load_image, upright_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECALL_COLOURS = {1: "#08519c", 5: "#4292c6", 10: "#c6dbef"}
OWN_COLOUR, FOREIGN_COLOUR = "#1a9850", "#cccccc"
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
LABEL_ROOM = 7  # percent points of a bar that a number inside it needs
THUMBNAIL = 224
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A query and its nearest images.

    Attributes:
        text: the query.
        language: its language.
        images: the nearest images, best first: files or PIL images.
        scores: the cosine of each.
        own: which of them is the query's own image; None when it is not among them.
        rank: 0-based rank of the own image; None for a query that has none.
    """

    text: str
    language: str
    images: Sequence[Path | Image.Image]
    scores: Sequence[float]
    own: int | None
    rank: int | None


def draw_recalls(results: Mapping[str, Mapping[str, float]], path: Path, title: str = "") -> None:
    """Bars of recall at 1, 5 and 10 per language, both directions, into an image file.

    Args:
        results: label (language or average) -> metrics of `retrieval_metrics`.
        path: where to write; the extension decides the format.
        title: above the picture.
    """
    figure = _new_figure((max(4.8, 1.6 + 0.55 * len(results)), 6.4))
    for axes, (direction, name) in zip(figure.subplots(2, 1, sharex=True), DIRECTIONS.items(), strict=True):
        _draw_recall_bars(axes, results, direction)
        axes.set_ylabel(f"{name}\nrecall (%)")
    axes.set_xticks(range(len(results)), list(results), rotation=90 if max(map(len, results)) > 7 else 0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    if title:
        figure.suptitle(title, parse_math=False)
    _write(figure, path, dpi=150)


def draw_examples(examples: Sequence[Example], path: Path, title: str = "", fonts: Sequence[Path] = ()) -> str:
    """A row per query: its text, and its nearest images with rank and score; its own has a green frame.

    Args:
        examples: at least one.
        path: where to write; the extension decides the format.
        title: above the picture.
        fonts: font files to try before the installed ones.

    Returns:
        the characters that no font has; they are also logged as a warning.

    Raises:
        UserError: an image or a font file cannot be read, the extension is unknown, or matplotlib is missing.
    """
    families, missing = families_for([e.text + e.language for e in examples] + [title], add_fonts(fonts))
    if missing:
        logger.warning(
            "no installed font has %d of the characters (%s); install some with pip install 'mclip_fairseq[fonts]', "
            "or give one with --font",
            len(missing),
            missing[:20],
        )
    columns = max(len(example.images) for example in examples)
    size = (3.0 + 1.5 * columns, 0.5 + 1.8 * len(examples))
    figure = _new_figure(size)
    grid = figure.subplots(
        len(examples), columns + 1, squeeze=False, gridspec_kw={"width_ratios": [2.0, *[1.0] * columns]}
    )
    for row, example in zip(grid, examples, strict=True):
        _draw_query(row[0], example, families)
        _draw_images(row[1:], example)
    if title:
        figure.suptitle(title, family=families, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # logged above, once for all of them
        _write(figure, path, dpi=110)
    return missing


def _write(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure so that its file is complete or absent; the extension decides the format."""
    kind, content = path.suffix.lower().removeprefix(".") or "png", io.BytesIO()
    if kind not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: pictures of this kind cannot be written; give a name that ends in .png")
    figure.savefig(content, format=kind, dpi=dpi)
    write_bytes(path, content.getvalue())


def pick_queries(counts: Mapping[str, int], number: int) -> list[tuple[str, int]]:
    """Choose queries that go round the languages and are spread evenly over each caption file.

    Args:
        counts: language -> number of captions.
        number: how many queries.

    Returns:
        (language, caption row) pairs; the same for the same arguments.
    """
    languages = list(counts)
    picks = [languages[query % len(languages)] for query in range(number)]
    rows = [(2 * query + 1) * counts[language] // (2 * number) for query, language in enumerate(picks)]
    return list(zip(picks, rows, strict=True))


def wrap(text: str, width: int, lines: int) -> str:
    """Break a text into lines by width (wide characters count two), at spaces where possible."""
    rows, row = [], ""
    for piece in _pieces(text):
        if row.strip() and _width(row + piece.rstrip()) > width:
            rows.append(row.rstrip())
            row = piece.lstrip()
        else:
            row += piece
    rows.append(row.rstrip())
    if len(rows) > lines:
        rows = [*rows[: lines - 1], rows[lines - 1] + " …"]
    return "\n".join(rows)


def _new_figure(size: tuple[float, float]) -> Any:
    return import_extra("matplotlib.figure", "evaluate").Figure(figsize=size, layout="constrained")


def _draw_recall_bars(axes: Axes, results: Mapping[str, Mapping[str, float]], direction: str) -> None:
    """R@1 in front of R@5 in front of R@10: each contains the one before."""
    places = np.arange(len(results))
    heights = {k: np.array([m[f"{direction}_R@{k}"] for m in results.values()]) for k in RECALL_AT}
    for order, k in enumerate(RECALL_AT):
        top = k == RECALL_AT[-1]
        axes.bar(places, heights[k], width=0.78, color=RECALL_COLOURS[k], label=f"R@{k}", zorder=3 - order)
        visible = heights[k] - (heights[RECALL_AT[order - 1]] if order else 0)
        for place in places[(visible >= LABEL_ROOM) | top]:
            axes.annotate(
                f"{heights[k][place]:.0f}",
                (place, heights[k][place]),
                (0, 2 if top else -2),
                textcoords="offset points",
                ha="center",
                va="bottom" if top else "top",
                color="black" if order else "white",
                fontsize=7,
                zorder=4,
            )
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_query(axes: Axes, example: Example, families: Sequence[str]) -> None:
    axes.set_axis_off()
    font: dict[str, Any] = {"family": list(families), "parse_math": False}
    axes.text(0, 0.98, example.language, fontsize=9, weight="bold", va="top", **font)
    axes.text(0, 0.80, wrap(example.text, 28, 5), fontsize=9, va="top", **font)
    if example.rank is not None:
        axes.text(0, 0.0, f"own image: rank {example.rank + 1}", fontsize=7, color="#666666", va="bottom")


def _draw_images(row: Sequence[Axes], example: Example) -> None:
    for place, axes in enumerate(row):
        axes.set_xticks([])
        axes.set_yticks([])
        if place >= len(example.images):
            axes.set_axis_off()
            continue
        own = place == example.own
        axes.imshow(_thumbnail(example.images[place]))
        colour = OWN_COLOUR if own else "black"
        axes.set_title(f"{place + 1} · {example.scores[place]:.2f}", fontsize=8, color=colour)
        for spine in axes.spines.values():
            spine.set(edgecolor=OWN_COLOUR if own else FOREIGN_COLOUR, linewidth=3.5 if own else 0.8)


def _thumbnail(image: Path | Image.Image) -> Image.Image:
    """A small square on white, so that every picture of a row has the same frame."""
    # The picture was searched, so it is within the limit that the user set.
    picture = load_image(image, PIXEL_CEILING) if isinstance(image, Path) else upright_rgb(image)
    picture = ImageOps.contain(picture, (THUMBNAIL, THUMBNAIL))
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    square.paste(picture, ((THUMBNAIL - picture.width) // 2, (THUMBNAIL - picture.height) // 2))
    return square


def _pieces(text: str) -> list[str]:
    """Words with the space behind them; wide characters and every 20th of a long word may end a line."""
    pieces: list[str] = []
    fresh = True
    for char in " ".join(text.split()):
        if fresh or len(pieces[-1]) >= 20:
            pieces.append("")
        pieces[-1] += char
        fresh = char == " " or _width(char) == 2
    return pieces


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    marks = sum(unicodedata.category(char) == "Mn" for char in text)
    return len(text) + wide - marks
