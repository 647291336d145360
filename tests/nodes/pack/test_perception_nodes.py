"""The nodes UniWorld Perception and UniWorld Perception Head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from uniworld.nodes.pack import perception as perception_nodes
from uniworld.uniworld_core.perception.tasks import TASKS

DOCS = Path(__file__).parents[3] / "nodes" / "web" / "docs"


def head(task: str, painted: torch.Tensor, source: torch.Tensor | None = None) -> tuple:
    return perception_nodes.PerceptionHead().execute(task, painted, source)


@pytest.mark.parametrize("name", perception_nodes.NODES)
def test_every_node_and_input_explains_itself(name: str) -> None:
    node = perception_nodes.NODES[name]
    assert node.DESCRIPTION.endswith(".")
    assert node.CATEGORY.startswith("UniWorld/")
    assert callable(getattr(node, node.FUNCTION))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for group in node.INPUT_TYPES().values():
        for input_name, (_, options) in group.items():
            assert options["tooltip"].endswith(".")
            assert input_name in page
    for output in node.RETURN_NAMES:
        assert output in page
    assert all(task in page for task in TASKS)


@pytest.mark.parametrize("name", perception_nodes.NODES)
def test_the_combo_offers_every_task(name: str) -> None:
    choices, options = perception_nodes.NODES[name].INPUT_TYPES()["required"]["task"]
    assert choices == list(TASKS)
    assert options["default"] in choices


def test_the_prompt_comes_with_the_picture_unchanged() -> None:
    image = torch.rand(1, 8, 8, 3)
    prompt, passed = perception_nodes.Perception().execute("segmentation", image, "giraffe")
    assert prompt == "Segment the giraffe from the background."
    assert passed is image


def test_an_empty_subject_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="'segmentation' needs a subject"):
        perception_nodes.Perception().execute("segmentation", torch.rand(1, 8, 8, 3), " ")


@pytest.mark.parametrize("task", TASKS)
def test_the_head_gives_native_types_for_every_task(task: str) -> None:
    painted = torch.rand(2, 24, 40, 3, generator=torch.Generator().manual_seed(0))
    image, mask, boxes, text = head(task, painted, torch.full((1, 48, 80, 3), 0.5))
    assert image.shape == (2, 24, 40, 3)
    assert mask.shape == (2, 24, 40)
    assert len(json.loads(boxes)) == 2
    assert isinstance(text, str)
    assert text


def test_boxes_are_json_of_the_drawn_rectangles() -> None:
    source = torch.full((1, 100, 160, 3), 0.5)
    painted = source.clone()
    painted[:, 20:81, 30:121] = torch.tensor([0.1, 0.9, 0.9])
    painted[:, 23:78, 33:118] = 0.5
    _, mask, boxes, text = head("detection", painted, source)
    assert json.loads(boxes) == [[{"x": 30, "y": 20, "width": 91, "height": 61, "score": 1.0}]]
    assert mask.sum() == 91 * 61
    assert text == f"1 rectangle around {100 * 91 * 61 / 16000:.1f} % of the picture"


def test_a_missing_source_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="give the source picture too"):
        head("detection", torch.full((1, 32, 32, 3), 0.5))
