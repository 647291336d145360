"""Call a node's functions as ComfyUI does: once per item of its input lists, coroutines concurrently."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ....uniworld_core.errors import UniWorldError
from ...host import ExecutionBlocker
from .interop import is_blocker, set_graph_prefix

T = TypeVar("T")


def run_sync(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine to completion, also from a thread with a running event loop, such as a notebook's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()


class CoroutineRunner:
    """Runs coroutines one after the other in one thread, like `asyncio.run` but on one event loop.

    Creating and closing a loop is a good part of what a server adds to a prompt whose results are cached.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to completion, and cancel the tasks that it leaves."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        loop = self._loop
        try:
            return loop.run_until_complete(loop.create_task(coroutine))
        finally:
            rest = asyncio.all_tasks(loop)
            for task in rest:
                task.cancel()
            if rest:
                loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            if getattr(loop, "_default_executor", None) is not None:
                self.close()  # which waits for the threads of nodes, as `asyncio.run` does

    def close(self) -> None:
        """Close the event loop. The next `run` makes another one."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


async def call_over_lists(
    function: Callable[..., object],
    values: Mapping[str, list[object]],
    input_is_list: bool,
    *,
    node_id: str = "",
    before_call: Callable[[], None] = lambda: None,
    on_blocked: Callable[[ExecutionBlocker], ExecutionBlocker] = lambda blocker: blocker,
) -> list[object]:
    """Call `function` once per index of the longest list; shorter lists repeat their last item.

    Args:
        values: lists of values by argument name.
        input_is_list: pass the lists themselves, in a single call.
        node_id: id of the running node, the prefix of the ids of nodes that it builds.
        before_call: runs before each call; may raise to stop.
        on_blocked: returns the result of a call that is skipped because an input is blocked.

    Returns:
        The return values of the calls. Coroutines are awaited concurrently; the first error cancels the others.
    """
    results: list[object] = []
    tasks: dict[int, asyncio.Task[tuple[object, BaseException | None]]] = {}
    try:
        for index, inputs in enumerate(_arguments(values, input_is_list)):
            before_call()
            blocker = _blocker_in(inputs, input_is_list)
            if blocker is None:
                set_graph_prefix(node_id, index)
                results.append(function(**inputs))
                if inspect.isawaitable(results[-1]):
                    tasks[index] = asyncio.create_task(_result_or_error(results[-1]))
            else:
                results.append(on_blocked(blocker))
        for completed in asyncio.as_completed(tasks.values()):
            _, error = await completed
            if error is not None:
                raise error
    finally:
        for task in tasks.values():
            task.cancel()
    return [tasks[index].result()[0] if index in tasks else result for index, result in enumerate(results)]


def _arguments(values: Mapping[str, list[object]], input_is_list: bool) -> list[dict[str, object]]:
    if input_is_list:
        return [dict(values)]
    calls = max((len(items) for items in values.values()), default=1)
    if not all(values.values()):
        raise UniWorldError(
            "An input list is empty, so there is nothing to process. Check the node that it comes from."
        )
    return [{name: items[min(index, len(items) - 1)] for name, items in values.items()} for index in range(calls)]


def _blocker_in(inputs: Mapping[str, Any], input_is_list: bool) -> ExecutionBlocker | None:
    for value in inputs.values():
        for item in value if input_is_list and isinstance(value, list) else (value,):
            if is_blocker(item):
                return item  # type: ignore[no-any-return]
    return None


async def _result_or_error(awaitable: Awaitable[object]) -> tuple[object, BaseException | None]:
    try:
        return await awaitable, None
    except (Exception, SystemExit) as error:  # SystemExit would escape the task and stop the event loop
        return None, error
