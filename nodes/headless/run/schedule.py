"""The order in which the nodes of a run are executed."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from itertools import count


class Schedule:
    """Queue of nodes whose dependencies have run: coroutines first, then in an order that completes outputs early.

    Args:
        dependencies: returns the nodes that must run before a node, in the order of its inputs.
        has_result: whether a node has a result.
        is_async: whether a node is a coroutine. These start early, as other nodes can run while they wait.
    """

    def __init__(
        self,
        dependencies: Callable[[str], list[str]],
        has_result: Callable[[str], bool],
        is_async: Callable[[str], bool],
    ) -> None:
        self._dependencies, self._has_result, self._is_async = dependencies, has_result, is_async
        self._waits_for: dict[str, set[str]] = {}
        self._users: dict[str, list[str]] = defaultdict(list)
        self._ranks: dict[str, tuple[bool, int, int]] = {}  # (not a coroutine, negative addition, order); lowest first
        self._ready: list[tuple[tuple[bool, int, int], str]] = []
        self._counter = count()
        self._addition = 0

    def add_outputs(self, outputs: list[str]) -> None:
        """Add nodes and everything they depend on, to run in this order as far as dependencies allow.

        Nodes that are added later run earlier, because a node that has already started waits for them.
        """
        self._addition -= 1
        for node_id in outputs:
            self._add(node_id)

    def _add(self, node_id: str) -> None:
        stack = [] if self._has_result(node_id) else [node_id]
        while stack:  # depth first: a node is ranked after all its dependencies
            current = stack[-1]
            if current not in self._waits_for:
                missing = self._missing(self._dependencies(current))
                self._waits_for[current] = set(missing)
                for source in missing:
                    self._users[source].append(current)
                stack.extend(source for source in reversed(missing) if source not in self._waits_for)
                continue
            stack.pop()
            if current not in self._ranks:
                self._ranks[current] = (not self._is_async(current), self._addition, next(self._counter))
                self._push_if_ready(current)

    def next(self) -> str | None:
        """Return a node to run now, or None if none is ready. Call `done` or `again` when it has run."""
        return heapq.heappop(self._ready)[1] if self._ready else None

    def done(self, node_id: str) -> None:
        """Mark a node as finished."""
        del self._waits_for[node_id], self._ranks[node_id]
        for user in self._users.pop(node_id, ()):
            self._waits_for[user].discard(node_id)
            self._push_if_ready(user)

    def again(self, node_id: str, after: list[str]) -> None:
        """Schedule a node that has started to run once more, after the nodes `after` and their dependencies."""
        missing = self._missing(after)
        self._waits_for[node_id].update(missing)
        for source in missing:
            self._users[source].append(node_id)
        self.add_outputs(missing)
        self._push_if_ready(node_id)

    def _missing(self, sources: list[str]) -> list[str]:
        return list(dict.fromkeys(source for source in sources if not self._has_result(source)))

    def _push_if_ready(self, node_id: str) -> None:
        if not self._waits_for[node_id] and node_id in self._ranks:
            heapq.heappush(self._ready, (self._ranks[node_id], node_id))

    @property
    def waiting(self) -> list[str]:
        """The nodes that have been added and are not finished."""
        return list(self._waits_for)
