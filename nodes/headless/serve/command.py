"""The command `uniworld serve`: prints the address and shuts down cleanly on Ctrl-C and SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import webbrowser
from typing import TextIO

from ....streams import say
from ....uniworld_core.errors import UniWorldError
from .config import ServerConfig, read_config
from .temp_folder import create_folder, create_temp, locked_temp

NEEDED = ("aiohttp", "orjson", "comfyui_frontend_package")
INSTALL = "`uniworld serve` needs the frontend and a web server. Install them with: pip install 'uniworld[serve]'"


def serve(arguments: argparse.Namespace, out: TextIO) -> int:
    """Run the server until it is stopped, and return the exit code.

    Args:
        out: the stream that the address is printed to.

    Raises:
        UniWorldError: a package is missing, an option is invalid, or the port or a folder cannot be used.
    """
    needed = NEEDED[:-1] if arguments.frontend is not None else NEEDED
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise UniWorldError(INSTALL)
    config = read_config(arguments)
    saved = [config.user / "default" / name for name in ("workflows", "subgraphs", "keybindings")]
    for folder in (config.input, config.output, *saved):
        create_folder(folder)
    create_temp(config.temp)
    asyncio.run(_serve(config, out))
    return 0


async def _serve(config: ServerConfig, out: TextIO) -> None:
    from .app import make_app, open_server
    from .http.connections import Site

    # The port is bound before the temp folder is locked, so that starting a second server with the same options reports
    # the port.
    with _listener(config) as listener, locked_temp(config):
        server = open_server(config)
        site = Site(make_app(server), server)
        try:
            await site.start(listener)
            url = _address(config, listener)
            print(f"UniWorld is at {url} (Ctrl-C stops it)", file=out, flush=True)
            if server.store.waiting:
                server.terminal.say(f"Resuming with {server.store.waiting} prompts that were waiting at the last stop.")
            if config.open_browser:
                shown = f"{url}?token={config.token}" if config.token else url
                await asyncio.to_thread(webbrowser.open, shown)
            await _stop_signal()
        finally:
            await site.stop()


def _listener(config: ServerConfig) -> socket.socket:
    """Return the bound socket. It is created before the nodes are loaded, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in config.listen else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name != "nt":  # on Windows, SO_REUSEADDR lets two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.listen, config.port))
    except (OSError, OverflowError, UnicodeError) as error:  # the last two for a port or name that cannot exist
        listener.close()
        raise UniWorldError(
            f"Cannot listen on {config.listen}:{config.port}: {getattr(error, 'strerror', None) or error}. "
            "Choose another port with --port, or an address of this computer with --listen."
        ) from error
    return listener


def _address(config: ServerConfig, listener: socket.socket) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.listen, config.listen)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{listener.getsockname()[1]}/"


async def _stop_signal() -> None:
    """Wait for Ctrl-C or SIGTERM. A second signal kills the process immediately."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def stop(*_: object) -> None:
        if stopped.is_set():
            os._exit(1)
        say("Stopping.")
        loop.call_soon_threadsafe(stopped.set)

    for one in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # only the main thread may set signal handlers
            signal.signal(one, stop)
    while not stopped.is_set():  # wakes up regularly, because on Windows a wait blocks signal handlers
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopped.wait(), 0.5)
