"""Access control, and error responses."""

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
from .....uniworld_core.json_text import loads
from ..config import ServerConfig
from ..server import server_of
from .responses import RequestError, check_content_length, error_response, json_response, openai_error

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPENAI_PATHS = "/v1/"
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The editor uses inline scripts and `eval`. No data may be loaded from or sent to another host.
CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'"
)


def guards(config: ServerConfig) -> list[Middleware]:
    """Return the middlewares, outermost first."""
    return [_errors_as_json, _access_control(config)]


def bounded(handler: Handler, limit: int) -> tuple[Handler, Callable[[web.Request], Awaitable[None]]]:
    """Wrap a handler so that it rejects requests whose Content-Length exceeds `limit` bytes.

    Returns:
        The handler, and the function that answers `Expect: 100-continue`.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        check_content_length(request, limit)
        return await handler(request)

    async def expected(request: web.Request) -> None:
        if request.version < HttpVersion11:
            return
        if request.headers["Expect"].lower() != "100-continue":
            raise web.HTTPExpectationFailed(text="The only supported expectation is 100-continue.")
        # Do not request a body that will be rejected.
        if request.content_length is None or request.content_length <= limit:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # aiohttp would take the interim response for the start of the final one

    return handle, expected


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except RequestError as error:
        response = error.response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = error_response(error.status, error.reason.lower().replace(" ", "_"), error.text or error.reason)
        for name in ("Allow", "WWW-Authenticate"):
            if name in error.headers:
                response.headers[name] = error.headers[name]
    except web.RequestPayloadError as error:  # the compressed data or the chunked encoding is invalid
        response = error_response(
            400, "invalid_body", f"The request's body cannot be decoded: {str(error)[:200] or 'damaged'}."
        )
    except ConnectionError:
        response = web.Response()  # the client has disconnected; nobody receives this
    except TimeoutError:
        raise
    except (sqlite3.Error, OSError) as error:
        _log_error(request, error)
        response = error_response(503, "storage_failed", f"The server could not read or write its files: {error}.")
    except Exception as error:
        _log_error(request, error)
        response = error_response(
            500,
            "server_error",
            f"The server failed with {type(error).__name__}; see its terminal. {bug_note('there')}",
        )
    if request.path.startswith(OPENAI_PATHS) and not response.prepared and response.status >= 400:
        response = _as_openai(response)
    if not response.prepared:
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
    return response


def _as_openai(response: web.StreamResponse) -> web.StreamResponse:
    """Convert an error response to OpenAI's form, unless it is in that form already."""
    text = response.text if isinstance(response, web.Response) else None
    error = loads(text).get("error", {}) if text and response.content_type == "application/json" else {}
    if "details" in error:
        content = {"error": openai_error(response.status, str(error.get("message")), code=str(error.get("type")))}
        converted = json_response(content, response.status)
        for name in ("Allow", "WWW-Authenticate"):
            if name in response.headers:
                converted.headers[name] = response.headers[name]
        if not response.keep_alive:
            converted.force_close()
        return converted
    return response


def _log_error(request: web.Request, error: Exception) -> None:
    """Log a server error with its traceback, at most once a minute for the same location."""
    frames = traceback.extract_tb(error.__traceback__)
    kind = type(error).__name__, *((frames[-1].filename, frames[-1].lineno) if frames else ())
    text = f"{request.method} {request.path[:80]} failed: {type(error).__name__}: {str(error)[:200]}"
    if server_of(request).terminal.say_throttled(kind, text):
        say("".join(traceback.format_exception(error)).rstrip())


def _access_control(config: ServerConfig) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Browsers share cookies between ports, and several servers may run on one host: the port is in the name.
        cookie = f"uniworld_token_{_split(request.headers.get('Host', ''))[1]}"
        problem = _host_problem(request, config) or _origin_problem(request)
        if problem is not None:
            return error_response(403, "forbidden", problem)
        if config.token is not None and not _has_valid_token(request, config.token, cookie):
            message = (
                "This server requires a token: send `Authorization: Bearer TOKEN`, or add ?token=TOKEN to the URL."
            )
            response = error_response(401, "token_needed", message)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if config.token is not None and request.path == "/" and "token" in request.query:
            # The page's own requests do not repeat the token of its URL. Store it in a cookie, and redirect to a URL
            # without it, so that it is neither visible nor bookmarked.
            rest = {key: value for key, value in request.query.items() if key != "token"}
            moved = web.Response(status=303, headers={"Location": str(request.rel_url.with_query(rest))})
            moved.set_cookie(cookie, config.token, httponly=True, samesite="Lax", path="/")
            return moved
        return await handler(request)

    return check


def _host_problem(request: web.Request, config: ServerConfig) -> str | None:
    """Return why the Host header is rejected; None if it is accepted. Protects against DNS rebinding."""
    hostname = _split(request.headers.get("Host", ""))[0].rstrip(".")
    if config.accepts_host(hostname):
        return None
    return (
        f"The host name {hostname[:80]!r} is not allowed. Use the computer's IP address or its own name, or start the "
        "server with --allow-host and this name."
    )


def _origin_problem(request: web.Request) -> str | None:
    """Return why a request of another site is rejected (CSRF); None if it is accepted."""
    origin = request.headers.get("Origin")
    if origin is None:
        page = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate" and request.path == "/"
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and not page:
            return "Pages of other sites may not use this server."
        return None
    try:
        parts = urlsplit(origin)
        theirs = (parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme))
    except ValueError:
        return "The Origin header is invalid."
    scheme = _scheme(request)
    hostname, port = _split(request.headers.get("Host", ""))
    if not hostname or theirs != (scheme, hostname, port or _DEFAULT_PORTS[scheme]):
        hint = " A reverse proxy with https must send X-Forwarded-Proto: https." if theirs[0] == "https" else ""
        return f"Requests from {origin[:80]!r} are not allowed; only the server's own page may use it.{hint}"
    return None


def _scheme(request: web.Request) -> str:
    """Return the scheme that the browser used. A reverse proxy reports it; pages of other sites cannot set the header."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return forwarded if forwarded in _DEFAULT_PORTS else request.scheme


def _split(host: str) -> tuple[str, int | None]:
    if any(mark in host for mark in "@/?#\\"):  # delimiters of other URL parts, which urlsplit would interpret
        return "", None
    try:
        parts = urlsplit("//" + host)
        return (parts.hostname or "").lower(), parts.port
    except ValueError:
        return "", None


def _has_valid_token(request: web.Request, token: str, cookie: str) -> bool:
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    shown = [bearer.strip() if scheme.lower() == "bearer" else "", request.query.get("token", "")]
    shown.append(request.cookies.get(cookie, ""))
    wanted = token.encode()
    return any([hmac.compare_digest(one.encode(errors="surrogatepass"), wanted) for one in shown])
