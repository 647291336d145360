"""Calling a node's functions the way ComfyUI does: once per item of its input lists."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..host import ExecutionBlocker


def call_over_lists(
    function: Callable[..., Any],
    values: Mapping[str, list[Any]],
    input_is_list: bool,
    before: Callable[[], None] = lambda: None,
    on_blocked: Callable[[ExecutionBlocker], ExecutionBlocker] = lambda blocker: blocker,
) -> list[Any]:
    """Call `function` once for each index of the longest list, shorter lists repeating their last item.

    Args:
        input_is_list: hand over the lists themselves, in one call.
        before: called before each call; may raise to stop.
        on_blocked: gives the result of a call that a blocked input prevents.

    Returns:
        What the calls returned.
    """
    if input_is_list:
        arguments: list[dict[str, Any]] = [dict(values)]
    else:
        calls = max((len(items) for items in values.values()), default=1)
        arguments = [{name: _item(items, index) for name, items in values.items()} for index in range(calls)]
    results = []
    for inputs in arguments:
        before()
        blocker = _blocker_in(inputs, input_is_list)
        results.append(_finished(function(**inputs)) if blocker is None else on_blocked(blocker))
    return results


def _item(items: list[Any], index: int) -> Any:
    if not items:
        raise ValueError("An input list is empty, so that the node has nothing to work on.")
    return items[min(index, len(items) - 1)]


def _blocker_in(inputs: Mapping[str, Any], input_is_list: bool) -> ExecutionBlocker | None:
    for value in inputs.values():
        for item in value if input_is_list and isinstance(value, list) else (value,):
            if isinstance(item, ExecutionBlocker):
                return item
    return None


def _finished(result: Any) -> Any:
    # Nodes may be coroutines; the executor runs in a thread of its own, one node at a time.
    return asyncio.run(_await(result)) if inspect.isawaitable(result) else result


async def _await(result: Any) -> Any:
    return await result


def collect_returns(
    returns: list[Any], count: int, is_list: tuple[bool, ...]
) -> tuple[list[list[Any]], dict[str, list[Any]]]:
    """Turn what a node's calls returned into one list of values per output, and what it shows.

    Raises:
        ValueError: a return value is not of the V1 form, or expands the graph.
    """
    results: list[tuple[Any, ...]] = []
    shown: list[dict[str, Any]] = []
    for returned in returns:
        value = returned
        if isinstance(returned, dict):
            if "expand" in returned:
                raise ValueError("The node expands the graph while it runs, which only ComfyUI can do. Run it there.")
            if "ui" in returned:
                shown.append(returned["ui"])
            if "result" not in returned:
                continue
            value = returned["result"]
        results.append(_outputs_of(value, count))
    outputs: list[list[Any]] = [[] for _ in range(min((len(result) for result in results), default=0))]
    for index, column in enumerate(outputs):
        for result in results:
            item = result[index]
            if index < len(is_list) and is_list[index] and not isinstance(item, ExecutionBlocker):
                column.extend(item)
            else:
                column.append(item)
    ui = {key: [item for part in shown for item in part.get(key, ())] for key in (shown[0] if shown else ())}
    return outputs, ui


def _outputs_of(value: Any, count: int) -> tuple[Any, ...]:
    if isinstance(value, ExecutionBlocker):
        return (value,) * count
    if value is None and count == 0:
        return ()
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"The node returned {type(value).__name__}; it must return a tuple of {count} outputs.")
    return tuple(value)
