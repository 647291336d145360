"""Who may talk to the server, and what leaves it when something breaks."""

from __future__ import annotations

import hmac
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Middleware

from .....command_line import bug_note
from .....streams import say
from ..config import ServerConfig
from ..server import server_of
from .replies import Refused, refusal, refuse_announced

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_DEFAULT_PORTS = {"http": 80, "https": 443}
# The editor needs inline scripts and evaluates expressions; nothing may be fetched from, or sent to, another host.
CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'"
)


def guards(config: ServerConfig) -> list[Middleware]:
    """The middlewares, the outermost first."""
    return [_errors_as_json, _only_friends(config)]


def bounded(handler: Handler, limit: int) -> tuple[Handler, Callable[[web.Request], Awaitable[None]]]:
    """A handler that refuses bodies announced as larger than `limit` bytes, and what answers `Expect: 100-continue`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        refuse_announced(request, limit)
        return await handler(request)

    async def expected(request: web.Request) -> None:
        if request.version < HttpVersion11:
            return
        if request.headers["Expect"].lower() != "100-continue":
            raise web.HTTPExpectationFailed(text="Only 100-continue can be expected.")
        # A body that will be refused is not asked for.
        if request.content_length is None or request.content_length <= limit:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the reply has not begun

    return handle, expected


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except Refused as refused:
        response = refused.response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = refusal(error.status, error.reason.lower().replace(" ", "_"), error.text or error.reason)
        for name in ("Allow", "WWW-Authenticate"):
            if name in error.headers:
                response.headers[name] = error.headers[name]
    except web.RequestPayloadError as error:  # garbage where compressed data, or chunks, were announced
        response = refusal(
            400, "invalid_body", f"The request's body cannot be decoded: {str(error)[:200] or 'damaged'}."
        )
    except ConnectionError:
        response = web.Response()  # the client has gone, and nobody reads this
    except TimeoutError:
        raise
    except (sqlite3.Error, OSError) as error:
        _tell(request, error)
        response = refusal(503, "storage_failed", f"The server could not read or write its files: {error}.")
    except Exception as error:
        _tell(request, error)
        response = refusal(
            500,
            "server_error",
            f"The server failed with {type(error).__name__}; its terminal says more. {bug_note('there')}",
        )
    if not response.prepared:
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
    return response


def _tell(request: web.Request, error: Exception) -> None:
    """Log an error of ours; with its traceback, unless the same was told within a minute."""
    frames = traceback.extract_tb(error.__traceback__)
    kind = type(error).__name__, *((frames[-1].filename, frames[-1].lineno) if frames else ())
    text = f"{request.method} {request.path[:80]} failed: {type(error).__name__}: {str(error)[:200]}"
    if server_of(request).terminal.rarely(kind, text):
        say("".join(traceback.format_exception(error)).rstrip())


def _only_friends(config: ServerConfig) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Cookies do not tell ports apart, and two servers may run.
        cookie = f"uniworld_token_{_split(request.headers.get('Host', ''))[1]}"
        problem = _host_problem(request, config) or _origin_problem(request)
        if problem is not None:
            return refusal(403, "forbidden", problem)
        if config.token is not None and not _shows_token(request, config.token, cookie):
            message = "This server wants its token: `Authorization: Bearer TOKEN`, or ?token=TOKEN in the address."
            response = refusal(401, "token_needed", message)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if config.token is not None and request.path == "/" and "token" in request.query:
            # The page's own requests cannot carry the token of its address; a cookie does, and the address is cleaned.
            rest = {key: value for key, value in request.query.items() if key != "token"}
            moved = web.Response(status=303, headers={"Location": str(request.rel_url.with_query(rest))})
            moved.set_cookie(cookie, config.token, httponly=True, samesite="Lax", path="/")
            return moved
        return await handler(request)

    return check


def _host_problem(request: web.Request, config: ServerConfig) -> str | None:
    """A page elsewhere may point a name of its own at 127.0.0.1; its requests then carry that name."""
    hostname = _split(request.headers.get("Host", ""))[0].rstrip(".")
    if config.answers_to(hostname):
        return None
    return (
        f"This server does not answer as {hostname[:80]!r}. Use the computer's address or its own name, or start the "
        "server with --allow-host and that name."
    )


def _origin_problem(request: web.Request) -> str | None:
    origin = request.headers.get("Origin")
    if origin is None:
        page = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate" and request.path == "/"
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and not page:
            return "A page of another site may not use this server."
        return None
    try:
        parts = urlsplit(origin)
        theirs = (parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme))
    except ValueError:
        return "The Origin header cannot be read."
    scheme = _scheme(request)
    hostname, port = _split(request.headers.get("Host", ""))
    if not hostname or theirs != (scheme, hostname, port or _DEFAULT_PORTS[scheme]):
        hint = " A proxy that serves it by https must send X-Forwarded-Proto: https." if theirs[0] == "https" else ""
        return f"The page comes from {origin[:80]!r}, and only the server's own page may use it.{hint}"
    return None


def _scheme(request: web.Request) -> str:
    """How the browser has reached the server: what a proxy before it tells, which no page can send in its name."""
    told = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return told if told in _DEFAULT_PORTS else request.scheme


def _split(host: str) -> tuple[str, int | None]:
    if any(mark in host for mark in "@/?#\\"):  # a URL's other parts, which no host has
        return "", None
    try:
        parts = urlsplit("//" + host)
        return (parts.hostname or "").lower(), parts.port
    except ValueError:
        return "", None


def _shows_token(request: web.Request, token: str, cookie: str) -> bool:
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    shown = [bearer.strip() if scheme.lower() == "bearer" else "", request.query.get("token", "")]
    shown.append(request.cookies.get(cookie, ""))
    wanted = token.encode()
    return any([hmac.compare_digest(one.encode(errors="surrogatepass"), wanted) for one in shown])
