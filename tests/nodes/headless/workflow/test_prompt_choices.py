r"""`{a|b}`, comments and escapes in prompts are resolved as in the editor, with a seed.

The expected values were obtained from comfyui-frontend-package 1.58.1 with `Math.random` fixed.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.workflow.file import read_workflow, set_value
from uniworld.nodes.headless.workflow.prompt_choices import resolve

_spec = importlib.util.spec_from_file_location("editor", Path(__file__).parents[1] / "editor.py")
editor = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(editor)


class Fixed(random.Random):
    """A generator that always returns the same number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize(("text", "first", "last"), [
    ("a fox", "a fox", "a fox"),
    ("a {red|blue} fox", "a red fox", "a blue fox"),
    ("{a|b|}{c}{}", "ac", "c"),
    ("{a|{b|{c|d}}}", "a", "d"),
    ("{a|b", "a", "b"),
    ("a|b} c", "a|b} c", "a|b} c"),
    (r"\{a\|b\} \x {\{|\}}", r"{a|b} \x {", r"{a|b} \x }"),
    (r"{a\|b|c\\|d}", "a|b", "d"),
    (r"\\{a|b}", "\\\\a", "\\\\b"),
    ("a \\", "a \\", "a \\"),
    ("one // two {a|b}\nthree", "one \nthree", "one \nthree"),
    ("one /* two\n {a */ three /* four", "one  three /* four", "one  three /* four"),
    ("see http://x.org/a\r\nb", "see http:\r\nb", "see http:\r\nb"),
    ("{/{*|/}}/ a */", "/*/ a */", "/// a */"),
    ("{" * 60 + "a|b" + "}" * 60, "a", "b"),
])  # fmt: skip
def test_a_text_is_resolved_as_in_the_editor(text, first, last):
    assert resolve(text, Fixed(0.0)) == first
    assert resolve(text, Fixed(0.999)) == last


def test_choices_nested_too_deeply_are_an_error():
    with pytest.raises(ValueError, match="100 levels"):
        resolve("{" * 5000, Fixed(0.0))


def test_every_option_is_chosen_by_some_seed():
    assert {resolve("{a|b|c}", random.Random(seed)) for seed in range(40)} == {"a", "b", "c"}


TEMPLATE = "{a|b|c|d|e|f|g|h} {a|b|c|d|e|f|g|h} // no comment"


@pytest.fixture
def graph(registry):
    return editor.Graph(registry)


def saved(graph: Any, path: Path, *subgraphs: Any) -> Path:
    path.write_text(json.dumps(graph.save(*subgraphs)))
    return path


def resolved(path: Path, registry: Any, seed: int | None = None, **values: str) -> dict[str, Any]:
    workflow = read_workflow(path, registry)
    for target, text in values.items():
        set_value(workflow, registry, "1", target, text)
    workflow.resolve_texts(registry, seed)
    return workflow.prompt


def test_only_widgets_declared_with_dynamic_prompts_are_resolved(graph, registry, tmp_path):
    graph.add("Prompted", [TEMPLATE, TEMPLATE, 3, "fixed"])
    inputs = resolved(saved(graph, tmp_path / "w.json"), registry)["1"]["inputs"]
    assert len(inputs["text"].rstrip()) == 3
    assert inputs["plain"] == TEMPLATE


def test_the_first_seed_of_the_workflow_decides_unless_another_is_passed(graph, registry, tmp_path):
    graph.add("Prompted", [TEMPLATE, "", 3, "randomize"])
    graph.add("Prompted", ["{a|b|c|d}", "", 4, "randomize"])
    path = saved(graph, tmp_path / "w.json")
    assert resolved(path, registry) == resolved(path, registry) == resolved(path, registry, seed=3)
    assert len({resolved(path, registry, seed=seed)["1"]["inputs"]["text"] for seed in range(30)}) > 20
    assert len({resolved(path, registry, seed=str(seed))["1"]["inputs"]["text"] for seed in range(30)}) > 20
    # The prompt of one node does not depend on that of another.
    other = resolved(path, registry, text="{x|y}")
    assert other["2"] == resolved(path, registry)["2"]
    assert other["1"]["inputs"]["text"] in ("x", "y")


def test_a_prompt_from_a_primitive_is_resolved(graph, registry, tmp_path):
    primitive = graph.add("PrimitiveNode", ["{x} // y"], [], [{"name": "STRING", "type": "STRING"}])
    graph.link(primitive, 0, graph.add("Prompted", ["", "", 0, "fixed"]), "text")
    assert resolved(saved(graph, tmp_path / "w.json"), registry)["2"]["inputs"]["text"] == "x "


def test_a_prompt_from_the_node_of_a_subgraph_is_not_resolved_as_in_the_editor(graph, registry, tmp_path):
    inner = editor.Graph(registry, 10)
    inner.boundary([("prompt", "STRING")], [])
    inner.link(None, 0, inner.add("Prompted", ["", "", 0, "fixed"]), "text")
    inner.add("Prompted", ["{x} // y", "", 0, "fixed"])
    graph.add_subgraph(inner, ["{x} // y"])
    prompt = resolved(saved(graph, tmp_path / "w.json", inner), registry)
    assert [prompt[key]["inputs"]["text"] for key in ("1:11", "1:12")] == ["{x} // y", "x "]


def test_a_prompt_in_api_form_is_unchanged(registry, tmp_path):
    prompt = {"1": {"class_type": "Prompted", "inputs": {"text": TEMPLATE, "plain": "", "seed": 1}}}
    for number, form in enumerate((prompt, {"prompt": prompt})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(form))
        assert resolved(path, registry)["1"]["inputs"]["text"] == TEMPLATE


def picture_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("*.png")
    with Image.open(path) as image:
        return {key: json.loads(text) for key, text in image.info.items()}


def test_run_prints_and_saves_the_resolved_prompt(graph, registry, toy_pack, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source, save = graph.add("NoiseImage", [8, 6]), graph.add("SaveImage", ["a"])
    graph.link(source, 0, save, "images")
    graph.add("Prompted", [TEMPLATE, "", 3, "fixed"])
    saved(graph, Path("w.json"))
    assert main(["run", "w.json", "--pack", str(toy_pack)]) == 0
    chosen = resolved(Path("w.json"), registry)["3"]["inputs"]["text"]
    out = capsys.readouterr()
    assert f"Prompted: {chosen}" in out.out
    assert repr(chosen) in out.err
    assert "seed 3" in out.err
    info = picture_of(Path("output"))
    assert info["prompt"]["3"]["inputs"]["text"] == chosen
    assert next(node for node in info["workflow"]["nodes"] if node["id"] == 3)["widgets_values"][0] == chosen
    assert main(["check", "w.json", "--pack", str(toy_pack), "--seed", "11", "--api", "api.json"]) == 0
    assert json.loads(Path("api.json").read_text()) == resolved(Path("w.json"), registry, seed=11)


def test_a_note_says_that_a_seed_without_choices_has_no_effect(graph, toy_pack, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    graph.add("Prompted", ["a", "", 3, "fixed"])
    saved(graph, Path("w.json"))
    assert main(["check", "w.json", "--pack", str(toy_pack), "--seed", "1"]) == 0
    assert "--set NODE.seed" in capsys.readouterr().out


def test_batch_resolves_each_row_by_its_own_seed(graph, registry, toy_pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, save = graph.add("NoiseImage", [8, 6]), graph.add("SaveImage", ["a"])
    graph.link(source, 0, save, "images")
    graph.add("Prompted", [TEMPLATE, "", 3, "fixed"])
    saved(graph, Path("w.json"))
    rows = [{"id": str(seed), "set": {"Prompted.seed": seed}} for seed in (3, 4)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for options, wanted in ([], (3, 4)), (["--seed", "9", "--results", "other.jsonl", "--output", "two"], (9, 9)):
        assert main(["batch", "w.json", "--rows", "rows.jsonl", "--pack", str(toy_pack), *options]) == 0
        folder = Path("two" if options else "output", "rows")
        texts = [picture_of(folder / row)["prompt"]["3"]["inputs"]["text"] for row in ("3", "4")]
        assert texts == [resolved(Path("w.json"), registry, seed=seed)["3"]["inputs"]["text"] for seed in wanted]
