"""Routes of nodes, models, the machine, and the server's features and metrics."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiohttp import web

from ....host import MODEL_FOLDERS
from ....pack.folders import model_choices
from ....pack.lora import LORAS, lora_names
from ....renamed import replacements
from ..http.responses import RequestError, json_response
from ..http.route import HTTPRoute
from ..machine import compute_devices, machine_memory
from ..metrics import CONTENT_TYPE
from ..server import Server, server_of

# The ComfyUI version whose API this server implements; clients enable features by it.
COMFYUI_VERSION = "0.3.64"
# Kinds of models, as ComfyUI names their folders.
_KINDS = [*MODEL_FOLDERS, LORAS]


async def get_object_info(request: web.Request) -> web.Response:
    server = server_of(request)
    return json_response(await asyncio.to_thread(_infos, server))


def _infos(server: Server) -> dict[str, Any]:
    found = {}
    for name in server.registry.classes:
        try:
            found[name] = server.registry.info(name)
        except Exception as error:  # one broken node of a pack must not hide all others
            server.terminal.say(f"The node {name} cannot be described: {type(error).__name__}: {error}")
    return found


async def get_object_info_of(request: web.Request) -> web.Response:
    server, name = server_of(request), request.match_info["node_class"]
    known = name in server.registry.classes
    return json_response({name: await asyncio.to_thread(server.registry.info, name)} if known else {})


async def get_system_stats(request: web.Request) -> web.Response:
    import torch

    total, free = machine_memory()
    version = server_of(request).features["frontend_version"]
    system = {
        "os": sys.platform,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": COMFYUI_VERSION,
        "required_frontend_version": version,
        "installed_templates_version": None,
        "required_templates_version": None,
        "python_version": sys.version,
        "pytorch_version": str(torch.__version__),
        "embedded_python": False,
        # Not the real arguments, which may contain the token. --disable-api-nodes keeps the editor from contacting other
        # hosts.
        "argv": ["uniworld", "serve", "--disable-api-nodes"],
    }
    return json_response({"system": system, "devices": await asyncio.to_thread(compute_devices)})


async def get_features(request: web.Request) -> web.Response:
    return json_response(server_of(request).features)


async def get_models(_: web.Request) -> web.Response:
    return json_response(_KINDS)


async def get_models_in(request: web.Request) -> web.Response:
    return json_response(await asyncio.to_thread(_names, request))


async def get_model_folders(request: web.Request) -> web.Response:
    host = server_of(request).host
    return json_response(
        [{"name": kind, "folders": [str(path) for path in host.model_folders(kind)]} for kind in _KINDS]
    )


async def get_model_files(request: web.Request) -> web.Response:
    names = await asyncio.to_thread(_names, request)
    return json_response([{"name": name, "pathIndex": 0} for name in names])


def _names(request: web.Request) -> list[str]:
    """Return the models of the requested kind, under the names that the nodes list."""
    kind = request.match_info["folder"]
    if kind == LORAS:
        return lora_names()
    if kind not in MODEL_FOLDERS:
        raise RequestError(404, "not_found", f"Unknown model folder {kind[:40]!r}; choose one of {', '.join(_KINDS)}.")
    return list(model_choices(kind))


async def get_view_metadata(request: web.Request) -> web.Response:
    raise RequestError(404, "not_found", "UniWorld's models are folders, and have no single file with metadata.")


async def get_empty_list(_: web.Request) -> web.Response:
    return json_response([])


async def get_node_replacements(_: web.Request) -> web.Response:
    return json_response(replacements())


async def get_metrics(request: web.Request) -> web.Response:
    server = server_of(request)
    store = server.store
    running = store.remaining - store.waiting
    text = server.metrics.text(store.waiting, running, len(server.clients), server.host.memory.used())
    return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})


_FOLDER = {200: "Names.", 404: "Unknown folder."}
ROUTES = [
    HTTPRoute("GET", "/object_info", get_object_info, "All node classes with inputs, outputs and descriptions."),
    HTTPRoute("GET", "/object_info/{node_class}", get_object_info_of, "One node class; empty if it does not exist."),
    HTTPRoute("GET", "/system_stats", get_system_stats, "System, versions and devices."),
    HTTPRoute("GET", "/features", get_features, "Feature flags of the server; clients send theirs on the socket."),
    HTTPRoute("GET", "/models", get_models, "Kinds of models."),
    HTTPRoute("GET", "/models/{folder}", get_models_in, "Models of a kind.", statuses=_FOLDER),
    HTTPRoute("GET", "/experiment/models", get_model_folders, "Kinds of models with their folders."),
    HTTPRoute(
        "GET", "/experiment/models/{folder}", get_model_files, "Models of a kind, for the editor.", statuses=_FOLDER
    ),
    HTTPRoute(
        "GET",
        "/view_metadata/{folder}",
        get_view_metadata,
        "Metadata of a model file.",
        statuses={404: "Not available."},
    ),
    HTTPRoute("GET", "/embeddings", get_empty_list, "Textual inversions; always empty."),
    HTTPRoute("GET", "/node_replacements", get_node_replacements, "Replacements of renamed nodes, by the old id."),
    HTTPRoute("GET", "/metrics", get_metrics, "Metrics in Prometheus' text format.", alias=False),
]
