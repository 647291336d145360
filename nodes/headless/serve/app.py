"""Assemble the server: its parts, its table of routes, startup and shutdown."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import sqlite3
from pathlib import Path

from aiohttp import web

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.memory import ModelMemory, default_budget
from ... import host as host_module
from ..registry.registry import Registry, load_registry
from ..storage import folders
from .config import ServerConfig
from .content import open_packs
from .http.forms import FORM_BYTES
from .http.guard import bounded, guards
from .http.openapi import describe
from .http.responses import json_response
from .http.route import HTTPRoute
from .http.unmatched import refuse
from .metrics import Metrics
from .queue.clients import Clients
from .queue.prompt_runner import Run
from .queue.store import Store
from .queue.terminal import Terminal
from .queue.worker import QueueWorker
from .routes import completions as routes_completions
from .routes import editor as routes_editor
from .routes import files as routes_files
from .routes import jobs as routes_jobs
from .routes import nodes as routes_nodes
from .routes import queue as routes_queue
from .routes import user as routes_user
from .server import SERVER, Server, server_of

DIED = "The server stopped unexpectedly while this prompt ran. Queue it again to run it."


async def get_openapi(request: web.Request) -> web.Response:
    token = server_of(request).config.token
    return json_response(describe(ROUTES, package_version(), token is not None))


ROUTES: list[HTTPRoute] = [
    *routes_queue.ROUTES,
    *routes_jobs.ROUTES,
    *routes_files.ROUTES,
    *routes_nodes.ROUTES,
    *routes_user.ROUTES,
    *routes_completions.ROUTES,
    *routes_editor.ROUTES,
    HTTPRoute("GET", "/openapi.json", get_openapi, "This OpenAPI description.", alias=False),
    *routes_editor.LAST_ROUTES,
]


def open_server(config: ServerConfig, registry: Registry | None = None) -> Server:
    """Create the parts of a server, without starting anything.

    Args:
        registry: the node classes, including those of the packs; None loads them.

    Raises:
        UniWorldError: the editor is missing, a pack cannot be loaded, or the queue cannot be opened or written.
    """
    frontend, version = find_frontend(config.frontend)
    memory = ModelMemory(config.memory if config.memory is not None else default_budget())
    plain = host_module.PlainHost(models=[config.models], memory=memory)
    host_module.install(plain)
    folders.install(folders.Folders(input=config.input, output=config.output, temp=config.temp))
    registry = registry or load_registry(config.packs)
    store, interrupted = _open_store(config)
    features = {
        "supports_preview_metadata": True,
        "max_upload_size": config.limits.upload_bytes,
        "show_signin_button": False,
        "node_replacements": True,  # the editor requests them only if this is set
        "frontend_version": version,
    }
    clients, metrics = Clients(features), Metrics()
    terminal = Terminal(clients)
    if interrupted:
        terminal.say(f"The last server stopped while {interrupted} prompt ran; the history lists it as interrupted.")

    def on_end(run: Run, state: str, sentence: str, seconds: float) -> None:
        metrics.count_run(state, seconds, [(run.class_of(node), taken) for node, taken in run.seconds.items()])
        terminal.end_run(run, state, sentence, seconds)

    kept = config.kept_results
    worker = QueueWorker(store, registry, plain, clients, terminal.event, on_end, terminal.say, kept_results=kept)
    packs = open_packs(config.packs)
    return Server(config, registry, plain, store, clients, worker, metrics, terminal, packs, frontend, features)


def _open_store(config: ServerConfig) -> tuple[Store, int]:
    """Open the queue, and mark the prompts that ran when the last server died.

    Returns:
        The store, and the number of prompts that were marked.
    """
    path = config.user / "uniworld.sqlite3"
    store = Store(path, config.history)
    try:
        return store, store.mark_interrupted(DIED)
    except sqlite3.Error as error:
        store.close()
        raise UniWorldError(
            f"The queue '{path}' cannot be written: {error}. Free disk space, or choose another --user folder."
        ) from error


def make_app(server: Server) -> web.Application:
    """Return the application. Its startup starts the worker; its shutdown interrupts the run in progress and records that."""
    app = web.Application(
        middlewares=guards(server.config), client_max_size=server.config.limits.upload_bytes + FORM_BYTES
    )
    app[SERVER] = server
    limits = server.config.limits
    for route in ROUTES:
        limit = limits.upload_bytes + FORM_BYTES if route.takes_files else limits.json_bytes
        handler, expected = bounded(route.handler, limit)
        for path in route.paths:
            if route.method == "GET":
                app.router.add_get(path, handler, expect_handler=expected)
            else:
                app.router.add_route(route.method, path, handler, expect_handler=expected)
    # After all others. No body is requested, because it would not be read.
    app.router.add_route("*", "/{path:.*}", refuse, expect_handler=bounded(refuse, 0)[1])
    app.on_startup.append(_start)
    app.on_shutdown.append(_close_sockets)
    app.on_cleanup.append(_stop)
    return app


async def _start(app: web.Application) -> None:
    app[SERVER].clients.attach(asyncio.get_running_loop())
    app[SERVER].worker.start()


async def _close_sockets(app: web.Application) -> None:
    # The run is stopped first, so that connected clients receive its end.
    server = app[SERVER]
    if not await asyncio.to_thread(server.worker.stop):
        server.terminal.say("The running node did not stop in time. Its prompt is marked as interrupted.")
    await asyncio.sleep(0)
    await server.clients.close()


async def _stop(app: web.Application) -> None:
    app[SERVER].clients.detach()
    app[SERVER].store.close()


def find_frontend(folder: Path | None) -> tuple[Path, str | None]:
    """Return the folder of the editor's files, and its version if it is the installed package.

    Raises:
        UniWorldError: the editor is not found. The message says what to install.
    """
    if folder is not None:
        if not (folder / "index.html").is_file():
            raise UniWorldError(f"--frontend {folder} has no index.html. Pass the folder of a built frontend.")
        return folder.resolve(), None
    spec = importlib.util.find_spec("comfyui_frontend_package")
    root = Path(spec.origin).parent / "static" if spec is not None and spec.origin is not None else None
    if root is None or not (root / "index.html").is_file():
        raise UniWorldError("The editor is not installed. Install it with: pip install 'uniworld[serve]'")
    return root, importlib.metadata.version("comfyui-frontend-package")


def package_version() -> str:
    return str(getattr(importlib.import_module("....", __package__), "__version__", "0"))
