"""Read requests and write responses: JSON within limits, and error responses."""

from __future__ import annotations

from codecs import BOM_UTF8

from aiohttp import web

from .....uniworld_core.json_text import BadJson, dumps, loads

# Maximum depth of JSON. Python's own recursion limit is not enough: data that can just be parsed might fail to be written
# later, when the call stack is deeper.
_MAX_DEPTH = 200


def json_response(data: object, status: int = 200) -> web.Response:
    return web.Response(text=dumps(data), status=status, content_type="application/json")


def error_response(status: int, kind: str, message: str, details: str = "", **more: object) -> web.Response:
    """Return an error in ComfyUI's form. `more` are further keys next to "error"."""
    return json_response(
        {"error": {"type": kind, "message": message, "details": details, "extra_info": {}}, **more}, status
    )


def openai_error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Return the "error" object of OpenAI's API."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": param, "code": code}


class RequestError(Exception):
    """Aborts a handler with an error response."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.response = error_response(status, kind, message)


def check_content_length(request: web.Request, limit: int) -> None:
    """Raise RequestError if the Content-Length exceeds `limit` bytes, before any of the body is read."""
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)


async def read_body(request: web.Request, limit: int) -> bytes:
    """Return the body. Raises RequestError as soon as it exceeds `limit` bytes."""
    check_content_length(request, limit)
    body = bytearray()
    async for chunk in request.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


async def read_json(request: web.Request, limit: int) -> object:
    """Return the body as JSON.

    Raises:
        RequestError: the body is too large, nested too deeply, or not JSON.
    """
    body = await read_body(request, limit)
    try:
        data = loads(body.removeprefix(BOM_UTF8), allow_duplicates=True)
    except BadJson as error:
        raise RequestError(400, "invalid_json", f"The request's body {error}.") from error
    if _deeper_than(_MAX_DEPTH, data):
        raise RequestError(400, "invalid_json", f"The request's body is nested more than {_MAX_DEPTH} levels deep.")
    return data


def _deeper_than(limit: int, data: object) -> bool:
    level = [data]
    for _ in range(limit + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        if not inner:
            return False
        level = [one for values in inner for one in values]
    return True


async def read_object(request: web.Request, limit: int) -> dict[str, object]:
    """Return the body as a JSON object. Raises RequestError as `read_json`, or if it is another JSON value."""
    data = await read_json(request, limit)
    if not isinstance(data, dict):
        raise RequestError(400, "invalid_json", "The request's body must be a JSON object.")
    return data


def read_ids(data: object, limit: int) -> list[str]:
    """Check that a value of a body is a list of prompt ids. Raises RequestError if it is not."""
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise RequestError(400, "invalid_ids", "Prompt ids must be a list of strings.")
    if len(data) > limit:
        raise RequestError(400, "invalid_ids", f"{len(data)} ids exceed the limit of {limit} per request.")
    return data


def query_int(request: web.Request, name: str, default: int | None = None) -> int | None:
    """Return an integer from the query string. Raises RequestError if the value is not one."""
    text = request.query.get(name)
    if text is None or text == "":
        return default
    try:
        number = int(text)
    except ValueError as error:
        raise RequestError(400, "invalid_query", f"{name}={text[:40]!r} is not an integer.") from error
    if abs(number) > 2**31:
        raise RequestError(400, "invalid_query", f"{name}={text[:40]!r} is out of range.")
    return number


def query_flag(request: web.Request, name: str, default: bool = False) -> bool:
    text = request.query.get(name)
    return default if text is None else text.lower() in ("true", "1")


def too_large(limit: int) -> RequestError:
    """Return the error for a body above the limit. It closes the connection, so that the rest need not be read."""
    error = RequestError(413, "too_large", f"The request's body is larger than {limit} bytes.")
    error.response.force_close()
    return error
