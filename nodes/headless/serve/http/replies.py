"""Reading requests and writing replies: JSON within limits, and refusals that say what is wrong."""

from __future__ import annotations

from codecs import BOM_UTF8

from aiohttp import web

from .....uniworld_core.json_text import BadJson, dumps, loads

_MAX_DEPTH = 200  # of JSON; what is read at Python's own limit might not be written, or read again, a call further in


def reply(data: object, status: int = 200) -> web.Response:
    return web.Response(text=dumps(data), status=status, content_type="application/json")


def refusal(status: int, kind: str, message: str, details: str = "", **more: object) -> web.Response:
    """A refusal in the form of ComfyUI's errors; `more` stands beside the error."""
    return reply({"error": {"type": kind, "message": message, "details": details, "extra_info": {}}, **more}, status)


class Refused(Exception):
    """Ends a handler with a refusal."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.response = refusal(status, kind, message)


def refuse_announced(request: web.Request, limit: int) -> None:
    """Raise Refused when a request says that its body has more than `limit` bytes; nothing of it is read then."""
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body. Raises Refused as soon as it is known to have more than `limit` bytes."""
    refuse_announced(request, limit)
    body = bytearray()
    async for chunk in request.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


async def read_json(request: web.Request, limit: int) -> object:
    """The body as JSON.

    Raises:
        Refused: it is too large, too deep, or no JSON.
    """
    body = await read_body(request, limit)
    try:
        data = loads(body.removeprefix(BOM_UTF8), allow_duplicates=True)
    except BadJson as error:
        raise Refused(400, "invalid_json", f"The request's body {error}.") from error
    if _deeper_than(_MAX_DEPTH, data):
        raise Refused(400, "invalid_json", f"The request's body is nested more than {_MAX_DEPTH} levels deep.")
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
    """The body as a JSON object. Raises Refused as `read_json`, and for other JSON."""
    data = await read_json(request, limit)
    if not isinstance(data, dict):
        raise Refused(400, "invalid_json", "The request's body must be a JSON object.")
    return data


def read_ids(data: object, limit: int) -> list[str]:
    """A list of prompt ids from a body. Raises Refused for anything else."""
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise Refused(400, "invalid_ids", "Prompt ids must come as a list of texts.")
    if len(data) > limit:
        raise Refused(400, "invalid_ids", f"{len(data)} ids are more than {limit}, the most in one request.")
    return data


def query_int(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A whole number from the query. Raises Refused for another text."""
    text = request.query.get(name)
    if text is None or text == "":
        return default
    try:
        number = int(text)
    except ValueError as error:
        raise Refused(400, "invalid_query", f"{name}={text[:40]!r} is no whole number.") from error
    if abs(number) > 2**31:
        raise Refused(400, "invalid_query", f"{name}={text[:40]!r} is out of range.")
    return number


def query_flag(request: web.Request, name: str, default: bool = False) -> bool:
    text = request.query.get(name)
    return default if text is None else text.lower() in ("true", "1")


def too_large(limit: int) -> Refused:
    """The refusal of a body; the connection ends with it, so that the rest of the body need not be read."""
    refused = Refused(413, "too_large", f"The request's body is larger than {limit} bytes.")
    refused.response.force_close()
    return refused
