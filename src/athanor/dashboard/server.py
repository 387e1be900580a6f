"""Answers a browser on this machine that has the token: GET and HEAD only, on 127.0.0.1 only.

Nothing in an address is a path: runs, sweeps and pages are looked up among those that are there. The token is in the
address that is printed; the first answer puts it into a cookie and takes it out of the address. Requests that name
another host (a page elsewhere that had its own name point here) are refused.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from athanor.dashboard import pages
from athanor.dashboard.shelf import Shelf
from athanor.errors import UserError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'"


def listen(port: int) -> socket.socket:
    """A socket on this machine's own address. `port`: 0 for any that is free.

    Raises:
        UserError: the port is taken.
    """
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
    except (OSError, OverflowError) as error:
        opened.close()
        raise UserError(f"port {port} cannot be had ({error}); choose another: --port 0 takes any free one") from None
    return opened


def serve(root: Path, opened: socket.socket, token: str) -> None:
    """Answers until it is interrupted."""
    made = application(Shelf(root), token, opened.getsockname()[1])
    config = uvicorn.Config(
        made, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[opened])


def application(shelf: Shelf, token: str, port: int) -> Starlette:
    def route(path: str, make: Callable[[Request], str | Path]) -> Route:
        return Route(path, lambda request: _shown(request, make))

    def named(path: str, make: Callable[[Shelf, str], str | Path]) -> Route:
        return route(path, lambda request: make(shelf, request.path_params["name"]))

    return Starlette(
        routes=[
            route("/", lambda request: pages.overview(shelf)),
            route("/compare", lambda request: pages.compare(shelf, request.query_params.getlist("run"))),
            named("/run/{name:path}", pages.run),
            named("/pipeline/{name}", pages.pipeline),
            named("/ablation/{name}", pages.ablation),
            named("/search/{name}", pages.search),
            named("/saved/{name:path}", pages.saved),
        ],
        middleware=[
            Middleware(Sealed),
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False),
            Middleware(Guarded, token=token, cookie=f"athanor-{port}"),
            Middleware(GZipMiddleware, minimum_size=4096),
        ],
        exception_handlers={HTTPException: lambda request, error: _told(request, error.detail, error.status_code)},
    )


class Sealed:
    """Headers that every answer has, refusals too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", POLICY)
            await send(message)

        await self.app(scope, receive, sealed)


class Guarded:
    """Lets nobody in without the token, in the address or in the cookie that it is exchanged for."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self.app, self.token, self.cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self.answer(Request(scope))(scope, receive, send)

    def answer(self, request: Request) -> ASGIApp:
        if self.knows(request.query_params.get("token", "")):
            entered = RedirectResponse(request.url.remove_query_params("token"), status_code=303)
            entered.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return entered
        if self.knows(request.cookies.get(self.cookie, "")):
            return self.app
        return PlainTextResponse("Open the address that `athanor dashboard` has printed: it holds a token.", 403)

    def knows(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


def _shown(request: Request, make: Callable[[Request], str | Path]) -> Response:
    try:
        return _page(request, make(request))
    except UserError as error:
        return _told(request, str(error), 404)
    except Exception as error:  # a file of some run is not what the reports expect
        log.exception("%s", request.url.path)
        return _told(request, f"This page cannot be made: {type(error).__name__}: {error}", 500)


def _told(request: Request, text: str, status: int) -> Response:
    answer = _page(request, pages.message(text))
    answer.status_code = status
    return answer


def _page(request: Request, made: str | Path) -> Response:
    """The page, or 304 where the browser has it. One that was saved may not reach anything of this address."""
    if isinstance(made, Path):
        text = made.read_text(encoding="utf-8", errors="replace")
        policy = f"sandbox allow-scripts; script-src 'unsafe-inline'; {POLICY}"
    else:
        text = made
        script = text.rpartition("<script>")[2].partition("</script>")[0]
        known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"script-src 'sha256-{known}'; connect-src 'self'; form-action 'self'; {POLICY}"
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return HTMLResponse(text, headers={"etag": tag, "content-security-policy": policy})
