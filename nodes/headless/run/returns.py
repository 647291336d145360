"""What a node's calls returned: outputs, what the node shows, and nodes that it adds to the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ..registry.foreign import is_blocker
from ..registry.schema import is_link


@dataclass
class Returns:
    """The returns of all calls of one node.

    Attributes:
        results: the outputs of each call. Those of a call that added nodes may be links to outputs of these.
        graphs: the added nodes of each call, by id; None for a call that added none.
        ui: what the node shows.
    """

    results: list[tuple[Any, ...]] = field(default_factory=list)
    graphs: list[dict[str, object] | None] = field(default_factory=list)
    ui: dict[str, list[object]] = field(default_factory=dict)

    @property
    def links(self) -> list[list[Any]]:
        """The outputs of added nodes, or of any others, that the results wait for."""
        added = (result for result, graph in zip(self.results, self.graphs) if graph is not None)
        return [item for result in added for item in result if is_link(item)]

    def outputs(
        self, is_list: tuple[bool, ...], output_of: Callable[[list[object]], list[object]] | None = None
    ) -> list[list[object]]:
        """One list of values for each output.

        Args:
            is_list: which outputs are lists already.
            output_of: gives all values of the output that a link names, for the results of `links`.
        """
        columns: list[list[object]] = [[] for _ in range(min((len(result) for result in self.results), default=0))]
        for result, graph in zip(self.results, self.graphs):
            for index, column in enumerate(columns):
                item = result[index]
                if graph is not None and is_link(item) and output_of is not None:
                    column.extend(output_of(item))
                elif index < len(is_list) and is_list[index] and not is_blocker(item):
                    column.extend(item)
                else:
                    column.append(item)
        return columns


def read_returns(returns: list[object], count: int) -> Returns:
    """Read what the calls of a node with `count` outputs returned.

    Raises:
        UniWorldError: a return value is not of the V1 form.
    """
    read = Returns()
    shown: list[dict[str, Any]] = []
    for returned in returns:
        value, graph = returned, None
        if isinstance(returned, dict):
            graph = returned.get("expand")
            if "ui" in returned:
                shown.append(returned["ui"])
            if "result" not in returned and graph is None:
                continue
            value = returned.get("result", () if count == 0 else None)
        read.results.append(_outputs_of(value, count))
        read.graphs.append(graph)
    read.ui = {key: [item for part in shown for item in part.get(key, ())] for key in (shown[0] if shown else ())}
    return read


def _outputs_of(value: object, count: int) -> tuple[object, ...]:
    if is_blocker(value):
        return (value,) * count
    if value is None and count == 0:
        return ()
    if not isinstance(value, (tuple, list)):
        raise UniWorldError(f"The node returned {type(value).__name__}; it must return a tuple of {count} outputs.")
    return tuple(value)
