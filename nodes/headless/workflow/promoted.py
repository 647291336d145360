"""The values that the node of a subgraph stores for widgets inside: those of its inputs, and promoted ones.

Without `properties.proxyWidgets`, value i belongs to the i-th input that represents a widget inside. With it, value i
belongs to entry i: `["-1", name]` is the subgraph's input with that name; any other id is an inner node, for whose widget
the editor adds an input. Values saved by name belong to the inputs with these names.

The editor ignores malformed entries, values by name, and values beyond the last input. That assigns values to the wrong
inputs or loses them. Here, values by name are read, and the other cases are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from .editor_graph import SUBGRAPH_INPUT, Link, slots
from .editor_ids import parsed_property
from .editor_nodes import PRIMITIVE, EditorInput, EditorNode, EditorNodes

OWN = "-1"  # instead of an inner node's id: the subgraph's own input
_PREFIX = re.compile(r"\s*\d+\s*:\s*(.+)", re.DOTALL)


@dataclass(frozen=True)
class _Entry:
    """An entry of `proxyWidgets`, and its saved value, as a list of zero or one element."""

    source: str
    widget: str
    value: list[object]


def assign_promoted_values(nodes: EditorNodes, full_id: Callable[[str], str]) -> None:
    """Assign the saved values of every subgraph node of a graph. Graphs inside must have been processed before.

    Args:
        full_id: returns the id of a node for error messages.

    Raises:
        UniWorldError: it is unclear which saved value of a node belongs to which input.
    """
    hosts = [node for node in nodes.by_id.values() if node.inner is not None]
    # By position first: the other two overwrite its result, and entries add inputs, which would shift positions.
    for assign in (_assign_by_position, _assign_by_entry, _assign_by_name):
        for host in hosts:
            try:
                assign(host)
            except UniWorldError as error:
                title = f" '{host.title}'" if host.title else ""
                raise UniWorldError(
                    f"Node {full_id(host.id)}{title} (a subgraph): {error} Open the workflow in the editor, correct "
                    "the values of this node, and save the workflow again."
                ) from error


def promote_inputs(host: EditorNode) -> None:
    """Find the widget inside that each input represents, and its value."""
    assert host.inner is not None
    for slot, entry in enumerate(host.inputs):
        if entry.promoted is None:
            _promote(host.inner, slot, entry)


def _targets(inner: EditorNodes, slot: int) -> list[tuple[EditorNode, EditorInput]]:
    """Return the inputs that an input of a subgraph feeds, in the order in which the subgraph lists the wires."""
    fed = inner.fed_by(SUBGRAPH_INPUT, slot)
    declared = slots(inner.graph.definition, "inputs")
    listed = declared[slot].get("linkIds") if slot < len(declared) else None
    if not isinstance(listed, list):
        return fed
    links = [inner.graph.link(link_id) for link_id in listed]
    return [one for link in links for one in fed if link is not None and one[1].link is link]


def _source(inner: EditorNodes, slot: int) -> tuple[str, str | None] | None:
    """Return the id of the inner node, and its widget or input, that an input of a subgraph represents."""
    for node, target in _targets(inner, slot):
        if node.inner is not None:
            return node.id, target.name
        if target.widget in node.widgets.widgets:
            return node.id, target.widget
    return None


def _promote(inner: EditorNodes, slot: int, entry: EditorInput) -> None:
    for node, target in _targets(inner, slot):
        if target.promoted is not None:
            entry.promoted, entry.value = target.promoted, target.value
        elif target.widget in node.widgets.widgets:
            entry.promoted, entry.value = node.widgets.widgets[target.widget], node.widgets.values[target.widget]
        else:
            continue
        entry.widget = entry.name
        return


def _saved(host: EditorNode) -> list[object]:
    """Return the values saved by position."""
    saved = host.saved.get("widgets_values")
    if saved is not None and not isinstance(saved, (list, dict)):
        raise UniWorldError(f'"widgets_values" is {shown(saved)}; it must be a list of values.')
    return saved if isinstance(saved, list) else []


def _all_known(nodes: EditorNodes) -> bool:
    """Return whether the classes of all nodes inside are known; otherwise it is unclear which inputs have widgets."""
    seen, pending = {id(nodes)}, [nodes]
    while pending:
        for node in pending.pop().by_id.values():
            if node.inner is not None and id(node.inner) not in seen:
                seen.add(id(node.inner))
                pending.append(node.inner)
            elif node.inner is None and node.info is None and not node.virtual:
                return False
    return True


def _check_count(host: EditorNode, count: int, place: tuple[str, str]) -> None:
    """Raise an error if there are more values than places; without any places, values are ignored.

    Args:
        place: noun for a place, in singular and plural.
    """
    saved = _saved(host)
    while saved and saved[-1] is None:
        saved = saved[:-1]
    assert host.inner is not None
    if len(saved) > count > 0 and _all_known(host.inner):
        raise UniWorldError(
            f"{len(saved)} values are saved, but it has {count} {place[count > 1]}, so it is unclear which belongs to which."
        )


def _list_property(host: EditorNode, name: str, is_valid: Callable[[object], bool]) -> list[Any]:
    """Return a property that lists what the saved values belong to.

    Raises:
        UniWorldError: an entry is malformed, and there are saved values.
    """
    listed = parsed_property(host.properties.get(name))
    if listed is None:
        return []
    wrong = [entry for entry in listed if not is_valid(entry)] if isinstance(listed, list) else [listed]
    if not wrong:
        return listed  # type: ignore[no-any-return]
    if not host.saved.get("widgets_values"):
        return []
    raise UniWorldError(
        f'"{name}" contains the invalid entry {shown(wrong[0])}, so it is unclear which of the saved values belongs to '
        "which input."
    )


def _is_quarantined(record: object) -> bool:
    return isinstance(record, dict) and _is_entry(record.get("originalEntry"))


def _assign_by_position(host: EditorNode) -> None:
    """Assign value i to the i-th input with a widget; values that an editor quarantined by name take precedence."""
    promote_inputs(host)
    quarantined: dict[str, object] = {}
    for record in reversed(_list_property(host, "proxyWidgetErrorQuarantine", _is_quarantined)):
        source, name, *_ = record["originalEntry"]
        if source == OWN and "hostValue" in record:
            quarantined[name] = record["hostValue"]
    promoted = [entry for entry in host.inputs if entry.promoted is not None]
    saved = _saved(host)
    if not _list_property(host, "proxyWidgets", _is_entry):
        _check_count(host, len(promoted), ("input with a widget", "inputs with widgets"))
    for number, entry in enumerate(promoted):
        if entry.name in quarantined:
            entry.value = quarantined[entry.name]
        elif number < len(saved):
            entry.value = saved[number]


def _entries(host: EditorNode) -> list[_Entry]:
    listed, saved = _list_property(host, "proxyWidgets", _is_entry), _saved(host)
    _check_count(host, len(listed), ('entry in "proxyWidgets"', 'entries in "proxyWidgets"'))
    entries = []
    for number, (source, widget, *_) in enumerate(listed):
        entries.append(_Entry(source, _bare_name(host, source, widget), saved[number : number + 1]))
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(part, str) for part in entry)


def _bare_name(host: EditorNode, source: str, widget: str) -> str:
    """Return the name of a widget without the ids of nested nodes, which older editors prepend."""
    assert host.inner is not None
    node = host.inner.by_id.get(source)
    while node is not None and _inner_input(node, widget) is None and widget not in node.widgets.widgets:
        match = _PREFIX.fullmatch(widget)
        if match is None:
            break
        widget = match[1]
    return widget


def _inner_input(node: EditorNode, widget: str) -> EditorInput | None:
    """Return the input of an inner subgraph node that represents a widget with this name."""
    if node.inner is None:
        return None
    for slot, entry in enumerate(node.inputs):
        source = _source(node.inner, slot)
        if entry.promoted is not None and (entry.name == widget or (source is not None and source[1] == widget)):
            return entry
    return None


def _assign_by_entry(host: EditorNode) -> None:
    """Assign value i to entry i of `proxyWidgets`, adding inputs for widgets of inner nodes."""
    # As in the editor, the subgraph's own inputs come last.
    entries = sorted(_entries(host), key=lambda entry: entry.source == OWN)
    primitives: dict[str, list[_Entry]] = {}
    for entry in entries:
        target = _host_input(host, entry)
        if target is None:
            assert host.inner is not None
            node = host.inner.by_id.get(entry.source)
            if node is not None and node.virtual and node.type == PRIMITIVE:
                primitives.setdefault(entry.source, []).append(entry)
                continue
            if node is not None:
                target = _new_input(host, node, entry.widget)
        if target is not None and target.promoted is not None and entry.value:
            target.value = entry.value[0]
    for source, same in primitives.items():
        _replace_primitive(host, source, same)


def _assign_by_name(host: EditorNode) -> None:
    """Assign values saved by name to the inputs with these names."""
    saved = host.saved.get("widgets_values")
    named = host.saved.get("widgets_values_named") if saved is None else saved
    if not isinstance(named, dict):
        return
    promoted = {entry.name: entry for entry in host.inputs if entry.promoted is not None}
    for name, value in named.items():
        if name in promoted:
            promoted[name].value = value
    unknown = [name for name in named if name not in promoted]
    assert host.inner is not None
    if unknown and _all_known(host.inner):
        names = ", ".join(promoted) or "none"
        raise UniWorldError(
            f"a value is saved for {shown(unknown[0])}, which is not an input with a widget. Those are: {names}."
        )


def _host_input(host: EditorNode, entry: _Entry) -> EditorInput | None:
    """Return the existing input for an entry, by its name or by the inner widget that it represents."""
    assert host.inner is not None
    if entry.source == OWN:
        return host.input(entry.widget)
    wanted = (entry.source, entry.widget)
    return next((one for slot, one in enumerate(host.inputs) if _source(host.inner, slot) == wanted), None)


def _new_input(host: EditorNode, node: EditorNode, widget: str) -> EditorInput | None:
    """Add an input to the subgraph that feeds a widget inside, replacing any wire into it."""
    target = _inner_input(node, widget) or next((entry for entry in node.inputs if entry.widget == widget), None)
    if target is None or (node.inner is None and widget not in node.widgets.widgets):
        return None
    return _add_input(host, widget, target.type, [(node, target)])


def _add_input(host: EditorNode, name: str, kind: object, targets: list[tuple[EditorNode, EditorInput]]) -> EditorInput:
    assert host.inner is not None
    inner = host.inner
    taken = {used for used, _ in inner.inputs}
    unique = next(
        one for one in (name, *(f"{name}_{number}" for number in range(1, len(taken) + 2))) if one not in taken
    )
    inner.inputs.append((unique, kind))
    slot = len(inner.inputs) - 1
    for number, (node, target) in enumerate(targets):
        # A string id sorts after the numeric ids of the editor, so this wire counts as the newest.
        link_id = f"promoted:{slot}:{number}"
        inner.rewire(target, Link(link_id, SUBGRAPH_INPUT, slot, node.id, node.inputs.index(target)))
    for other in inner.hosts:
        other.inputs.append(EditorInput(unique, kind))
        promote_inputs(other)
    return host.inputs[-1]


def _replace_primitive(host: EditorNode, source: str, entries: list[_Entry]) -> None:
    """Replace a promoted primitive by an input of the subgraph that feeds the same widgets."""
    assert host.inner is not None
    primitive = host.inner.by_id[source]
    targets = list(host.inner.fed_by(source, 0))
    kind = primitive.outputs[0] if primitive.outputs else "*"
    compatible = all("*" in (kind, entry.type) or kind == entry.type for _, entry in targets)
    if not targets or not compatible or any(entry.widget != entries[0].widget for entry in entries):
        return
    title = primitive.saved.get("title")
    name = title if isinstance(title, str) and title not in ("", PRIMITIVE, "Primitive") else entries[0].widget
    added = _add_input(host, name, kind, targets)
    value = next((entry.value for entry in entries if entry.value), [])
    if added.promoted is not None and value:
        added.value = value[0]
