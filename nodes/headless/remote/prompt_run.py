"""Running one prompt on a server: queue it exactly once, follow it across connection failures, cancel it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ....streams import say
from ..run.executor import EventHook, RunResult
from ..run.stopping import StopRequest
from .client import TOO_MANY_REQUESTS, BadAnswer, Refusal, ServerClient, ServerFailed, Unreachable
from .listener import Listener
from .remote_events import INTERRUPTED_SENTENCE, PromptHistory, RemoteEvents, read_history

WARM_POLL, COLD_POLL, LAST_POLL = 10.0, 1.0, 0.05  # seconds between two polls: with and without a
# socket, and after the socket has reported the end
PATIENCE = 120.0  # seconds to wait for an unresponsive server
STOP_SECONDS = 20.0  # seconds to wait for a server to confirm an interrupt
_DRAIN = 1.0  # seconds to wait for the last messages of a finished run
_TICK = 0.1
_CONFIRM = 5.0  # seconds until the history must contain a run whose end the socket has reported
_BUSY = frozenset({TOO_MANY_REQUESTS, 502, 503, 504})  # temporary failures of servers and proxies
_ATTEMPTS = 8  # to queue a prompt
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_LOOKS = 3  # at the queue, before a prompt without a response counts as not queued
_TAKEN = "prompt_id_taken"


class PromptInvalid(Exception):
    """A server rejected a prompt as invalid, and runs no part of it.

    Attributes:
        error: ComfyUI's error object.
        node_errors: ComfyUI's error objects by node id.
    """

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error, self.node_errors = error, node_errors


class PromptUnknown(ServerFailed):
    """A server does not know a queued prompt: it was restarted, or its history was cleared."""


class Unconfirmed(ServerFailed):
    """A server has not confirmed that a prompt was interrupted."""


@dataclass
class PromptRun:
    """A run of one prompt.

    Args:
        prompt_id: chosen by the caller. Also the client id, so that a later process can follow the run.
        prompt: the workflow in API form.
        extra_data: metadata for the server, such as the editor form.
        patience: returns how many seconds to wait for an unresponsive server.
    """

    client: ServerClient
    prompt_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    on_event: EventHook
    stop: StopRequest | None = None
    patience: Callable[[], float] = lambda: PATIENCE
    _events: RemoteEvents = field(init=False)
    _cancelled_at: float | None = None
    _next_cancel: float = 0.0

    def __post_init__(self) -> None:
        self._events = RemoteEvents(self.prompt_id, self.prompt, self.on_event)

    async def run(self) -> RunResult:
        """Queue the prompt and follow it to its end.

        Raises:
            PromptInvalid: the server rejected the prompt.
            ServerFailed: the server cannot be reached, failed, or no longer knows the prompt.
        """
        async with Listener(self.client, self.prompt_id) as listener:
            if self.stop:
                return self._events.end("execution_interrupted", {})
            if await self._submit():
                return self._events.end("execution_interrupted", {})
            return await self._follow(listener)

    async def resume(self) -> RunResult:
        """Follow a prompt that an earlier program queued.

        Raises:
            ServerFailed: as `run`; PromptUnknown if the server does not know it.
        """
        async with Listener(self.client, self.prompt_id) as listener:
            return await self._follow(listener)

    # --- queueing ---------------------------------------------------------------------------------------------------

    async def _submit(self) -> bool:
        """Queue the prompt exactly once; return True if the run was stopped first."""
        body = {
            "prompt": self.prompt,
            "prompt_id": self.prompt_id,
            "client_id": self.prompt_id,
            "extra_data": self.extra_data,
        }
        pause = _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = await self.client.post_json("/prompt", body, self.client.timeouts.submit)
                await self._accept(answer)
                return False
            except Unreachable as error:
                if not error.sent:
                    raise
                # The server may have queued the prompt although the response was lost.
                if await self._was_queued():
                    return False
                if attempt == _ATTEMPTS:
                    raise
            except Refusal as refusal:
                if _kind(refusal.data) == _TAKEN:
                    return False
                if refusal.status == 400 and _is_about_nodes(refusal.data):
                    about = refusal.data.get("error")
                    raise PromptInvalid(
                        about if isinstance(about, dict) else {}, _node_errors(refusal.data)
                    ) from refusal
                if refusal.status not in _BUSY or attempt == _ATTEMPTS:
                    raise
                if attempt == 1:
                    say(f"note: {refusal} Retrying.")
            if await self._stopped_within(pause):
                return True
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("unreachable")

    async def _accept(self, answer: Any) -> None:
        given = answer.get("prompt_id") if isinstance(answer, dict) else None
        if not isinstance(given, str) or not given:
            raise BadAnswer(f"{self.client.url}/prompt does not give the id of the prompt. Is it ComfyUI?")
        # Old versions of ComfyUI choose the id themselves.
        self.prompt_id = self._events.prompt_id = given
        errors = _node_errors(answer)
        if errors:
            # ComfyUI would run the valid outputs only. A local run does not start then, and neither does this one.
            await cancel(self.client, given)
            raise PromptInvalid({}, errors)

    async def _was_queued(self) -> bool:
        pause = _FIRST_PAUSE
        for _ in range(_LOOKS):
            await asyncio.sleep(pause)
            pause *= 2
            try:
                if await state_of(self.client, self.prompt_id) is not None:
                    return True
            except Unreachable:
                return True  # unknown, so it is followed and never queued again
        return False

    async def _stopped_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.stop:
                return True
            await asyncio.sleep(_TICK)
        return bool(self.stop)

    # --- following --------------------------------------------------------------------------------------------------

    async def _follow(self, listener: Listener) -> RunResult:
        ended_at: float | None = None
        failing_since: float | None = None
        looked_at = -WARM_POLL
        while True:
            for kind, data in await listener.next(_TICK):
                if self._events.message(kind, data) and ended_at is None:
                    ended_at = time.monotonic()
            now = time.monotonic()
            # Computed each time, because the socket may drop between two polls.
            pause = LAST_POLL if ended_at else WARM_POLL if listener.connected else COLD_POLL
            try:
                if self.stop and now >= self._next_cancel:
                    await self._cancel(now)
                elif now - looked_at < (COLD_POLL if failing_since else pause):
                    continue
                ending = ended_at is not None and now - ended_at < _CONFIRM
                result = await self._look(ending, listener if ended_at is None else None)
                failing_since = None
            except (Unreachable, Refusal) as error:
                if isinstance(error, Refusal) and error.status not in _BUSY:
                    raise
                self._check_stop(now)
                if failing_since is None:
                    failing_since = now
                    say(f"note: {error} Retrying for {self.patience():.0f} seconds.")
                if now - failing_since > self.patience():
                    raise Unreachable(str(error), sent=True) from error
                self._next_cancel = now + COLD_POLL
                looked_at = now
                continue
            if result is not None:
                return result
            self._check_stop(now)
            looked_at = now
            if ended_at is not None and now - ended_at > _CONFIRM:
                ended_at = None  # the error of a blocked node: the run continues

    async def _look(self, ending: bool, listener: Listener | None) -> RunResult | None:
        """Return the result of the run; None while it is queued or running.

        Args:
            ending: whether the socket has just reported the end, so that the history will show it soon.
            listener: the socket, if messages may still be on their way when the history shows the end.
        """
        state = await state_of(self.client, self.prompt_id)
        if isinstance(state, PromptHistory):
            if listener is not None:
                await self._drain(listener)
            return self._events.finish(state)
        if state is not None or ending:
            return None
        if self._events.ending is not None:  # the server keeps no history
            return self._events.end(*self._events.ending)
        if self._cancelled_at is not None:  # it was removed from the queue
            return self._events.end("execution_interrupted", {})
        raise PromptUnknown(
            f"The server {self.client.url} does not know the prompt {self.prompt_id}: it was restarted, or its history was "
            "cleared."
        )

    async def _drain(self, listener: Listener) -> None:
        """Process the messages up to the final one, which a short run may send later than its history appears."""
        end = time.monotonic() + _DRAIN
        while listener.connected and time.monotonic() < end:
            for kind, data in await listener.next(_TICK):
                if self._events.message(kind, data):
                    return

    async def _cancel(self, now: float) -> None:
        if self._cancelled_at is None:
            self._cancelled_at = now
        self._next_cancel = now + COLD_POLL
        await cancel(self.client, self.prompt_id)

    def _check_stop(self, now: float) -> None:
        if self.stop and self._cancelled_at is None:
            self._cancelled_at = now
        if self._cancelled_at is not None and now - self._cancelled_at > STOP_SECONDS:
            raise Unconfirmed(f"{INTERRUPTED_SENTENCE} The server {self.client.url} has not confirmed it.")


def _kind(data: Mapping[str, Any]) -> object:
    error = data.get("error")
    return error.get("type") if isinstance(error, dict) else None


def _is_about_nodes(data: Mapping[str, Any]) -> bool:
    return isinstance(data.get("node_errors"), (dict, list))


def _node_errors(data: Mapping[str, Any]) -> dict[str, Any]:
    errors = data.get("node_errors")
    return errors if isinstance(errors, dict) else {}


async def queue_ids(client: ServerClient) -> tuple[set[str], set[str]]:
    """Return the ids of the running and of the queued prompts.

    Raises:
        ServerFailed: the request failed.
    """
    data = await client.get_json("/queue")
    if not isinstance(data, dict) or not {"queue_running", "queue_pending"} <= data.keys():
        raise BadAnswer(f"The answer of {client.url}/queue is not a queue. Is it ComfyUI?")
    found = []
    for key in ("queue_running", "queue_pending"):
        items = data[key] if isinstance(data[key], list) else []
        found.append(
            {item[1] for item in items if isinstance(item, list) and len(item) > 1 and isinstance(item[1], str)}
        )
    return found[0], found[1]


async def state_of(client: ServerClient, prompt_id: str) -> PromptHistory | bool | None:
    """Return the history of a finished prompt, True for a queued or running one, None for an unknown one.

    Raises:
        ServerFailed: the request failed.
    """
    for look in range(2):
        data = await client.get_json(f"/history/{quote(prompt_id, safe='')}")
        if not isinstance(data, dict):
            raise BadAnswer(f"The answer of {client.url}/history is not a history. Is it ComfyUI?")
        history = read_history(data.get(prompt_id))
        if history is not None:
            return history
        # The history is read before and after the queue, so that a prompt that finishes in between is found.
        if look == 0 and prompt_id in set.union(*await queue_ids(client)):
            return True
    return None


async def cancel(client: ServerClient, prompt_id: str) -> None:
    """Remove a prompt from the queue, or interrupt it if it is running. Other prompts are not affected.

    Raises:
        ServerFailed: the request failed.
    """
    running, waiting = await queue_ids(client)
    if prompt_id in waiting:
        await client.post_json("/queue", {"delete": [prompt_id]})
        running, _ = await queue_ids(client)  # it may have started before it was removed
    if prompt_id in running:
        # Old versions of ComfyUI ignore the id and interrupt the running prompt, which is this one.
        await client.post_json("/interrupt", {"prompt_id": prompt_id})
