"""Runs a checked workflow: nodes in order, lazy inputs on demand, results kept between runs, events to a callback."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..host import Interrupted, PlainHost
from .cache import NodeResult, ResultCache, Signatures
from .calls import ExecutionBlocker, call_over_lists, collect_returns
from .problems import node_label
from .registry import Registry
from .schema import InputSpec, NodeSchema, is_link, read_schema, unwrap

# Called with the name and the data of an event. Names and data are those of ComfyUI's socket, and two more:
# "preview", whose data hold a Pillow image under "image"; and "warning", a sentence for the user under "message".
EventHook = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: "success", "error" or "interrupted".
        ui: by node id, what the nodes show, such as `{"images": [...]}`; nodes from the cache included.
        error: the data of the execution_error event, when there was one.
        sentence: what to tell the user when the run did not succeed.
        warnings: what the nodes that ran warned of, in order; none twice.
    """

    status: str
    ui: dict[str, dict[str, list[Any]]]
    error: dict[str, Any] | None = None
    sentence: str = ""
    warnings: list[str] = field(default_factory=list)


class Executor:
    """Runs workflows one at a time; what one run computed, the next one reuses.

    It may be called from any thread. A second `run` waits for the first.
    """

    def __init__(self, registry: Registry, host: PlainHost) -> None:
        self.registry = registry
        self.host = host
        self._cache = ResultCache()
        self._running = threading.Lock()

    def forget(self) -> None:
        """Drop all kept results."""
        with self._running:
            self._cache = ResultCache()

    def run(
        self,
        prompt: dict[str, Any],
        outputs: list[str],
        *,
        original: dict[str, Any] | None = None,
        prompt_id: str = "",
        extra_pnginfo: dict[str, Any] | None = None,
        on_event: EventHook = lambda _name, _data: None,
    ) -> RunResult:
        """Run the output nodes `outputs` of a workflow and all they need.

        Args:
            prompt: the workflow as `validate_prompt` gave it.
            original: the workflow as the user gave it, for the hidden input PROMPT; `prompt` if None.
            extra_pnginfo: for the hidden input EXTRA_PNGINFO, such as `{"workflow": ...}`.
        """
        import torch

        with self._running, torch.inference_mode():
            # As in ComfyUI, an interrupt that came when nothing ran is void.
            self.host.interrupted.clear()
            hidden = {"PROMPT": original if original is not None else prompt, "EXTRA_PNGINFO": extra_pnginfo}
            run = _Run(self.registry, self.host, self._cache, prompt, prompt_id, hidden, on_event)
            try:
                return run.execute(outputs)
            finally:
                self.host.progress_hook = self.host.warning_hook = None
                self.host.interrupted.clear()


@dataclass
class _Run:
    registry: Registry
    host: PlainHost
    cache: ResultCache
    prompt: dict[str, Any]
    prompt_id: str
    hidden: dict[str, Any]
    on_event: EventHook
    schemas: dict[str, NodeSchema] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    results: dict[str, NodeResult] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    wanted_lazy: dict[str, set[str]] = field(default_factory=dict)
    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    current_inputs: dict[str, list[Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def execute(self, outputs: list[str]) -> RunResult:
        self._emit("execution_start")
        self._prepare(outputs)
        node_id = ""
        try:
            for output in outputs:
                # A node is on the stack until all it needs has run; outputs therefore come as early as they can.
                stack = [output]
                while stack:
                    node_id = stack[-1]
                    self.host.check_interrupt()
                    missing = self._missing_sources(node_id)
                    if missing:
                        stack.extend(reversed(missing))
                    elif node_id in self.results or self._run_node(node_id):
                        stack.pop()
        except Interrupted as error:
            self._emit("execution_interrupted", **self._about(node_id))
            sentence = str(error) or "The run was interrupted."
            return RunResult("interrupted", self.ui, sentence=sentence, warnings=self.warnings)
        except (Exception, SystemExit) as error:  # a node must not end the program
            return self._failed(node_id, error)
        self._emit("execution_success")
        return RunResult("success", self.ui, warnings=self.warnings)

    def _prepare(self, outputs: list[str]) -> None:
        """Compute all signatures and take what the cache has."""
        classes = {node["class_type"] for node in self.prompt.values()}
        self.schemas = {name: read_schema(self.registry.classes[name]) for name in classes}
        signatures = Signatures(self.prompt, self.registry.classes, self.schemas)
        # Nodes that no output needs may be anything, cycles included: they are not looked at.
        self.keys = signatures.all_behind(outputs)
        instances = {(node_id, node["class_type"]) for node_id, node in self.prompt.items()}
        self.cache.keep_only(set(self.keys.values()), instances)
        cached = [node_id for node_id, key in self.keys.items() if key in self.cache.results]
        self._emit("execution_cached", nodes=cached)

    def _missing_sources(self, node_id: str) -> list[str]:
        """Nodes that must run before this one: its links, lazy ones only when asked for."""
        if node_id in self.results or self._take_cached(node_id):
            return []
        node = self.prompt[node_id]
        schema = self.schemas[node["class_type"]]
        asked = self.wanted_lazy.get(node_id, set())
        missing = []
        for name, value in node["inputs"].items():
            spec = schema.inputs.get(name)
            if spec is None or not is_link(value) or (spec.lazy and name not in asked):
                continue
            if value[0] not in self.results and not self._take_cached(value[0]):
                missing.append(value[0])
        return list(dict.fromkeys(missing))

    def _take_cached(self, node_id: str) -> bool:
        result = self.cache.results.get(self.keys[node_id])
        if result is None:
            return False
        if node_id not in self.results:
            self.results[node_id] = result
            self._show(node_id, result.ui)
        return True

    def _run_node(self, node_id: str) -> bool:
        """Run one node; False when it asks for a lazy input first."""
        class_type = self.prompt[node_id]["class_type"]
        node_class, schema = self.registry.classes[class_type], self.schemas[class_type]
        self.current_inputs = {}
        self._emit("executing", node=node_id, display_node=node_id)
        self.host.progress_hook = lambda value, total, preview: self._progress(node_id, value, total, preview)
        self.host.warning_hook = lambda text: self._warn(node_id, text)
        values, absent = self._gather(node_id, schema)
        self.current_inputs = values
        instance = self.cache.instances.get((node_id, class_type))
        if instance is None:
            instance = self.cache.instances[(node_id, class_type)] = node_class()
        if hasattr(instance, "check_lazy_status"):
            lazy = instance.check_lazy_status
            answers = call_over_lists(lazy, values, schema.input_is_list, self.host.check_interrupt)
            if self._ask_for(node_id, answers, values, absent):
                return False
        function = getattr(instance, node_class.FUNCTION)  # type: ignore[attr-defined]
        returns = call_over_lists(
            function, values, schema.input_is_list, self.host.check_interrupt, lambda b: self._blocked(node_id, b)
        )
        outputs, ui = collect_returns(returns, len(schema.output_types), schema.output_is_list)
        result = NodeResult(outputs, ui)
        self.results[node_id] = self.cache.results[self.keys[node_id]] = result
        self.executed.append(node_id)
        self._show(node_id, ui)
        return True

    def _gather(self, node_id: str, schema: NodeSchema) -> tuple[dict[str, list[Any]], set[str]]:
        """The lists of values of a node's inputs, and the names of those whose source has not run (given as None)."""
        values: dict[str, list[Any]] = {}
        absent: set[str] = set()
        for name, value in self.prompt[node_id]["inputs"].items():
            if name not in schema.inputs:
                continue
            if not is_link(value):
                values[name] = [unwrap(value)]
            elif value[0] in self.results or (schema.inputs[name].lazy and self._take_cached(value[0])):
                values[name] = self._output(schema.inputs[name], value)
            else:
                values[name] = [None]
                absent.add(name)
        for name, kind in schema.hidden.items():
            values[name] = [node_id if kind == "UNIQUE_ID" else self.hidden.get(kind)]
        return values, absent

    def _output(self, spec: InputSpec, link: list[Any]) -> list[Any]:
        outputs = self.results[link[0]].outputs
        if int(link[1]) >= len(outputs):
            source = node_label(link[0], self.prompt[link[0]]["class_type"])
            count = len(outputs)
            raise ValueError(f"{source} gave {count} outputs, and input '{spec.name}' is linked to output {link[1]}.")
        return outputs[int(link[1])]

    def _ask_for(self, node_id: str, answers: list[Any], values: dict[str, list[Any]], absent: set[str]) -> bool:
        names = {name for answer in answers if isinstance(answer, list) for name in answer if isinstance(name, str)}
        wanted = {name for name in names if name in absent or name not in values}
        for name in wanted - absent:
            raise ValueError(f"The node asks for its lazy input '{name}', and nothing is linked to it.")
        self.wanted_lazy.setdefault(node_id, set()).update(wanted)
        return bool(wanted)

    def _blocked(self, node_id: str, blocker: ExecutionBlocker) -> ExecutionBlocker:
        if blocker.message is None:
            return blocker
        message = f"Execution Blocked: {blocker.message}"
        self._emit("execution_error", **self._error_data(node_id, message, "ExecutionBlocked", []))
        return ExecutionBlocker()

    def _failed(self, node_id: str, error: BaseException) -> RunResult:
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        data = self._error_data(node_id, str(error), name, traceback.format_tb(error.__traceback__))
        self._emit("execution_error", **data)
        label = node_label(node_id, self.prompt[node_id]["class_type"])
        return RunResult("error", self.ui, data, f"{label} failed: {_sentence(error)}", self.warnings)

    def _error_data(self, node_id: str, message: str, kind: str, trace: list[str]) -> dict[str, Any]:
        hidden = self.schemas[self.prompt[node_id]["class_type"]].hidden
        inputs = {name: items for name, items in self.current_inputs.items() if name not in hidden}
        return {
            **self._about(node_id),
            "exception_message": message,
            "exception_type": kind,
            "traceback": trace,
            "current_inputs": {name: [_plain(item) for item in items] for name, items in inputs.items()},
            "current_outputs": list(self.results),
        }

    def _about(self, node_id: str) -> dict[str, Any]:
        class_type = self.prompt[node_id]["class_type"] if node_id else ""
        return {"node_id": node_id, "node_type": class_type, "executed": list(self.executed)}

    def _show(self, node_id: str, ui: dict[str, list[Any]]) -> None:
        if ui:
            self.ui[node_id] = ui
            self._emit("executed", node=node_id, display_node=node_id, output=ui)

    def _progress(self, node_id: str, value: int, total: int, preview: Any) -> None:
        self._emit("progress", value=value, max=total, node=node_id)
        if preview is not None:
            self._emit("preview", node=node_id, image=preview)

    def _warn(self, node_id: str, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self._emit("warning", node=node_id, message=text)

    def _emit(self, name: str, **data: Any) -> None:
        self.on_event(name, {**data, "prompt_id": self.prompt_id, "timestamp": int(time.time() * 1000)})


_MAX_SENTENCE = 1000


def _sentence(error: BaseException) -> str:
    """What an exception says, on one line. The whole of it, and where it came from, are in the error's data."""
    text = str(error).strip()
    if isinstance(error, ValueError) and text:  # our own kind of sentence
        said = " ".join(text.split())
    else:
        # Of other errors the kind says as much as the text, which may go on with dumps.
        said = ": ".join(part for part in (type(error).__name__, *text.splitlines()[:1]) if part)
    return said if len(said) <= _MAX_SENTENCE else said[: _MAX_SENTENCE - 3] + "..."


def _plain(value: Any) -> Any:
    """A value for an error report: numbers and short texts as they are, anything else by its type, tensors by shape."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:197] + "..."
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    return type(value).__name__
