"""Check a workflow in API form before a run.

Problems are reported twice: as ComfyUI's error objects, whose types its editor knows, and as sentences that name the
node, the input, the value and the fix. As in ComfyUI, values are converted to the type of their widget, and outputs
without problems may run even if others have some.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import shown
from ..problems import NodeRef, Problem, join_with_or, node_label
from ..registry.comfyui_nodes import comfyui_nodes
from ..registry.registry import Registry
from ..registry.schema import ANY_TYPE, InputSpec, NodeSchema, Schemas, is_link, unwrap
from .inputs import check_constant, check_link, custom_problems, missing_input

MAX_NODES = 100_000

IN_COMFYUI = "this node is part of ComfyUI. Run the workflow in ComfyUI, or pass the address of one with --server URL."
ELSEWHERE = "Run `uniworld nodes` for a list. Nodes of other packs need --pack DIR, those of ComfyUI --server URL."


@dataclass(frozen=True)
class Validation:
    """Result of a check.

    Attributes:
        prompt: a copy of the workflow with converted values, for the executor.
        outputs: ids of the output nodes that can run.
        problems: all problems, in the order of the workflow's nodes.
        error: ComfyUI's error object if nothing can run, else None.
        node_errors: ComfyUI's error objects by node id.
        notes: sentences about likely mistakes that are not errors, because ComfyUI ignores them too.
    """

    prompt: dict[str, Any]
    outputs: list[str]
    problems: list[Problem]
    error: dict[str, object] | None
    node_errors: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """The problems as sentences, without duplicates."""
        return list(dict.fromkeys(problem.sentence for problem in self.problems))


class WorkflowRefused(Exception):
    """A server refuses a workflow that passed the check here; `checked` says why."""

    def __init__(self, checked: Validation) -> None:
        super().__init__(" ".join(checked.sentences))
        self.checked = checked


@dataclass
class _PromptCheck:
    registry: Registry
    prompt: dict[str, Any]
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schemas = Schemas(self.registry.classes)

    def schema(self, node_id: str) -> NodeSchema:
        return self.schemas[self.prompt[node_id]["class_type"]]

    def node(self, node_id: str) -> NodeRef:
        class_type = self.prompt[node_id]["class_type"]
        return NodeRef(node_id, class_type, self.registry.classes[class_type])

    def sources(self, node_id: str) -> list[str]:
        """Return the ids of the existing nodes that this one is linked to."""
        links = self.schema(node_id).used_links(self.prompt[node_id]["inputs"]).values()
        return [link[0] for link in links if link[0] in self.prompt]


def validate_prompt(prompt: Any, registry: Registry, only: Iterable[str] | None = None) -> Validation:
    """Check a workflow in API form.

    Args:
        only: ids of the output nodes to run; None for all.
    """
    problems = _structure_problems(prompt, registry)
    if problems:
        return _rejected("invalid_prompt", problems[0].error["message"], problems, prompt)
    check = _PromptCheck(registry, _copied(prompt))
    wanted = None if only is None else set(only)
    outputs = [
        node_id for node_id in prompt if check.schema(node_id).is_output and (wanted is None or node_id in wanted)
    ]
    if not outputs:
        sentence = "The workflow has no output node. Add one that saves or shows a result, such as SaveImage."
        problems = [_workflow_problem("prompt_no_outputs", sentence)]
        return _rejected("prompt_no_outputs", "Prompt has no outputs", problems, prompt)
    reachable = _reachable(check, outputs)
    for node_id in reachable:
        found = _node_problems(check, node_id)
        if found:
            check.problems[node_id] = found
    for cycle in _cycles(check, outputs):
        check.problems.setdefault(cycle[0], []).append(_cycle_problem(check, cycle))
    return _result(check, outputs, [note for node_id in reachable for note in _unknown_inputs(check, node_id)])


def _structure_problems(prompt: Any, registry: Registry) -> list[Problem]:
    if not isinstance(prompt, dict) or not prompt:
        sentence = "The workflow has no nodes. A workflow in API form maps node ids to nodes."
        return [_workflow_problem("invalid_prompt", sentence)]
    if len(prompt) > MAX_NODES:
        sentence = f"The workflow has {len(prompt)} nodes; at most {MAX_NODES} are allowed. Split it."
        return [_workflow_problem("invalid_prompt", sentence)]
    found = (_structure_problem(node_id, node, registry) for node_id, node in prompt.items())
    return [problem for problem in found if problem is not None]


def _structure_problem(node_id: str, node: Any, registry: Registry) -> Problem | None:
    class_type = node.get("class_type") if isinstance(node, dict) else None
    details = f"Node ID '#{node_id}'"
    if not isinstance(class_type, str):
        message = "Cannot execute because a node is missing the class_type property."
        sentence = 'it has no node class. Add a "class_type" such as "SaveImage".'
        return NodeRef(node_id, "").problem("invalid_prompt", message, details, sentence)
    if class_type not in registry.classes:
        # The most similar name, such as UniWorldSampler for KSampler, would not be a replacement.
        only_comfyui = class_type in comfyui_nodes()
        near = [] if only_comfyui else registry.suggestions(class_type)
        hint = f"Did you mean {join_with_or(near)}?" if near else ELSEWHERE
        message = f"Cannot execute because node {class_type} does not exist."
        extra = {"node_id": node_id, "class_type": class_type, "suggestions": near}
        sentence = IN_COMFYUI if only_comfyui else f"there is no node class {shown(class_type)}. {hint}"
        return NodeRef(node_id, class_type).problem("invalid_prompt", message, details, sentence, extra)
    if not isinstance(node.get("inputs", {}), dict):
        message = "Cannot execute because the inputs of a node are not an object."
        sentence = '"inputs" must map input names to values or links.'
        return NodeRef(node_id, class_type).problem("invalid_prompt", message, details, sentence)
    return None


def _copied(prompt: dict[str, Any]) -> dict[str, object]:
    # Shallow: values are replaced when they are converted, never changed in place.
    return {
        node_id: {**node, "inputs": {name: copy.copy(value) for name, value in node.get("inputs", {}).items()}}
        for node_id, node in prompt.items()
    }


def _reachable(check: _PromptCheck, outputs: list[str]) -> list[str]:
    seen = dict.fromkeys(outputs)
    stack = list(outputs)
    while stack:
        for source in check.sources(stack.pop()):
            if source not in seen:
                seen[source] = None
                stack.append(source)
    return [node_id for node_id in check.prompt if node_id in seen]


def _node_problems(check: _PromptCheck, node_id: str) -> list[Problem]:
    inputs, schema, node = check.prompt[node_id]["inputs"], check.schema(node_id), check.node(node_id)
    problems: list[Problem] = []
    received_types: dict[str, object] = {}
    for spec in schema.inputs.values():
        problem: Problem | None = None
        if spec.name not in inputs:
            problem = missing_input(node, spec) if spec.category == "required" else None
        elif isinstance(value := inputs[spec.name], list):
            received_types[spec.name], problem = check_link(node, spec, value, _link_source(check, value))
        else:
            converted, problem = check_constant(node, spec, unwrap(value))
            # A list stays wrapped, so that the executor does not mistake it for a link.
            inputs[spec.name] = {"__value__": converted} if isinstance(converted, list) else converted
        if problem is not None:
            problems.append(problem)
    for name, link in schema.used_links(inputs).items():
        if name not in schema.inputs:  # passed to the node's **kwargs or to a hidden input
            _, problem = check_link(node, InputSpec(name, ANY_TYPE, "optional"), link, _link_source(check, link))
            if problem is not None:
                problems.append(problem)
    # The node's own check would fail on inputs that are already known to be invalid.
    return problems or custom_problems(node, inputs, schema, received_types)


# Values of helper widgets, which old editors export in addition to the inputs of a node.
_HELPER_INPUTS = frozenset({"upload", "choose file to upload", "control_after_generate", "control_filter_list"})


def _unknown_inputs(check: _PromptCheck, node_id: str) -> list[str]:
    """Return a note for each input that the node class does not have."""
    schema, given = check.schema(node_id), check.prompt[node_id]["inputs"]
    known = list(schema.inputs)
    label = node_label(node_id, check.prompt[node_id]["class_type"])
    notes = []
    for name in given:
        if name in schema.inputs or name in schema.hidden or name in _HELPER_INPUTS:
            continue
        if is_link(given[name]) and schema.takes_link(name):
            continue
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
        hint = f"Did you mean '{near[0]}'?" if near else f"Its inputs are: {', '.join(known) or 'none'}."
        notes.append(f"{label}: it has no input {shown(name)}; the value is ignored. {hint}")
    return notes


def _link_source(check: _PromptCheck, value: list[object]) -> tuple[str, NodeSchema] | None:
    """Return class name and schema of the node that a link comes from; None if there is no such node."""
    if not is_link(value) or value[0] not in check.prompt:
        return None
    return check.prompt[value[0]]["class_type"], check.schema(value[0])


def _cycles(check: _PromptCheck, outputs: list[str]) -> list[list[str]]:
    """Return a cycle of links for each back edge of a depth-first search from the outputs.

    The search is iterative, as graphs can be deeper than Python's recursion limit.
    """
    cycles: list[list[str]] = []
    done: set[str] = set()
    for start in outputs:
        # The path from `start` to the current node, each node with the sources that are still to be visited.
        path = {} if start in done else {start: check.sources(start)}
        while path:
            node_id, sources = next(reversed(path.items()))
            if not sources:
                del path[node_id]
                done.add(node_id)
            elif (source := sources.pop()) in path:
                members = list(path)
                cycles.append(members[members.index(source) :])
            elif source not in done:
                path[source] = check.sources(source)
    return cycles


def _cycle_problem(check: _PromptCheck, cycle: list[str]) -> Problem:
    # The search follows links from inputs to sources; the sentence shows them in the direction of the data.
    first, *others = cycle
    path = " → ".join([first, *(reversed(others) if len(others) < 20 else ["..."]), first])
    sentence = f"its links form a cycle ({path}). Remove one of them."
    extra = {"cycle": cycle[:100]}
    return check.node(first).problem("dependency_cycle", "Dependency cycle detected", path, sentence, extra)


def _result(check: _PromptCheck, outputs: list[str], notes: list[str]) -> Validation:
    bad: dict[str, list[str]] = {}
    if check.problems:
        bad = {output: [n for n in _reachable(check, [output]) if n in check.problems] for output in outputs}
    good = [output for output in outputs if not bad.get(output)]
    node_errors = {
        node_id: {
            "errors": [problem.error for problem in problems],
            "dependent_outputs": [output for output in outputs if node_id in bad[output]],
            "class_type": check.prompt[node_id]["class_type"],
        }
        for node_id, problems in check.problems.items()
    }
    everything = [problem for problems in check.problems.values() for problem in problems]
    error = None
    if not good:
        details = "\n".join(f"{problem.error['message']}: {problem.error['details']}" for problem in everything)
        error = _error_object("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
    return Validation(check.prompt, good, everything, error, node_errors, notes)


def _rejected(kind: str, message: str, problems: list[Problem], prompt: object) -> Validation:
    node_errors = {
        problem.node_id: {"errors": [problem.error], "dependent_outputs": [], "class_type": problem.class_type}
        for problem in problems
        if problem.node_id
    }
    details = ", ".join(problem.error["details"] for problem in problems if problem.error["details"])
    error = _error_object(kind, message, details)
    return Validation(prompt if isinstance(prompt, dict) else {}, [], problems, error, node_errors)


def _workflow_problem(kind: str, sentence: str) -> Problem:
    return Problem("", "", _error_object(kind, sentence, ""), sentence)


def _error_object(kind: str, message: str, details: str) -> dict[str, object]:
    return {"type": kind, "message": message, "details": details, "extra_info": {}}
