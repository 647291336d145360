"""Answer a chat completion on the worker's thread: load the model, generate, and report each token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.families.table import family_of
from ....host import PlainHost
from ....pack.folders import AUTO, checkpoint_choices
from ....pack.loaders import LoadUniWorld
from ....pack.wires import VLMWire
from .request import CompletionError, CompletionRequest

# The letters that stand for bytes in the words of a byte-level vocabulary, as in GPT-2: printable ones for themselves, and
# those from U+0100 on for the others in order.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(sorted({*range(0x100)} - {*_PRINTABLE}))
}


@dataclass(frozen=True)
class TokenChoice:
    """A token with its log-probability.

    Attributes:
        text: contains U+FFFD for a part of a character.
        data: its bytes, which are complete characters only together with those of its neighbors.
    """

    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True)
class GeneratedText:
    """A piece of the answer.

    Attributes:
        text: the text that became certain with this token; possibly empty.
        token: the token with its alternatives; None for the rest after the last token.
    """

    text: str
    token: TokenChoice | None = None
    alternatives: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer: "stop" or "length", and the numbers of tokens."""

    reason: str
    tokens_in: int
    tokens_out: int


class _Stopped(Exception):
    """A stop text has been generated."""


def answer(
    request: CompletionRequest,
    pictures: Sequence[Sequence[Image.Image]],
    kept: dict[str, VLMWire],
    host: PlainHost,
    emit: Callable[[GeneratedText], None],
) -> AnswerEnd:
    """Generate the answer.

    Args:
        pictures: the pictures of each turn.
        kept: where the model is kept for the next request.
        emit: called with each piece of the answer.

    Raises:
        CompletionError: the checkpoint cannot answer.
        UniWorldError: the conversation is invalid, or the model cannot be loaded.
        host.Interrupted: the request was cancelled.
    """
    from .....uniworld_core import Conversation, Reference, Turn

    turns = [
        Turn(turn.role, turn.text, [Reference(picture) for picture in own])
        for turn, own in zip(request.turns, pictures, strict=True)
    ]
    conversation = Conversation(turns)
    prompt = _reader(request.model, kept).prepare(conversation)
    writer = _Writer(prompt.tokenizer, request, host, emit)
    reason = "stop"
    with contextlib.suppress(_Stopped):
        prompt.generate(request.max_tokens, request.temperature, request.seed, writer.add)
        reason = "stop" if writer.ended else "length"
    writer.finish()
    return AnswerEnd(reason, prompt.length, writer.count)


def _reader(name: str, kept: dict[str, VLMWire]) -> VLMWire:
    """Return the checkpoint's prompt reader; the one of the last request is kept."""
    if name not in kept:
        kept.clear()
        kept[name] = LoadUniWorld().execute(name, AUTO, AUTO, "auto", "default")[0]
    return kept[name]


class _Writer:
    """Turns token ids into text as soon as it is certain.

    Attributes:
        count: number of tokens so far.
        ended: whether the model has ended its answer.
    """

    def __init__(
        self, tokenizer: Any, request: CompletionRequest, host: PlainHost, emit: Callable[[GeneratedText], None]
    ) -> None:
        self._tokenizer, self._request, self._host, self._emit = tokenizer, request, host, emit
        self._special = set(tokenizer.all_special_ids)
        self._added = set(tokenizer.get_added_vocab().values())
        self._ids: list[int] = []
        self._sent = 0
        self._stopped_at: int | None = None
        self.count, self.ended = 0, False

    def add(self, token: int, logprobs: Any) -> None:
        """Add a token. Raises _Stopped after a stop text, and Interrupted if the request was cancelled."""
        self._host.check_interrupt()
        self.count += 1
        if token in self._special:
            self.ended = True
            return
        self._ids.append(token)
        text = self._text()
        stops = [place for stop in self._request.stop if (place := text.find(stop)) >= 0]
        if stops:
            self._stopped_at = min(stops)
        choice, others = self._choices(token, logprobs)
        self._emit(GeneratedText(self._certain(text), choice, others))
        if stops:
            raise _Stopped

    def finish(self) -> None:
        """Emit the text that was held back."""
        rest = self._text()[: self._stopped_at][self._sent :]
        if rest:
            self._emit(GeneratedText(rest))

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _certain(self, text: str) -> str:
        """Return the new text that later tokens cannot change: complete characters, and no beginning of a stop text."""
        end = len(text)
        while end and text[end - 1] == "\ufffd":  # a character of which bytes are missing
            end -= 1
        longest = max(map(len, self._request.stop), default=1)
        end = min(end, len(text) - longest + 1) if self._stopped_at is None else self._stopped_at
        piece = text[self._sent : max(end, self._sent)]
        self._sent += len(piece)
        return piece

    def _choices(self, token: int, logprobs: Any) -> tuple[TokenChoice | None, tuple[TokenChoice, ...]]:
        if self._request.top is None:
            return None, ()
        best = logprobs.topk(min(self._request.top, logprobs.shape[0])) if self._request.top else None
        pairs = [] if best is None else list(zip(best.indices.tolist(), best.values.tolist()))
        return self._choice(token, float(logprobs[token])), tuple(self._choice(one, value) for one, value in pairs)

    def _choice(self, token: int, logprob: float) -> TokenChoice:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return TokenChoice(text, self._bytes(token, text), max(logprob, -9999.0))

    def _bytes(self, token: int, text: str) -> bytes:
        word = self._tokenizer.convert_ids_to_tokens(token)
        if token in self._added or word is None or not _BYTES.keys() >= set(word):
            return text.encode()
        return bytes(_BYTES[letter] for letter in word)


def answering_models() -> list[str]:
    """Return the names of the checkpoints whose family answers in text."""
    return [name for name, folder in checkpoint_choices().items() if _answers(folder)]


def _answers(folder: Path) -> bool:
    try:
        return family_of(folder).answers
    except UniWorldError:  # of an unknown family, or damaged
        return False


def check_model(name: str) -> None:
    """Raise CompletionError if there is no such checkpoint, or it does not answer in text."""
    known = answering_models()
    if name in known:
        return
    listed = f"The models that answer are: {', '.join(known)}."
    if name not in checkpoint_choices():
        raise CompletionError(404, f"The model '{name}' does not exist. {listed}", "model", "model_not_found")
    try:
        family = family_of(checkpoint_choices()[name]).name
    except UniWorldError as error:
        raise CompletionError(400, str(error), "model") from error
    raise CompletionError(400, f"The model '{name}' of {family} only paints and cannot answer. {listed}", "model")


def failure(error: BaseException) -> CompletionError:
    """Return an error of `answer` in OpenAI's form."""
    if isinstance(error, CompletionError):
        return error
    if isinstance(error, UniWorldError):
        return CompletionError(400, str(error))
    return CompletionError(500, f"The model failed: {type(error).__name__}. See the server's terminal.")
