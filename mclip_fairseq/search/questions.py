"""What the page asks for: a text, an image, an image of the index, or a text together with an image."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from starlette.exceptions import HTTPException

from mclip_fairseq.search.engine import Index
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.search.query import check_query
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import parse_json
from mclip_fairseq.storage.images import ImageError, load_image

if TYPE_CHECKING:
    from torch import Tensor

MAX_K = 100
DEFAULT_K = 24
# HTML tags, bare or with attributes, are rejected as queries; "<3" and "a<b and c>d" are not tags.
MARKUP = re.compile(r"<\s*[/!]?\s*[a-zA-Z][\w:-]*(\s*/>|>|\s[^<>=]*=[^<]*>)")
FIELDS = {"query": str | None, "k": int | None, "language": str | None, "like": str | None, "unique": bool | None}
TEXT_BATCH = 8  # on few cores the padding of large batches costs more than small batches do


@dataclass(frozen=True)
class Asked:
    """What a search looks for; a text and an image together are one query.

    Attributes:
        text: a checked text, or empty.
        language: of the text, for a model that reads each in its own way.
        like: id of an image of the index, to find images like it, or empty.
        image: an uploaded image.
        unique: whether images with equal vectors count as one.
    """

    text: str = ""
    language: str = ""
    like: str = ""
    image: Image.Image | None = None
    unique: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it is a text alone."""
        return self.image is None and not self.like


@dataclass(frozen=True)
class Question:
    """A checked request, before the image it names is looked up.

    Attributes:
        text: empty if there is only an image.
        k: how many hits.
        language: empty if none is named.
        like: `STAMP/ROW` of an image, or empty.
        unique: see `Asked`.
    """

    text: str
    k: int
    language: str
    like: str
    unique: bool


def read_question(body: bytes) -> Question:
    """Read a JSON question.

    Raises:
        HTTPException: 400, with the reason.
    """
    try:
        question = check_fields("the request", parse_json(body), FIELDS, 'send {"query": "text"}')
    except ValueError as error:
        reason = str(error) if isinstance(error, UserError) else 'the request is not JSON; send {"query": "text"}'
        raise HTTPException(400, reason) from error
    return check_question(question)


def read_parameters(given: Mapping[str, str]) -> Question:
    """Read what the address of an upload asks for besides its image.

    Args:
        given: parameter -> value.

    Raises:
        HTTPException: 400, with the reason.
    """
    k = given.get("k", "")
    if k and not (k.isdecimal() and len(k) < 4):
        raise HTTPException(400, f"k must be a whole number from 1 to {MAX_K}")
    return check_question(
        {
            "query": given.get("query") or None,
            "k": int(k) if k else None,
            "language": given.get("language"),
            "like": "-",  # the upload is used instead
            "unique": "unique" in given,
        }
    )


def check_question(question: Mapping[str, Any]) -> Question:
    """Check the values of a question.

    Raises:
        HTTPException: 400, with the reason.
    """
    text, like = question.get("query"), question.get("like") or ""
    if text is not None or not like:
        try:
            text = check_query(text or "")
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        if MARKUP.search(text):
            raise HTTPException(400, "the query is markup; describe the image in words")
    k = DEFAULT_K if question.get("k") is None else question["k"]
    if not 1 <= k <= MAX_K:
        raise HTTPException(400, f"k must be a whole number from 1 to {MAX_K}")
    return Question(text or "", k, question.get("language") or "", like, bool(question.get("unique")))


def encode(index: Index, model: Any, asked: Sequence[Asked]) -> Tensor:
    """(n, dim) L2-normalised vectors; that of a text together with an image is the normalised sum of both."""
    import torch
    import torch.nn.functional as F

    out = torch.zeros(len(asked), model.dim)
    texts = [place for place, each in enumerate(asked) if each.text]
    if texts:
        words, languages = zip(*((asked[place].text, asked[place].language) for place in texts), strict=True)
        out[texts] = encode_texts(model, words, languages, TEXT_BATCH)
    pictures = [place for place, each in enumerate(asked) if not each.is_text]
    if pictures:
        out[pictures] += torch.cat([encode_picture(index, model, asked[place]) for place in pictures])
        both = [place for place in pictures if asked[place].text]
        out[both] = F.normalize(out[both], dim=1)
    return out


def encode_picture(index: Index, model: Any, asked: Asked) -> Tensor:
    """(1, dim) vector of the image that is asked for: the stored one, where the kind of index keeps it.

    Zeros, which are equally far from everything, where neither vector nor file exists any more.
    """
    import torch

    image = asked.image
    row = index.find(asked.like)
    if image is None and row is not None:
        stored = index.vectors([row])
        if stored is not None:
            return torch.from_numpy(stored)
        file = index.picture(row)
        with contextlib.suppress(ImageError):
            image = load_image(file) if file is not None else None
    vector: Tensor = torch.zeros(1, model.dim) if image is None else model.encode_image([image])
    return vector
