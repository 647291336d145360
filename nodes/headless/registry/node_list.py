"""The output of `uniworld nodes`: all nodes with their inputs and outputs, or one with its tooltips."""

from __future__ import annotations

from typing import Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.json_text import dumps
from ..problems import join_with_or
from .registry import Registry


def format_nodes(registry: Registry, name: str | None, as_json: bool) -> str:
    """Describe all nodes, or the one with this class or display name, as text or JSON.

    Raises:
        UniWorldError: there is no node with this name.
    """
    names = sorted(registry.classes) if name is None else [_class_named(registry, name)]
    if as_json:
        return dumps({one: registry.info(one) for one in names})
    return "\n\n".join(_format_node(registry.info(one), tooltips=name is not None) for one in names)


def _class_named(registry: Registry, name: str) -> str:
    if name in registry.classes:
        return name
    # The name in the editor, which --set accepts as well.
    named = [key for key in registry.classes if registry.display_name(key).lower() == name.lower()]
    if len(named) == 1:
        return named[0]
    near = registry.suggestions(name)
    hint = f"Did you mean {join_with_or(near)}?" if near else "Run `uniworld nodes` for a list."
    raise UniWorldError(f"There is no node class '{name}'. {hint}")


def _format_node(info: dict[str, Any], tooltips: bool) -> str:
    lines = [f"{info['name']}  ({info['display_name']}, {info['category']})"]
    if info["description"]:
        lines.append(f"  {info['description']}")
    for section in ("required", "optional"):
        for name, (kind, *options) in (info["input"].get(section) or {}).items():
            lines.append(
                f"  {name}: {_kind(kind, options[0] if options else {})}{' (optional)' * (section == 'optional')}"
            )
            if tooltips and options and options[0].get("tooltip"):
                lines.append(f"      {options[0]['tooltip']}")
    outputs = ", ".join(
        f"{kind}" if kind == name else f"{name}: {kind}" for name, kind in zip(info["output_name"], info["output"])
    )
    lines.append(f"  → {outputs or 'nothing: an output node'}")
    if tooltips:
        lines += [f"      {name}: {tip}" for name, tip in zip(info["output_name"], info.get("output_tooltips", ()))]
    return "\n".join(lines)


def _kind(kind: object, options: dict[str, object]) -> str:
    choices = kind if isinstance(kind, list) else options.get("options")
    text = " | ".join(str(choice) for choice in choices) if isinstance(choices, list) else str(kind)
    if "min" in options and "max" in options:
        text += f" {options['min']}..{options['max']}"
    return text + (f" = {options['default']!r}" if "default" in options else "")
