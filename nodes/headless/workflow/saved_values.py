"""Assign the values in a saved node's `widgets_values` to its widgets.

The editor saves values by position, and which widgets have a position has changed between its versions. All known
layouts are tried. A list that matches none is an error, because values in the wrong inputs are worse than no run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ....uniworld_core.errors import UniWorldError
from ..registry.widgets import Spec, Widget

# The editor does not restore these: their values come from the page itself.
_NOT_RESTORED = frozenset({"WEBCAM", "AUDIO_RECORD", "COMFY_BRANCH_INPUT_NAMES"})


@dataclass(frozen=True)
class Layout:
    """A layout of the saved values; the defaults describe the current editor.

    Attributes:
        dummies: there is a value for each widget that `forceInput` prevents (editors before 1.16).
        any_dummy: there is a value for each `forceInput` input of any type, as the editor's own migration assumes.
        sockets: there is no value for optional inputs with `defaultInput` (editors from 1.16 until a fix in 2026).
        helpers: there are values of helpers; False for editors of 2023 and for programs that write workflows.
        early_button: the upload button precedes the optional inputs (editors without `input_order`).
        holes: there is a position for each widget that is not saved.
    """

    dummies: bool = False
    any_dummy: bool = False
    sockets: bool = False
    helpers: bool = True
    early_button: bool = False
    holes: bool = False


@dataclass
class WidgetValues:
    """The widgets of a node and their values.

    Attributes:
        widgets: by name, in the editor's order.
        values: by name; a widget without a saved value has its initial one.
        positions: index in `widgets_values` of each value saved by position.
        count: number of values that a list should have.
        implausible: number of values that are implausible for their widget.
        implausible_helpers: number of implausible values at the positions of helpers.
        has_helpers: whether there are values at the positions of helpers and all of them are plausible.
    """

    widgets: dict[str, Widget] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    count: int = 0
    implausible: int = 0
    implausible_helpers: int = 0
    has_helpers: bool = False


def read_values(specs: list[Spec], saved: object, named: object = None, previews: bool = False) -> WidgetValues:
    """Return the widgets of a node with these inputs, and their values.

    Args:
        specs: the inputs, from `input_specs`.
        saved: the node's `widgets_values`: a list by position, or an object by name.
        named: the node's `widgets_values_named`, which newer editors also save; used if the list matches no layout.
        previews: whether the node shows pictures. Some editors saved its preview as an additional empty value.

    Raises:
        UniWorldError: the list matches no known layout. The message has no subject; the caller prepends the node.
    """
    if isinstance(saved, list) and saved:
        found = _best_fit(specs, saved)
        if found is None and previews and len(saved) > 1 and saved[-1] in ("", None):
            found = _best_fit(specs, saved[:-1])
        if found is not None:
            return _coerced(found)
        if not isinstance(named, dict):
            raise UniWorldError(_mismatch(specs, saved))
    by_name = next((one for one in (saved, named) if isinstance(one, dict)), {})
    return _coerced(_assign(specs, [], Layout(), by_name))


def shows_pictures(info: Mapping[str, object], specs: list[Spec]) -> bool:
    """Return whether a node shows pictures: those that it saves, or an uploaded one."""
    return bool(info.get("output_node")) or any(spec.name == "upload" for spec in specs)


def _best_fit(specs: list[Spec], saved: list[object]) -> WidgetValues | None:
    """Return the values by the layout that matches: the current editor's, unless another one is more plausible."""
    current = _assign(specs, saved, Layout())
    # Values of a node without widgets belong to widgets that the editor added itself.
    if not current.count or (current.count == len(saved) and not current.implausible):
        return current
    fitting = []
    for layout in _layouts(specs):
        found = _assign(specs, saved, layout)
        # A truncated list must not be mistaken for one without helpers.
        certain = layout.helpers or (not found.implausible and not current.has_helpers)
        if found.count == len(saved) and certain:
            fitting.append(found)
    best = min(fitting, key=lambda found: found.implausible, default=None)
    if best is None:
        return current if _lacks_appended(specs, saved, current) else None
    return best if best.implausible == 0 else fitting[0]


def _lacks_appended(specs: list[Spec], saved: list[object], current: WidgetValues) -> bool:
    """Return whether a list is short only because the node got optional inputs after the workflow was saved.

    The editor then gives these their defaults. Without values of all helper widgets the places are ambiguous: older editors
    saved none.
    """
    helpers = {name for name, widget in current.widgets.items() if widget.helper and widget.saved}
    if current.implausible or not helpers <= set(current.positions):
        return False
    appended = list(itertools.takewhile(lambda spec: spec.optional and spec.has_widget, reversed(specs)))
    return current.count - len(appended) <= len(saved) < current.count


def _layouts(specs: list[Spec]) -> list[Layout]:
    """Return the layouts that differ for a node: all combinations of the flags that its inputs make relevant."""
    flags = {
        "sockets": any(_may_be_socket(spec) for spec in specs),
        "dummies": any(spec.forced and spec.widget_kind for spec in specs),
        "early_button": any(spec.name == "upload" for spec in specs) and any(spec.optional for spec in specs),
        "holes": any(spec.has_widget and not spec.widgets[0].saved for spec in specs),
        "any_dummy": any(spec.forced and not spec.widget_kind for spec in specs),
    }
    relevant = [name for name, is_relevant in flags.items() if is_relevant]
    # Fewest flags first, so that ties go to the layout that is closest to the current editor's.
    subsets = (itertools.combinations(relevant, count) for count in range(len(relevant) + 1))
    layouts = [Layout(**dict.fromkeys(chosen, True)) for chosen in itertools.chain.from_iterable(subsets)]
    return layouts + [replace(layout, helpers=False) for layout in layouts]


def _may_be_socket(spec: Spec) -> bool:
    return spec.has_widget and spec.optional and bool(spec.options.get("defaultInput"))


def _assign(
    specs: list[Spec], saved: list[object], layout: Layout, by_name: Mapping[str, object] | None = None
) -> WidgetValues:
    """Assign saved values to widgets according to a layout, without checking that their number matches."""
    found = WidgetValues()
    pending = list(reversed(_early_button(specs) if layout.early_button else specs))
    while pending:
        spec = pending.pop()
        if not spec.has_widget:
            found.count += _dummies(spec, layout)
            continue
        in_list = not (layout.sockets and _may_be_socket(spec))
        for widget in spec.widgets:
            _place(found, widget, saved, in_list and (widget.saved or layout.holes) and _counts(widget, layout))
            if by_name is not None and widget.name in by_name and not widget.helper:
                found.values[widget.name] = by_name[widget.name]
        pending += reversed(spec.nested_inputs(found.values[spec.name]))
    return found


def _counts(widget: Widget, layout: Layout) -> bool:
    return layout.helpers or not widget.helper


def _dummies(spec: Spec, layout: Layout) -> int:
    """Return the number of dummy values of an input without a widget."""
    if not spec.forced:
        return 0
    if spec.widget_kind:
        return sum(_counts(widget, layout) for widget in spec.widgets) if layout.dummies else 0
    return int(layout.any_dummy)


def _place(found: WidgetValues, widget: Widget, saved: list[object], has_position: bool) -> None:
    found.widgets[widget.name] = widget
    found.values[widget.name] = widget.default
    if not has_position:
        return
    if found.count < len(saved):
        value = saved[found.count]
        if widget.saved and widget.kind not in _NOT_RESTORED:
            found.values[widget.name] = value
            found.positions[widget.name] = found.count
        plausible = widget.accepts(value) if widget.saved else value is None
        found.implausible += not plausible
        if widget.helper:
            found.implausible_helpers += not plausible
            found.has_helpers = not found.implausible_helpers
    found.count += 1


def _early_button(specs: list[Spec]) -> list[Spec]:
    required = [spec for spec in specs if not spec.optional and spec.name != "upload"]
    return [*required, *(spec for spec in specs if spec.name == "upload"), *(spec for spec in specs if spec.optional)]


def _coerced(found: WidgetValues) -> WidgetValues:
    found.values = {name: found.widgets[name].coerce(value) for name, value in found.values.items()}
    return found


def _mismatch(specs: list[Spec], saved: list[object]) -> str:
    current = _assign(specs, saved, Layout())
    names = ", ".join(name for name, widget in current.widgets.items() if widget.saved)
    counted = "1 value is" if len(saved) == 1 else f"{len(saved)} values are"
    widgets = "1 widget" if current.count == 1 else f"{current.count} widgets"
    return (
        f"{counted} saved, but the node has {widgets} ({names}), so it is unclear which value belongs to "
        "which input. Open the workflow in the editor, correct the values of this node, and save the workflow again. Or run it "
        "with the version of the node's pack that it was saved with."
    )
