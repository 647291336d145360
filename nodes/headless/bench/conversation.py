"""Workflows of the turns of a conversation: the earlier instructions and results as UniWorld Chat Turns."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ..problems import node_label
from ..registry.registry import Registry
from ..registry.schema import is_link, read_schema

_TYPE, _TURN = "UNIWORLD_CONVERSATION", "UniWorldChatTurn"


@dataclass(frozen=True)
class TurnWorkflow:
    """The workflow of a turn.

    Attributes:
        prompt: its API form.
        said: the inputs for the earlier instructions, as "NODE.input".
        made: the nodes that load the earlier results.
    """

    prompt: dict[str, Any]
    said: tuple[str, ...] = ()
    made: tuple[str, ...] = ()


def conversation_workflow(prompt: dict[str, Any], registry: Registry, image: str, turn: int) -> TurnWorkflow:
    """Return the workflow of a turn: its instruction without references, after a conversation.

    Args:
        image: the node that loads the source picture.
        turn: number of the turn, from 0.

    Raises:
        UniWorldError: the workflow does not have exactly one node that continues a conversation, or no references for it.
    """
    speaker = _speaker(prompt, registry)
    if turn == 0:
        return TurnWorkflow(prompt)
    made = copy.deepcopy(prompt)
    number = max((int(name) for name in made if name.isdecimal()), default=0)

    def add(class_type: str, **inputs: Any) -> str:
        nonlocal number
        number += 1
        made[str(number)] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        return str(number)

    references = prompt[speaker]["inputs"]["references"]
    siglip = _siglip(prompt, references)
    first: dict[str, Any] = {"references": references}
    encoder = {} if siglip is None else {"siglip": siglip}
    said, loaded = [], []
    for _ in range(turn):
        user = add(_TURN, role="user", text="", **first)
        picture = add("LoadImage", image=prompt[image]["inputs"].get("image", ""))
        answer = add(_TURN, role="assistant", text="", image=[picture, 0], conversation=[user, 0], **encoder)
        said.append(f"{user}.text")
        loaded.append(picture)
        first = {"conversation": [answer, 0]}
    del made[speaker]["inputs"]["references"]
    made[speaker]["inputs"] |= first
    return TurnWorkflow(made, tuple(said), tuple(loaded))


def _speaker(prompt: dict[str, Any], registry: Registry) -> str:
    """Return the node whose prompt is the next turn of a conversation."""
    found = {}
    for name, node in prompt.items():
        class_type = node.get("class_type") if isinstance(node, dict) else None
        inputs = read_schema(registry.classes[class_type]).inputs if class_type in registry.classes else {}
        if {"prompt", "references", "conversation"} <= inputs.keys() and inputs["conversation"].type == _TYPE:
            found[name] = node_label(name, str(class_type))
    if len(found) != 1 or _TURN not in registry.classes:
        listed = f"it has {', '.join(found.values())}" if found else "it has none"
        raise UniWorldError(
            "--split conversation needs a workflow with one node that continues a conversation, such as UniWorld Condition; "
            f"{listed}. Use --split edits, which works with any workflow."
        )
    name, label = next(iter(found.items()))
    inputs = prompt[name]["inputs"]
    if not is_link(inputs.get("references")) or is_link(inputs.get("conversation")):
        raise UniWorldError(
            f"--split conversation needs the source image as references of {label}, and nothing as its conversation. Change "
            "the links, or use --split edits."
        )
    return name


def _siglip(prompt: dict[str, Any], link: Any) -> Any:
    """Return the link to the SigLIP encoder of the references; None if there is none."""
    waiting, seen = [link[0]], set()
    while waiting:
        name = str(waiting.pop())
        node = prompt.get(name)
        if name in seen or not isinstance(node, dict):
            continue
        seen.add(name)
        inputs = node.get("inputs", {})
        if is_link(inputs.get("siglip")):
            return inputs["siglip"]
        waiting += [value[0] for value in inputs.values() if is_link(value)]
    return None
