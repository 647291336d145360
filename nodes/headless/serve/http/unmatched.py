"""Requests that no route handles: the path is unknown, or known with other methods."""

from __future__ import annotations

from typing import NoReturn

from aiohttp import web

from .responses import RequestError


async def refuse(request: web.Request) -> NoReturn:
    """Refuse a request that no route handles, with the status 404, or 405 if the path has other methods.

    Routes that match every path do not count: they say nothing about one.
    """
    methods: set[str] = set()
    for resource in request.app.router.resources():
        if not resource.canonical.startswith("/{"):
            _, allowed = await resource.resolve(request)
            methods |= allowed
    if methods:
        raise web.HTTPMethodNotAllowed(request.method, sorted(methods), text=_sentence(request.method, methods))
    raise RequestError(404, "not_found", "Not found.")


def _sentence(method: str, methods: set[str]) -> str:
    return f"The method {method[:20]} is not allowed here. Use {' or '.join(sorted(methods))}."
