"""Routes of the editor's page, its WebSocket, the content of node packs and the log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.json_text import BadJson, dumps, loads
from ...storage.folders import resolve_inside
from ..content import OWN_NAME, Pack, stock_template_file, stock_templates, translations
from ..http.files import send_trusted
from ..http.responses import RequestError, json_response, read_object
from ..http.route import BOOLEAN, STRING, HTTPRoute, properties
from ..http.unmatched import refuse
from ..server import server_of

_FOREVER = "public, max-age=31536000, immutable"  # the names of files in assets/ change with their content


async def get_page(request: web.Request) -> web.StreamResponse:
    return await send_trusted(request, server_of(request).frontend / "index.html")


async def get_static(request: web.Request) -> web.StreamResponse:
    name = request.match_info["path"]
    path = _inside(server_of(request).frontend, name)
    if not path.is_file():
        await refuse(request)
    return await send_trusted(request, path, _FOREVER if name.startswith("assets/") else "no-cache")


def _inside(base: Path, name: str) -> Path:
    try:
        return resolve_inside(base, name)
    except UniWorldError as error:
        raise RequestError(404, "not_found", str(error)) from error


async def get_socket(request: web.Request) -> web.StreamResponse:
    server = server_of(request)

    def first(sid: str) -> list[tuple[str, dict[str, object]]]:
        status = {"status": {"exec_info": {"queue_remaining": server.store.remaining}}, "sid": sid}
        messages: list[tuple[str, dict[str, Any]]] = [("status", status)]
        run = server.worker.run
        if run is not None and run.accepted.client == sid and run.messages.node is not None:
            node = run.messages.node
            messages.append(("executing", {"node": node, "display_node": node, "prompt_id": run.accepted.id}))
        return messages

    return await server.clients.serve(request, first)


# --- node packs ------------------------------------------------------------------------------------------------------


def _pack(request: web.Request) -> Pack:
    name = request.match_info["pack"]
    for pack in server_of(request).packs:
        if pack.name == name:
            return pack
    raise RequestError(404, "not_found", "Node pack not found.")


async def get_extensions(request: web.Request) -> web.Response:
    return json_response([script for pack in server_of(request).packs for script in pack.scripts()])


async def get_extension_file(request: web.Request) -> web.StreamResponse:
    name = request.match_info["path"]
    if request.match_info["pack"] == "core":  # the editor's own
        path: Path | None = _inside(server_of(request).frontend / "extensions" / "core", name)
    else:
        try:
            path = _pack(request).web_file(name)
        except UniWorldError as error:
            raise RequestError(404, "not_found", str(error)) from error
    if path is None or not path.is_file():
        raise RequestError(404, "not_found", "File not found.")
    return await send_trusted(request, path)


async def get_templates(request: web.Request) -> web.Response:
    # This package's templates are served as the editor's own (`get_stock_templates`), since only those have titles.
    named = {pack.name: list(pack.templates()) for pack in server_of(request).packs if pack.name != OWN_NAME}
    return json_response({name: templates for name, templates in named.items() if templates})


async def get_template(request: web.Request) -> web.StreamResponse:
    try:
        path = _pack(request).template_file(request.match_info["file"])
    except UniWorldError as error:
        raise RequestError(404, "not_found", str(error)) from error
    if path is None:
        raise RequestError(404, "not_found", "Template not found.")
    return await send_trusted(request, path)


async def get_stock_templates(_: web.Request) -> web.Response:
    # The editor's own templates need nodes that this server does not have.
    return json_response(stock_templates())


async def get_stock_template(request: web.Request) -> web.StreamResponse:
    path = stock_template_file(request.match_info["file"])
    if path is None:
        raise RequestError(404, "not_found", "Template not found.")
    return await send_trusted(request, path)


async def get_logos(_: web.Request) -> web.Response:
    return json_response({})


async def get_translations(request: web.Request) -> web.Response:
    return json_response(await asyncio.to_thread(translations, server_of(request).packs))


async def get_blueprints(request: web.Request) -> web.Response:
    found = {key: entry for pack in server_of(request).packs for key, entry in pack.blueprints().items()}
    return json_response({key: _without_path(entry) for key, entry in found.items()})


async def get_blueprint(request: web.Request) -> web.Response:
    for pack in server_of(request).packs:
        entry = pack.blueprints().get(request.match_info["key"])
        if entry is not None:
            try:
                text = dumps(loads(entry["path"].read_bytes(), allow_nan=True, allow_duplicates=True))
            except (OSError, BadJson):  # an unreadable blueprint is treated as missing
                break
            return json_response({**_without_path(entry), "data": text})
    return json_response(None)


def _without_path(entry: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key != "path"}


# --- log -------------------------------------------------------------------------------------------------------------


async def get_log(request: web.Request) -> web.Response:
    return json_response(server_of(request).terminal.text())


async def get_log_lines(request: web.Request) -> web.Response:
    return json_response(server_of(request).terminal.lines())


async def subscribe_log(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await read_object(request, server.config.limits.json_bytes)
    reader = body.get("clientId")
    if not isinstance(reader, str):
        raise RequestError(400, "invalid_client_id", '"clientId" must be a string.')
    if not body.get("enabled"):
        server.clients.log_readers.discard(reader)
    elif server.clients.has(reader):
        server.clients.log_readers.add(reader)
    return web.Response()


_FILE = {200: "The file.", 206: "The requested range.", 304: "Not modified.", 404: "File not found."}
_SUBSCRIBE = properties(clientId=STRING, enabled=BOOLEAN)
ROUTES = [
    HTTPRoute("GET", "/", get_page, "The editor's page.", alias=False),
    HTTPRoute("GET", "/ws", get_socket, "WebSocket with the messages of the queue and of runs.", {"clientId": STRING},
          statuses={101: "Open.", 400: "Not a WebSocket request.", 503: "Too many open sockets."}),
    HTTPRoute("GET", "/extensions", get_extensions, "Scripts that node packs add to the editor."),
    HTTPRoute("GET", "/extensions/{pack}/{path:.+}", get_extension_file, "A pack's script or help page.", statuses=_FILE),
    HTTPRoute("GET", "/workflow_templates", get_templates, "Names of templates by node pack."),
    HTTPRoute("GET", "/workflow_templates/{pack}/{file}", get_template, "A template's graph or picture.", statuses=_FILE),
    HTTPRoute("GET", "/templates/index_logo.json", get_logos, "Logos of model providers; always empty.", alias=False),
    HTTPRoute("GET", "/templates/index{rest:[^/]*}.json", get_stock_templates, "UniWorld's templates with titles.",
          alias=False),
    HTTPRoute("GET", "/templates/{file}", get_stock_template, "A graph or picture of these templates.", statuses=_FILE,
          alias=False),
    HTTPRoute("GET", "/i18n", get_translations, "Texts of the node packs by language."),
    HTTPRoute("GET", "/global_subgraphs", get_blueprints, "Blueprints of the node packs."),
    HTTPRoute("GET", "/global_subgraphs/{key}", get_blueprint, "A blueprint with its graph, or null."),
    HTTPRoute("GET", "/internal/logs", get_log, "The server's log as text."),
    HTTPRoute("GET", "/internal/logs/raw", get_log_lines, "The server's log as a list of lines."),
    HTTPRoute("PATCH", "/internal/logs/subscribe", subscribe_log, "Receive new log lines on the socket.", body=_SUBSCRIBE,
          statuses={200: "Done.", 400: "Invalid body.", 413: "Too large."}),
]  # fmt: skip

# Registered after all others, because it matches every path.
LAST_ROUTES = [HTTPRoute("GET", "/{path:.+}", get_static, "The editor's files.", statuses=_FILE, alias=False)]
