"""Routes of OpenAI's API: chat completions, answered by the model as UniWorld Understand does, and the list of models."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
import traceback
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web
from PIL import Image

from .....command_line import is_bug
from .....streams import say
from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.images.pictures import to_rgb
from ....host import Interrupted
from ..completions.answering import (
    AnswerEnd,
    GeneratedText,
    TokenChoice,
    answer,
    answering_models,
    check_model,
    failure,
)
from ..completions.request import CompletionError, CompletionRequest, read_request
from ..http.decoding import decoded
from ..http.images import as_png
from ..http.responses import json_response, openai_error, read_object
from ..http.route import BOOLEAN, INTEGER, OBJECT, STRING, HTTPRoute, properties
from ..queue.worker import QueuedCall
from ..server import Server, server_of

_POLL_SECONDS = 0.5  # between checks whether the client is still connected

Piece = GeneratedText | AnswerEnd | CompletionError


async def post_completion(request: web.Request) -> web.StreamResponse:
    server = server_of(request)
    try:
        wanted = read_request(await read_object(request, server.config.limits.json_bytes))
        await asyncio.to_thread(check_model, wanted.model)
        pictures = [[await _decoded(data) for data in turn.pictures] for turn in wanted.turns]
        if server.worker.waiting_calls + server.store.waiting >= server.config.limits.waiting:
            raise CompletionError(429, "The queue is full. Try again later.", code="rate_limit_exceeded")
    except CompletionError as error:
        return _error(error)
    about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}
    async with contextlib.aclosing(_pieces(request, server, wanted, pictures)) as pieces:
        if wanted.stream:
            return await _streamed(request, wanted, about, pieces)
        return await _whole(wanted, about, pieces)


async def _decoded(data: bytes) -> Image.Image:
    try:
        png, _ = await decoded(as_png, io.BytesIO(data))
        return await asyncio.to_thread(lambda: to_rgb(Image.open(io.BytesIO(png))))
    except UniWorldError as error:
        raise CompletionError(400, str(error), "messages", "invalid_image_format") from error


async def _pieces(
    request: web.Request, server: Server, wanted: CompletionRequest, pictures: list[list[Image.Image]]
) -> AsyncGenerator[Piece, None]:
    """Queue the request, and yield the pieces of the answer and its end, or an error."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece]()

    def put(piece: Piece) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, piece)

    def work() -> None:
        try:
            put(answer(wanted, pictures, server.worker.kept, server.host, put))
        except Interrupted:
            put(CompletionError(503, "The request was interrupted."))
        except (
            BaseException
        ) as error:  # even SystemExit: the worker's thread must survive, and the client wait no longer
            if not isinstance(error, CompletionError) and is_bug(error):
                say("".join(traceback.format_exception(error)).rstrip())
            put(failure(error))

    call = QueuedCall(work, lambda sentence: put(CompletionError(503, sentence)))
    server.worker.submit(call)
    try:
        while True:
            try:
                piece = await asyncio.wait_for(queue.get(), _POLL_SECONDS)
            except asyncio.TimeoutError:
                if request.transport is None or request.transport.is_closing():
                    return
                continue
            yield piece
            if not isinstance(piece, GeneratedText):
                return
    finally:
        server.worker.cancel(call)


async def _whole(wanted: CompletionRequest, about: dict[str, Any], pieces: AsyncGenerator[Piece, None]) -> web.Response:
    text, tokens, end = "", [], None
    async for piece in pieces:
        if isinstance(piece, CompletionError):
            return _error(piece)
        if isinstance(piece, AnswerEnd):
            end = piece
        else:
            text += piece.text
            tokens += [_logprob(piece)] if piece.token is not None else []
    if end is None:  # the client has disconnected
        return web.Response(status=499)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if wanted.top is None else {"content": tokens, "refusal": None},
        "finish_reason": end.reason,
    }
    return json_response({**about, "object": "chat.completion", "choices": [choice], "usage": _usage(end)})


async def _streamed(
    request: web.Request, wanted: CompletionRequest, about: dict[str, Any], pieces: AsyncGenerator[Piece, None]
) -> web.StreamResponse:
    """Send the pieces as server-sent events. An error before the first piece is an ordinary response."""
    response: web.StreamResponse | None = None
    about = {**about, "object": "chat.completion.chunk"}
    async for piece in pieces:
        if response is None:
            if isinstance(piece, CompletionError):
                return _error(piece)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            await _send(response, {**about, "choices": [_delta({"role": "assistant", "content": ""})]})
        if isinstance(piece, CompletionError):
            await _send(response, {"error": openai_error(piece.status, piece.message, piece.param, piece.code)})
        elif isinstance(piece, AnswerEnd):
            await _send(response, {**about, "choices": [_delta({}, finish=piece.reason)]})
            if wanted.usage:
                await _send(response, {**about, "choices": [], "usage": _usage(piece)})
        elif piece.text or piece.token is not None:
            logprobs = None if piece.token is None else {"content": [_logprob(piece)], "refusal": None}
            await _send(response, {**about, "choices": [_delta({"content": piece.text}, logprobs)]})
    if response is None:  # the client has disconnected
        return web.Response(status=499)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _delta(delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _logprob(piece: GeneratedText) -> dict[str, Any]:
    assert piece.token is not None
    return {**_choice(piece.token), "top_logprobs": [_choice(one) for one in piece.alternatives]}


def _choice(one: TokenChoice) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.data)}


def _usage(end: AnswerEnd) -> dict[str, int]:
    total = end.tokens_in + end.tokens_out
    return {"prompt_tokens": end.tokens_in, "completion_tokens": end.tokens_out, "total_tokens": total}


def _error(error: CompletionError) -> web.Response:
    return json_response({"error": openai_error(error.status, error.message, error.param, error.code)}, error.status)


async def get_models(request: web.Request) -> web.Response:
    names = await asyncio.to_thread(answering_models)
    return json_response({"object": "list", "data": [_model(name) for name in names]})


async def get_model(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    try:
        await asyncio.to_thread(check_model, name)
    except CompletionError as error:
        return _error(error)
    return json_response(_model(name))


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "uniworld"}


_BODY = {
    **properties(
        model=STRING, messages={"type": "array", "items": OBJECT}, max_tokens=INTEGER, max_completion_tokens=INTEGER,
        temperature={"type": "number"}, seed=INTEGER, stop={"type": ["string", "array"]}, stream=BOOLEAN,
        stream_options=OBJECT, logprobs=BOOLEAN, top_logprobs=INTEGER,
    ),
    "required": ["model", "messages"],
}  # fmt: skip
_STATUSES = {
    200: "The answer, or a stream of server-sent events.",
    400: "Invalid request.",
    404: "Unknown model.",
    413: "Too large.",
    429: "The queue is full.",
    503: "Interrupted, or the server is stopping.",
}

ROUTES = [
    HTTPRoute("POST", "/v1/chat/completions", post_completion, "Answer a chat in text, with OpenAI's API.", body=_BODY,
          statuses=_STATUSES, alias=False),
    HTTPRoute("GET", "/v1/models", get_models, "The checkpoints that answer, as OpenAI lists models.", alias=False),
    # Names may have slashes.
    HTTPRoute("GET", "/v1/models/{name:.+}", get_model, "A checkpoint that answers, as OpenAI describes a model.",
          statuses={200: "The model.", 400: "The model only paints.", 404: "Unknown model."}, alias=False),
]  # fmt: skip
