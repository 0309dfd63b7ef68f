"""The page: a small web application over one index and one model, loaded once.

Pictures are named by a stamp of the index and the number of their row, and read through the index alone; no answer
holds a path of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import io
import json
import re
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mclip_fairseq.search.batching import Batcher, Busy
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.limits import (
    MAX_CONNECTIONS,
    MAX_TEXT_BODY,
    MAX_UPLOAD,
    MAX_UPLOADS,
    Cache,
    SafeHeaders,
    load_upload,
    read_body,
)
from mclip_fairseq.search.query import Hit, checked_query, search_images, search_texts
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import ImageError, load_image

MAX_K = 100
# A tag, bare or with attributes: no one says so what an image shows; "<3" and "a<b and c>d" are none.
MARKUP = re.compile(r"<\s*[/!]?\s*[a-zA-Z][\w:-]*(\s*/>|>|\s[^<>=]*=[^<]*>)")
ALIKE = 8  # texts of like length encoded together: on few cores padding costs more than small batches
DEFAULT_K = 24
THUMBNAIL, FULL = 256, 1600  # longest edge in pixels
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
CACHED_ANSWERS = 2048
CACHED_PICTURES = 64 << 20
LOCAL = ["localhost", "127.0.0.1", "[::1]"]


class Search:
    """What the page asks for.

    Args:
        index: what is searched.
        model: of the index.
    """

    def __init__(self, index: SearchIndex, model: Any) -> None:
        self.index, self.model = index, model
        # One thread computes: the model is never entered twice. What is sent does not delay the index's pictures.
        self.computing, self.decoding, self.uploaded = (ThreadPoolExecutor(threads) for threads in (1, 2, 1))
        self.texts, self.images = (Batcher(find, self.computing) for find in (self.find_texts, self.find_images))
        self.uploads = 0
        self.reopening, self.refused = asyncio.Lock(), index.state
        self.forget()

    def forget(self) -> None:
        """Empty the caches: what is on its way still goes into the old ones."""
        self.answers: Cache[list[dict[str, Any]]] = Cache(CACHED_ANSWERS)
        self.pictures: Cache[bytes] = Cache(CACHED_PICTURES, len)

    async def refresh(self) -> None:
        """Open the index again if it was changed on the disk, so that what was removed is not found any more."""
        async with self.reopening:
            state = self.index.state_now
            if state in (self.index.state, self.refused):
                return
            try:
                fresh = await asyncio.get_running_loop().run_in_executor(self.computing, self.index.reopened)
                fresh.check_model(self.model)
            except (ValueError, OSError) as error:
                self.refused = state
                told = "the index was changed but cannot be opened again, the page stays as it was"
                print(f"{told}: {error}", file=sys.stderr, flush=True)
                return
            self.index = fresh
            self.forget()

    def find_texts(self, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """Images for each text, as the page shows them."""
        index = self.index
        return [named(index, hits) for hits in search_texts(index, self.model, texts, MAX_K, ALIKE)]

    def find_images(self, images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
        """Images for each image, as the page shows them."""
        index = self.index
        return [named(index, hits) for hits in search_images(index, self.model, images, MAX_K)]

    async def about(self, request: Request) -> Response:
        """What is searched, for the page's head."""
        await self.refresh()
        languages = list(getattr(self.model, "languages", []))
        found = {"name": self.index.path.resolve().name, "model": self.index.model.get("name")}
        return JSONResponse(found | {"images": len(self.index), "languages": languages})

    async def by_text(self, request: Request) -> Response:
        """`{"query": text, "k": number}` -> the nearest images."""
        if media_type_of(request) != "application/json":
            raise HTTPException(415, "send JSON")
        try:
            body = json.loads(await read_body(request, MAX_TEXT_BODY))
            text, k = checked_query(body["query"]), body.get("k", DEFAULT_K)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            told = str(error) if type(error) is ValueError else 'send {"query": "text"}'
            raise HTTPException(400, told) from error
        if MARKUP.search(text):
            raise HTTPException(400, "the query is markup; say in words what the image shows")
        if type(k) is not int or not 1 <= k <= MAX_K:
            raise HTTPException(400, f"k is a whole number from 1 to {MAX_K}")
        await self.refresh()
        answers = self.answers
        found = answers.get(text)
        if found is None:
            found = await self.texts(text)
            answers.put(text, found)
        return JSONResponse({"results": found[:k]})

    async def by_image(self, request: Request) -> Response:
        """An image file -> the nearest images."""
        kind = media_type_of(request)
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise HTTPException(415, "send an image")
        if self.uploads >= MAX_UPLOADS:
            raise HTTPException(503, "too many images are being sent; try again in a moment", {"Retry-After": "5"})
        self.uploads += 1
        try:
            body = await read_body(request, MAX_UPLOAD)
            if not body:
                raise HTTPException(400, "the image is empty")
            image = await self.decoded(self.uploaded, lambda: load_upload(body, FULL))
            await self.refresh()
            found = await self.images(image)
        finally:
            self.uploads -= 1
        return JSONResponse({"results": found[:DEFAULT_K]})

    async def picture(self, request: Request) -> Response:
        """A picture as JPEG, without its metadata: small as `/thumb/STAMP/ROW`, larger as `/image/STAMP/ROW`."""
        await self.refresh()
        index, pictures = self.index, self.pictures
        # The browser keeps what it has seen: another index at this address must not be shown with these pictures.
        if request.path_params["stamp"] != index.stamp:
            raise HTTPException(404, "the index was changed; search again")
        name = request.path_params["row"]
        row = int(name) if name.isdecimal() and len(name) < 12 else -1
        size = THUMBNAIL if request.url.path.startswith("/thumb/") else FULL
        key = f"{size}/{row}"
        content = pictures.get(key)
        if content is None:
            try:
                path = index.picture(row)
            except ValueError as error:
                raise HTTPException(404, "there is no such image") from error
            if path is None:
                raise HTTPException(404, "the index knows no picture of this image")
            content = await self.decoded(self.decoding, lambda: as_jpeg(load_image(path, near=size), size), 404)
            pictures.put(key, content)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    async def decoded(self, executor: Executor, function: Callable[[], Any], status: int = 400) -> Any:
        """The result of something that decodes an image, in another thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function)
        except ImageError as error:
            # The reason may name a file of the server; only what was sent is explained.
            reason = f"the image {error.reason}" if status == 400 else "the picture cannot be read any more"
            raise HTTPException(status, reason) from error


def media_type_of(request: Request) -> str:
    """The kind of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def named(index: SearchIndex, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Images as the page shows them."""
    return [{"picture": f"{index.stamp}/{hit.row}", "id": hit.id, "score": round(hit.score, 4)} for hit in hits]


def as_jpeg(image: Image.Image, size: int) -> bytes:
    """A picture with edges of at most `size` pixels."""
    if max(image.size) > size:
        image = ImageOps.contain(image, (size, size))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return stream.getvalue()


async def page(request: Request) -> Response:
    """One of the three files of the page."""
    name, media_type = PAGE[request.url.path]
    content = importlib.resources.files("mclip_fairseq.search").joinpath("page", name).read_bytes()
    return Response(content, media_type=media_type)


async def refusal(request: Request, error: Exception) -> Response:
    """One sentence, in JSON."""
    if isinstance(error, Busy):
        return JSONResponse({"error": "too many are asking; try again in a moment"}, 503)
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def failure(request: Request, error: Exception) -> Response:
    """An error that nobody foresaw, without what it says."""
    return JSONResponse({"error": "the search failed"}, 500)


def make_app(index: SearchIndex, model: Any, hosts: Sequence[str] = ()) -> Starlette:
    """The application.

    Args:
        index: what is searched.
        model: of the index.
        hosts: names it may be called by besides those of this machine; `*` allows all.
    """
    search = Search(index, model)
    routes = [
        *(Route(path, page) for path in PAGE),
        Route("/about", search.about),
        Route("/search", search.by_text, methods=["POST"]),
        Route("/search/image", search.by_image, methods=["POST"]),
        Route("/thumb/{stamp}/{row}", search.picture),
        Route("/image/{stamp}/{row}", search.picture),
    ]
    # Other names than these are how a foreign page would reach a server on this machine.
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *hosts], www_redirect=False)
    handlers: Any = {HTTPException: refusal, Busy: refusal, Exception: failure}
    return Starlette(routes=routes, middleware=[Middleware(SafeHeaders), trusted], exception_handlers=handlers)


def make_server(index: SearchIndex, model: Any, hosts: Sequence[str] = ()) -> uvicorn.Server:
    """The application in its server, which says nothing of itself and writes no log of who asked what."""
    app = make_app(index, model, hosts)
    quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False, "lifespan": "off"}
    return uvicorn.Server(uvicorn.Config(app, limit_concurrency=MAX_CONNECTIONS, **quiet))


def serve(index: SearchIndex, model: Any, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        OSError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}, port {port}: cannot be listened on: {error}") from error
    everywhere = host in ("0.0.0.0", "::")
    own = [] if everywhere else [f"[{host}]" if ":" in host else host]
    hosts = [*own, *allowed_hosts] or ["*"]
    shown = own[0] if own else "localhost"
    print(f"{len(index)} images at http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C stops)", flush=True)
    with listening, contextlib.suppress(KeyboardInterrupt):
        make_server(index, model, hosts).run(sockets=[listening])
