"""The page: a small web application over one index and one model.

An image's address is the index's stamp and its row, and images are read through the index only; no answer contains a
path of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mclip_fairseq.search.batching import Batcher
from mclip_fairseq.search.calibration import read_calibration
from mclip_fairseq.search.connections import LimitedProtocol
from mclip_fairseq.search.embeddings import Access, Embeddings
from mclip_fairseq.search.engine import Index, Row, Unavailable
from mclip_fairseq.search.languages import guess_language
from mclip_fairseq.search.limits import (
    MAX_CONNECTIONS,
    MAX_TEXT_BODY,
    MAX_UPLOAD,
    MAX_UPLOADS,
    UPLOADS_PER_CLIENT,
    Cache,
    SafeHeaders,
    load_upload,
    media_type_of,
    read_body,
)
from mclip_fairseq.search.presenting import Extras, as_jpeg, hits_as_json, sample_pictures
from mclip_fairseq.search.query import (
    COPIES,
    NOTHING_FITS,
    hits_of,
    search_images,
    search_texts,
    unknown_words,
    without_copies,
)
from mclip_fairseq.search.questions import MAX_K, TEXT_BATCH, Asked, encode, read_parameters, read_question
from mclip_fairseq.search.refusals import HANDLERS
from mclip_fairseq.search.reranking import Reranker
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown
from mclip_fairseq.storage.images import ImageError, load_image

THUMBNAIL, FULL = 256, 1600  # longest edge in pixels
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
CACHED_ANSWERS = 2048
EARLIER = 4  # indexes whose images are still shown
CACHED_PICTURES = 64 << 20
LOCAL = ["localhost", "127.0.0.1", "[::1]"]


class Search:
    """Answers the page's requests.

    Args:
        index: what is searched.
        model: of the index.
        rerank: hits of a text that are put in the order of the model's matching scores; 0 for none.
        extras: examples and captions.
    """

    def __init__(self, index: Index, model: Any, rerank: int = 0, extras: Extras | None = None) -> None:
        self.index, self.model, self.extras = index, model, extras or Extras()
        self.reranker = Reranker(index, model, rerank) if rerank else None
        self.calibration = read_calibration(index, self.extras.fit, self.extras.hubs)
        # One thread computes, because the model is not thread-safe; uploads must not delay the index's own images.
        self.computing, self.decoding, self.uploaded = (ThreadPoolExecutor(threads) for threads in (1, 2, 1))
        self.texts, self.images = (Batcher(self.find, self.computing) for _ in range(2))
        self.uploads = Counter[str]()  # by address
        self.earlier: dict[str, Index] = {}
        self.reopening, self.unusable_state = asyncio.Lock(), index.state
        self.forget()

    def forget(self) -> None:
        """Replace the caches: requests in progress still write to the old ones."""
        self.answers: Cache[tuple[list[dict[str, Any]], str]] = Cache(CACHED_ANSWERS)
        self.pictures: Cache[bytes] = Cache(CACHED_PICTURES, len)

    async def refresh(self) -> None:
        """Open the index again if it has changed on the disk, so that removed images are no longer found."""
        async with self.reopening:
            state = await asyncio.to_thread(lambda: self.index.state_now)  # a database may be far away
            if state in (self.index.state, self.unusable_state):
                return
            try:
                changed = await asyncio.get_running_loop().run_in_executor(self.computing, self.index.reopened)
                changed.check_model(self.model)
                calibration = await asyncio.to_thread(read_calibration, changed, self.extras.fit, self.extras.hubs)
            except (UserError, OSError) as error:
                self.unusable_state = state
                message = "the index has changed but cannot be opened again, so the page still serves the old one"
                print(f"{message}: {shown(str(error))}", file=sys.stderr, flush=True)
                return
            self.keep_pictures(self.index)
            self.index, self.calibration = changed, calibration
            self.forget()

    def keep_pictures(self, index: Index) -> None:
        """Keep what shows the images of an index that is replaced: open pages have their addresses."""
        self.earlier[index.stamp] = index.without_vectors()
        while len(self.earlier) > EARLIER:
            self.earlier.pop(next(iter(self.earlier)))

    def find(self, asked: Sequence[Asked]) -> list[tuple[list[dict[str, Any]], str]]:
        """The nearest images of each question, as the page shows them, and a warning where they say little."""
        index, calibration = self.index, self.calibration
        depth = MAX_K * (COPIES if any(each.unique for each in asked) else 1) + 1
        depth = calibration.depth(depth) if calibration else depth
        found = hits_of(index, encode(index, self.model, asked), depth)
        alone = [place for place, each in enumerate(asked) if each.is_text]
        warnings = [self.warning(each) for each in asked]
        if calibration is not None:
            for place in alone:
                found[place] = calibration.judge(index, found[place], asked[place].language)
                if not calibration.fits(found[place]):
                    warnings[place] = "; ".join(filter(None, (warnings[place], NOTHING_FITS)))
        if self.reranker is not None and alone:
            ranked = self.reranker(index, [asked[place].text for place in alone], [found[place] for place in alone])
            for place, hits in zip(alone, ranked, strict=True):
                found[place] = hits
        answers = []
        for each, nearest, warning in zip(asked, found, warnings, strict=True):
            others = [hit for hit in nearest if hit.id != each.like]
            kept = without_copies(index, others, MAX_K) if each.unique else others[:MAX_K]
            answers.append((hits_as_json(index, kept, self.extras.captions), warning))
        return answers

    def warning(self, asked: Asked) -> str:
        """What the model does not know of a text."""
        if not asked.text:
            return ""
        return unknown_words(self.model, [asked.text], [asked.language] if asked.language else [])[0]

    def check_language(self, text: str, language: str) -> str:
        """The language in which a model with a text path per language reads a query; empty for other models.

        Raises:
            HTTPException: 400, the model does not have it.
        """
        if getattr(self.model, "reads_any_language", True):
            return ""
        try:
            language = language or guess_language(text, self.model.languages)
            self.model.for_language(language)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        return language

    async def about(self, request: Request) -> Response:
        """What is searched, for the start screen and the footer."""
        await self.refresh()
        searched = self.index
        # In a thread, here and below: a database may be far away, and other requests must not wait for it.
        count, samples = await asyncio.to_thread(lambda: (len(searched), sample_pictures(searched)))
        index = {"name": searched.name, "model": searched.model.get("name")}
        choose = not getattr(self.model, "reads_any_language", True)
        facts = {"images": count, "languages": list(self.model.languages), "choose_language": choose}
        examples = [{"language": language, "text": text} for language, text in self.extras.examples]
        return JSONResponse(index | facts | {"examples": examples, "samples": samples})

    async def by_text(self, request: Request) -> Response:
        """`{"query": text, "like": "STAMP/ROW", "k": number, "language": code, "unique": bool}` -> the nearest images.

        A text, an image of the index, or both as one query.
        """
        if media_type_of(request) != "application/json":
            raise HTTPException(415, "send JSON")
        question = read_question(await read_body(request, MAX_TEXT_BODY))
        language = self.check_language(question.text, question.language) if question.text else ""
        await self.refresh()
        like = await asyncio.to_thread(self.image_like, question.like) if question.like else ""
        asked = Asked(question.text, language, like, unique=question.unique)
        answers = self.answers
        answer = answers.get(asked)
        if answer is None:
            answer = await (self.texts if asked.is_text else self.images)(asked)
            answers.put(asked, answer)
        return answer_of(answer, question.k)

    async def by_image(self, request: Request) -> Response:
        """An image file -> the nearest images; `?query=TEXT` adds a text to the query."""
        kind = media_type_of(request)
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise HTTPException(415, "send an image")
        question = read_parameters(request.query_params)
        language = self.check_language(question.text, question.language) if question.text else ""
        client = request.client.host if request.client else ""
        if self.uploads.total() >= MAX_UPLOADS or self.uploads[client] >= UPLOADS_PER_CLIENT:
            raise HTTPException(503, "too many uploads at once; try again in a moment", {"Retry-After": "5"})
        self.uploads[client] += 1
        try:
            body = await read_body(request, MAX_UPLOAD)
            if not body:
                raise HTTPException(400, "the image is empty")
            image = await self.decoded(self.uploaded, lambda: load_upload(body, FULL))
            await self.refresh()
            answer = await self.images(Asked(question.text, language, image=image, unique=question.unique))
        finally:
            self.uploads -= Counter([client])
        return answer_of(answer, question.k)

    def place(self, stamp: str, address: str) -> tuple[Index, Row]:
        """The index and the row of an image's address, which may come from a page that was opened before a change.

        Raises:
            HTTPException: 404, the image was removed, or the index was changed too often since.
        """
        index = self.index if stamp == self.index.stamp else self.earlier.get(stamp)
        if index is None:
            raise HTTPException(404, "the index was changed; search again")
        row = index.row_at(address)
        # What was removed since is not shown any more.
        if row is None or (index is not self.index and self.index.find(index.id_of(row)) is None):
            raise HTTPException(404, "there is no such image")
        return index, row

    def image_like(self, picture: str) -> str:
        """The id of the image that `STAMP/ROW` names.

        Raises:
            HTTPException: 404, there is no such image.
        """
        index, row = self.place(*picture.partition("/")[::2])
        return index.id_of(row)

    async def picture(self, request: Request) -> Response:
        """An image as JPEG without metadata: small as `/thumb/STAMP/ROW`, larger as `/image/STAMP/ROW`."""
        await self.refresh()
        pictures = self.pictures
        # Browsers cache images by address, so a different index at the same address needs other image addresses.
        stamp, name = request.path_params["stamp"], request.path_params["row"]
        index, row = await asyncio.to_thread(self.place, stamp, name)
        size = THUMBNAIL if request.url.path.startswith("/thumb/") else FULL
        key = f"{size}/{stamp}/{row}"
        content = pictures.get(key)
        if content is None:
            try:
                path = await self.decoded(self.decoding, lambda: index.picture(row))
            except Unavailable:
                raise
            except UserError as error:
                raise HTTPException(404, "there is no such image") from error
            if path is None:
                raise HTTPException(404, "the index does not know where this image is")
            content = await self.decoded(self.decoding, lambda: as_jpeg(load_image(path, near=size), size), 404)
            pictures.put(key, content)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    async def decoded(self, executor: Executor, function: Callable[[], Any], status: int = 400) -> Any:
        """The result of a function that decodes an image, run in another thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function)
        except ImageError as error:
            # The reason may name a file of the server, so it is given for uploads only.
            reason = f"the image {error.reason}" if status == 400 else "the image can no longer be read"
            raise HTTPException(status, reason) from error


def answer_of(answer: tuple[list[dict[str, Any]], str], k: int) -> Response:
    """The first k hits; `more` says whether there are others."""
    hits, warning = answer
    return JSONResponse({"results": hits[:k], "more": len(hits) > k} | ({"warning": warning} if warning else {}))


async def page_file(request: Request) -> Response:
    """One of the three files of the page."""
    name, media_type = PAGE[request.url.path]
    content = importlib.resources.files("mclip_fairseq.search").joinpath("page", name).read_bytes()
    return Response(content, media_type=media_type)


def make_app(
    index: Index,
    model: Any,
    hosts: Sequence[str] = (),
    rerank: int = 0,
    extras: Extras | None = None,
    access: Access | None = None,
) -> Starlette:
    """The application.

    Args:
        index: what is searched.
        model: of the index.
        hosts: host names to accept besides those of this machine; `*` accepts all.
        rerank: see `Search`.
        extras: see `Search`.
        access: who may ask for vectors; None: everyone who reaches the server.
    """
    search = Search(index, model, rerank, extras)
    computing, decoding = search.computing, search.uploaded
    vectors = Embeddings(model, computing, decoding, access or Access(), search.check_language)
    routes = [
        *vectors.routes,
        *(Route(path, page_file) for path in PAGE),
        Route("/about", search.about),
        Route("/search", search.by_text, methods=["POST"]),
        Route("/search/image", search.by_image, methods=["POST"]),
        Route("/thumb/{stamp}/{row}", search.picture),
        Route("/image/{stamp}/{row}", search.picture),
    ]
    # Against DNS rebinding: a foreign page can reach a server on this machine only by a host name of its own.
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *hosts], www_redirect=False)
    return Starlette(routes=routes, middleware=[Middleware(SafeHeaders), trusted], exception_handlers=HANDLERS)


def make_server(
    index: Index,
    model: Any,
    hosts: Sequence[str] = (),
    rerank: int = 0,
    extras: Extras | None = None,
    access: Access | None = None,
) -> uvicorn.Server:
    """The uvicorn server of the application: no Server header, no access log."""
    app = make_app(index, model, hosts, rerank, extras, access)
    quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False, "lifespan": "off"}
    # `LimitedProtocol` refuses sooner, with an answer in JSON.
    return uvicorn.Server(uvicorn.Config(app, http=LimitedProtocol, limit_concurrency=4 * MAX_CONNECTIONS, **quiet))


def warm_up(index: Index, model: Any) -> None:
    """Compute once what the first queries need, so that they are as quick as later ones."""
    languages = [""] if getattr(model, "reads_any_language", True) else model.languages[:1]
    search_texts(index, model, ["a photo"], 1, TEXT_BATCH, languages)
    try:
        search_images(index, model, [Image.new("RGB", (64, 64))], 1)
    except UserError as error:
        print(f"the page cannot search with images: {shown(str(error))}", file=sys.stderr, flush=True)


def serve(
    index: Index,
    model: Any,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
    rerank: int = 0,
    extras: Extras | None = None,
    access: Access | None = None,
) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        OSError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host}, port {port}: cannot listen there: {error}; choose another --host or --port"
        ) from error
    warm_up(index, model)
    everywhere = host in ("0.0.0.0", "::")
    own = [] if everywhere else [f"[{host}]" if ":" in host else host]
    hosts = [*own, *allowed_hosts] or ["*"]
    name = own[0] if own else "localhost"
    print(f"{len(index)} images at http://{name}:{listening.getsockname()[1]}/ (Ctrl-C stops)", flush=True)
    with listening, contextlib.suppress(KeyboardInterrupt):
        make_server(index, model, hosts, rerank, extras, access).run(sockets=[listening])
