"""Our conversion of a workflow equals what the editor queues: widgets of every node, and random graphs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from uniworld.nodes.headless.registry.registry import load_registry
from uniworld.nodes.headless.registry.widgets import input_specs
from uniworld.nodes.headless.workflow.convert import convert
from uniworld.nodes.headless.workflow.editor_nodes import class_inputs
from uniworld.nodes.headless.workflow.prompt_choices import PromptChoices
from uniworld.nodes.headless.workflow.replacements import Replacements
from uniworld.nodes.headless.workflow.saved_values import read_values

HERE = Path(__file__).parent
pytest.importorskip("playwright.sync_api", reason="playwright is not installed (tests/browser/README.md)")
pytestmark = pytest.mark.slow

WIDGETS = """(kinds) => Object.fromEntries(kinds.map((kind) => {
    const node = LiteGraph.createNode(kind)
    app.graph.add(node)
    const widgets = (node.widgets ?? []).map((one) => [one.name, one.serialize !== false, one.options?.serialize !== false])
    const inputs = node.inputs.map((one) => [one.name, one.type, one.widget?.name ?? null])
    app.graph.remove(node)
    return [kind, [widgets, inputs]]
}))"""
QUEUED = """async (workflow) => {
    try {
        await app.loadGraphData(workflow, true, false)
        for (let n = 0; n < 4; n++) await new Promise((done) => requestAnimationFrame(done))
        return JSON.stringify((await app.graphToPrompt()).output)
    } catch (error) {
        return null
    }
}"""


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


random_graphs, random_groups = _load("random_graphs"), _load("random_groups")


@pytest.fixture(scope="module")
def infos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The object_info of all nodes, including those of the test's pack."""
    pack = tmp_path_factory.mktemp("kinds")
    (pack / "__init__.py").write_text((HERE / "kinds.py").read_text(encoding="utf-8"), encoding="utf-8")
    registry = load_registry([pack])
    return {"pack": pack, "registry": registry, "infos": json.loads(json.dumps(registry.infos()))}


@pytest.fixture(scope="module")
def page(
    browser: Any, infos: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, host_class: Any
) -> Iterator[Any]:
    host = host_class(tmp_path_factory.mktemp("conversion"), packs=[infos["pack"]])
    host.start()
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.goto(host.url)
    page.wait_for_function("() => window.app?.graph && app.canvas && app.api.clientId")
    yield page
    context.close()
    host.stop()


def test_every_node_has_the_widgets_and_inputs_that_the_editor_gives_it(page, infos):
    kinds = [name for name, info in infos["infos"].items() if info["python_module"] == "custom_nodes.kinds0"]
    assert len(kinds) > 100
    shown = page.evaluate(WIDGETS, kinds)
    wrong = {}
    for kind, (widgets, inputs) in shown.items():
        specs = input_specs(infos["infos"][kind])
        ours = read_values(specs, None)
        names = [[widget.name, widget.saved, widget.sent] for widget in ours.widgets.values()]
        slots = [[entry.name, entry.type, entry.widget] for entry in class_inputs(specs, ours)]
        if kind == "Dynamic":  # inputs that depend on a choice are moved after it only when a file is opened
            slots, inputs = sorted(map(str, slots)), sorted(map(str, inputs))
        if names != widgets or slots != inputs:
            wrong[kind] = (names, widgets, slots, inputs)
    assert wrong == {}


@pytest.mark.parametrize("seed", range(20))
def test_the_editor_queues_what_we_convert(page, infos, seed):
    known = {name: info for name, info in infos["infos"].items() if info["python_module"] == "custom_nodes.kinds0"}
    workflow = random_graphs.Builder(known | {"SaveImage": infos["infos"]["SaveImage"]}, seed).workflow()
    _check(page, infos, workflow)


@pytest.mark.parametrize("seed", range(6))
def test_the_editor_opens_group_nodes_as_we_do(page, infos, seed):
    workflow = random_groups.Groups(infos["infos"], seed).workflow()
    queued = _check(page, infos, workflow)
    assert any(":" in node_id for node_id in queued)


def _check(page: Any, infos: dict[str, Any], workflow: dict[str, Any]) -> dict[str, Any]:
    """Compare the prompts of the editor and of our conversion, and return the editor's."""
    replacements, choices = Replacements(), PromptChoices()
    prompt = convert(workflow, infos["infos"].get, replacements, choices)
    replacements.apply(prompt, datetime.now())
    choices.resolve(prompt, infos["registry"])
    queued = page.evaluate(QUEUED, workflow)
    if queued is None:
        pytest.skip("The editor cannot queue this one.")
    assert _plain(prompt) == _plain(json.loads(queued))
    return json.loads(queued)


def _plain(prompt: dict[str, Any]) -> dict[str, Any]:
    """Normalize differences of JSON: integral floats, and inputs with null."""
    text = json.dumps(prompt)
    for entry in (found := json.loads(text, parse_float=_number)).values():
        entry["inputs"] = {name: value for name, value in entry["inputs"].items() if value is not None}
    return found


def _number(text: str) -> float:
    return int(float(text)) if float(text).is_integer() else float(text)
