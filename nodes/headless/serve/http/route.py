"""A route as data: the server's routing table and its OpenAPI description are both generated from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

STRING: dict[str, object] = {"type": "string"}
INTEGER: dict[str, object] = {"type": "integer"}
BOOLEAN: dict[str, object] = {"type": "boolean"}
STRINGS: dict[str, object] = {"type": "array", "items": STRING}
OBJECT: dict[str, object] = {"type": "object"}


def one_of(*values: str) -> dict[str, object]:
    return {"type": "string", "enum": list(values)}


def properties(**schemas: dict[str, object]) -> dict[str, Any]:
    """Return the schema of an object with optional properties."""
    return {"type": "object", "properties": schemas}


@dataclass(frozen=True)
class HTTPRoute:
    """A route of the API.

    Attributes:
        path: a path in aiohttp's syntax, with `{name}` for a variable part.
        summary: one sentence for the OpenAPI description.
        query: JSON schema of each query parameter.
        body: JSON schema of the body; None if no body is read.
        body_type: content type of the body.
        statuses: description of each status.
        alias: whether the route is also served below /api.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    query: dict[str, dict[str, object]] = field(default_factory=dict)
    body: dict[str, object] | None = None
    body_type: str = "application/json"
    statuses: dict[int, str] = field(default_factory=lambda: {200: "Done."})
    alias: bool = True

    @property
    def takes_files(self) -> bool:
        return self.body_type.startswith("multipart/")

    @property
    def paths(self) -> list[str]:
        return [self.path, f"/api{self.path}"] if self.alias else [self.path]
