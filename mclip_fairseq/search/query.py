"""Query an index: texts or images in, images with scores out, as a table, JSON or a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mclip_fairseq.search.engine import Hit, Index, Row
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown
from mclip_fairseq.storage.images import ImageError, load_image
from mclip_fairseq.storage.texts import LONE_SURROGATE, is_blank, without_splitters

if TYPE_CHECKING:
    import torch

MAX_QUERY = 2000  # characters; text encoders read a few hundred tokens
DEPTH = 1000  # ranks that --languages searches
SHOWN_TEXT = 60
QUOTES = (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("»", "«"), ("「", "」"), ("『", "』"))
SAME_SCORE = 1e-5  # equal vectors differ by rounding only
NOTHING_FITS = "nothing in the index fits this query well"
COPIES = 8  # with --unique, this many times more images are searched


@dataclass(frozen=True)
class Answer:
    """A query and its hits, best first.

    Attributes:
        query: the text, or the name of the image file.
        hits: the images.
        language: of the query, if one was given.
        warning: what the model does not know of the query.
        fits: whether a hit fits well; None where the index has no bank of queries, or the query is an image.
    """

    query: str
    hits: list[Hit]
    language: str = ""
    warning: str = ""
    fits: bool | None = None


def check_query(text: str) -> str:
    """A query without outer spaces, without quotes around it and without invisible characters that split words.

    Raises:
        UserError: it is empty, shows nothing, is too long, or is not valid Unicode.
    """
    text = without_splitters(text).strip()
    if len(text) > 2 and (text[0], text[-1]) in QUOTES and not is_blank(text[1:-1]):
        text = text[1:-1].strip()
    if is_blank(text) and "\0" not in text and not LONE_SURROGATE.search(text):
        raise UserError("the query is empty; say what the image shows")
    if len(text) > MAX_QUERY:
        raise UserError(f"the query has {len(text)} characters; give at most {MAX_QUERY}")
    if "\0" in text or LONE_SURROGATE.search(text):
        raise UserError("the query is not valid Unicode text; type it again")
    return text


def unknown_words(model: Any, texts: Sequence[str], languages: Sequence[str] = ()) -> list[str]:
    """A warning per text of which the model's tokenizer knows no part or not all; empty where it knows all.

    Args:
        model: the dual encoder; without `count_known`, nothing is said.
        texts: checked queries.
        languages: of the texts, for a model that reads each in its own way.
    """
    if getattr(model, "count_known", None) is None or not texts:
        return [""] * len(texts)
    readers = [model.for_language(language) if language else model for language in languages or [""] * len(texts)]
    counts = [reader.count_known([text])[0] for reader, text in zip(readers, texts, strict=True)]
    warnings = []
    for text, (known, total) in zip(texts, counts, strict=True):
        short = text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + "…"
        if not known:
            warnings.append(f"the model knows no part of {short!r}, so these images say nothing about it")
        elif known < total:
            warnings.append(f"the model knows only {known} of the {total} parts of {short!r}")
        else:
            warnings.append("")
    return warnings


def search_texts(
    index: Index, model: Any, texts: Sequence[str], k: int, batch_size: int = 256, languages: Sequence[str] = ()
) -> list[list[Hit]]:
    """Hits of checked texts; texts of similar length are encoded together, `batch_size` at a time.

    Args:
        index: what is searched.
        model: the dual encoder.
        texts: the queries.
        k: hits of each.
        batch_size: texts at a time.
        languages: of the texts, for a model that reads each in its own way; see `encode_texts`.
    """
    return hits_of(index, encode_texts(model, texts, languages, batch_size), k)


def search_images(index: Index, model: Any, images: Sequence[Path | Image.Image], k: int) -> list[list[Hit]]:
    """Hits of images."""
    return hits_of(index, model.encode_image(list(images)), k)


def hits_of(index: Index, queries: torch.Tensor, k: int) -> list[list[Hit]]:
    """Hits of (n, dim) normalised vectors."""
    return index.hits(queries.numpy(), k)


MISSING = "  (its file is gone)"


def without_copies(index: Index, hits: Sequence[Hit], k: int) -> list[Hit]:
    """The first k hits, of which those with equal vectors, such as copies of a file, count as one."""
    kept: list[Hit] = []
    for hit in hits:
        near = [place for place, first in enumerate(kept) if abs(first.score - hit.score) < SAME_SCORE]
        same = next((place for place in near if same_vector(index, kept[place].row, hit.row)), None)
        if same is not None:
            kept[same] = replace(kept[same], copies=kept[same].copies + 1)
        elif len(kept) < k:
            kept.append(hit)
    return kept


def same_vector(index: Index, one: Row, other: Row) -> bool:
    """Whether two rows with equal scores have equal vectors; true where the kind of index does not store them."""
    vectors = index.vectors([one, other])
    return vectors is None or bool(np.abs(vectors[0] - vectors[1]).max() < SAME_SCORE)


def format_answers(index: Index, answers: Sequence[Answer]) -> str:
    """A table per query, for a terminal; images whose files are gone are marked."""
    parts = []
    for answer in answers:
        label = f"{answer.language}: " if answer.language else ""
        lines = [shown(label + answer.query)]
        if answer.fits is False:
            lines.append(f"({NOTHING_FITS})")
        judged = answer.fits is not None
        lines.append(f"{'rank':>4}  {'score':>6}  {'fit   ' if judged else ''}id")
        for rank, hit in enumerate(answer.hits, 1):
            fit = "" if hit.fit is None else f"{hit.fit:.2f}  "
            mark = f"  (and {hit.copies} copies)" if hit.copies else ""
            mark += MISSING if index.is_missing(hit.row) else ""
            lines.append(f"{rank:>4}  {hit.score:>6.3f}  {fit}{shown(hit.id)}{mark}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def answers_as_json(index: Index, answers: Sequence[Answer]) -> dict[str, Any]:
    """The answers for programs: query, and per image its rank, score, id and file."""
    return {
        "index": str(index.path),
        "model": {key: index.model.get(key) for key in ("name", "fingerprint")},
        "images": len(index),
        "answers": [
            {"query": answer.query}
            | ({"language": answer.language} if answer.language else {})
            | ({"warning": answer.warning} if answer.warning else {})
            | ({} if answer.fits is None else {"fits": answer.fits})
            | {"results": [_hit_as_json(index, rank, hit) for rank, hit in enumerate(answer.hits, 1)]}
            for answer in answers
        ],
    }


def _hit_as_json(index: Index, rank: int, hit: Hit) -> dict[str, Any]:
    file = index.picture(hit.row)
    facts: dict[str, Any] = {"rank": rank, "score": round(hit.score, 6)}
    facts |= {} if hit.fit is None else {"fit": round(hit.fit, 4)}
    facts |= {} if hit.match is None else {"match": round(hit.match, 6)}
    facts |= {"id": hit.id, "file": None if file is None else str(file)}
    facts |= {"copies": hit.copies} if hit.copies else {}
    return facts | ({"missing": True} if index.is_missing(hit.row) else {})


def draw_answers(index: Index, answers: Sequence[Answer], path: Path, fonts: Sequence[Path] = ()) -> list[str]:
    """Draw a row of images per query; returns the ids of images that cannot be read and are left white.

    Raises:
        UserError: the index does not know where its images are.
    """
    # matplotlib takes a second to import, which only a drawing is worth.
    from mclip_fairseq.evaluation.reports.pictures import THUMBNAIL, Example, draw_examples

    unreadable: list[str] = []

    def picture(hit: Hit) -> Image.Image:
        file = index.picture(hit.row)
        if file is None:
            raise UserError(f"{index.path}: does not know where its images are; name their folder with --images-root")
        try:
            return load_image(file, near=THUMBNAIL)
        except ImageError:
            unreadable.append(hit.id)
            return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")

    examples = [
        Example(
            text=answer.query,
            language=answer.language,
            images=[picture(hit) for hit in answer.hits],
            scores=[hit.score for hit in answer.hits],
            own=None,
            rank=None,
        )
        for answer in answers
    ]
    draw_examples(examples, path, fonts=fonts)
    return unreadable


def compare_languages(
    index: Index, model: Any, queries: Mapping[str, str], k: int, target: str | None = None
) -> dict[str, Any]:
    """Compare the ranks that one question gets in several languages.

    Args:
        index: what is searched.
        model: the dual encoder.
        queries: language -> text; the first language is the reference.
        k: how many of the nearest are compared.
        target: id of the image that is meant; None takes the nearest of the first language.

    Returns:
        `target`, `k`, `depth` (ranks beyond it are None), per language `query`, `top`, `score`, `rank` of the target
        and how many of the k nearest it has in common with the first language as `shared`, and the standard deviation
        `rank_std` of the ranks over the languages, None unless all have one.

    Raises:
        UserError: the target is not in the index, or the index is empty.
    """
    import torch

    from mclip_fairseq.evaluation.metrics.variance import mean_rank_variance

    if not len(index):
        raise UserError(f"{index.path}: has no images left; add some with mclip-search add")
    if target is not None and index.find(target) is None:
        raise UserError(f"{index.path}: has no image {target!r}; --target must be an id of the index")
    hits_by_language = dict(
        zip(queries, search_texts(index, model, list(queries.values()), DEPTH, languages=list(queries)), strict=True)
    )
    first = next(iter(hits_by_language.values()))
    target = first[0].id if target is None else target
    reference = {hit.row for hit in first[:k]}
    rows: dict[str, dict[str, Any]] = {}
    for language, hits in hits_by_language.items():
        ranks = [rank for rank, hit in enumerate(hits, 1) if hit.id == target]
        rows[language] = {
            "query": queries[language],
            "top": hits[0].id,
            "score": round(hits[0].score, 6),
            "rank": ranks[0] if ranks else None,
            "shared": len(reference & {hit.row for hit in hits[:k]}),
        }
    ranks = [row["rank"] for row in rows.values() if row["rank"] is not None]
    std = mean_rank_variance(torch.tensor(ranks)[:, None], "std") if len(ranks) == len(rows) else None
    depth = min(DEPTH, len(index))
    return {"target": target, "k": min(k, len(index)), "depth": depth, "languages": rows, "rank_std": std}


def format_languages(report: Mapping[str, Any]) -> str:
    """The comparison as a table, for a terminal."""
    beyond = f">{report['depth']}"
    lines = [
        f"rank of {shown(report['target'])}; shared: how many of the {report['k']} nearest the first language has too"
    ]
    lines.append(f"{'language':<8}  {'rank':>6}  {'shared':>6}  {'score':>6}  nearest | query")
    for language, row in report["languages"].items():
        rank = beyond if row["rank"] is None else str(row["rank"])
        text = row["query"] if len(row["query"]) <= SHOWN_TEXT else row["query"][:SHOWN_TEXT] + "…"
        lines.append(
            f"{shown(language):<8}  {rank:>6}  {row['shared']:>6}  {row['score']:>6.3f}  "
            f"{shown(row['top'])} | {shown(text)}"
        )
    if report["rank_std"] is not None and len(report["languages"]) > 1:
        lines.append(f"standard deviation of the rank over the languages: {report['rank_std']:.2f}")
    return "\n".join(lines)
