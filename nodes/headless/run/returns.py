"""The return values of a node's calls: outputs, ui data, and nodes to add to the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ..registry.interop import is_blocker
from ..registry.schema import is_link


@dataclass
class Returns:
    """The return values of all calls of one node.

    Attributes:
        results: the outputs of each call. If the call added nodes, an output may be a link to an output of one of them.
        graphs: the nodes that each call added, by id; None if it added none.
        ui: data that the editor shows at the node.
    """

    results: list[tuple[Any, ...]] = field(default_factory=list)
    graphs: list[dict[str, object] | None] = field(default_factory=list)
    ui: dict[str, list[object]] = field(default_factory=dict)

    @property
    def links(self) -> list[list[Any]]:
        """The links among the results: outputs of added or other nodes that must be computed first."""
        added = (result for result, graph in zip(self.results, self.graphs) if graph is not None)
        return [item for result in added for item in result if is_link(item)]

    def outputs(
        self, is_list: tuple[bool, ...], output_of: Callable[[list[object]], list[object]] | None = None
    ) -> list[list[object]]:
        """Return one list of values per output.

        Args:
            is_list: for each output, whether it is a list already (OUTPUT_IS_LIST).
            output_of: returns all values of the output that a link refers to, to resolve `links`.
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
    """Read the return values of the calls of a node with `count` outputs.

    Raises:
        UniWorldError: a return value does not have the form of V1 nodes.
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
