"""`uniworld reward serve`: a vision-language model that judges pictures, as a server for training elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import ipaddress
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...command_line import DONE, whole_number
from ...streams import say
from ...uniworld_core.errors import RunFailed, UniWorldError
from ...uniworld_core.loading.options import STORAGES
from ..editr1.reward.requests import TOKEN_VARIABLE
from .command import Command

if TYPE_CHECKING:
    from aiohttp import web

DTYPES = ("auto", "bfloat16", "float16", "float32")
_DESCRIPTION = f"""\
Serves the logit reward: the model is asked to grade a picture, and the score is the expectation over the logits of its first
token, from 0 to 1. Training on another machine uses it as a remote reward.

With the environment variable {TOKEN_VARIABLE} set, requests must send its value as a token. The protocol is JSON with PNG
files over HTTP; docs/training.md describes it."""


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="the judge: a Qwen2.5-VL folder, another image-text model of transformers, a UniWorld checkpoint, or the name of "
        "a shipped model",
    )
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: this machine)"
    )
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=8190,
        metavar="N",
        help="port; 0 selects a free one (default: 8190)",
    )
    parser.add_argument(
        "--template", type=Path, metavar="FILE", help="text file with the question: {instruction}, {requirement}"
    )
    parser.add_argument(
        "--answers",
        default="0,1,2,3,4,5",
        metavar="A,B,...",
        help="answers from the worst to the best (default: 0,1,2,3,4,5)",
    )
    parser.add_argument(
        "--batch",
        type=whole_number(1, 10_000),
        default=8,
        metavar="N",
        help="pictures that are judged at once (default: 8)",
    )
    parser.add_argument(
        "--pixels",
        type=whole_number(1),
        metavar="N",
        help="pixels to which Qwen2.5-VL resizes pictures, such as 200704",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="compute dtype (default: auto)")
    parser.add_argument("--storage", choices=STORAGES, default="auto", help="storage type of Qwen2.5-VL's weights")


def _serve(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("aiohttp") is None:
        raise UniWorldError("reward serve needs the package aiohttp. Install it with: pip install 'uniworld[train]'")
    token = _checked_token(arguments)
    import torch

    from ..editr1.reward.judges import open_judge
    from ..editr1.reward.logit import LogitReward
    from ..editr1.reward.question import QuestionTemplate, read_question
    from ..editr1.reward.score_tokens import check_answers
    from ..editr1.reward.serve import reward_app

    answers = check_answers(arguments.answers.split(","))
    ask = QuestionTemplate() if arguments.template is None else read_question(arguments.template)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    judge = open_judge(arguments.model, device, dtype, arguments.storage, arguments.pixels)
    reward = LogitReward(judge, ask, answers, arguments.batch)
    with suppress(KeyboardInterrupt):  # how a server ends
        asyncio.run(_run(reward_app(reward, token, say), arguments.listen, arguments.port))
    return DONE


def _checked_token(arguments: argparse.Namespace) -> str | None:
    """Return the token of the environment. Raises UniWorldError if a public address has none."""
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and len(token) < 8:
        raise UniWorldError(f"{TOKEN_VARIABLE} is too short to be secure. Choose a random one of 8 characters or more.")
    if token is None and not _is_loopback(arguments.listen):
        raise UniWorldError(
            f"With --listen {arguments.listen}, others can reach this server. Set {TOKEN_VARIABLE} to a secret, here and where "
            "the reward is used."
        )
    return token


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


async def _run(app: web.Application, address: str, port: int) -> None:
    """Serve until the process is interrupted."""
    from aiohttp import web

    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address, port)
        try:
            await site.start()
        except OSError as error:
            raise RunFailed(f"Cannot listen on {address}, port {port} ({error.strerror or error}).") from error
        host, bound = runner.addresses[0][:2]
        print(f"http://{f'[{host}]' if ':' in host else host}:{bound}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


REWARD_COMMANDS: dict[tuple[str, ...], Command] = {
    ("reward", "serve"): Command("serve a vision-language model that judges pictures", _add_serve, _serve),
}
