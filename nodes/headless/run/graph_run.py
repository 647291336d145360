"""One run of a workflow: nodes when their inputs are there, coroutines concurrently, lazy inputs on demand."""

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
from .cache import NodeResult, ResultCache, Shown, Signatures
from .events import EventHook, RunEvents
from .expansion import DynamicPrompt
from .returns import Returns, read_returns
from .schedule import Schedule

if TYPE_CHECKING:
    from PIL import Image

_POLL_SECONDS = 0.05  # how often an interrupt is looked for while only coroutines run


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: "success", "error" or "interrupted".
        ui: by node id, what the nodes show, such as `{"images": [...]}`; nodes from the cache included.
        error: the data of the execution_error event, when there was one.
        sentence: what to tell the user when the run did not succeed.
        warnings: what the nodes warned of, in this run or when their kept results were made, in order; none twice.
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
        self.inputs: dict[str, dict[str, list[object]]] = {}  # of the nodes that run
        self.waiting: dict[str, Returns] = {}  # what the nodes returned that wait for nodes they added
        self.shown_by_added: dict[str, dict[str, Shown]] = defaultdict(dict)  # what nodes show, by who added them
        self.warned: dict[str, list[tuple[str, str]]] = defaultdict(list)  # as in NodeResult
        self.stopping = False
        self.schemas = Schemas(self.registry.classes)
        self.events = RunEvents(self.graph, self.prompt_id, self.on_event, self.results, self.registry.is_own)
        self.signatures = Signatures(self.graph, self.registry.classes, self.schemas, self.salts)
        self.schedule = Schedule(self._needs, self._has_result, lambda node_id: self._schema(node_id).is_async)

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
            self.events.emit("execution_interrupted", **self.events.about(node_id))
            return RunResult("interrupted", ui, None, str(error) or "The run was interrupted.", warnings)
        data = self.events.error(node_id, error, self.inputs.get(node_id, {}))
        return RunResult("error", ui, data, self.events.sentence(node_id, error), warnings)

    async def _prepare(self, outputs: list[str]) -> None:
        """Compute all signatures and drop from the cache what this workflow cannot use."""
        # Nodes that no output needs may be anything, cycles included: they are not looked at.
        await self.signatures.add(outputs)
        keys = self.signatures.known
        self.cache.keep_only({(node_id, self._class_name(node_id)): key for node_id, key in keys.items()})
        cached = [node_id for node_id, key in keys.items() if key in self.cache.results]
        self.events.emit("execution_cached", nodes=cached)
        for node_id in cached:
            result = self.cache.results[keys[node_id]]
            if result.ui or result.added or result.warnings:
                self._has_result(node_id)  # which tells of it, be it asked for or not

    async def _run_all(self, outputs: list[str]) -> tuple[str, BaseException] | None:
        """Run nodes until none is left; the node that ended the run before that, and its exception."""
        running: dict[asyncio.Task[BaseException | None], str] = {}
        node_id = next(iter(outputs), None)
        try:
            self.schedule.add_outputs(outputs)
            while True:
                self.host.check_interrupt()
                node_id = self.schedule.next()
                if node_id is not None and self._has_result(node_id):
                    self.schedule.done(node_id)  # an equal node has run meanwhile
                elif node_id is not None:
                    running[asyncio.create_task(self._attempt(node_id))] = node_id
                    await asyncio.sleep(0)  # what waits for nothing has run to its end after that
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
        """The node that added nodes which wait for it, if any node is left."""
        left = self.schedule.waiting
        blamed = next((node_id for node_id in left if node_id in self.waiting), left[0] if left else None)
        return None if blamed is None else (blamed, UniWorldError("It waits for nodes that wait for it."))

    async def _attempt(self, node_id: str) -> BaseException | None:
        """Run a node; its exception, if it fails."""
        try:
            await self._run_node(node_id)
        except (Exception, SystemExit) as error:  # a node must not end the program
            return error
        except asyncio.CancelledError as error:
            if self.stopping:
                raise
            return error
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
        result = NodeResult(outputs, returned.ui, self.shown_by_added[node_id], tuple(self.warned[node_id]))
        self.results[node_id] = self.cache.results[self.signatures.known[node_id]] = result
        self.inputs.pop(node_id, None)
        self.events.finished(node_id)
        self.schedule.done(node_id)

    async def _call(self, node_id: str, schema: NodeSchema) -> Returns | None:
        """Call the node's function; None when it asks for a lazy input first."""
        class_name = self._class_name(node_id)
        node_class = self.registry.classes[class_name]
        self.events.executing(node_id)
        self._listen_to(node_id)
        arguments = self._arguments(node_id, schema)
        values = arguments.values
        self.inputs[node_id] = {name: items for name, items in values.items() if name not in schema.hidden}
        instance = self.cache.instances.get((node_id, class_name))
        if instance is None:
            instance = self.cache.instances[(node_id, class_name)] = node_class()
        if hasattr(instance, "check_lazy_status"):
            lazy, before = instance.check_lazy_status, self.host.check_interrupt
            answers = await call_over_lists(lazy, values, schema.input_is_list, node_id=node_id, before=before)
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
            before=self.host.check_interrupt,
            on_blocked=lambda blocker: self._blocked(node_id, blocker),
        )
        return read_returns(returns, len(schema.output_types))

    def _listen_to(self, node_id: str) -> None:
        def progress(value: int, total: int, preview: Image.Image | None) -> None:
            self.events.progress(node_id, value, total, preview)

        def warning(text: str) -> None:
            self._warn(node_id, self.graph.get_display_node_id(node_id), text)

        running_node.set(NodeHooks(progress, warning))  # in the context of this node's task
        self.host.progress_hook, self.host.warning_hook = progress, warning  # for threads that the node starts

    async def _expand(self, node_id: str, returned: Returns) -> None:
        """Add the nodes that a node returned, and let it wait for those of them that its outputs come from."""
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

    def _show(self, node_id: str, ui: dict[str, list[object]], added: dict[str, Shown] | None = None) -> None:
        """Tell what a node shows, and those that it added; it is kept with the results of those that added it."""
        shown = {node_id: (self.graph.get_display_node_id(node_id), ui), **(added or {})}
        for one, (display_node, its_ui) in shown.items():
            self.events.show(one, its_ui, display_node)
        if ui or added:
            for ancestor in self.graph.ancestors(node_id):
                self.shown_by_added[ancestor].update(shown)

    def _warn(self, node_id: str, display_node: str, text: str) -> None:
        """Tell of a warning; it is kept with the results of the node and of those that added it, to be told with them."""
        self.warned[node_id].append(("", text))  # its result may serve an equal node, which has another id
        for ancestor in self.graph.ancestors(node_id):
            self.warned[ancestor].append((display_node, text))
        self.events.warning(display_node, text)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _class_name(self, node_id: str) -> str:
        return str(self.graph.get_node(node_id)["class_type"])

    def _schema(self, node_id: str) -> NodeSchema:
        return self.schemas[self._class_name(node_id)]

    def _needs(self, node_id: str) -> list[str]:
        """Nodes that must run before this one: its links, but for lazy ones, which it may ask for later."""
        schema = self._schema(node_id)
        links = schema.used_links(self.graph.get_node(node_id)["inputs"])
        return [link[0] for name, link in links.items() if name not in schema.inputs or not schema.inputs[name].lazy]

    def _has_result(self, node_id: str) -> bool:
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
            raise UniWorldError(f"{source} gave {len(outputs)} outputs, and {user} is linked to output {link[1]}.")
        return outputs[int(link[1])]

    def _wanted(self, answers: list[object], arguments: Arguments) -> set[str]:
        """The lazy inputs that check_lazy_status asks for and that are not there."""
        names = {name for answer in answers if isinstance(answer, list) for name in answer if isinstance(name, str)}
        wanted = {name for name in names if name in arguments.absent or name not in arguments.values}
        for name in wanted - arguments.absent:
            raise UniWorldError(f"The node asks for its lazy input '{name}', and nothing is linked to it.")
        return wanted

    def _blocked(self, node_id: str, blocker: ExecutionBlocker) -> ExecutionBlocker:
        if blocker.message is None:
            return blocker
        message = f"Execution Blocked: {blocker.message}"
        self.events.failure(node_id, message, "ExecutionBlocked", self.inputs[node_id], [])
        return ExecutionBlocker()
