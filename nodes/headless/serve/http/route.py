"""One route as a piece of data, from which both the server's table and its OpenAPI description are made."""

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
    """The schema of an object none of whose named properties is required."""
    return {"type": "object", "properties": schemas}


@dataclass(frozen=True)
class HTTPRoute:
    """A route of the API.

    Attributes:
        path: as aiohttp writes it, `{name}` standing for one part.
        query: JSON schema of each parameter of the query.
        body: JSON schema of the body, under its content type; None where none is read.
        statuses: what each status means.
        alias: also served below /api.
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
