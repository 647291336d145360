"""Which widget each value in a saved node's `widgets_values` belongs to.

The editor saves values by position, so that a value is right only if the positions are counted as the editor that
saved them did. What it counted has changed with its versions; every way known is tried, and a list that fits none is
refused, as values in the wrong inputs would be worse than no run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ....uniworld_core.errors import UniWorldError
from ..registry.widgets import Spec, Widget

# What these hold comes from the page itself.
_NOT_RESTORED = frozenset({"WEBCAM", "AUDIO_RECORD", "COMFY_BRANCH_INPUT_NAMES"})


@dataclass(frozen=True)
class Layout:
    """One way of ordering the values; the defaults are those of the current editor.

    Attributes:
        dummies: a value for each widget that `forceInput` prevents (editors before 1.16).
        any_dummy: a value for each `forceInput` input whatever its type, as the editor's own migration counts.
        sockets: no value for optional inputs with `defaultInput` (editors from 1.16 until this was fixed in 2026).
        helpers: False if there are no values of helpers (editors of 2023, and programs that write workflows).
        early_button: the upload button precedes the optional inputs (editors without `input_order`).
        holes: a place for each widget that is not saved.
    """

    dummies: bool = False
    any_dummy: bool = False
    sockets: bool = False
    helpers: bool = True
    early_button: bool = False
    holes: bool = False


@dataclass
class Values:
    """The widgets of a node and what they hold.

    Attributes:
        widgets: by name, in the editor's order.
        values: by name; a widget whose value was not saved has its first one.
        positions: the index in `widgets_values` of each value that was saved by position.
        count: how many values a list should have.
        strange: how many values are implausible for their widgets.
        helped: whether there are values at the places of helpers, all of them such as helpers have.
        doubtful: how many values at the places of helpers are implausible.
    """

    widgets: dict[str, Widget] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    count: int = 0
    strange: int = 0
    helped: bool = False
    doubtful: int = 0


def read_values(specs: list[Spec], saved: object, named: object = None, previews: bool = False) -> Values:
    """The widgets of a node with these inputs, and their values.

    Args:
        specs: as `input_specs` gives them.
        saved: its `widgets_values`: a list by position, or an object by name.
        named: its `widgets_values_named`, which newer editors save too. It decides where the list does not fit.
        previews: whether it is a node that shows pictures, whose preview some editors saved as one more empty value.

    Raises:
        UniWorldError: the list fits in no known way; the sentence has no subject, for the caller to put before it.
    """
    if isinstance(saved, list) and saved:
        found = _best(specs, saved)
        if found is None and previews and len(saved) > 1 and saved[-1] in ("", None):
            found = _best(specs, saved[:-1])
        if found is not None:
            return _settled(found)
        if not isinstance(named, dict):
            raise UniWorldError(_misfit(specs, saved))
    by_name = next((one for one in (saved, named) if isinstance(one, dict)), {})
    return _settled(_walk(specs, [], Layout(), by_name))


def shows_pictures(info: Mapping[str, object], specs: list[Spec]) -> bool:
    """Whether a node shows pictures: those that it saves, or the one that was uploaded."""
    return bool(info.get("output_node")) or any(spec.name == "upload" for spec in specs)


def _best(specs: list[Spec], saved: list[object]) -> Values | None:
    """The reading in which the list fits, preferably today's editor's, unless its values contradict it."""
    plain = _walk(specs, saved, Layout())
    # A node without widgets may have been saved with some that the editor added by itself.
    if not plain.count or (plain.count == len(saved) and not plain.strange):
        return plain
    fitting = []
    for layout in _layouts(specs):
        found = _walk(specs, saved, layout)
        # A list that is cut short must not pass for one without helpers.
        certain = layout.helpers or (not found.strange and not plain.helped)
        if found.count == len(saved) and certain:
            fitting.append(found)
    best = min(fitting, key=lambda found: found.strange, default=None)
    return best if best is None or best.strange == 0 else fitting[0]


def _layouts(specs: list[Spec]) -> list[Layout]:
    flags = {
        "sockets": any(_may_be_socket(spec) for spec in specs),
        "dummies": any(spec.forced and spec.widget_kind for spec in specs),
        "early_button": any(spec.name == "upload" for spec in specs) and any(spec.optional for spec in specs),
        "holes": any(spec.has_widget and not spec.widgets[0].saved for spec in specs),
        "any_dummy": any(spec.forced and not spec.widget_kind for spec in specs),
    }
    useful = [name for name, is_useful in flags.items() if is_useful]
    subsets = (itertools.combinations(useful, count) for count in range(len(useful) + 1))
    layouts = [Layout(**dict.fromkeys(chosen, True)) for chosen in itertools.chain.from_iterable(subsets)]
    return layouts + [replace(layout, helpers=False) for layout in layouts]


def _may_be_socket(spec: Spec) -> bool:
    return spec.has_widget and spec.optional and bool(spec.options.get("defaultInput"))


def _walk(
    specs: list[Spec], saved: list[object], layout: Layout, by_name: Mapping[str, object] | None = None
) -> Values:
    """Go through the widgets and the values together; `count` of what it gives is how many values there should be."""
    found = Values()
    pending = list(reversed(_early_button(specs) if layout.early_button else specs))
    while pending:
        spec = pending.pop()
        if not spec.has_widget:
            found.count += _dummies(spec, layout)
            continue
        taken = not (layout.sockets and _may_be_socket(spec))
        for widget in spec.widgets:
            _place(found, widget, saved, taken and (widget.saved or layout.holes) and _counts(widget, layout))
            if by_name is not None and widget.name in by_name and not widget.helper:
                found.values[widget.name] = by_name[widget.name]
        pending += reversed(spec.nested_inputs(found.values[spec.name]))
    return found


def _counts(widget: Widget, layout: Layout) -> bool:
    return layout.helpers or not widget.helper


def _dummies(spec: Spec, layout: Layout) -> int:
    if not spec.forced:
        return 0
    if spec.widget_kind:
        return sum(_counts(widget, layout) for widget in spec.widgets) if layout.dummies else 0
    return int(layout.any_dummy)


def _place(found: Values, widget: Widget, saved: list[object], takes_place: bool) -> None:
    found.widgets[widget.name] = widget
    found.values[widget.name] = widget.default
    if not takes_place:
        return
    if found.count < len(saved):
        value = saved[found.count]
        if widget.saved and widget.kind not in _NOT_RESTORED:
            found.values[widget.name] = value
            found.positions[widget.name] = found.count
        likely = widget.accepts(value) if widget.saved else value is None
        found.strange += not likely
        if widget.helper:
            found.doubtful += not likely
            found.helped = not found.doubtful
    found.count += 1


def _early_button(specs: list[Spec]) -> list[Spec]:
    required = [spec for spec in specs if not spec.optional and spec.name != "upload"]
    return [*required, *(spec for spec in specs if spec.name == "upload"), *(spec for spec in specs if spec.optional)]


def _settled(found: Values) -> Values:
    found.values = {name: found.widgets[name].coerce(value) for name, value in found.values.items()}
    return found


def _misfit(specs: list[Spec], saved: list[object]) -> str:
    plain = _walk(specs, saved, Layout())
    names = ", ".join(name for name, widget in plain.widgets.items() if widget.saved)
    counted = "1 value is" if len(saved) == 1 else f"{len(saved)} values are"
    widgets = "1 widget" if plain.count == 1 else f"{plain.count} widgets"
    return (
        f"{counted} saved, but the node has {widgets} ({names}), so it is not known which value belongs to "
        "which input. Open the workflow in the editor, correct the values of this node, and save the workflow again."
    )
