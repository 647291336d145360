"""Tokens in file names are replaced as in the editor: they find nodes of every kind, and are replaced last."""

from __future__ import annotations

import importlib.util
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from uniworld.__main__ import main
from uniworld.nodes.headless.workflow.convert import convert
from uniworld.nodes.headless.workflow.file import read_workflow, set_value
from uniworld.nodes.headless.workflow.replacements import NamedNode, Replacements, replace_tokens

_spec = importlib.util.spec_from_file_location("editor", Path(__file__).parents[1] / "editor.py")
editor = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(editor)

NOON = datetime(2031, 2, 3, 12, 5, 9)
NODES = [
    NamedNode("Sampler", "Other", {"seed": 7, "name": 'a/b:c*d?"e<f>|g\\h\n', "on": True, "size": 2.0, "none": None}),
    NamedNode("Text", "Sampler", {"seed": 8, "text": "t"}),
    NamedNode(None, "Mine", {"value": 0.5, "list": ["x", 1], "box": {}}),
    NamedNode("Sampler", "Twice", {"seed": 9}),
]


@pytest.mark.parametrize(("text", "filled"), [
    ("%Sampler.seed%", "7"),
    ("%Other.seed%", "7"),
    ("%Twice.seed%", "9"),
    ("%Sampler.text%", "%Sampler.text%"),  # the name of a node takes precedence over the title of another
    ("%Mine.value%_%Mine.list%_%Mine.box%", "0.5_x,1_[object Object]"),
    ("%Sampler.on%_%Sampler.size%_%Sampler.none%", "true_2_"),
    ("%Sampler.name%", "a_b_c_d__e_f__g_h_"),
    ("%nobody.x%_%Mine.x%_%width%_%a.b.c%_%%_100%", "%nobody.x%_%Mine.x%_%width%_%a.b.c%_%%_100%"),
    ("%date:yyyy-MM-dd hh:mm:ss%_%date:yy M d h m s yyy%", "2031-02-03 12:05:09_31 2 3 12 5 9 yyy"),
])  # fmt: skip
def test_a_token_is_replaced_as_in_the_editor(text, filled):
    assert replace_tokens(text, NODES, NOON) == filled


@pytest.mark.parametrize(("value", "text"), [
    (0.00005, "0.00005"), (1e-6, "0.000001"), (1e-7, "1e-7"), (1.25e-7, "1.25e-7"), (1e21, "1e+21"), (-1.5e300, "-1.5e+300"),
    (123456789012345680000.0, "123456789012345680000"), (-0.0, "0"), (0.1, "0.1"), (-12.5, "-12.5"), (100, "100"),
    (2**53, "9007199254740992"), (2**64 - 1, "18446744073709552000"), (10**400, "Infinity"), (float("-inf"), "-Infinity"),
    (float("nan"), "NaN"), ([1e-7, None, [True]], "1e-7,,true"),
])  # fmt: skip
def test_a_value_is_converted_to_text_as_in_javascript(value, text):
    assert replace_tokens("%N.v%", [NamedNode("N", "", {"v": value})], NOON) == text


def prefix_of(graph, registry, *subgraphs: Any) -> str:
    replacements = Replacements()
    infos = lambda name: registry.info(name) if name in registry.classes else None  # noqa: E731
    prompt = convert(graph.save(*subgraphs), infos, replacements)
    replacements.apply(prompt, NOON)
    return next(node["inputs"]["filename_prefix"] for node in prompt.values() if node["class_type"] == "SaveImage")


@pytest.fixture
def graph(registry):
    return editor.Graph(registry)


def test_tokens_find_nodes_of_every_kind(graph, registry):
    names = ["Seed.value", "Number.value", "Quiet.value", "Passed.value", "Hint.text", "Part.first", "Inside.value"]
    graph.add("SaveImage", ["_".join(f"%{name}%" for name in names)])
    primitive = graph.add("PrimitiveNode", [11, "fixed"], [], [{"name": "INT", "type": "INT"}], title="Seed")
    graph.link(primitive, 0, graph.add("Number", [1]), "value")
    graph.add("Number", [12], mode=2, properties={"Node name for S&R": "Quiet"})
    graph.add("Number", [13], mode=4, title="Passed")
    graph.add("Note", ["read me"], title="Hint")
    inner = editor.Graph(registry, 10)
    inner.boundary([("first", "INT")], [])
    inner.link(None, 0, inner.add("Number", [14], title="Inside"), "value")
    graph.add_subgraph(inner, [15], title="Part")
    assert prefix_of(graph, registry, inner) == "11_11_12_13_read me_15_14"


def test_a_file_name_from_a_wire_or_a_subgraph_is_unchanged(graph, registry):
    inner = editor.Graph(registry, 10)
    inner.boundary([("prefix", "STRING")], [])
    inner.link(None, 0, inner.add("SaveImage", ["own"]), "filename_prefix")
    graph.add_subgraph(inner, ["a_%Number.value%"])
    graph.add("Number", [1])
    assert prefix_of(graph, registry, inner) == "a_%Number.value%"


@pytest.mark.parametrize(("replace", "text"), [(True, "x_5"), (False, "x_%Number.value%")])
def test_tokens_in_a_primitive_are_replaced_if_its_property_says_so(graph, registry, replace, text):
    graph.add("Number", [5])
    primitive = graph.add(
        "PrimitiveNode", ["x_%Number.value%"], [], [{"name": "STRING", "type": "STRING"}],
        properties={"Run widget replace on values": replace},
    )  # fmt: skip
    options = graph.add("Options", None)
    graph.link(primitive, 0, options, "text")
    prompt = convert(graph.save(), lambda name: registry.info(name) if name in registry.classes else None)
    assert prompt["3"]["inputs"]["text"] == text


def test_tokens_use_values_that_were_set(graph, registry, tmp_path):
    graph.add("SaveImage", ["%Number.value%_%Number.value%"])
    graph.add("Number", [1])
    (tmp_path / "w.json").write_text(json.dumps(graph.save()))
    workflow = read_workflow(tmp_path / "w.json", registry)
    row = workflow.copied()
    set_value(row, registry, "2", "value", "5")
    for changed, name in ((row, "5_5"), (workflow, "1_1")):
        changed.resolve_texts(registry)
        assert changed.prompt["1"]["inputs"]["filename_prefix"] == name


def test_a_run_saves_under_the_same_name_as_the_editor(graph, registry, toy_pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = graph.add("NoiseImage", [8, 6])
    save = graph.add("SaveImage", ["a_%NoiseImage.width%_%Quiet.value%_%date:yyyy%_%width%"])
    graph.link(source, 0, save, "images")
    graph.add("Number", [3], mode=2, title="Quiet", properties={"Node name for S&R": "Q"})
    Path("w.json").write_text(json.dumps(graph.save()))
    assert main(["run", "w.json", "--pack", str(toy_pack), "--set", "NoiseImage.width=9"]) == 0
    assert [path.name for path in Path("output").iterdir()] == [f"a_9_3_{time.strftime('%Y')}_9_00001_.png"]
