"""Who may ask the server, and how much."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 32 * 2**20
"""Of any request: eight million rows in base64."""
_NO_TOKEN = "the token is missing or wrong: open the address that `manyscope explore` printed"


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)


class Guard:
    """Lets pass who knows the token and asks under a name of this server; counts the bytes of a body while they come,
    whatever its headers say; and adds to every answer what it forbids the browser."""

    _ALWAYS: tuple[tuple[str, str], ...] = (
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    )
    _NOTHING = "default-src 'none'; frame-ancestors 'none'"

    def __init__(self, app: ASGIApp, token: str, cookie: str, hosts: Sequence[str]) -> None:
        self._app, self._token, self._cookie = app, token.encode(), cookie
        self._hosts = {"127.0.0.1", "localhost", "::1", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._ALWAYS:
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", self._NOTHING)
            await send(message)

        request = Request(scope)
        answer = self._answer(request)
        if answer is not None:
            await answer(scope, receive, guarded)
            return
        await self._app(scope, _counted(receive), guarded)

    def _answer(self, request: Request) -> Response | None:
        """What is said at the door; None lets pass."""
        if not self._knows_host(request.headers.get("host", "")):
            return problem(403, "this server does not go by that name")
        # Browsers say so of each request; the cookie alone is also sent to other ports of this machine, and from them.
        if request.url.path != "/" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return problem(403, "another site may not ask")
        given = request.query_params.get("token")
        if request.url.path == "/" and given is not None and request.method == "GET" and self._right(given):
            # The token leaves the address bar, and with it the history and what may be copied from there.
            rest = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "token"]
            response = RedirectResponse("/?" + urlencode(rest) if rest else "/", 303)
            # A strict one would not go along when the address was clicked in a page from elsewhere, such as a terminal
            # in the browser. Lax ones go from elsewhere to a whole page only, and never with a POST.
            response.set_cookie(self._cookie, given, httponly=True, samesite="lax", path="/")
            return response
        if self._knows_token(request):
            return None
        if request.url.path == "/":
            return PlainTextResponse(_NO_TOKEN + "\n", 401)
        return problem(401, _NO_TOKEN, {"WWW-Authenticate": "Bearer"})

    def _knows_host(self, header: str) -> bool:
        name = re.sub(r":\d*$", "", header).strip("[]").lower()
        if name in self._hosts:
            return True
        if "*" not in self._hosts:
            return False
        try:
            ipaddress.ip_address(name)  # another site can have its name point here, but not its number
        except ValueError:
            return False
        return True

    def _knows_token(self, request: Request) -> bool:
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._right(bearer.strip()):
            return True
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and self._right(cookie.value)

    def _right(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), self._token)


def _counted(receive: Receive) -> Receive:
    so_far = 0

    async def counted() -> Message:
        nonlocal so_far
        message = await receive()
        so_far += len(message.get("body", b""))
        if so_far > MOST_BYTES:
            raise HTTPException(413, f"the body has more than {MOST_BYTES // 2**20} MiB")
        return message

    return counted
