"""Saved values are assigned to the widgets that they were saved for, whichever editor saved them, or raise an error.

The expected values were obtained from comfyui-frontend-package 1.58.1 (`tests/browser/test_conversion.py` repeats that),
except those of editors before 1.16, which that version shifts (its issue 3399).
"""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.registry.schema import object_info
from uniworld.nodes.headless.registry.widgets import CONTROL_VALUES, input_specs
from uniworld.nodes.headless.workflow.saved_values import read_values, shows_pictures

TEXT, NUMBER, SEED = ("STRING", {"default": "t"}), ("INT", {"default": 3}), ("INT", {"default": 9})
FORCED_TEXT, FORCED_NUMBER = ("STRING", {"forceInput": True}), ("INT", {"forceInput": True})


def info(optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    class Toy:
        RETURN_TYPES = ()

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": required, "optional": optional or {}}

    return object_info("Toy", Toy)


def values(about: dict[str, Any], saved: Any, named: Any = None) -> dict[str, Any]:
    """Return the values of the inputs, without helpers."""
    found = read_values(input_specs(about), saved, named)
    return {name: found.values[name] for name, widget in found.widgets.items() if not widget.helper}


@pytest.mark.parametrize(("kind", "first"), [
    ("INT", 0), ("FLOAT", 0), ("BOOLEAN", False), ("STRING", ""), ("MARKDOWN", ""), ("COLOR", "#000000"),
    ("TEXTAREA", ""), ("BOUNDING_BOXES", []), ("CHART", {}), ("GALLERIA", []), ("PAINTER", None), ("COMPOSITOR", {}),
    ("CURVE", {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"}), ("RANGE", {"min": 0, "max": 1}),
    ("VIDEO_EDIT", {"trim": {"start_time": 0, "duration": 0}, "crop": {"x": 0, "y": 0, "width": 0, "height": 0}}),
    ("LIGHT_INFO_PREVIEW", []), ("COLORS", []), ("COMFY_BRANCH_SELECTOR", ""),
])  # fmt: skip
def test_every_widget_type_of_the_editor_has_a_position(kind, first):
    about = info(a=TEXT, w=(kind, {}), z=TEXT)
    assert values(about, ["A", "W", "Z"]) == {"a": "A", "w": "W", "z": "Z"}
    assert values(about, None) == {"a": "t", "w": first, "z": "t"}
    assert values(info(a=TEXT, w=("MY_TYPE", {"widgetType": kind}), z=TEXT), ["A", "W", "Z"])["w"] == "W"
    assert values(info(a=TEXT, w=(kind, {"forceInput": True}), z=TEXT), ["A", "Z"]) == {"a": "A", "z": "Z"}


@pytest.mark.parametrize("kind", ["IMAGE", "*", "INT,FLOAT", "MY_TYPE", "LATENT"])
def test_any_other_type_has_no_position(kind):
    assert values(info(a=TEXT, w=(kind, {}), z=TEXT), ["A", "Z"]) == {"a": "A", "z": "Z"}
    assert values(info(a=TEXT, w=(kind, {"socketless": True}), z=TEXT), ["A", "Z"]) == {"a": "A", "z": "Z"}


@pytest.mark.parametrize("kind", ["IMAGECOMPARE", "RESOLUTION_PREVIEW", "AUDIO_UI"])
def test_widgets_that_are_not_saved_have_no_position_or_an_empty_one(kind):
    about = info(a=TEXT, w=(kind, {}), z=TEXT)
    for saved in (["A", "Z"], ["A", None, "Z"]):
        found = values(about, saved)
        assert (found["a"], found["z"]) == ("A", "Z")


def test_a_box_is_followed_by_its_four_numbers():
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    about = info(a=TEXT, w=("BOUNDING_BOX", {}), z=TEXT)
    assert values(about, ["A", box, 1, 2, 3, 4, "Z"]) == {"a": "A", "w": box, "z": "Z"}


@pytest.mark.parametrize("section", ["required", "optional"])
def test_default_input_is_an_ordinary_widget(section):
    entry = {"b": ("INT", {"default": 1, "defaultInput": True})}
    about = info(a=TEXT, **entry, c=TEXT) if section == "required" else info(optional={**entry, "c": TEXT}, a=TEXT)
    assert values(about, ["A", 7, "C"]) == {"a": "A", "b": 7, "c": "C"}
    if section == "optional":  # editors from 1.16 until 2026 had no widget for it
        assert values(about, ["A", "C"]) == {"a": "A", "b": 1, "c": "C"}


@pytest.mark.parametrize(("entry", "helpers"), [
    (("INT", {"control_after_generate": True}), ["fixed"]), (("INT", {"control_after_generate": "mine"}), ["fixed"]),
    (("FLOAT", {"control_after_generate": True}), ["randomize"]), (("INT", {}), []), (("FLOAT", {}), []),
    ((["x", "y"], {"control_after_generate": True}), ["fixed", ""]),
    (("COMBO", {"options": [1], "control_after_generate": True}), ["increment", "/x/"]),
    ((["x"], {"multi_select": True, "control_after_generate": True}), ["fixed"]),
    (("BOOLEAN", {"control_after_generate": True}), []), (("STRING", {"control_after_generate": True}), []),
])  # fmt: skip
def test_control_after_generate_has_its_own_positions(entry, helpers):
    assert values(info(a=TEXT, w=entry, z=TEXT), ["A", 1, *helpers, "Z"]) == {"a": "A", "w": 1, "z": "Z"}


@pytest.mark.parametrize(
    ("entry", "has_control"),
    [(SEED, True), (("INT", {"control_after_generate": None}), True), (("INT", {"control_after_generate": False}), False),
     (("FLOAT", {}), False), (("STRING", {}), False)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["seed", "noise_seed"])
def test_a_whole_number_called_seed_is_followed_by_a_control(name, entry, has_control):
    saved = [5, *(["randomize"] if has_control else []), "Z"]
    assert values(info(**{name: entry}, z=TEXT), saved) == {name: 5, "z": "Z"}


UPLOAD = (["a.png"], {"image_upload": True})


@pytest.mark.parametrize(("about", "saved"), [
    (info(image=UPLOAD, z=TEXT), ["a.png", "Z", "image"]),
    (info(image=UPLOAD, z=TEXT), ["a.png", "Z"]),
    (info(optional={"o": TEXT}, image=UPLOAD, z=TEXT), ["a.png", "Z", "O", "image"]),
    (info(optional={"o": TEXT}, image=UPLOAD, z=TEXT), ["a.png", "Z", "image", "O"]),  # editors without input_order
    (info(optional={"o": TEXT}, image=UPLOAD, z=TEXT), ["a.png", "Z", "O"]),
    (info(optional={"image": UPLOAD}, z=TEXT), ["Z", "a.png"]),
    (info(audio=(["a.png"], {"audio_upload": True}), z=TEXT), ["a.png", "Z", ""]),
    (info(image=("COMBO", {"options": [], "video_upload": True}), z=TEXT), ["a.png", "Z", "image"]),
])  # fmt: skip
def test_the_upload_button_comes_after_all_inputs(about, saved):
    found = values(about, saved)
    assert found["z"] == "Z"
    assert found.get("o", "O") == "O"
    assert "a.png" in found.values()


@pytest.mark.parametrize(("about", "saved"), [
    (info(f=FORCED_TEXT, a=TEXT, b=NUMBER), ["A", 7]),
    (info(f=FORCED_TEXT, a=TEXT, b=NUMBER), ["", "A", 7]),
    (info(a=TEXT, f=FORCED_NUMBER, b=NUMBER), ["A", 0, 7]),
    (info(a=TEXT, b=NUMBER, f=FORCED_TEXT), ["A", 7, "dummy"]),
    (info(f=FORCED_TEXT, g=FORCED_NUMBER, a=TEXT, b=NUMBER), ["", 0, "A", 7]),
    (info(optional={"f": FORCED_TEXT}, a=TEXT, b=NUMBER), ["A", 7, ""]),
    (info(f=("IMAGE", {"forceInput": True}), a=TEXT, b=NUMBER), ["A", 7]),
    (info(f=("IMAGE", {"forceInput": True}), a=TEXT, b=NUMBER), [None, "A", 7]),
    # with a seed, whose control the editor ignores (its issue 3399)
    (info(f=FORCED_TEXT, a=TEXT, seed=SEED, b=NUMBER), ["A", 5, "fixed", 7]),
    (info(f=FORCED_TEXT, a=TEXT, seed=SEED, b=NUMBER), ["", "A", 5, "fixed", 7]),
    (info(f=FORCED_TEXT, a=TEXT, seed=SEED, b=NUMBER), ["", "A", 5, 7]),
    (info(f=FORCED_TEXT, a=TEXT, seed=SEED, b=NUMBER), ["A", 5, 7]),
    (info(seed=FORCED_NUMBER, a=TEXT, b=NUMBER), [0, "randomize", "A", 7]),
])  # fmt: skip
def test_dummy_values_of_forced_inputs_are_skipped(about, saved):
    found = values(about, saved)
    assert (found["a"], found["b"], found.get("seed", 5)) == ("A", 7, 5)


DYNAMIC = ("COMFY_DYNAMICCOMBO_V3", {"options": [
    {"key": "one", "inputs": {"required": {"n": ("INT", {"default": 1}), "seed": SEED}}},
    {"key": "two", "inputs": {"required": {"image": ("IMAGE", {})}, "optional": {"f": ("FLOAT", {"default": 2.5})}}},
    {"key": "none", "inputs": {}},
]})  # fmt: skip


@pytest.mark.parametrize(("saved", "found"), [
    (["one", 5, 6, "fixed", "Z"], {"w": "one", "w.n": 5, "w.seed": 6, "z": "Z"}),
    (["two", 1.5, "Z"], {"w": "two", "w.f": 1.5, "z": "Z"}),
    (["none", "Z"], {"w": "none", "z": "Z"}),
    (None, {"w": "one", "w.n": 1, "w.seed": 9, "z": "t"}),
])  # fmt: skip
def test_a_dynamic_choice_adds_its_own_widgets(saved, found):
    # Nested inputs are called "w.seed", so the editor adds no control after them.
    if saved and saved[0] == "one":
        saved = [value for value in saved if value not in CONTROL_VALUES]
    assert values(info(w=DYNAMIC, z=TEXT), saved) == found


@pytest.mark.parametrize("saved", [
    ["A"], [], ["A", 7, "x"], ["A", 7, "fixed"], ["A", 5, "fixed"], ["A", 5, "fixed", 7, 8], ["A", 5, "fixed", 7, "x", 1],
])  # fmt: skip
def test_a_list_that_matches_no_layout_is_rejected(saved):
    about = info(a=TEXT, seed=SEED, b=NUMBER)
    if not saved:
        assert values(about, saved) == {"a": "t", "seed": 9, "b": 3}
        return
    with pytest.raises(ValueError, match=r"saved, but the node has 4 widgets \(a, seed, control_after_generate, b\)"):
        values(about, saved)
    named = {"a": "A", "seed": 5, "control_after_generate": "fixed", "gone": 1}
    assert values(about, saved, named) == {"a": "A", "seed": 5, "b": 3}, "newer editors also save the names"
    assert values(about, None, named)["seed"] == 5


@pytest.mark.parametrize("preview", ["", None])
def test_editors_of_2025_saved_a_preview_as_an_additional_empty_value(preview):
    about = info(image=UPLOAD, a=TEXT)
    specs = input_specs(about)
    found = read_values(specs, ["a.png", "A", "image", preview], previews=shows_pictures(about, specs))
    assert (found.values["image"], found.values["a"], found.positions["a"]) == ("a.png", "A", 1)
    about = info(a=TEXT, b=NUMBER)
    assert not shows_pictures(about, input_specs(about))
    assert shows_pictures(about | {"output_node": True}, input_specs(about))
    with pytest.raises(ValueError, match="3 values are saved"):
        values(about, ["A", 7, preview])


def test_a_text_area_converts_values_to_text():
    lines = ("STRING", {"multiline": True})
    assert values(info(a=lines, b=TEXT, c=("MARKDOWN", {})), [5, 5, None]) == {"a": "5", "b": 5, "c": ""}
    assert values(info(a=lines, b=lines, c=lines), [["a", 1.0, True], {"a": 1}, 2.5]) == {
        "a": "a,1,true", "b": "[object Object]", "c": "2.5",
    }  # fmt: skip


def test_a_matching_list_takes_precedence_over_names():
    assert values(info(a=TEXT, b=NUMBER), ["A", 7], {"a": "other", "b": 8}) == {"a": "A", "b": 7}


def test_values_of_a_node_without_widgets_are_ignored():
    assert values(info(image=("IMAGE",)), [None, "shown", False]) == {}


def test_an_empty_choice_gets_its_first_option():
    assert values(info(a=(["x", "y"], {}), b=([], {})), [None, None]) == {"a": "x", "b": None}
    assert values(info(a=([1, 0], {"default": 0})), None) == {"a": 1}
    assert values(info(a=(["x"], {"multi_select": True})), None) == {"a": []}


def test_optional_inputs_that_were_appended_after_saving_get_their_defaults():
    about = info(a=TEXT, n=NUMBER, optional={"later": TEXT, "last": NUMBER})
    assert values(about, ["A", 5]) == {"a": "A", "n": 5, "later": "t", "last": 3}
    assert values(about, ["A", 5, "L"]) == {"a": "A", "n": 5, "later": "L", "last": 3}
    about = info(seed=SEED, n=NUMBER, optional={"later": TEXT, "last": NUMBER})
    assert values(about, [8, "fixed", 5]) == {"seed": 8, "n": 5, "later": "t", "last": 3}
    assert values(about, [8, "randomize", 5, "L"]) == {"seed": 8, "n": 5, "later": "L", "last": 3}


@pytest.mark.parametrize(("about", "saved"), [
    (info(a=TEXT, n=NUMBER, optional={"later": TEXT}), ["A"]),  # a required input has no value
    (info(a=TEXT, n=NUMBER, optional={"later": TEXT}), [5, "A"]),  # the values are those of other inputs
    (info(a=TEXT, seed=SEED, optional={"later": TEXT}), ["A", 5]),  # a helper of the seed may be missing instead
    (info(seed=SEED, n=NUMBER, optional={"later": NUMBER, "last": NUMBER}), [8, 5, 6]),  # no helper, and one appended
    (info(image=UPLOAD, optional={"later": TEXT}), ["a.png"]),  # the button may be missing
])  # fmt: skip
def test_a_short_list_is_refused_where_it_is_ambiguous(about, saved):
    with pytest.raises(ValueError, match="it is unclear which value belongs to which input"):
        values(about, saved)
