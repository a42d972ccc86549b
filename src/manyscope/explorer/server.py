"""The server of the page: answers in JSON about the experiments of a library, for one user on this machine.

It knows files and scopes only through what a library gives. Whoever asks must know the token, and reach it under a name
that it goes by: a page from elsewhere can neither ask nor be answered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from manyscope.errors import ManyscopeError
from manyscope.explorer.guard import Guard, problem
from manyscope.explorer.routes import data_routes, page_routes
from manyscope.explorer.shelf import CHANGED, ChangedError, Experiment, Shelf

_ABSOLUTE = re.compile(r"(?<![\w.~-])/(?:[^\s/:;,'\"()]+/)+")


def make_app(library: Mapping[str, Experiment], token: str, hosts: Iterable[str] = ()) -> FastAPI:
    """The page and its answers.

    Args:
        library: the experiments by name, the first one is shown first.
        token: whoever asks must give it, in the address of the page, in the cookie that the page then sets, or as
            "Authorization: Bearer".
        hosts: names by which the server may be asked, beside those of the loopback; "*" stands for any numeric address.
    """
    shelf = Shelf(library)
    # Cookies do not know ports: two servers on one machine must not take each other's.
    cookie = f"manyscope-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        shelf.close()

    app = FastAPI(
        title="Manyscope explore",
        description="Answers about the objects of experiments. Rows are the places of objects in the predictions.",
        docs_url=None,  # it would load its programs from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.state.shelf = shelf
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(ManyscopeError, _users_error)
    app.add_exception_handler(ChangedError, _changed)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_middleware(Guard, token=token, cookie=cookie, hosts=[*hosts])
    app.include_router(page_routes(shelf))
    app.include_router(data_routes(shelf, cookie))
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """The first of what is wrong; what was given is not repeated: it may be long, or no JSON."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part)[:100] for part in first["loc"][1:]) or "the body"
    return problem(422, _plain(f"{place}: {first['msg']}"))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    # FastAPI says 400 of a body that is not JSON in some ways, and 422 in others.
    status = 422 if error.status_code == 400 else error.status_code
    return problem(status, str(error.detail), error.headers)


async def _users_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ManyscopeError)
    return problem(422, _ABSOLUTE.sub("", str(error).splitlines()[0]))


async def _changed(request: Request, error: Exception) -> JSONResponse:
    return problem(409, CHANGED)


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return problem(422, "the body ended early")


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
