"""Find and read a workflow file, in editor form or API form, and set its values from the command line."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.files import read_limited
from ....uniworld_core.json_text import BadJson, loads
from ..problems import node_label, node_title
from ..registry.registry import Registry
from ..registry.schema import InputSpec, is_link, read_schema
from ..registry.widgets import input_specs
from ..storage.folders import expand_path, is_file
from .convert import convert
from .editor_graph import is_editor_form, slots
from .prompt_choices import PromptChoices, is_dynamic
from .renaming import rename_in_graph, rename_in_prompt
from .replacements import Replacements
from .saved_values import read_values, shows_pictures
from .shipped import SHIPPED, shipped

MAX_BYTES = 64 * 2**20  # far more than any workflow needs; a larger file is a mistake

NO_CHOICES = (
    "--seed has no effect: it applies to choices {a|b} in prompts of workflows in editor form, and there are none. Set "
    "the seed of a node with --set NODE.seed=N."
)


@dataclass
class Workflow:
    """A workflow that can be run.

    Attributes:
        prompt: its API form.
        graph: its editor form, if it has one that still agrees with `prompt`.
        replacements: values of tokens in file names, if the workflow was read from editor form.
        choices: prompts with choices, likewise; those of an API form were resolved by the program that wrote it.
    """

    prompt: dict[str, Any]
    graph: dict[str, Any] | None = None
    replacements: Replacements | None = None
    choices: PromptChoices | None = None

    @property
    def extra_pnginfo(self) -> dict[str, Any] | None:
        """The metadata of pictures in addition to the API form, from which the editor opens the graph."""
        return None if self.graph is None else {"workflow": self.graph}

    def copied(self) -> Workflow:
        """Return a copy whose values can be set independently."""
        replacements = None if self.replacements is None else self.replacements.copied()
        choices = None if self.choices is None else self.choices.copied()
        return Workflow(copy.deepcopy(self.prompt), self.graph, replacements, choices)

    def resolve_texts(self, registry: Registry, seed: int | None = None, time: datetime | None = None) -> list[str]:
        """Resolve tokens such as `%Sampler.seed%` in file names and `{a|b}` in prompts, as the editor does on queueing.

        Call it after all values are set: file names may refer to them, and a seed among them decides the choices.

        Args:
            seed: the seed of the choices; None for `choices.seed`.
            time: the time in file names; None for now.

        Returns:
            A sentence for each prompt that changed.

        Raises:
            UniWorldError: a prompt cannot be resolved.
        """
        if self.replacements is not None:
            self.replacements.apply(self.prompt, time or datetime.now())
        if self.choices is None:
            return [] if seed is None else [NO_CHOICES]
        if seed is not None:
            self.choices.seed = seed
        changed = self.choices.resolve(self.prompt, registry)
        for one in changed:
            # The metadata of a picture should have the resolved text. A prompt inside a subgraph keeps its choices there.
            self.graph = patched_graph(self.graph, registry, one.node_id, one.name, one.text) or self.graph
        if seed is not None and not changed:
            return [NO_CHOICES]
        return [one.note for one in changed]


def shipped_workflows() -> list[str]:
    """Return the short names of the shipped workflows that run with the shipped models, without ComfyUI."""
    return [name for name, one in shipped(SHIPPED).items() if not one.needs_comfyui and not one.needs_model]


def list_shipped() -> str:
    """Return the short names of all shipped workflows for a message; those that need a model or ComfyUI come last."""
    every = shipped(SHIPPED).items()
    groups = {
        "": shipped_workflows() or ["none"],
        "with their own model: ": [f"{name} ({one.needs_model})" for name, one in every if one.needs_model],
        "in ComfyUI or with --server: ": [name for name, one in every if one.needs_comfyui],
    }
    return "; ".join(f"{where}{', '.join(names)}" for where, names in groups.items() if names)


def find_workflow(name: str) -> Path:
    """Return the file of a workflow, given as a path or as the name of a shipped one such as `edit`.

    Raises:
        UniWorldError: neither exists.
    """
    path = expand_path(name)
    if is_file(path):
        return path
    plain = name.replace("\\", "/").removeprefix("./").removeprefix("workflows/").removesuffix(".json")
    known = shipped(SHIPPED)
    if plain in known:
        return known[plain].file
    for file in (*SHIPPED.glob("*.json"), *SHIPPED.glob("api/*.json")):
        if file.relative_to(SHIPPED).with_suffix("").as_posix() == plain:
            return file
    raise UniWorldError(
        f"There is no workflow '{name}'. Pass a file, or one of the shipped workflows: {list_shipped()}."
    )


def read_workflow(path: Path, registry: Registry) -> Workflow:
    """Read a workflow in editor form, in API form, or in the form of a request to a server (`{"prompt": ...}`).

    Raises:
        UniWorldError: the file is not a workflow; the message says why.
    """
    data = _read_json(path)
    if is_editor_form(data):
        data = rename_in_graph(data, registry)
        infos = cache(lambda name: registry.info(name) if name in registry.classes else None)
        replacements = Replacements()
        choices = PromptChoices()
        return Workflow(convert(data, infos, replacements, choices), data, replacements, choices)
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict) and "class_type" not in data["prompt"]:
        extra = data.get("extra_data")
        pnginfo = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
        graph = pnginfo.get("workflow") if isinstance(pnginfo, dict) else None
        graph = rename_in_graph(graph, registry) if isinstance(graph, dict) and is_editor_form(graph) else None
        return Workflow(rename_in_prompt(data["prompt"], registry), graph)
    if not isinstance(data, dict):
        raise UniWorldError(
            f"'{path}' contains a {type(data).__name__}, which is not a workflow. Save one from the editor."
        )
    # In API form, "nodes" could be the id of a node.
    nodes = data.get("nodes")
    if "nodes" in data and not (isinstance(nodes, dict) and "class_type" in nodes):
        raise UniWorldError(
            f"'{path}': \"nodes\" must be a list of nodes; it is {shown(nodes)}. Save the workflow again in the editor."
        )
    return Workflow(rename_in_prompt(data, registry))


def _read_json(path: Path) -> Any:
    try:
        data = read_limited(path, MAX_BYTES)
        if data is None:
            raise UniWorldError(f"'{path}' is larger than {MAX_BYTES // 2**20} MiB. Pass a workflow, not another file.")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UniWorldError(
            f"'{path}' is not UTF-8 text. A workflow is a JSON file in editor or API form: save one from the editor."
        ) from error
    except OSError as error:
        raise UniWorldError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
    try:
        # Workflows in ComfyUI's pictures may contain NaN. Values are checked later, against the nodes.
        return loads(text, allow_nan=True, allow_duplicates=True)
    except BadJson as error:
        raise UniWorldError(
            f"'{path}' {error}. A workflow is a JSON file in editor or API form: save it again."
        ) from error


def node_name(node: dict[str, Any], registry: Registry) -> str:
    """Return the title of a node, else the display name or the name of its class."""
    class_type = str(node["class_type"])
    return node_title(node) or registry.display_name(class_type) or class_type  # other packs may have empty names


def find_node(prompt: dict[str, Any], name: str) -> str:
    """Return the id of the node with an id, title or class name.

    Raises:
        UniWorldError: no node or several nodes match.
    """
    if isinstance(prompt.get(name), dict):
        return name
    nodes = {node_id: node for node_id, node in prompt.items() if isinstance(node, dict)}
    for matches in (
        [node_id for node_id, node in nodes.items() if node_title(node) == name],
        [node_id for node_id, node in nodes.items() if node.get("class_type") == name],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UniWorldError(f"'{name}' matches the nodes {', '.join(matches)}. Use the id of one of them.")
    listed = ", ".join(f"{node_id} ({node_title(node) or node.get('class_type')})" for node_id, node in nodes.items())
    raise UniWorldError(
        f"There is no node {shown(name)}. The nodes are: {listed if len(listed) < 2000 else 'too many to list'}."
    )


def set_value(workflow: Workflow, registry: Registry, node_name: str, input_name: str, text: str) -> None:
    """Set an input to a value from the command line, replacing its value or link.

    Raises:
        UniWorldError: there is no such node or input, or the text is not a value of its type.
    """
    node_id = find_node(workflow.prompt, node_name)
    node = workflow.prompt[node_id]
    class_type = node.get("class_type")
    if not isinstance(class_type, str) or class_type not in registry.classes:
        raise UniWorldError(
            f"Node {node_id} has the unknown class {shown(class_type)}, so its inputs cannot be set. Load its pack with "
            "--pack."
        )
    specs = read_schema(registry.classes[class_type]).inputs
    if input_name not in specs:
        label = node_label(node_id, class_type)
        raise UniWorldError(f"{label} has no input {shown(input_name)}. Its inputs are: {', '.join(specs)}.")
    value = _parse(specs[input_name], text, node_label(node_id, class_type))
    inputs = node.setdefault("inputs", {})
    if not isinstance(inputs, dict):
        raise UniWorldError(f'{node_label(node_id, class_type)}: "inputs" must map input names to values or links.')
    was_link = is_link(inputs.get(input_name))
    inputs[input_name] = value
    if workflow.replacements is not None:
        workflow.replacements.set(node_id, input_name, value)
    if workflow.choices is not None and is_dynamic(specs[input_name].type, specs[input_name].options):
        workflow.choices.places.add((node_id, input_name))  # also if a wire was there before
    workflow.graph = None if was_link else patched_graph(workflow.graph, registry, node_id, input_name, value)


def _parse(spec: InputSpec, text: str, label: str) -> Any:
    """Convert a text from the command line to a value of an input."""
    choices = spec.choices
    if choices is not None:
        return next((choice for choice in choices if str(choice) == text), text)
    if spec.type == "BOOLEAN":
        word = text.lower()
        if word not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            raise UniWorldError(f"{label}: {shown(text)} is not a value for '{spec.name}'. Use true or false.")
        return word in ("true", "yes", "on", "1")
    try:
        if spec.type == "INT":
            return int(text)
        if spec.type == "FLOAT":
            return float(text)
    except ValueError as error:
        kind = "whole number" if spec.type == "INT" else "number"
        if "integer string conversion" in str(error):  # Python's own limit
            kind += f" of at most {sys.get_int_max_str_digits()} digits, not of {len(text)}"
        raise UniWorldError(
            f"{label}: {shown(text)} is not a value for '{spec.name}', which takes a {kind}."
        ) from error
    return text


def patched_graph(
    graph: dict[str, Any] | None, registry: Registry, node_id: str, input_name: str, value: Any
) -> dict[str, Any] | None:
    """Return the editor form with a widget set to a value, or None if that is impossible.

    The metadata of a picture must not contain a graph that produces another picture; without a graph, it contains only
    the API form.
    """
    if graph is None:
        return None
    # A graph that was posted together with an API form has not been checked.
    nodes = [node if isinstance(node, dict) else {} for node in graph["nodes"]]
    place = next((place for place, node in enumerate(nodes) if str(node.get("id")) == node_id), None)
    changed = None if place is None else _patched_node(nodes[place], registry, input_name, value)
    if place is None or changed is None:
        return None
    return {**graph, "nodes": [*graph["nodes"][:place], changed, *graph["nodes"][place + 1 :]]}


def _patched_node(node: dict[str, Any], registry: Registry, input_name: str, value: Any) -> dict[str, Any] | None:
    saved, named, kind = node.get("widgets_values"), node.get("widgets_values_named"), node.get("type")
    if not isinstance(kind, str) or kind not in registry.classes:
        return None
    if isinstance(saved, dict):
        return {**node, "widgets_values": {**saved, input_name: value}}
    if not isinstance(saved, list):
        return None
    info = registry.info(kind)
    specs = input_specs(info)
    try:
        position = read_values(specs, saved, named, shows_pictures(info, specs)).positions.get(input_name)
    except UniWorldError:  # the saved values do not match the class
        return None
    wired = any(entry.get("name") == input_name and entry.get("link") is not None for entry in slots(node, "inputs"))
    if position is None or wired:
        return None
    changed = {**node, "widgets_values": [*saved[:position], value, *saved[position + 1 :]]}
    if isinstance(named, dict):
        changed["widgets_values_named"] = {**named, input_name: value}
    return changed
