"""`POST /v1/embeddings` in OpenAI's form: vectors of texts, and of images sent as base64; no address is fetched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mclip_fairseq.search.batching import Batcher
from mclip_fairseq.search.languages import encode_texts
from mclip_fairseq.search.limits import MAX_UPLOAD, MAX_UPLOADS, load_upload, media_type_of, read_body
from mclip_fairseq.search.openapi import MAX_IMAGES, MAX_INPUTS, MAX_TEXT, PREFIX, description
from mclip_fairseq.search.questions import TEXT_BATCH
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import parse_json
from mclip_fairseq.storage.images import ImageError
from mclip_fairseq.storage.texts import LONE_SURROGATE, is_blank

KEY_VARIABLE = "MCLIP_API_KEY"
FIELDS = {
    "input": str | list | dict,
    "model": str | None,
    "encoding_format": str | None,
    "dimensions": int | None,
    "language": str | None,
}
FORM = 'send {"input": ["text"], "model": "NAME"}'
CHUNKS = 4  # chunks of TEXT_BATCH inputs computed at once, so that nobody waits long for a large request
EDGE = 1600  # pixels to which the longer edge of an image is shrunk at once
AT_HOME = ("127.0.0.1", "::1", "localhost")
Chunk = tuple[tuple[str, str] | Image.Image, ...]


@dataclass(frozen=True)
class Access:
    """Who may ask for vectors.

    Attributes:
        offered: whether the endpoint exists.
        key: that every request must carry (`Authorization: Bearer KEY`); empty: none.
    """

    offered: bool = True
    key: str = ""


def access_of(host: str, allowed_hosts: Sequence[str], key: str) -> Access:
    """A server that others can reach has the endpoint only with a key.

    Args:
        host: address on which the server listens.
        allowed_hosts: host names that it accepts besides.
        key: of the environment; empty: none.
    """
    return Access(bool(key) or (host in AT_HOME and not allowed_hosts), key)


@dataclass(frozen=True)
class Wanted:
    """A checked request.

    Attributes:
        inputs: a text, or the bytes of an image file.
        as_base64: whether vectors are little-endian float32 in base64 instead of lists.
        dimensions: leading dimensions to keep.
        language: of the texts, where the model reads each in its own way; empty: guessed.
    """

    inputs: list[str | bytes]
    as_base64: bool
    dimensions: int
    language: str


class Embeddings:
    """Answers the endpoint's requests.

    Args:
        model: a `MultilingualCLIP`.
        computing: the one thread that may use the model.
        decoding: decodes images.
        access: who may ask.
        language_of: (text, language named in the request) -> language; raises HTTPException.
    """

    def __init__(
        self,
        model: Any,
        computing: Executor,
        decoding: Executor,
        access: Access,
        language_of: Callable[[str, str], str],
    ) -> None:
        self.model, self.decoding, self.access, self.language_of = model, decoding, access, language_of
        self.batcher = Batcher(self.encode, computing, CHUNKS)
        self.decodings = 0

    @property
    def routes(self) -> list[Route]:
        """The paths; none where the endpoint is not offered."""
        if not self.access.offered:
            return []
        return [
            Route(f"{PREFIX}/embeddings", self.embeddings, methods=["POST"]),
            Route(f"{PREFIX}/models", self.models),
            Route(f"{PREFIX}/openapi.json", self.openapi),
        ]

    def check_key(self, request: Request) -> None:
        """Refuse a request without the key.

        Raises:
            HTTPException: 401.
        """
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.access.key and not hmac.compare_digest(given.encode(), self.access.key.encode()):
            raise HTTPException(401, "the key is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        self.check_key(request)
        return JSONResponse({"object": "list", "data": [{"id": self.model.name, "object": "model"}]})

    async def openapi(self, request: Request) -> Response:
        """The description of the endpoint."""
        return JSONResponse(description(self.model.name, self.model.dim, bool(self.access.key)))

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts and images, in the order of the request."""
        self.check_key(request)
        if media_type_of(request) != "application/json":
            raise HTTPException(415, "send JSON")
        wanted = read_request(await read_body(request, MAX_UPLOAD), self.model)
        inputs = await self.prepared(wanted)
        chunks = [tuple(inputs[start : start + TEXT_BATCH]) for start in range(0, len(inputs), TEXT_BATCH)]
        vectors = np.concatenate(await asyncio.gather(*(self.batcher(chunk) for chunk in chunks)))
        if wanted.dimensions < vectors.shape[1]:
            vectors = vectors[:, : wanted.dimensions]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        rows: list[Any] = [as_base64(row) for row in vectors] if wanted.as_base64 else vectors.tolist()
        data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
        tokens = self.count_tokens([each for each in inputs if not isinstance(each, Image.Image)])
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.model.name, "usage": usage})

    async def prepared(self, wanted: Wanted) -> list[tuple[str, str] | Image.Image]:
        """Texts with their languages, and images, decoded one at a time.

        Raises:
            HTTPException: an image or a language that cannot be read; too many images at once.
        """
        texts = {
            each: (each, self.language_of(each, wanted.language)) for each in wanted.inputs if isinstance(each, str)
        }
        images: dict[bytes, Image.Image] = {}
        files = [each for each in wanted.inputs if isinstance(each, bytes)]
        if files and self.decodings >= MAX_UPLOADS:
            raise HTTPException(503, "too many images at once; try again in a moment", {"Retry-After": "5"})
        self.decodings += bool(files)
        try:
            for file in files:
                images[file] = await asyncio.get_running_loop().run_in_executor(self.decoding, load_upload, file, EDGE)
        except ImageError as error:
            raise HTTPException(400, f"the image {error.reason}") from error
        finally:
            self.decodings -= bool(files)
        return [texts[each] if isinstance(each, str) else images[each] for each in wanted.inputs]

    def encode(self, chunks: Sequence[Chunk]) -> list[np.ndarray[Any, Any]]:
        """(inputs, dim) L2-normalised vectors of each chunk, all computed together."""
        inputs = [each for chunk in chunks for each in chunk]
        out = np.zeros((len(inputs), self.model.dim), dtype=np.float32)
        texts = [row for row, each in enumerate(inputs) if not isinstance(each, Image.Image)]
        images = [row for row, each in enumerate(inputs) if isinstance(each, Image.Image)]
        if texts:
            words, languages = zip(*(inputs[row] for row in texts), strict=True)
            out[texts] = encode_texts(self.model, words, languages, TEXT_BATCH).numpy()
        if images:
            out[images] = self.model.encode_image([inputs[row] for row in images]).numpy()
        return np.split(out, np.cumsum([len(chunk) for chunk in chunks])[:-1].tolist())

    def count_tokens(self, texts: Sequence[tuple[str, str]]) -> int:
        """Tokens of texts, as far as the model counts them."""
        if getattr(self.model, "count_known", None) is None:
            return 0
        readers = [(self.model.for_language(language) if language else self.model, text) for text, language in texts]
        return sum(reader.count_known([text])[0][1] for reader, text in readers)


def as_base64(vector: np.ndarray[Any, Any]) -> str:
    """A vector as little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def read_request(body: bytes, model: Any) -> Wanted:
    """Read and check a request.

    Args:
        body: JSON.
        model: that is served.

    Raises:
        HTTPException: 400, or 404 for another model, with the reason.
    """
    try:
        asked = check_fields("the request", parse_json(body), FIELDS, FORM)
    except ValueError as error:
        reason = str(error) if isinstance(error, UserError) else f"the request is not JSON; {FORM}"
        raise HTTPException(400, reason) from error
    if asked.get("model") not in (None, model.name):
        raise HTTPException(404, f"the model is not served here; this is {model.name}")
    form = asked.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise HTTPException(400, "encoding_format must be float or base64")
    dimensions = model.dim if asked.get("dimensions") is None else asked["dimensions"]
    if not 1 <= dimensions <= model.dim:
        raise HTTPException(400, f"dimensions must be a whole number from 1 to {model.dim}")
    items = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    if not 1 <= len(items) <= MAX_INPUTS:
        raise HTTPException(400, f"the request has {len(items)} inputs; send 1 to {MAX_INPUTS}")
    inputs = [read_input(number, item) for number, item in enumerate(items)]
    if sum(isinstance(each, bytes) for each in inputs) > MAX_IMAGES:
        raise HTTPException(400, f"the request has more than {MAX_IMAGES} images; send fewer at a time")
    return Wanted(inputs, form == "base64", dimensions, asked.get("language") or "")


def read_input(number: int, item: Any) -> str | bytes:
    """One input: a string, `{"text": string}` or `{"image": base64 or data URL}`.

    Raises:
        HTTPException: 400, with the reason.
    """
    if isinstance(item, dict) and len(item) == 1:
        (kind, value), *_ = item.items()
        if kind == "image" and isinstance(value, str):
            return read_image(number, value)
        item = value if kind == "text" else None
    if not isinstance(item, str):
        raise HTTPException(400, f'input {number} is not a text; send a string, or {{"image": "BASE64"}}')
    if "\0" in item or LONE_SURROGATE.search(item):
        raise HTTPException(400, f"input {number} is not valid Unicode text")
    if is_blank(item) or len(item) > MAX_TEXT:
        raise HTTPException(400, f"input {number} has {len(item)} characters; send 1 to {MAX_TEXT}, not only spaces")
    return item


def read_image(number: int, value: str) -> bytes:
    """The bytes of an image in base64, bare or as a data URL.

    Raises:
        HTTPException: 400, an address, or not base64.
    """
    head, comma, rest = value.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise HTTPException(400, f"input {number} is not an image in base64")
    if value[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise HTTPException(400, f"input {number} is an address; send the image itself in base64")
    try:
        return base64.b64decode(rest if comma else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"input {number} is not an image in base64") from error
