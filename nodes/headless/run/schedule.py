"""Which node of a run comes next."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from itertools import count


class Schedule:
    """Hands out nodes whose needs are met: coroutines first, then in the order that ends outputs as early as possible.

    Args:
        needs: gives the nodes that must run before a node, in the order of its inputs.
        is_met: whether a node's result is there.
        is_async: whether a node is a coroutine; these are started early, as others can run while they wait.
    """

    def __init__(
        self, needs: Callable[[str], list[str]], is_met: Callable[[str], bool], is_async: Callable[[str], bool]
    ) -> None:
        self._needs, self._is_met, self._is_async = needs, is_met, is_async
        self._waits_for: dict[str, set[str]] = {}
        self._users: dict[str, list[str]] = defaultdict(list)
        self._ranks: dict[str, tuple[bool, int, int]] = {}
        self._ready: list[tuple[tuple[bool, int, int], str]] = []
        self._counter = count()
        self._addition = 0

    def add_outputs(self, outputs: list[str]) -> None:
        """Add nodes and all they need, to run in this order as far as their needs allow.

        What is added later comes earlier, as a node that has begun waits for it.
        """
        self._addition -= 1
        for node_id in outputs:
            self._add(node_id)

    def _add(self, node_id: str) -> None:
        stack = [] if self._is_met(node_id) else [node_id]
        while stack:  # depth first, and a node takes its rank behind all it needs
            current = stack[-1]
            if current not in self._waits_for:
                missing = list(dict.fromkeys(source for source in self._needs(current) if not self._is_met(source)))
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
        """A node to run now, or None if every one left waits for another. Say `done` or `again` when it has run."""
        return heapq.heappop(self._ready)[1] if self._ready else None

    def done(self, node_id: str) -> None:
        del self._waits_for[node_id], self._ranks[node_id]
        for user in self._users.pop(node_id, ()):
            self._waits_for[user].discard(node_id)
            self._push_if_ready(user)

    def again(self, node_id: str, after: list[str]) -> None:
        """Let a node that has begun run once more, after the nodes `after` and all they need."""
        missing = list(dict.fromkeys(source for source in after if not self._is_met(source)))
        self._waits_for[node_id].update(missing)
        for source in missing:
            self._users[source].append(node_id)
        self.add_outputs(missing)
        self._push_if_ready(node_id)

    def _push_if_ready(self, node_id: str) -> None:
        if not self._waits_for[node_id] and node_id in self._ranks:
            heapq.heappush(self._ready, (self._ranks[node_id], node_id))

    @property
    def waiting(self) -> list[str]:
        """The nodes that have been added and not run."""
        return list(self._waits_for)
