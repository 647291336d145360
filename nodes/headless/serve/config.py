"""What `uniworld serve` was told: where it listens, which folders it uses, and its limits."""

from __future__ import annotations

import argparse
import ipaddress
import math
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError

MIB = 2**20
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class RequestLimits:
    """Where a request is refused with a 4xx instead of being worked on."""

    json_bytes: int = 32 * MIB
    upload_bytes: int = 100 * MIB
    nodes: int = 10_000
    waiting: int = 1000
    ids: int = 10_000  # ids in one request to delete or cancel


@dataclass(frozen=True)
class ServerConfig:
    """The options of one server.

    Attributes:
        token: what a client must show; None lets everyone in who can reach the address.
        memory: bytes that models may take, None to leave it to the machine.
        history: how many ended prompts are kept.
        kept_results: how many results of nodes are kept for workflows that run again after others.
        frontend: another build of the editor than the installed package.
        hosts: further names, in lower case, that clients may call the server by.
    """

    listen: str = "127.0.0.1"
    port: int = 8188
    models: Path = Path("models")
    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")
    user: Path = Path("user")
    packs: tuple[Path, ...] = ()
    token: str | None = None
    memory: int | None = None
    history: int = 1000
    kept_results: int = 0
    open_browser: bool = False
    frontend: Path | None = None
    limits: RequestLimits = RequestLimits()
    hosts: tuple[str, ...] = ()

    @property
    def loopback(self) -> bool:
        return is_loopback(self.listen)

    def answers_to(self, hostname: str) -> bool:
        """Whether a request may name the server so in its Host header.

        A page elsewhere may let a name of its own lead to this computer, and its requests then carry that name: where
        no token is wanted, only names that nobody else can own are answered. An address is none that leads elsewhere.
        """
        if is_loopback(hostname) or hostname in self.hosts:
            return True
        if self.loopback:
            return False
        return self.token is not None or _is_address(hostname) or hostname in (self.listen.lower(), *own_names())


def own_names() -> tuple[str, ...]:
    """The names that this computer gives itself, in lower case."""
    name = socket.gethostname().lower().rstrip(".")
    short = name.partition(".")[0]
    return (name, short, f"{short}.local") if short else ()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can only mean this machine."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `uniworld serve`, those that all commands share left out."""
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    parser.add_argument(
        "--listen",
        nargs="?",
        const="0.0.0.0",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default 127.0.0.1; every address if none follows)",
    )
    parser.add_argument("--port", type=int, default=8188, help="port (default 8188; 0 takes a free one)")
    parser.add_argument("--input", default=Path("input"), help="folder of input pictures", **folder)
    parser.add_argument("--output", default=Path("output"), help="folder for the results", **folder)
    parser.add_argument("--temp", help="folder for previews (default: temp beside the output folder)", **folder)
    parser.add_argument("--user", default=Path("user"), help="folder of settings, workflows and the queue", **folder)
    parser.add_argument("--token", help="what clients must show: `Authorization: Bearer TOKEN` or ?token=TOKEN")
    parser.add_argument("--no-token", action="store_true", help="let in everyone who can reach the address")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that browsers may call this server by, such as that of a proxy before it",
    )
    parser.add_argument("--memory", type=parse_bytes, metavar="BYTES", help="what loaded models may take, such as 20GB")
    parser.add_argument("--history", type=int, default=1000, metavar="N", help="ended prompts to keep (default 1000)")
    parser.add_argument(
        "--cache-lru",
        type=int,
        default=0,
        metavar="N",
        help="keep up to N results of nodes, models among them, for workflows that take turns (default: the last one's)",
    )
    parser.add_argument("--open", action="store_true", help="open the editor in the browser")
    parser.add_argument("--frontend", help="folder of another build of the editor", **folder)


def parse_bytes(text: str) -> int:
    """Bytes from a text such as `20GB`, `8GiB` or `500000000`. Raises argparse.ArgumentTypeError for any other."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if match is None or not 0 < float(match[1]) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in bytes. Say for example 20GB.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _host_name(text: str) -> str:
    """The name in what --allow-host was given. Raises UniWorldError for what is none."""
    name = text.strip().lower().rstrip(".")
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise UniWorldError(
            f"--allow-host {text!r} is no host name. Give it without http:// and port: my.machine.example."
        )
    return name


def read_config(arguments: argparse.Namespace) -> ServerConfig:
    """The options as a `ServerConfig`.

    Raises:
        UniWorldError: options that do not go together, or are out of range.
    """
    if not 0 <= arguments.port <= 65535:
        raise UniWorldError(f"--port {arguments.port} is no port. Choose one from 1024 to 65535, or 0 for a free one.")
    if arguments.history < 0:
        raise UniWorldError(f"--history {arguments.history} is negative. Say how many ended prompts to keep.")
    if arguments.cache_lru < 0:
        raise UniWorldError(f"--cache-lru {arguments.cache_lru} is negative. Say how many results of nodes to keep.")
    if arguments.token is not None and (arguments.no_token or len(arguments.token) < 8):
        reason = "contradicts --no-token" if arguments.no_token else "is too short to be a secret"
        raise UniWorldError(f"--token {reason}. Choose a random one of 8 characters or more.")
    if not is_loopback(arguments.listen) and arguments.token is None and not arguments.no_token:
        raise UniWorldError(
            f"--listen {arguments.listen} lets others reach this server, who could run workflows and read pictures. "
            "Add --token SECRET, or --no-token if you trust everyone who can reach it."
        )
    return ServerConfig(
        listen=arguments.listen,
        port=arguments.port,
        models=arguments.models,
        input=arguments.input,
        output=arguments.output,
        temp=arguments.temp or arguments.output.parent / "temp",
        user=arguments.user,
        packs=tuple(arguments.pack),
        token=arguments.token,
        memory=arguments.memory,
        history=arguments.history,
        kept_results=arguments.cache_lru,
        open_browser=arguments.open,
        frontend=arguments.frontend,
        hosts=tuple(_host_name(name) for name in arguments.allow_host),
    )
