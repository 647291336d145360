"""The OpenAPI description of the server, generated from its table of routes."""

from __future__ import annotations

import re
from typing import Any

from .route import HTTPRoute

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_EVERYWHERE = {401: "The token is missing or wrong.", 403: "The request's host or origin is not allowed."}


def describe(routes: list[HTTPRoute], version: str, with_token: bool) -> dict[str, object]:
    """Describe these routes, each under all of its paths."""
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        for path in route.paths:
            plain = re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", path)
            paths.setdefault(plain, {})[route.method.lower()] = _operation(route, plain)
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "UniWorld", "version": version, "description": "ComfyUI's API for the UniWorld nodes."},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }
    if with_token:
        description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"token": []}]
    return description


def _operation(route: HTTPRoute, path: str) -> dict[str, object]:
    named = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _names(path)]
    asked = [{"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()]
    operation: dict[str, object] = {"summary": route.summary, "responses": _responses(route)}
    if named or asked:
        operation["parameters"] = named + asked
    if route.body is not None:
        content = {route.body_type: {"schema": route.body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _names(path: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", path)


def _responses(route: HTTPRoute) -> dict[str, object]:
    responses: dict[str, Any] = {}
    for status, text in sorted({**route.statuses, **_EVERYWHERE}.items()):
        responses[str(status)] = {"description": text}
        if status >= 400:
            responses[str(status)]["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return responses
