"""What the page answers when it cannot do what is asked: one sentence, in JSON."""

from __future__ import annotations

import sys
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mclip_fairseq.search.batching import Busy
from mclip_fairseq.search.connections import RETRY_SECONDS
from mclip_fairseq.search.engine import Unavailable
from mclip_fairseq.search.limits import HEADERS
from mclip_fairseq.search.openapi import PREFIX
from mclip_fairseq.storage.files import shown

RETRY = {"Retry-After": str(RETRY_SECONDS)}


async def http_error(request: Request, error: HTTPException) -> Response:
    """A refused request."""
    return JSONResponse(error_of(request, error.detail), error.status_code, headers=error.headers)


def error_of(request: Request, sentence: str) -> dict[str, Any]:
    """The body of an error, in the form that the path's clients read."""
    if request.url.path.startswith(f"{PREFIX}/"):
        return {"error": {"message": sentence, "type": "invalid_request_error"}}
    return {"error": sentence}


async def busy(request: Request, error: Busy) -> Response:
    """Too many requests."""
    return JSONResponse(error_of(request, "too many requests; try again in a moment"), 503, headers=RETRY)


async def unavailable(request: Request, error: Unavailable) -> Response:
    """The database does not answer; what it is and where is printed, not sent."""
    print(shown(str(error)), file=sys.stderr, flush=True)
    return JSONResponse(error_of(request, "the index cannot be reached; try again in a moment"), 503, headers=RETRY)


async def failure(request: Request, error: Exception) -> Response:
    """A bug, without its message, which may name files of the server."""
    return JSONResponse(
        error_of(request, "the search failed"), 500, headers=HEADERS
    )  # it is made outside of `SafeHeaders`


HANDLERS: dict[Any, Any] = {HTTPException: http_error, Busy: busy, Unavailable: unavailable, Exception: failure}
