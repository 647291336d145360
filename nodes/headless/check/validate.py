"""Checks a whole workflow in API form before anything runs.

Problems are reported twice: as ComfyUI's error objects (same `type` words, so that its editor can show them) and as
sentences that name node, input, value and what would be right. As in ComfyUI, values are converted to their widget's
type, and outputs without a problem may run although others have one.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import shown
from ..problems import NodeRef, Problem, node_label, one_of
from ..registry.registry import Registry
from ..registry.schema import ANY_TYPE, InputSpec, NodeSchema, Schemas, is_link, unwrap
from .inputs import check_constant, check_link, custom_problems, missing_input

MAX_NODES = 100_000


@dataclass(frozen=True)
class Validation:
    """What the check of a workflow gave.

    Attributes:
        prompt: the workflow with converted values, for the executor; the one given is left as it was.
        outputs: ids of the output nodes that can run.
        problems: every problem found, in the workflow's order.
        error: ComfyUI's error object when nothing can run, else None.
        node_errors: ComfyUI's error objects by node id.
        notes: sentences on what is no error, as ComfyUI passes over it too, but hardly meant.
    """

    prompt: dict[str, Any]
    outputs: list[str]
    problems: list[Problem]
    error: dict[str, object] | None
    node_errors: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """Every problem as a sentence, none twice."""
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
        """Ids of the nodes that feed this one, those that do not exist left out."""
        links = self.schema(node_id).used_links(self.prompt[node_id]["inputs"]).values()
        return [link[0] for link in links if link[0] in self.prompt]


def validate_prompt(prompt: Any, registry: Registry, only: Iterable[str] | None = None) -> Validation:
    """Check a workflow in API form.

    Args:
        only: ids of the output nodes that are to run; None for all of them.
    """
    problems = _structure_problems(prompt, registry)
    if problems:
        return _refused("invalid_prompt", problems[0].error["message"], problems, prompt)
    check = _PromptCheck(registry, _normal_copy(prompt))
    wanted = None if only is None else set(only)
    outputs = [
        node_id for node_id in prompt if check.schema(node_id).is_output and (wanted is None or node_id in wanted)
    ]
    if not outputs:
        sentence = "The workflow has no output node. Add one that keeps a result, such as SaveImage or PreviewAny."
        problems = [_global_problem("prompt_no_outputs", sentence)]
        return _refused("prompt_no_outputs", "Prompt has no outputs", problems, prompt)
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
        sentence = "The workflow holds no nodes. An API-form workflow maps node ids to nodes."
        return [_global_problem("invalid_prompt", sentence)]
    if len(prompt) > MAX_NODES:
        sentence = f"The workflow has {len(prompt)} nodes; at most {MAX_NODES} are read."
        return [_global_problem("invalid_prompt", sentence)]
    found = (_structure_problem(node_id, node, registry) for node_id, node in prompt.items())
    return [problem for problem in found if problem is not None]


def _structure_problem(node_id: str, node: Any, registry: Registry) -> Problem | None:
    class_type = node.get("class_type") if isinstance(node, dict) else None
    details = f"Node ID '#{node_id}'"
    if not isinstance(class_type, str):
        message = "Cannot execute because a node is missing the class_type property."
        sentence = 'it names no node class. Give it a "class_type" such as "SaveImage".'
        return NodeRef(node_id, "").problem("invalid_prompt", message, details, sentence)
    if class_type not in registry.classes:
        near = registry.suggestions(class_type)
        hint = f"Did you mean {one_of(near)}?" if near else "`uniworld nodes` lists the nodes there are."
        message = f"Cannot execute because node {class_type} does not exist."
        extra = {"node_id": node_id, "class_type": class_type, "suggestions": near}
        sentence = f"there is no node class {shown(class_type)}. {hint}"
        return NodeRef(node_id, class_type).problem("invalid_prompt", message, details, sentence, extra)
    if not isinstance(node.get("inputs", {}), dict):
        message = "Cannot execute because the inputs of a node are no object."
        sentence = '"inputs" must map input names to values or links.'
        return NodeRef(node_id, class_type).problem("invalid_prompt", message, details, sentence)
    return None


def _normal_copy(prompt: dict[str, Any]) -> dict[str, object]:
    # Only what the executor reads; values are shared until one is converted.
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
            # A list stays wrapped, so that the executor does not take it for a link.
            inputs[spec.name] = {"__value__": converted} if isinstance(converted, list) else converted
        if problem is not None:
            problems.append(problem)
    for name, link in schema.used_links(inputs).items():
        if name not in schema.inputs:  # it goes to the node's **kwargs, or to a hidden input
            _, problem = check_link(node, InputSpec(name, ANY_TYPE, "optional"), link, _link_source(check, link))
            if problem is not None:
                problems.append(problem)
    # A node whose inputs are wrong already would only stumble over them in its own check.
    return problems or custom_problems(node, inputs, schema, received_types)


# What old editors export beside the inputs of a node: values of helper widgets.
_HELPER_INPUTS = frozenset({"upload", "choose file to upload", "control_after_generate", "control_filter_list"})


def _unknown_inputs(check: _PromptCheck, node_id: str) -> list[str]:
    """A note for each input that the node class does not have."""
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
        notes.append(f"{label}: it has no input {shown(name)}, so that is ignored. {hint}")
    return notes


def _link_source(check: _PromptCheck, value: list[object]) -> tuple[str, NodeSchema] | None:
    """Class name and schema of the node a link comes from; None if there is no such node."""
    if not is_link(value) or value[0] not in check.prompt:
        return None
    return check.prompt[value[0]]["class_type"], check.schema(value[0])


def _cycles(check: _PromptCheck, outputs: list[str]) -> list[list[str]]:
    """One cycle of links for each way back that a walk from the outputs meets; iterative, as graphs can be deep."""
    cycles: list[list[str]] = []
    done: set[str] = set()
    for start in outputs:
        path: dict[str, None] = {}
        stack: list[tuple[str, list[str]]] = []

        def enter(node_id: str, path: dict[str, None] = path, stack: list[tuple[str, list[str]]] = stack) -> None:
            path[node_id] = None
            stack.append((node_id, check.sources(node_id)))

        if start not in done:
            enter(start)
        while stack:
            node_id, sources = stack[-1]
            if not sources:
                stack.pop()
                path.pop(node_id)
                done.add(node_id)
                continue
            source = sources.pop()
            if source in path:
                members = list(path)
                cycles.append(members[members.index(source) :])
            elif source not in done:
                enter(source)
    return cycles


def _cycle_problem(check: _PromptCheck, cycle: list[str]) -> Problem:
    # Links are followed against their direction, so the data runs the other way round.
    first, *others = cycle
    way = " → ".join([first, *(reversed(others) if len(others) < 20 else ["..."]), first])
    sentence = f"its links form a cycle ({way}). Cut one of them."
    extra = {"cycle": cycle[:100]}
    return check.node(first).problem("dependency_cycle", "Dependency cycle detected", way, sentence, extra)


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


def _refused(kind: str, message: str, problems: list[Problem], prompt: object) -> Validation:
    node_errors = {
        problem.node_id: {"errors": [problem.error], "dependent_outputs": [], "class_type": problem.class_type}
        for problem in problems
        if problem.node_id
    }
    details = ", ".join(problem.error["details"] for problem in problems if problem.error["details"])
    error = _error_object(kind, message, details)
    return Validation(prompt if isinstance(prompt, dict) else {}, [], problems, error, node_errors)


def _global_problem(kind: str, sentence: str) -> Problem:
    return Problem("", "", _error_object(kind, sentence, ""), sentence)


def _error_object(kind: str, message: str, details: str) -> dict[str, object]:
    return {"type": kind, "message": message, "details": details, "extra_info": {}}
