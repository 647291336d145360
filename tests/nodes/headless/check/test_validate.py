"""Problems of a workflow are reported before a run, with the node, the input, the reason and the fix."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.check.validate import validate_prompt


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


SHOW = node("Show", value=["1", 0])


def one(registry, prompt, kind: str) -> str:
    """Check that there is exactly one problem, of this kind, and return its sentence."""
    checked = validate_prompt(prompt, registry)
    assert [problem.error["type"] for problem in checked.problems] == [kind], checked.sentences
    assert checked.sentences == [checked.problems[0].sentence]
    return checked.sentences[0]


@pytest.mark.parametrize("prompt", [None, [], {}, 5, "text"])
def test_no_nodes(registry, prompt):
    checked = validate_prompt(prompt, registry)
    assert checked.error["type"] == "invalid_prompt"
    assert "has no nodes" in checked.sentences[0]


@pytest.mark.parametrize("entry", [5, None, [], {}, {"class_type": 3}, {"inputs": {}}])
def test_a_node_without_class(registry, entry):
    assert "has no node class" in one(registry, {"1": entry}, "invalid_prompt")


def test_an_unknown_class_gets_the_nearest_name(registry):
    sentence = one(registry, {"1": node("SaveImag")}, "invalid_prompt")
    assert sentence.startswith("Node 1 (SaveImag): there is no node class 'SaveImag'. Did you mean SaveImage")


@pytest.mark.parametrize("name", ["KSampler", "LoraLoaderModelOnly"])
def test_a_node_of_comfyui_gets_no_other_name(registry, name):
    sentence = one(registry, {"1": node(name)}, "invalid_prompt")
    assert sentence.startswith(f"Node 1 ({name}): this node is part of ComfyUI. Run the workflow in ComfyUI, ")
    assert "--server URL" in sentence


def test_an_unknown_class_without_a_similar_one_may_be_elsewhere(registry):
    sentence = one(registry, {"1": node("Qqqq")}, "invalid_prompt")
    assert sentence.endswith("Nodes of other packs need --pack DIR, those of ComfyUI --server URL.")


def test_every_unknown_class_is_named(registry):
    checked = validate_prompt({"1": node("Qqqq"), "2": node("Zzzz")}, registry)
    assert len(checked.sentences) == 2
    assert set(checked.node_errors) == {"1", "2"}


def test_inputs_that_are_not_an_object(registry):
    assert "must map input names" in one(registry, {"1": {"class_type": "Show", "inputs": []}}, "invalid_prompt")


def test_no_output_node(registry):
    assert "no output node" in one(registry, {"1": node("Number", value=1)}, "prompt_no_outputs")


def test_a_missing_required_input(registry):
    sentence = one(registry, {"1": node("Number"), "2": SHOW}, "required_input_missing")
    assert sentence == (
        "Node 1 (Number): the required input 'value' has neither a link nor a value. "
        "Link an output of type INT to it, or set a value."
    )


def test_a_missing_optional_input_is_fine(registry):
    assert not validate_prompt({"1": node("Add", a=1, b=2), "2": SHOW}, registry).problems


@pytest.mark.parametrize("link", [[], ["1"], ["1", 0, 0], [1, 0], ["1", "0"], [None, None], ["1", True]])
def test_a_malformed_link(registry, link):
    assert "is invalid. A link is" in one(
        registry, {"1": node("Number", value=1), "2": node("Show", value=link)}, "bad_linked_input"
    )


def test_a_link_to_a_missing_node(registry):
    sentence = one(registry, {"2": node("Show", value=["9", 0])}, "bad_linked_input")
    assert "['9', 0], comes from a node that does not exist" in sentence


@pytest.mark.parametrize("slot", [1, -1, 0.5, 1e9, float("nan"), float("inf")])
def test_a_link_to_a_missing_output(registry, slot):
    prompt = {"1": node("Number", value=1), "2": node("Show", value=["1", slot])}
    assert "which has 1 outputs" in one(registry, prompt, "bad_linked_input")


def test_a_link_of_another_type(registry):
    prompt = {
        "1": node("PrimitiveString", value="x"),
        "2": node("Number", value=["1", 0]),
        "3": node("Show", value=["2", 0]),
    }
    sentence = one(registry, prompt, "return_type_mismatch")
    assert "input 'value' takes INT, but output 0 of node 1 (PrimitiveString) is STRING" in sentence


def test_a_cycle_is_named_node_by_node(registry):
    prompt = {"1": node("Add", a=["3", 0], b=1), "2": node("Add", a=["1", 0], b=1), "3": node("Add", a=["2", 0], b=1)}
    sentence = one(registry, {**prompt, "4": SHOW}, "dependency_cycle")
    assert "1 → 2 → 3 → 1" in sentence


def test_a_node_linked_to_itself_is_a_cycle(registry):
    one(registry, {"1": node("Add", a=["1", 0], b=1), "2": SHOW}, "dependency_cycle")


def test_a_cycle_of_thousands_does_not_exhaust_the_stack(registry):
    prompt = {str(i): node("Add", a=[str((i + 1) % 5000), 0], b=1) for i in range(5000)}
    one(registry, {**prompt, "show": node("Show", value=["0", 0])}, "dependency_cycle")


@pytest.mark.parametrize(("value", "kind", "word"), [
    (-1, "value_smaller_than_min", "below its minimum of 0"),
    (101, "value_bigger_than_max", "above its maximum of 100"),
    ("many", "invalid_input_type", "a whole number such as 20"),
    (None, "invalid_input_type", "a whole number"),
    ({}, "invalid_input_type", "a whole number"),
    (float("inf"), "invalid_input_type", "a whole number"),
])  # fmt: skip
def test_a_bad_whole_number(registry, value, kind, word):
    assert word in one(registry, {"1": node("Number", value=value), "2": SHOW}, kind)


OPTIONS = {"text": "t", "seed": 1, "strength": 0.5, "on": True, "old_choice": "a", "new_choice": "y"}


@pytest.mark.parametrize(("change", "kind"), [
    ({"strength": 1.5}, "value_bigger_than_max"),
    ({"strength": float("nan")}, "invalid_input_type"),
    ({"strength": "strong"}, "invalid_input_type"),
    ({"old_choice": "c"}, "value_not_in_list"),
    ({"new_choice": "z"}, "value_not_in_list"),
    ({"new_choice": {"__value__": ["x"]}}, "value_not_in_list"),
    ({"seed": 2**64}, "value_bigger_than_max"),
    ({"seed": "9" * 5000}, "invalid_input_type"),
])  # fmt: skip
def test_a_bad_value_of_each_widget(registry, change, kind):
    sentence = one(registry, {"1": node("Options", **{**OPTIONS, **change})}, kind)
    assert next(iter(change)) in sentence
    assert len(sentence) < 400


def test_values_are_converted_as_in_comfyui_and_the_original_is_unchanged(registry):
    prompt = {"1": node("Options", **{**OPTIONS, "text": 5, "seed": "7", "strength": "0.25", "on": 0})}
    checked = validate_prompt(prompt, registry)
    assert checked.prompt["1"]["inputs"] == {**OPTIONS, "text": "5", "seed": 7, "strength": 0.25, "on": False}
    assert prompt["1"]["inputs"]["seed"] == "7"


def test_a_value_for_an_input_that_takes_only_links(registry):
    prompt = {"1": node("SaveImage", images="cat.png", filename_prefix="x")}
    assert "takes only links. Link an output of type IMAGE." in one(registry, prompt, "invalid_input_type")


def test_a_nodes_own_check_is_reported(registry):
    assert "13 brings bad luck" in one(registry, {"1": node("Checked", value=13)}, "custom_validation_failed")


def test_a_nodes_own_check_receives_hidden_inputs(registry):
    assert not validate_prompt({"1": node("Knowing", value=1)}, registry).problems
    assert "Renumber it" in one(registry, {"13": node("Knowing", value=1)}, "custom_validation_failed")


def test_a_value_that_the_node_checks_itself_is_not_checked_against_the_range(registry):
    assert not validate_prompt({"1": node("Checked", value=1000)}, registry).problems


def test_a_node_whose_check_receives_input_types_accepts_any_type(registry):
    good = {"1": node("PrimitiveString", value="x"), "2": node("AnyTyped", value=["1", 0])}
    assert not validate_prompt(good, registry).problems
    bad = {"1": node("PrimitiveBoolean", value=True), "2": node("AnyTyped", value=["1", 0])}
    assert "only INT and STRING are allowed" in one(registry, bad, "custom_validation_failed")


def test_valid_outputs_may_run_even_if_others_are_invalid(registry):
    prompt = {
        "1": node("Number", value=1), "2": node("Show", value=["1", 0]),
        "3": node("Number", value=-1), "4": node("Show", value=["3", 0]), "5": node("Show", value=["3", 0]),
    }  # fmt: skip
    checked = validate_prompt(prompt, registry)
    assert (checked.outputs, checked.error) == (["2"], None)
    assert checked.node_errors["3"]["dependent_outputs"] == ["4", "5"]
    assert checked.node_errors["3"]["class_type"] == "Number"
    assert set(checked.node_errors["3"]["errors"][0]) == {"type", "message", "details", "extra_info"}


def test_all_problems_are_found_at_once(registry):
    prompt = {"1": node("Add", a="x", b=["9", 0]), "2": node("Show", value=["1", 0]), "3": node("Show")}
    checked = validate_prompt(prompt, registry)
    assert [problem.error["type"] for problem in checked.problems] == [
        "invalid_input_type", "bad_linked_input", "required_input_missing",
    ]  # fmt: skip
    assert checked.error["type"] == "prompt_outputs_failed_validation"


@pytest.mark.parametrize("name", [
    "../secret.png", "a/../../secret.png", "/etc/passwd", "C:\\windows\\x.png", "c:x.png", "..\\secret.png", "\\\\host\\x",
    "%2e%2e/secret.png", "a%2Fb.png", "con", "NUL.png", "lpt1.txt", "a\0.png", "a\n.png", "", " ", "x" * 300, "a/./b.png",
    "dot.", "~/x.png", "../secret.png [output]", "/etc/passwd [temp]", "secret.png:stream",
])  # fmt: skip
def test_no_picture_name_leads_out_of_its_folder(registry, place, name):
    (place.input.parent / "secret.png").write_bytes(b"secret")
    prompt = {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    assert len(one(registry, prompt, "custom_validation_failed")) < 400
