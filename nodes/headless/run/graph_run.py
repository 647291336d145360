"""One run of a workflow: nodes run when their inputs are ready, coroutines concurrently, lazy inputs on demand."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ....uniworld_core.errors import UniWorldError
from ...host import Interrupted, NodeHooks, PlainHost, running_node
from ..problems import node_label
from ..registry.arguments import DYNPROMPT, PNGINFO, PROMPT, UNIQUE_ID, Arguments, collect_arguments
from ..registry.calls import ExecutionBlocker, call_over_lists
from ..registry.registry import Registry
from ..registry.schema import NodeSchema, Schemas
from .cache import Display, NodeResult, ResultCache, Signatures
from .events import EventHook, RunEvents
from .expansion import DynamicPrompt
from .returns import Returns, read_returns
from .schedule import Schedule

if TYPE_CHECKING:
    from PIL import Image

_POLL_SECONDS = 0.05  # how often to check for an interrupt while only coroutines run


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        status: "success", "error" or "interrupted".
        ui: ui data by node id, such as `{"images": [...]}`, including that of cached nodes.
        error: data of the execution_error event, if there was one.
        sentence: a message for the user if the run did not succeed.
        warnings: warnings of the nodes, in this run or when cached results were computed, in order, without duplicates.
    """

    status: str
    ui: dict[str, dict[str, list[Any]]]
    error: dict[str, Any] | None = None
    sentence: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass
class GraphRun:
    """One run of the output nodes of a workflow; `execute` is called once."""

    registry: Registry
    host: PlainHost
    cache: ResultCache
    graph: DynamicPrompt
    extra_pnginfo: dict[str, object] | None
    prompt_id: str
    on_event: EventHook
    salts: Mapping[str, str]

    def __post_init__(self) -> None:
        self.results: dict[str, NodeResult] = {}
        self.inputs: dict[str, dict[str, list[object]]] = {}  # of the running nodes, for error reports
        self.waiting: dict[str, Returns] = {}  # returns of nodes that wait for nodes they added
        self.added_displays: dict[str, dict[str, Display]] = defaultdict(dict)  # by the id of the node that added them
        self.node_warnings: dict[str, list[tuple[str, str]]] = defaultdict(list)  # as in NodeResult
        self.stopping = False
        self.schemas = Schemas(self.registry.classes)
        self.events = RunEvents(self.graph, self.prompt_id, self.on_event, self.results, self.registry.is_own)
        self.signatures = Signatures(self.graph, self.registry.classes, self.schemas, self.salts)
        self.schedule = Schedule(self._dependencies, self._has_result, lambda node_id: self._schema(node_id).is_async)

    async def execute(self, outputs: list[str]) -> RunResult:
        import torch

        with torch.inference_mode():
            self.events.emit("execution_start")
            await self._prepare(outputs)
            failed = await self._run_all(outputs)
        ui, warnings = self.events.ui, self.events.warnings
        if failed is None:
            self.events.emit("execution_success")
            return RunResult("success", ui, warnings=warnings)
        node_id, error = failed
        if isinstance(error, Interrupted):
            self.events.emit("execution_interrupted", **self.events.attribution(node_id))
            return RunResult("interrupted", ui, None, str(error) or "The run was interrupted.", warnings)
        data = self.events.error(node_id, error, self.inputs.get(node_id, {}))
        return RunResult("error", ui, data, self.events.sentence(node_id, error), warnings)

    async def _prepare(self, outputs: list[str]) -> None:
        """Compute all signatures, and drop cached results that this workflow cannot use."""
        # Nodes that no output depends on are never visited, so they may be invalid or form cycles.
        await self.signatures.add(outputs)
        keys = self.signatures.known
        self.cache.keep_only({(node_id, self._class_name(node_id)): key for node_id, key in keys.items()})
        cached = [node_id for node_id, key in keys.items() if key in self.cache.results]
        self.events.emit("execution_cached", nodes=cached)
        for node_id in cached:
            result = self.cache.results[keys[node_id]]
            if result.ui or result.added or result.warnings:
                # Emits the events of a cached node, even if no node of this run needs its outputs.
                self._has_result(node_id)

    async def _run_all(self, outputs: list[str]) -> tuple[str, BaseException] | None:
        """Run all nodes. Returns None, or the node that failed or was interrupted, and its exception."""
        running: dict[asyncio.Task[BaseException | None], str] = {}
        node_id = next(iter(outputs), None)
        try:
            self.schedule.add_outputs(outputs)
            while True:
                self.host.check_interrupt()
                node_id = self.schedule.next()
                if node_id is not None and self._has_result(node_id):
                    self.schedule.done(node_id)  # an identical node has run in the meantime
                elif node_id is not None:
                    running[asyncio.create_task(self._run_safely(node_id))] = node_id
                    await asyncio.sleep(0)  # a node that never awaits has finished when this returns
                elif running:
                    await asyncio.wait(list(running), timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                else:
                    return self._stuck()
                for task in [task for task in running if task.done()]:
                    node_id, error = running.pop(task), task.result()
                    if error is not None:
                        return node_id, error
        except Interrupted as error:
            return next(iter(running.values()), node_id or ""), error
        finally:
            self.stopping = True
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(list(running))

    def _stuck(self) -> tuple[str, BaseException] | None:
        """Return the error of a deadlock if nodes are left: a node waits for nodes it added, and these wait for it."""
        left = self.schedule.waiting
        blamed = next((node_id for node_id in left if node_id in self.waiting), left[0] if left else None)
        if blamed is None:
            return None
        return blamed, UniWorldError("It waits for nodes that it added, which wait for it.")

    async def _run_safely(self, node_id: str) -> BaseException | None:
        """Run a node and return its exception, if any."""
        try:
            await self._run_node(node_id)
        except (Exception, SystemExit) as error:  # a node that calls sys.exit must not stop the program
            return error
        except asyncio.CancelledError as error:
            if self.stopping:
                raise
            return error  # raised by the node itself
        return None

    async def _run_node(self, node_id: str) -> None:
        schema = self._schema(node_id)
        returned = self.waiting.pop(node_id, None)
        if returned is None:
            returned = await self._call(node_id, schema)
            if returned is None:
                return
            self._show(node_id, returned.ui)
            if any(graph is not None for graph in returned.graphs):
                await self._expand(node_id, returned)
                return
        outputs = returned.outputs(schema.output_is_list, lambda link: self._output("its result", link))
        warnings = tuple(self.node_warnings[node_id])
        result = NodeResult(outputs, returned.ui, self.added_displays[node_id], warnings)
        self.results[node_id] = self.cache.results[self.signatures.known[node_id]] = result
        self.inputs.pop(node_id, None)
        self.events.finished(node_id)
        self.schedule.done(node_id)

    async def _call(self, node_id: str, schema: NodeSchema) -> Returns | None:
        """Call the node's function and return its results; None if it first requests a lazy input."""
        class_name = self._class_name(node_id)
        node_class = self.registry.classes[class_name]
        self.events.executing(node_id)
        self._install_hooks(node_id)
        arguments = self._arguments(node_id, schema)
        values = arguments.values
        self.inputs[node_id] = {name: items for name, items in values.items() if name not in schema.hidden}
        # As in ComfyUI, instances live as long as the cache: nodes may keep state in them between runs.
        instance = self.cache.instances.get((node_id, class_name))
        if instance is None:
            instance = self.cache.instances[(node_id, class_name)] = node_class()
        if hasattr(instance, "check_lazy_status"):
            lazy, check = instance.check_lazy_status, self.host.check_interrupt
            answers = await call_over_lists(lazy, values, schema.input_is_list, node_id=node_id, before_call=check)
            wanted = self._wanted(answers, arguments)
            if wanted:
                self.events.emit("node_paused", node=node_id)
                inputs = self.graph.get_node(node_id)["inputs"]
                self.schedule.again(node_id, [inputs[name][0] for name in sorted(wanted)])
                return None
        returns = await call_over_lists(
            getattr(instance, node_class.FUNCTION),  # type: ignore[attr-defined]
            values,
            schema.input_is_list,
            node_id=node_id,
            before_call=self.host.check_interrupt,
            on_blocked=lambda blocker: self._blocked(node_id, blocker),
        )
        return read_returns(returns, len(schema.output_types))

    def _install_hooks(self, node_id: str) -> None:
        def progress(value: int, total: int, preview: Image.Image | None) -> None:
            self.events.progress(node_id, value, total, preview)

        def warning(text: str) -> None:
            self._warn(node_id, self.graph.get_display_node_id(node_id), text)

        running_node.set(NodeHooks(progress, warning))  # in the context of this node's task
        # Threads that the node starts do not inherit the context; their reports go through the host.
        self.host.progress_hook, self.host.warning_hook = progress, warning

    async def _expand(self, node_id: str, returned: Returns) -> None:
        """Add the nodes that a node returned, and make it wait for those that its outputs come from."""
        classes = self.registry.classes
        graphs = [graph for graph in returned.graphs if graph is not None]
        added = [one for graph in graphs for one in self.graph.expand(node_id, graph, classes)]
        sources = [link[0] for link in returned.links]
        outputs = [one for one in added if self._schema(one).is_output]
        await self.signatures.add([*outputs, *sources])
        known = self.signatures.known
        self.cache.added[(node_id, self._class_name(node_id))] = {
            (one, self._class_name(one)): known[one] for one in added if one in known
        }
        self.waiting[node_id] = returned
        self.events.emit("node_paused", node=node_id)
        self.schedule.add_outputs(outputs)
        self.schedule.again(node_id, sources)

    def _show(self, node_id: str, ui: dict[str, list[object]], added: dict[str, Display] | None = None) -> None:
        """Emit the ui data of a node and of the nodes it added, and keep it with the results of its ancestors."""
        displays = {node_id: (self.graph.get_display_node_id(node_id), ui), **(added or {})}
        for shown_id, (display_node, shown_ui) in displays.items():
            self.events.show(shown_id, shown_ui, display_node)
        if ui or added:
            for ancestor in self.graph.ancestors(node_id):
                self.added_displays[ancestor].update(displays)

    def _warn(self, node_id: str, display_node: str, text: str) -> None:
        """Emit a warning, and keep it with the results of the node and its ancestors, to be repeated on a cache hit."""
        self.node_warnings[node_id].append(("", text))  # no id, as the result may be reused for an identical node
        for ancestor in self.graph.ancestors(node_id):
            self.node_warnings[ancestor].append((display_node, text))
        self.events.warning(display_node, text)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _class_name(self, node_id: str) -> str:
        return str(self.graph.get_node(node_id)["class_type"])

    def _schema(self, node_id: str) -> NodeSchema:
        return self.schemas[self._class_name(node_id)]

    def _dependencies(self, node_id: str) -> list[str]:
        """Return the nodes that must run before this one: the sources of its links, except lazy ones."""
        schema = self._schema(node_id)
        links = schema.used_links(self.graph.get_node(node_id)["inputs"])
        return [link[0] for name, link in links.items() if name not in schema.inputs or not schema.inputs[name].lazy]

    def _has_result(self, node_id: str) -> bool:
        """Return whether a node has a result. The first use of a cached one emits its events."""
        if node_id in self.results:
            return True
        result = self.cache.results.get(self.signatures.known[node_id])
        if result is None:
            return False
        self.results[node_id] = result
        self._show(node_id, result.ui, result.added)
        for display_node, text in result.warnings:
            self._warn(node_id, display_node or self.graph.get_display_node_id(node_id), text)
        return True

    def _arguments(self, node_id: str, schema: NodeSchema) -> Arguments:
        def output_of(name: str, link: list[Any]) -> list[object] | None:
            return self._output(f"input '{name}'", link) if self._has_result(link[0]) else None

        inputs = self.graph.get_node(node_id)["inputs"]
        hidden = {
            PROMPT: self.graph.get_original_prompt(),
            DYNPROMPT: self.graph,
            PNGINFO: self.extra_pnginfo,
            UNIQUE_ID: node_id,
        }
        return collect_arguments(inputs, schema, hidden, output_of)

    def _output(self, user: str, link: list[Any]) -> list[object]:
        outputs = self.results[link[0]].outputs
        if link[1] not in range(len(outputs)):
            source = node_label(link[0], self._class_name(link[0]))
            raise UniWorldError(f"{source} returned {len(outputs)} outputs, but {user} is linked to output {link[1]}.")
        return outputs[int(link[1])]

    def _wanted(self, answers: list[object], arguments: Arguments) -> set[str]:
        """Return the lazy inputs that check_lazy_status requests and that have no value yet."""
        names = {name for answer in answers if isinstance(answer, list) for name in answer if isinstance(name, str)}
        wanted = {name for name in names if name in arguments.absent or name not in arguments.values}
        for name in wanted - arguments.absent:
            raise UniWorldError(f"The node requests its lazy input '{name}', but nothing is linked to it.")
        return wanted

    def _blocked(self, node_id: str, blocker: ExecutionBlocker) -> ExecutionBlocker:
        if blocker.message is None:
            return blocker
        message = f"Execution Blocked: {blocker.message}"
        self.events.failure(node_id, message, "ExecutionBlocked", self.inputs[node_id], [])
        return ExecutionBlocker()
