"""Checks of one input: whether its link or value matches the declaration of the node class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable
from typing import Any, TypeVar

from ....uniworld_core.errors import UniWorldError, shown
from ..problems import NodeRef, Problem
from ..registry.arguments import arguments_before_run
from ..registry.calls import run_sync
from ..registry.schema import InputSpec, NodeSchema, argument_names, is_link, types_match
from ..registry.widgets import EDITOR_WIDGETS

T = TypeVar("T")

# As in ComfyUI, an error does not repeat a longer list of options.
_MAX_LISTED_OPTIONS = 20


def missing_input(node: NodeRef, spec: InputSpec) -> Problem:
    fix = f"Link an output of type {spec.type_name} to it" + (", or set a value." if spec.accepts_constant else ".")
    sentence = f"the required input '{spec.name}' has neither a link nor a value. {fix}"
    message = "Required input is missing"
    return node.problem("required_input_missing", message, spec.name, sentence, {"input_name": spec.name})


def check_link(
    node: NodeRef, spec: InputSpec, value: list[Any], source: tuple[str, NodeSchema] | None
) -> tuple[object, Problem | None]:
    """Return the type of a link, and the problem with the link, if any.

    Args:
        source: class name and schema of the node that the link comes from; None if there is no such node.
    """
    if not is_link(value):
        reason = 'is invalid. A link is ["node id", output number]; a list as a value is {"__value__": [...]}.'
        return None, _bad_link(node, spec, value, reason)
    if source is None:
        reason = "comes from a node that does not exist. Link a node of the workflow."
        return None, _bad_link(node, spec, value, reason)
    source_class, source_schema = source
    slot, count = value[1], len(source_schema.output_types)
    if slot not in range(count):
        reason = f"refers to output {slot} of {source_class}, which has {count} outputs, counted from 0."
        return None, _bad_link(node, spec, value, reason)
    received = source_schema.output_types[int(slot)]
    if "input_types" in _validator_arguments(node)[0] or types_match(received, spec.type):
        return received, None
    shown_type = "COMBO" if isinstance(received, (list, tuple)) else received
    sentence = (
        f"input '{spec.name}' takes {spec.type_name}, but output {slot} of node {value[0]} ({source_class}) "
        f"is {shown_type}. Link an output of type {spec.type_name}."
    )
    extra = {**_input_info(spec), "received_type": received, "linked_node": value}
    details = f"{spec.name}, received_type({received}) mismatch input_type({spec.type})"
    message = "Return type mismatch between linked nodes"
    return received, node.problem("return_type_mismatch", message, details, sentence, extra)


def _bad_link(node: NodeRef, spec: InputSpec, value: list[object], reason: str) -> Problem:
    message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
    sentence = f"the link of input '{spec.name}', {shown(value)}, {reason}"
    return node.problem(
        "bad_linked_input", message, spec.name, sentence, {**_input_info(spec), "received_value": value}
    )


def _input_info(spec: InputSpec) -> dict[str, object]:
    return {"input_name": spec.name, "input_config": spec.config}


def check_constant(node: NodeRef, spec: InputSpec, value: object) -> tuple[object, Problem | None]:
    """Return the value converted to the type of the widget, and the problem with it, if any."""
    if value is None and spec.category == "optional":
        return value, None
    extra = {**_input_info(spec), "received_value": value}
    if not spec.accepts_constant and not _may_be_custom_widget(spec):
        message = f"A {spec.type_name} input takes a link only"
        sentence = (
            f"input '{spec.name}' has the value {shown(value)}, but takes only links. Link an output of type "
            f"{spec.type_name}."
        )
        return value, node.problem("invalid_input_type", message, f"{spec.name}, {shown(value)}", sentence, extra)
    try:
        converted = _convert(spec.type, value)
    except (ValueError, TypeError, OverflowError) as error:
        message = f"Failed to convert an input value to a {spec.type} value"
        details = f"{spec.name}, {shown(value)}, {error}"
        sentence = f"input '{spec.name}' is {shown(value)}. Set it to {_EXAMPLES.get(spec.type, f'a {spec.type}')}."
        return value, node.problem("invalid_input_type", message, details, sentence, extra)
    arguments, takes_all = _validator_arguments(node)
    if spec.name in arguments or takes_all:
        # The node's VALIDATE_INPUTS checks this value, except None, which it would take for a link.
        return converted, _choice_problem(node, spec, converted) if converted is None else None
    return converted, _range_problem(node, spec, converted) or _choice_problem(node, spec, converted)


_EXAMPLES = {"INT": "a whole number such as 20", "FLOAT": "a finite number such as 3.5"}


def _range_problem(node: NodeRef, spec: InputSpec, value: object) -> Problem | None:
    if not isinstance(value, (int, float)):
        return None
    low, high = spec.options.get("min"), spec.options.get("max")
    extra = {**_input_info(spec), "received_value": value}
    bounds = " ".join(f"{word} {bound}" for word, bound in (("from", low), ("up to", high)) if bound is not None)
    if low is not None and value < low:
        sentence = f"input '{spec.name}' is {shown(value)}, below its minimum of {low}. Choose a number {bounds}."
        message = f"Value {shown(value)} smaller than min of {low}"
        return node.problem("value_smaller_than_min", message, spec.name, sentence, extra)
    if high is not None and value > high:
        sentence = f"input '{spec.name}' is {shown(value)}, above its maximum of {high}. Choose a number {bounds}."
        message = f"Value {shown(value)} bigger than max of {high}"
        return node.problem("value_bigger_than_max", message, spec.name, sentence, extra)
    return None


def _choice_problem(node: NodeRef, spec: InputSpec, value: Any) -> Problem | None:
    choices = spec.choices
    if choices is None:
        return None
    many = isinstance(value, list) and (spec.options.get("multiselect") or spec.options.get("multi_select"))
    wrong = [item for item in (value if many else [value]) if item not in choices]
    if not wrong:
        return None
    long = len(choices) > _MAX_LISTED_OPTIONS
    listed = f"(list of length {len(choices)})" if long else str(choices)
    few = ", ".join(shown(choice) for choice in choices[:_MAX_LISTED_OPTIONS]) + (", ..." if long else "")
    fix = f"Choose one of: {few}." if choices else "It has no options, as its folder is empty; add a file."
    sentence = f"input '{spec.name}' is {shown(wrong[0])}, which is not one of its options. {fix}"
    extra = {"input_name": spec.name, "input_config": None if long else spec.config, "received_value": value}
    details = f"{spec.name}: '{wrong[0]}' not in {listed}"
    return node.problem("value_not_in_list", "Value not in list", details, sentence, extra)


def _may_be_custom_widget(spec: InputSpec) -> bool:
    # Packs may define widgets for other types. Their inputs have one of these options; inputs for links never do.
    return spec.type_name in EDITOR_WIDGETS or bool({"default", "widgetType", "socketless"} & set(spec.options))


def _convert(kind: object, value: Any) -> Any:
    """Convert a value as ComfyUI does. In addition, numbers must be finite, because NaN passes every range check."""
    if kind == "INT":
        return int(value)
    if kind == "FLOAT":
        number = float(value)
        if not math.isfinite(number):
            raise UniWorldError("not a finite number")
        return number
    if kind == "STRING":
        return str(value)
    if kind == "BOOLEAN":
        return bool(value)
    return value


def _validator_arguments(node: NodeRef) -> tuple[list[str], bool]:
    """Return the names of the arguments of the node's VALIDATE_INPUTS, and whether it has `**kwargs`."""
    function = getattr(node.node_class, "VALIDATE_INPUTS", None)
    return ([], False) if function is None else argument_names(function)


def custom_problems(
    node: NodeRef, inputs: dict[str, object], schema: NodeSchema, received_types: dict[str, object]
) -> list[Problem]:
    """Return the problems that the node's own VALIDATE_INPUTS finds. It receives constants; a linked input is None."""
    names, takes_all = _validator_arguments(node)
    values = arguments_before_run(inputs, schema, node.node_id)
    arguments = {name: value for name, value in values.items() if name in names or takes_all}
    if "input_types" in names:
        arguments["input_types"] = [received_types]
    if not arguments:
        return []
    as_given = arguments if schema.input_is_list else {name: value for name, (value,) in arguments.items()}
    try:
        answer = node.node_class.VALIDATE_INPUTS(**as_given)
        if inspect.isawaitable(answer):
            answer = run_sync(_awaited(answer))
    except (Exception, SystemExit) as error:
        kind, message = "exception_during_validation", "Exception when validating node"
        sentence = f"its own check of the inputs failed with {type(error).__name__}: {error}"
        extra = {"exception_type": type(error).__name__, "traceback": []}
        return [node.problem(kind, message, str(error), sentence, extra)]
    if answer is True:
        return []
    reason = "" if answer is False else str(answer)
    sentence = reason or f"the node rejects its inputs {', '.join(arguments)}."
    message = "Custom validation failed for node"
    # One error per input that the check received, so that the editor marks them all.
    return [
        node.problem(
            "custom_validation_failed",
            message,
            f"{name} - {reason}" if reason else name,
            sentence,
            {"input_name": name},
        )
        for name in arguments
    ]


async def _awaited(answer: Awaitable[T]) -> T:
    return await answer
