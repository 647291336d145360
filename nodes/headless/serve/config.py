"""Options of `uniworld serve`: address, folders and limits."""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....command_line import whole_number
from ....uniworld_core.errors import UniWorldError, shown

MIB = 2**20
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_MAX_MEMORY = 1e15  # bytes


@dataclass(frozen=True)
class RequestLimits:
    """Limits beyond which a request is rejected with a 4xx status."""

    json_bytes: int = 32 * MIB
    upload_bytes: int = 100 * MIB
    nodes: int = 10_000
    waiting: int = 1000
    ids: int = 10_000  # prompt ids in one request to delete or cancel


@dataclass(frozen=True)
class ServerConfig:
    """The options of one server.

    Attributes:
        token: secret that clients must send; None to accept everyone who can reach the address.
        memory: memory budget for models in bytes; None for the machine's default.
        history: number of finished prompts to keep.
        kept_results: number of node results to keep in the cache for earlier workflows.
        frontend: folder of a built frontend to use instead of the installed package.
        hosts: further host names, in lower case, that requests may be addressed to.
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

    def accepts_host(self, hostname: str) -> bool:
        """Whether the server accepts requests with this name in their Host header.

        Protects against DNS rebinding: an attacker can point a domain at this computer, and requests from pages of that
        domain then carry its name. Without a token, only names are accepted that an attacker cannot own. IP addresses
        are safe, since they do not depend on DNS.
        """
        if is_loopback(hostname) or hostname in self.hosts:
            return True
        if self.loopback:
            return False
        return self.token is not None or _is_address(hostname) or hostname in (self.listen.lower(), *host_names())


def host_names() -> tuple[str, ...]:
    """Return this computer's own host names, in lower case."""
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
    """Whether a host name or address always refers to this machine."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `uniworld serve`, except for those that all commands share."""
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    parser.add_argument(
        "--listen",
        nargs="?",
        const="0.0.0.0",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1; without ADDRESS: all interfaces)",
    )
    parser.add_argument(
        "--port", type=whole_number(0, 65535), default=8188, help="port (default: 8188; 0 picks a free one)"
    )
    parser.add_argument("--input", default=Path("input"), help="folder of input pictures", **folder)
    parser.add_argument("--output", default=Path("output"), help="folder for the results", **folder)
    parser.add_argument("--temp", help="folder for previews (default: temp next to the output folder)", **folder)
    parser.add_argument("--user", default=Path("user"), help="folder for settings, workflows and the queue", **folder)
    parser.add_argument("--token", help="secret that clients send as `Authorization: Bearer TOKEN` or ?token=TOKEN")
    parser.add_argument("--no-token", action="store_true", help="accept everyone who can reach the address")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name under which browsers reach this server, such as that of a reverse proxy",
    )
    parser.add_argument("--memory", type=parse_bytes, metavar="BYTES", help="memory budget for models, such as 20GB")
    parser.add_argument(
        "--history", type=whole_number(), default=1000, metavar="N", help="finished prompts to keep (default: 1000)"
    )
    parser.add_argument(
        "--cache-lru",
        type=whole_number(),
        default=0,
        metavar="N",
        help="cache up to N node results, models included, across workflows (default: only those of the last one)",
    )
    parser.add_argument("--open", action="store_true", help="open the editor in the browser")
    parser.add_argument("--frontend", help="folder of another build of the frontend", **folder)


def parse_bytes(text: str) -> int:
    """Parse a size such as `20GB`, `8GiB` or `500000000` to bytes. Raises argparse.ArgumentTypeError if it is invalid."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = 0.0 if match is None else float(match[1]) * _UNITS[match[2] or ""]
    if not 1 <= size <= _MAX_MEMORY:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a size in bytes up to 1000TB. Write for example 20GB")
    return int(size)


def _host_name(text: str) -> str:
    """Normalize a value of --allow-host. Raises UniWorldError if it is not a host name."""
    name = text.strip().lower().rstrip(".")
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise UniWorldError(
            f"--allow-host {text!r} is not a host name. Leave out http:// and the port: my.machine.example."
        )
    return name


def read_config(arguments: argparse.Namespace) -> ServerConfig:
    """Return the options as a `ServerConfig`.

    Raises:
        UniWorldError: options contradict each other, or one is out of range.
    """
    if arguments.token is not None and (arguments.no_token or len(arguments.token) < 8):
        reason = "contradicts --no-token" if arguments.no_token else "is too short to be secure"
        raise UniWorldError(f"--token {reason}. Choose a random one of 8 characters or more.")
    if not is_loopback(arguments.listen) and arguments.token is None and not arguments.no_token:
        raise UniWorldError(
            f"With --listen {arguments.listen}, others can reach this server, run workflows and read pictures. "
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
