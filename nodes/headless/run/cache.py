"""The cache of node results, kept between runs and keyed by a signature of everything a result depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from ....uniworld_core.errors import UniWorldError
from ..registry.arguments import arguments_before_run
from ..registry.calls import call_over_lists
from ..registry.schema import NodeSchema, argument_names, is_link
from .expansion import DynamicPrompt

NodeKey = tuple[str, str]  # id and class
Display = tuple[str, dict[str, list[object]]]  # id of the node at which the editor shows something, and its ui data
_never = count()


@dataclass(frozen=True)
class NodeResult:
    """Result of a node.

    Attributes:
        outputs: one list of values per output.
        ui: data that the editor shows at the node.
        added: displays of the nodes that it added to the graph, by their id.
        warnings: display node and text of each warning; the display node is "" for the node itself, and set for nodes
            that it added.
    """

    outputs: list[list[object]]
    ui: dict[str, list[object]]
    added: dict[str, Display] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()


@dataclass
class ResultCache:
    """Results by signature, and node instances by id and class.

    The cache holds everything that the last workflow can use, and more up to `limit`.

    Attributes:
        limit: number of results up to which those of other workflows are kept too; the least recently used are dropped.
        added: for each node that added others in its last run, the signatures of these, by id and class.
    """

    limit: int = 0
    results: dict[str, NodeResult] = field(default_factory=dict)
    instances: dict[NodeKey, object] = field(default_factory=dict)
    added: dict[NodeKey, dict[NodeKey, str]] = field(default_factory=dict)

    def keep_only(self, nodes: dict[NodeKey, str]) -> None:
        """Keep the results of these nodes (with their signatures), of nodes they added, and others up to `limit`."""
        kept, pending = dict(nodes), list(nodes)
        while pending:
            new = {key: signature for key, signature in self.added.get(pending.pop(), {}).items() if key not in kept}
            kept.update(new)
            pending.extend(new)
        signatures = set(kept.values())
        used = {key: result for key, result in self.results.items() if key in signatures}
        others = [(key, result) for key, result in self.results.items() if key not in signatures]
        # A dict keeps insertion order, and the used ones go last, so the first others are the least recently used.
        # The limit also counts results that this workflow has yet to compute.
        self.results = {**dict(others[len(others) - max(self.limit - len(signatures), 0) :]), **used}
        self.instances = {key: instance for key, instance in self.instances.items() if key in kept}
        self.added = {key: nodes for key, nodes in self.added.items() if key in kept}


class Signatures:
    """Signatures of the nodes of one run: a hash of class, constants, IS_CHANGED, salt and the sources' signatures.

    Args:
        salts: by node id, anything else that its result depends on.
    """

    def __init__(
        self,
        graph: DynamicPrompt,
        classes: Mapping[str, type],
        schemas: Mapping[str, NodeSchema],
        salts: Mapping[str, str],
    ) -> None:
        self._graph, self._classes, self._schemas, self._salts = graph, classes, schemas, salts
        self.known: dict[str, str] = {}

    async def add(self, node_ids: list[str]) -> None:
        """Compute the signatures of these nodes and of all their ancestors.

        Raises:
            UniWorldError: the links form a cycle.
            LookupError: a link comes from a node that does not exist.
        """
        for node_id in node_ids:
            # Depth first and iterative, as graphs can be deeper than Python's recursion limit. `path` leads from
            # `node_id` to the current node; each entry iterates over the sources that are still to be visited.
            path = {} if node_id in self.known else {node_id: self._sources(node_id)}
            while path:
                current, sources = next(reversed(path.items()))
                source = next((source for source in sources if source not in self.known), None)
                if source is None:
                    self.known[current] = await self._compute(current)
                    del path[current]
                elif source in path:
                    raise UniWorldError(f"Dependency cycle detected: {' → '.join([*path, source])}.")
                else:
                    path[source] = self._sources(source)

    def _sources(self, node_id: str) -> Iterator[str]:
        node = self._graph.get_node(node_id)
        links = self._schemas[node["class_type"]].used_links(node["inputs"]).values()
        return iter([link[0] for link in links])

    async def _compute(self, node_id: str) -> str:
        node = self._graph.get_node(node_id)
        node_class, schema = self._classes[node["class_type"]], self._schemas[node["class_type"]]
        parts = [node["class_type"], _canonical(await self._is_changed(node_id))]
        # As in ComfyUI, these nodes may return something else under another id.
        if getattr(node_class, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in schema.hidden.values():
            parts.append(f"id {node_id}")
        if node_id in self._salts:
            parts.append(f"salt {self._salts[node_id]}")
        for name, value in sorted(node["inputs"].items()):
            if is_link(value) and schema.takes_link(name):
                parts.append(f"{name}<-{self.known[value[0]]}/{value[1]}")
            else:
                parts.append(f"{name}={_canonical(value)}")
        # surrogatepass: strings from JSON may contain lone surrogates.
        return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()

    async def _is_changed(self, node_id: str) -> object:
        node = self._graph.get_node(node_id)
        node_class, schema = self._classes[node["class_type"]], self._schemas[node["class_type"]]
        if not hasattr(node_class, "IS_CHANGED"):
            return False
        try:
            names, takes_all = argument_names(node_class.IS_CHANGED)
            arguments = arguments_before_run(node["inputs"], schema, node_id)
            values = {name: value for name, value in arguments.items() if name in names or takes_all}
            return await call_over_lists(node_class.IS_CHANGED, values, schema.input_is_list)
        except (Exception, SystemExit):
            # As in ComfyUI, a failing IS_CHANGED counts as changed. If the node is broken, its run reports the error.
            return float("nan")


def _canonical(value: object) -> str:
    """Return a text that is equal for equal values, and unique for values that cannot be compared (NaN, objects)."""
    if isinstance(value, float) and value != value:
        return f"never {next(_never)}"
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_canonical(key)}:{_canonical(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return f"never {next(_never)}"
