"""The arguments that a node's functions are called with: from its constants, its links and its hidden inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .schema import NodeSchema, is_link, unwrap

# The kinds of hidden inputs that the host fills in. An input that is hidden with any other kind is one that only other
# nodes give, when they add this one to the graph.
PROMPT, DYNPROMPT, PNGINFO, UNIQUE_ID = "PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID"
_SECRETS = ("AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG")  # of a service that this host knows nothing of


@dataclass
class Arguments:
    """Lists of values by input name, as `call_over_lists` takes them.

    Attributes:
        absent: names of the inputs whose source has not run; their value is None.
    """

    values: dict[str, list[object]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)


def collect_arguments(
    inputs: Mapping[str, Any],
    schema: NodeSchema,
    hidden: Mapping[str, object],
    output_of: Callable[[str, list[object]], list[object] | None] = lambda _name, _link: None,
) -> Arguments:
    """The arguments of a node with these inputs.

    Args:
        hidden: the values of hidden inputs by kind, such as UNIQUE_ID.
        output_of: gives all values of the output that an input's link names; None while it has none.
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
    """What IS_CHANGED and VALIDATE_INPUTS see, which are called before anything runs: a linked input is None."""
    hidden: dict[str, object] = {PROMPT: {}, DYNPROMPT: None, PNGINFO: None, UNIQUE_ID: node_id}
    return collect_arguments(inputs, schema, hidden).values
