"""UniWorld Chat Turn, and the conversation input and output of Condition, Understand and Route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.uniworld_core import Conversation, Turn, UniWorld

ASK = {"max_new_tokens": 4, "temperature": 0.0, "seed": 0}


def run(node: str, **inputs: Any) -> Any:
    made = NODE_CLASS_MAPPINGS[node]()
    return getattr(made, made.FUNCTION)(**inputs)


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    host.install(host.PlainHost())
    yield
    host.install(None)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    host.install(host.PlainHost())
    names = NODE_CLASS_MAPPINGS["UniWorldLoader"].RETURN_NAMES
    folders = dict.fromkeys(("checkpoint", "flux", "siglip"), "tiny")
    return dict(zip(names, run("UniWorldLoader", **folders, dtype="float32", device=host.current().devices()[0])))


@pytest.fixture(scope="module")
def core() -> UniWorld:
    return UniWorld.from_pretrained("tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 40, 60, 3, generator=torch.Generator().manual_seed(0))


def test_a_painted_picture_and_the_next_instruction_are_one_conversation(
    parts: dict[str, Any], core: UniWorld, image: torch.Tensor
) -> None:
    references = run("UniWorldReference", image=image[:1], siglip=parts["siglip"])[0]
    _, asked = run("UniWorldCondition", vlm=parts["vlm"], prompt="A dog.", references=references)
    inputs = {"role": "assistant", "text": "", "image": image, "siglip": parts["siglip"]}
    painted = run("UniWorldChatTurn", conversation=asked, **inputs)[0]
    found, _ = run("UniWorldCondition", vlm=parts["vlm"], prompt="A hat on it.", conversation=painted)
    expected = Conversation(
        [
            Turn("user", "A dog.", core.reference([image[0]])),
            Turn("assistant", "", core.reference(list(image))),
            Turn("user", "A hat on it."),
        ]
    )
    assert torch.equal(found[0][0], core.encode(expected, use_t5=False).tokens)
    # Both results are new, longer conversations; the inputs are unchanged.
    assert [len(one.turns) for one in (asked, painted)] == [1, 2]


def test_an_answer_and_the_next_question_are_one_conversation(parts: dict[str, Any], core: UniWorld) -> None:
    _, asked = run("UniWorldUnderstand", vlm=parts["vlm"], prompt="Is it red?", **ASK)
    answered = run("UniWorldChatTurn", role="assistant", text="a red circle", conversation=asked)[0]
    expected = Conversation([Turn("user", "Is it red?"), Turn("assistant", "a red circle"), Turn("user", "Why?")])
    answer, after = run("UniWorldUnderstand", vlm=parts["vlm"], prompt="Why?", conversation=answered, **ASK)
    assert after == expected
    assert answer == core.understand(expected, max_new_tokens=4)
    paint, probability, *_ = run("UniWorldRoute", vlm=parts["vlm"], prompt="Why?", conversation=answered)
    route = core.route(expected)
    assert (paint, probability) == (bool(route.paint[0]), pytest.approx(float(route.probabilities[0, 1])))


def test_a_conversation_may_be_written_by_hand(parts: dict[str, Any], core: UniWorld, image: torch.Tensor) -> None:
    references = run("UniWorldReference", image=image[:1])[0]
    said = run("UniWorldChatTurn", role="user", text="Is it red?", references=references)[0]
    conversation = run("UniWorldChatTurn", role="assistant", text="yes", conversation=said)[0]
    found, _ = run("UniWorldCondition", vlm=parts["vlm"], prompt="Make it green.", conversation=conversation)
    turns = [Turn("user", "Is it red?", core.reference([image[0]], use_siglip=False)), Turn("assistant", "yes")]
    expected = Conversation([*turns, Turn("user", "Make it green.")])
    assert torch.equal(found[0][0], core.encode(expected, use_t5=False).tokens)


def test_t5_and_clip_see_the_prompt_of_the_node_alone(parts: dict[str, Any]) -> None:
    said = run("UniWorldChatTurn", role="user", text="Is it red?")[0]
    conversation = run("UniWorldChatTurn", role="assistant", text="yes", conversation=said)[0]
    common = {"vlm": parts["vlm"], "text": parts["text"], "t5_length": 8, "prompt": "Make it green."}
    found, plain = (run("UniWorldCondition", **common, **more)[0][0] for more in ({"conversation": conversation}, {}))
    assert torch.equal(found[1]["pooled_output"], plain[1]["pooled_output"])
    assert torch.equal(found[0][:, :8], plain[0][:, :8])
    assert found[0].shape[1] > plain[0].shape[1]


@pytest.mark.parametrize("node", ["UniWorldCondition", "UniWorldUnderstand", "UniWorldRoute"])
def test_new_inputs_come_last_so_that_saved_workflows_keep_their_slots(node: str) -> None:
    inputs = NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    names = list(inputs["optional"])
    assert set(names[names.index("conversation") + 1 :]) <= {"negative_prompt"}
    assert inputs["optional"]["conversation"][0] == "UNIWORLD_CONVERSATION"
    assert "UNIWORLD_CONVERSATION" not in NODE_CLASS_MAPPINGS[node].RETURN_TYPES[:-1]


@pytest.mark.parametrize(("role", "text"), [("user", " "), ("user", "<|im_end|>"), ("assistant", "a<|image_pad|>")])
def test_a_text_that_cannot_be_a_turn_is_refused_before_anything_runs(role: str, text: str) -> None:
    problem = NODE_CLASS_MAPPINGS["UniWorldChatTurn"].VALIDATE_INPUTS(role=role, text=text)
    assert isinstance(problem, str)
    with pytest.raises(ValueError, match=r"prompt|text"):
        run("UniWorldChatTurn", role=role, text=text)


def test_an_empty_text_of_the_assistant_needs_a_picture(image: torch.Tensor) -> None:
    node = NODE_CLASS_MAPPINGS["UniWorldChatTurn"]
    assert node.VALIDATE_INPUTS(role="assistant", text="") is True
    assert node.VALIDATE_INPUTS(role="assistant", text=None) is True
    assert len(run("UniWorldChatTurn", role="assistant", text="", image=image)[0].refs) == 2
    with pytest.raises(ValueError, match="neither text nor pictures"):
        run("UniWorldChatTurn", role="assistant", text="")
