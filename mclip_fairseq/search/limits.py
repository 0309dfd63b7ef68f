"""Request limits and security headers of the page."""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mclip_fairseq.storage.images import load_image

MAX_TEXT_BODY = 32 << 10
MAX_UPLOAD = 16 << 20
MAX_JPEG_PIXELS = 40_000_000
MAX_PIXELS = 16_000_000  # of other formats, which cannot be decoded at a smaller size
MAX_DECODED = 256 << 20  # bytes that decoding may take; one upload is decoded at a time
MAX_UPLOADS = 8  # at once
UPLOADS_PER_CLIENT = MAX_UPLOADS // 2  # so that one address, which may send slowly, leaves room for others
MAX_CONNECTIONS = 256
BODY_SECONDS = 30.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
Value = TypeVar("Value")


class SafeHeaders:
    """Middleware that puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and add the headers to the start of its answer (ASGI)."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, with_headers)


def media_type_of(request: Request) -> str:
    """The kind of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: it is larger than the limit (413), takes too long (408), or ends early (400).
    """
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > limit:
        raise HTTPException(413, f"the request is larger than {limit} bytes")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise HTTPException(413, f"the request is larger than {limit} bytes")
                parts.append(part)
    except TimeoutError as error:
        raise HTTPException(408, "the request took too long") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the request ended early") from error
    return b"".join(parts)


def load_upload(content: bytes, near: int) -> Image.Image:
    """Decode an uploaded image and shrink it to edges of at most `near` pixels.

    Raises:
        ImageError: it cannot be decoded, or is too large.
    """
    is_jpeg = content.startswith(b"\xff\xd8\xff")
    image = load_image(io.BytesIO(content), MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS, near, MAX_DECODED)
    image.thumbnail((near, near))
    return image


class Cache(Generic[Value]):
    """A cache that forgets the values used longest ago.

    Args:
        room: total weight that is kept.
        weight: of a value; None counts values.
    """

    def __init__(self, room: int, weight: Callable[[Value], int] | None = None) -> None:
        self.room, self.weight = room, weight or (lambda value: 1)
        self.values: OrderedDict[Any, Value] = OrderedDict()
        self.used = 0

    def get(self, key: Any) -> Value | None:
        """The value, or None if it is not in the cache."""
        if key in self.values:
            self.values.move_to_end(key)
        return self.values.get(key)

    def put(self, key: Any, value: Value) -> None:
        """Add a value, and forget the oldest ones to make room."""
        if key in self.values:
            self.used -= self.weight(self.values.pop(key))
        self.values[key] = value
        self.used += self.weight(value)
        while self.used > self.room:
            self.used -= self.weight(self.values.popitem(last=False)[1])
