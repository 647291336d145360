"""The parts of one running server, which the routes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from ...host import PlainHost
from ..registry.registry import Registry
from .config import ServerConfig
from .content import Pack
from .metrics import Metrics
from .queue.clients import Clients
from .queue.store import Store
from .queue.terminal import Terminal
from .queue.worker import QueueWorker


@dataclass
class Server:
    """The parts of one server. Handlers access it through `server_of(request)`."""

    config: ServerConfig
    registry: Registry
    host: PlainHost
    store: Store
    clients: Clients
    worker: QueueWorker
    metrics: Metrics
    terminal: Terminal
    packs: list[Pack]
    frontend: Path
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def user(self) -> Path:
        """The folder of settings and saved workflows. The queue's file is outside it, so that no request can name it."""
        return self.config.user / "default"


SERVER: web.AppKey[Server] = web.AppKey("server", Server)


def server_of(request: web.Request) -> Server:
    return request.app[SERVER]
