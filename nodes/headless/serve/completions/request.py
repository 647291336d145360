"""Requests of OpenAI's chat completions: what they may contain, and their errors in OpenAI's form.

Source of names and forms: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .....uniworld_core.errors import shown

# The maximum length of an answer in tokens: if the client sets none, and the highest one. Clients that set none expect a
# complete answer, such as a judge's reasons with its scores; UniSandbox's questions ask for up to 10240.
DEFAULT_TOKENS, MAX_TOKENS = 1024, 16384
MAX_TOP = 20
MAX_STOPS = 4
MAX_PICTURES = 64
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Parameters that this server does not implement, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    # vLLM's and others', through `extra_body` of the openai package.
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}


class CompletionError(Exception):
    """An error in OpenAI's form.

    Attributes:
        param: the parameter that is invalid.
        code: OpenAI's code, for errors that have one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True)
class ChatPart:
    """One turn: its role, its text, and its pictures as files."""

    role: str
    text: str
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class CompletionRequest:
    """A checked request.

    Attributes:
        model: name of a checkpoint.
        turns: turns of user and assistant, ending with the user's.
        top: number of alternatives per token; None for no log-probabilities.
        usage: whether a stream ends with the numbers of tokens.
    """

    model: str
    turns: tuple[ChatPart, ...]
    max_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    top: int | None


def read_request(body: Mapping[str, Any]) -> CompletionRequest:
    """Check a request. Raises CompletionError."""
    for name, values in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in values:
            message = f"'{name}' is not supported: {shown(body[name])}. Omit it."
            raise CompletionError(400, message, name, "unsupported_parameter")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise CompletionError(400, "'model' must be the name of a checkpoint; GET /v1/models lists them.", "model")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    stream, logprobs = (_flag(body, name) for name in ("stream", "logprobs"))
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise CompletionError(400, "'stream_options' must be an object.", "stream_options")
    top = _number(body, "top_logprobs", 0, 0, MAX_TOP)
    if top and not logprobs:
        raise CompletionError(400, "'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    return CompletionRequest(
        model,
        _turns(body.get("messages")),
        _number(body, limit, DEFAULT_TOKENS, 1, MAX_TOKENS),
        _temperature(body.get("temperature")),
        _number(body, "seed", 0, -(2**63), 2**64 - 1) % 2**64,
        _stops(body.get("stop")),
        stream,
        bool(options.get("include_usage")),
        top if logprobs else None,
    )


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise CompletionError(400, f"'{name}' must be true or false; it is {shown(value)}.", name)
    return bool(value)


def _number(body: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise CompletionError(
            400, f"'{name}' must be a whole number from {least} to {most}; it is {shown(value)}.", name
        )
    return value


def _temperature(value: object) -> float:
    if value is None:
        return 0.0
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 2
    if not valid:
        raise CompletionError(400, f"'temperature' must be from 0 to 2; it is {shown(value)}.", "temperature")
    number = float(value)  # type: ignore[arg-type]
    return 0.0 if number < 1e-6 else number  # the sampler's smallest temperature


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise CompletionError(400, f"'stop' must be a text or a list of up to {MAX_STOPS} texts.", "stop")
    return tuple(stops)


def _turns(messages: object) -> tuple[ChatPart, ...]:
    if not isinstance(messages, list) or not messages:
        raise CompletionError(400, "'messages' must be a list with at least one message.", "messages")
    turns: list[ChatPart] = []
    system: list[str] = []
    for number, message in enumerate(messages):
        turn = _turn(message, f"messages[{number}]")
        if turn.role == "system":
            if turn.pictures:
                where = f"messages[{number}]"
                raise CompletionError(400, f"{where} of the role {message['role']} may only have text.", where)
            system.append(turn.text)
            continue
        if turn.role == "user" and system:
            # The model's template has no system turn.
            turn, system = ChatPart("user", "\n".join([*system, turn.text]), turn.pictures), []
        turns.append(turn)
    if not turns or turns[-1].role != "user":
        raise CompletionError(400, "The last message must be the user's.", "messages")
    if system:
        turns[-1] = ChatPart("user", "\n".join([turns[-1].text, *system]), turns[-1].pictures)
    if sum(len(turn.pictures) for turn in turns) > MAX_PICTURES:
        raise CompletionError(400, f"A request may have at most {MAX_PICTURES} pictures.", "messages")
    return tuple(turns)


def _turn(message: object, where: str) -> ChatPart:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str) or role not in _ROLES:
        raise CompletionError(400, f"{where} must have a role, one of {', '.join(_ROLES)}.", where)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise CompletionError(400, f"{where}.content must be a text or a list of parts.", where)
    texts: list[str] = []
    pictures: list[bytes] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            pictures.append(_picture(part.get("image_url"), where))
        else:
            raise CompletionError(400, f"{where}.content has a part that is neither text nor image_url.", where)
    return ChatPart(_ROLES[role], "\n".join(texts), tuple(pictures))


def _picture(value: object, where: str) -> bytes:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or url[:5].lower() != "data:":
        # Fetching addresses of requests would let clients reach the server's network.
        raise CompletionError(400, f"{where}: pictures must be data URLs (data:image/png;base64,...).", where)
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise CompletionError(400, f"{where}: the picture's data URL is not in base64.", where)
    try:
        # As browsers read data URLs: percent-encoded or not, in lines or not, and without padding too.
        plain = re.sub(rb"[ \t\n\f\r]", b"", urllib.parse.unquote_to_bytes(data)).rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CompletionError(400, f"{where}: the picture's data URL is not valid base64.", where) from error
