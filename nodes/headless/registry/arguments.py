"""The arguments of a node's functions, collected from its constants, links and hidden inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .schema import NodeSchema, is_link, unwrap

# Kinds of hidden inputs that the host fills in. Any other kind is set only by another node that adds this one to the
# graph.
PROMPT, DYNPROMPT, PNGINFO, UNIQUE_ID = "PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID"
_SECRETS = ("AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG")  # of ComfyUI's paid service; always None here


@dataclass
class Arguments:
    """Lists of values by input name, as `call_over_lists` takes them.

    Attributes:
        absent: names of inputs whose source has not run; their value is None.
    """

    values: dict[str, list[object]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)


def collect_arguments(
    inputs: Mapping[str, Any],
    schema: NodeSchema,
    hidden: Mapping[str, object],
    output_of: Callable[[str, list[object]], list[object] | None] = lambda _name, _link: None,
) -> Arguments:
    """Collect the arguments of a node.

    Args:
        inputs: the node's inputs in API form: constants and links by name.
        hidden: values of hidden inputs by kind, such as UNIQUE_ID.
        output_of: returns, for an input's name and link, all values of the linked output; None if it has not run.
    """
    found = Arguments()
    for name, value in inputs.items():
        spec = schema.inputs.get(name)
        if is_link(value) and not (spec is not None and spec.raw_link):
            if schema.takes_link(name):
                items = output_of(name, value)
                found.values[name] = [None] if items is None else items
                if items is None:
                    found.absent.add(name)
        elif spec is not None or name in schema.hidden:
            found.values[name] = [unwrap(value)]
    for name, kind in schema.hidden.items():
        if kind in hidden or kind in _SECRETS:
            found.values[name] = [hidden.get(kind)]
    return found


def arguments_before_run(inputs: Mapping[str, object], schema: NodeSchema, node_id: str) -> dict[str, list[object]]:
    """Collect the arguments of IS_CHANGED and VALIDATE_INPUTS, which run before any node: linked inputs are None."""
    hidden: dict[str, object] = {PROMPT: {}, DYNPROMPT: None, PNGINFO: None, UNIQUE_ID: node_id}
    return collect_arguments(inputs, schema, hidden).values
