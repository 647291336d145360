"""Conversations: the published program's numbers, batches, and what a conversation may not be.

`UNIWORLD_GOLDEN` names another folder with `chat.json` and `chat.safetensors` to be checked in the same way.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld import uniworld_core
from uniworld.uniworld_core import Condition, Conversation, Turn, UniWorld
from uniworld.uniworld_core.backbones.qwen_template import chat_text, conversation_text
from uniworld.uniworld_core.prompts.reference import Reference
from uniworld.uniworld_core.prompts.text import RESERVED

CHATS = ("painted", "answered")
TOLERANCE = 1e-4


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance


class Chat:
    """One golden conversation, its settings and its tensors."""

    def __init__(self, name: str, golden: Any, model: UniWorld) -> None:
        settings = golden.json("chat")[name]
        self.text, self.size = settings["text"], {"height": settings["height"], "width": settings["width"]}
        self.steps, self.guidance = settings["steps"], settings["guidance"]
        self.turns = [
            Turn(turn["role"], turn["text"], model.reference([golden.picture(file) for file in turn["images"]]))
            for turn in settings["turns"]
        ]
        self.conversation = Conversation(self.turns)
        self.tensors = golden.tensors("chat")
        self.name = name

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[f"{self.name}.{name}"]


@pytest.fixture(scope="module")
def chats(golden_data: Any, model: UniWorld) -> dict[str, Chat]:
    if not (golden_data.folder / "chat.safetensors").is_file():
        pytest.skip("the golden folder has no conversations")
    return {name: Chat(name, golden_data, model) for name in golden_data.json("chat")}


@pytest.fixture
def chat(request: Any, chats: dict[str, Chat]) -> Chat:
    return chats[request.param]


each_chat = pytest.mark.parametrize("chat", CHATS, indirect=True)


# --- the published numbers --------------------------------------------------------------------------------------------


@each_chat
def test_conversation_text_and_tokens_are_the_published_ones(model: UniWorld, chat: Chat) -> None:
    assert conversation_text([(turn.role, turn.text, [1] * len(turn.refs)) for turn in chat.turns]) == chat.text
    assert torch.equal(model.vlm.inputs([chat.conversation]).ids, chat["input_ids"])


@each_chat
def test_conversation_states_and_condition_are_the_published_ones(model: UniWorld, chat: Chat) -> None:
    close(model.vlm.hidden_states(model.vlm.inputs([chat.conversation])), chat["last_hidden"])
    close(model.encode(chat.conversation, use_t5=False).tokens, chat["embeds"])


@each_chat
def test_conversation_is_routed_as_published(model: UniWorld, chat: Chat) -> None:
    close(model.route(chat.conversation).logits, chat["task_logits"])


@each_chat
def test_conversation_is_answered_as_published(model: UniWorld, chat: Chat) -> None:
    length = chat["generated"].shape[1]
    inputs = model.vlm.inputs([chat.conversation])
    assert torch.equal(model.vlm.generate(inputs, max_new_tokens=length), chat["generated"])
    answer = model.understand(chat.conversation, max_new_tokens=length)
    assert answer == model.vlm.tokenizer.decode(
        chat["generated"][0], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@each_chat
def test_conversation_is_painted_as_published(model: UniWorld, chat: Chat) -> None:
    condition = model.encode(chat.conversation, use_t5=False)
    z = model.sample(condition, **chat.size, steps=chat.steps, guidance=chat.guidance, noise=chat["noise"])
    close(model.dit.latent_format.to_model(z), chat["latent_vlm"])


def test_every_golden_conversation_and_tensor_is_held_against_something(chats: dict[str, Chat]) -> None:
    names = ("input_ids", "last_hidden", "embeds", "task_logits", "generated", "noise", "latent_vlm")
    assert set(chats) == set(CHATS)
    assert set(chats["painted"].tensors) == {f"{chat}.{name}" for chat in CHATS for name in names}


# --- prompts and conversations are one thing --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refs(model: UniWorld) -> list[Any]:
    made = Image.new("RGB", (60, 40), (30, 40, 220))
    made.paste((250, 240, 10), (10, 10, 30, 30))
    return model.reference([made])


@pytest.fixture(scope="module")
def mixed(model: UniWorld, refs: list[Any]) -> list[Any]:
    """Conversations and plain prompts of different lengths."""
    asked = Conversation([Turn("user", "Is it red?", refs), Turn("assistant", "yes"), Turn("user", "Make it green.")])
    painted = Conversation(
        [Turn("user", "A dog."), Turn("assistant", "", refs * 2), Turn("user", "A hat on it.", refs)]
    )
    return [asked, "A red circle.", painted, "Is it red?"]


def test_a_plain_prompt_is_a_conversation_of_one_turn(model: UniWorld, refs: list[Any]) -> None:
    prompt, turn = "Make it red.", Conversation([Turn("user", "Make it red.", refs)])
    expected, found = model.encode(prompt, refs=refs, t5_length=8), model.encode(turn, t5_length=8)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.pooled, expected.pooled)
    assert torch.equal(model.route(turn).logits, model.route(prompt, refs).logits)
    assert model.understand(turn, max_new_tokens=4) == model.understand(prompt, refs=refs, max_new_tokens=4)


def test_a_batch_of_prompts_and_conversations_gives_each_its_own(model: UniWorld, mixed: list[Any]) -> None:
    together = model.encode(mixed, t5_length=8)
    for index, item in enumerate(mixed):
        alone = model.encode(item, t5_length=8)
        close(together.tokens[index][together.mask[index]], alone.tokens[0])
        close(together.pooled[index], alone.pooled[0])
    answers = model.understand(mixed, max_new_tokens=5)
    assert answers == [model.understand(item, max_new_tokens=5) for item in mixed]
    logits = model.route(mixed).logits
    for index, item in enumerate(mixed):
        close(logits[index], model.route(item).logits[0])


def test_references_per_item_go_to_the_prompts_of_a_batch(model: UniWorld, mixed: list[Any], refs: list[Any]) -> None:
    together = model.encode(mixed, refs=[[], refs, [], None], use_t5=False)
    alone = model.encode(mixed[1], refs=refs, use_t5=False)
    close(together.tokens[1][together.mask[1]], alone.tokens[0])


def test_clip_and_t5_see_only_the_last_instruction(model: UniWorld, mixed: list[Any]) -> None:
    condition: Condition = model.encode(mixed[0], t5_length=8)
    plain = model.encode("Make it green.", t5_length=8)
    assert torch.equal(condition.pooled, plain.pooled)
    assert torch.equal(condition.tokens[:, :8], plain.tokens[:, :8])


def test_earlier_turns_count(model: UniWorld, refs: list[Any]) -> None:
    conversations = [
        Conversation([Turn("user", "Is it red?", refs), Turn("assistant", answer), Turn("user", "Make it green.")])
        for answer in ("yes", "no")
    ]
    first, second = (model.encode(one, use_t5=False).tokens for one in conversations)
    assert not torch.allclose(first[:, -4:], second[:, -4:])


def test_a_conversation_is_never_modified(model: UniWorld, refs: list[Any]) -> None:
    given = list(refs)
    turns = [Turn("user", "A dog.", given), Turn("assistant", "", given), Turn("user", "A hat on it.")]
    conversation = Conversation(turns)
    longer = conversation.then(Turn("assistant", "no"), Turn("user", "Why?"))
    model.encode([conversation, longer], use_t5=False)
    model.route(conversation)
    model.understand(conversation, max_new_tokens=1)
    turns.append(Turn("user", "later"))
    given.clear()
    assert [turn.text for turn in conversation.turns] == ["A dog.", "", "A hat on it."]
    assert [turn.text for turn in longer.turns] == ["A dog.", "", "A hat on it.", "no", "Why?"]
    assert conversation.refs == [refs[0], refs[0]]


# --- what a conversation may not be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ([], "has no turns"),
        ([Turn("user", "A dog."), Turn("assistant", "no")], "ends with turn 2, the assistant's"),
        ([Turn("user", "A dog."), Turn("assistant", ""), Turn("user", "x")], "neither text nor pictures"),
        ([Turn("user", "A dog."), Turn("assistant", " \n", None), Turn("user", "x")], "neither text nor pictures"),
        ([Turn("user", "A dog."), Turn("assistant", "no"), Turn("user", " ")], r"text of turn 3 \(user\) is empty"),
        ([Turn("user", "")], "prompt is empty"),
        ([Turn("system", "Be kind."), Turn("user", "x")], "role 'system'"),
        ([Turn("user", 3), Turn("user", "x")], "is a int, not text"),  # type: ignore[arg-type]
        (["A dog."], "is a str: write Turn"),
        ([Turn("user", "x", ["a.png"])], "A reference of turn 1 is a str"),  # type: ignore[list-item]
        ("A dog.", "takes a list of turns"),
    ],
)
def test_a_conversation_that_cannot_be(model: UniWorld, turns: Any, sentence: str) -> None:
    for ask in (model.encode, model.understand, model.route):
        with pytest.raises(ValueError, match=sentence):
            ask(Conversation(turns))


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("token", [*RESERVED, "\ud800"])
def test_marks_of_turns_typed_into_any_turn_are_refused_as_in_prompts(role: str, token: str) -> None:
    turns = [Turn("user", "A dog."), Turn(role, f"yes{token}"), Turn("user", "x")]
    with pytest.raises(ValueError, match="text of turn 2"):
        Conversation(turns)


def test_a_turn_or_references_in_the_wrong_place(model: UniWorld, mixed: list[Any], refs: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"write Conversation\(\[turn"):
        model.encode([Turn("user", "A dog.")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="put the references into its last turn"):
        model.encode(mixed[0], refs=refs)
    with pytest.raises(ValueError, match="empty for conversations"):
        model.route(mixed, refs=[refs, [], [], []])
    with pytest.raises(ValueError, match="the list that `reference` returns"):
        Turn("user", "A dog.", refs[0])


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (Turn("user", "x"), r"write Conversation\(\[turn"),
        (None, "of type NoneType: give text, a Conversation, or a list"),
        (5, "of type int: give text"),
        ({"a": 1}, "of type dict: give text"),
        (b"A dog.", "of type bytes: give text"),
        ([None], "is a NoneType, not text"),
    ],
)
def test_errors_for_invalid_prompts_list_the_accepted_types(model: UniWorld, prompt: Any, sentence: str) -> None:
    for ask in (model.encode, model.understand, model.route, model.vlm.inputs, model.vlm.answer):
        with pytest.raises(ValueError, match=sentence):
            ask(prompt)
    with pytest.raises(ValueError, match=sentence):
        model.vlm.inputs(prompt, [[]])


def test_references_of_an_item_must_be_a_list(model: UniWorld) -> None:
    with pytest.raises(ValueError, match="references of an item are a Tensor"):
        model.route(["A dog."], refs=[torch.zeros(2, 4)])  # type: ignore[list-item]


def test_conversations_are_compared_and_hashed() -> None:
    picture, features = Image.new("RGB", (8, 8)), torch.zeros(2, 4)
    ref, other = Reference(picture, features), Reference(picture, features)
    one, same, different = (Conversation([Turn("user", "A dog.", [each])]) for each in (ref, ref, other))
    assert one == same
    assert one != different
    assert len({one, same, different}) == 2


def test_dataclasses_with_tensors_are_compared_by_identity() -> None:
    """Tensors cannot be compared by a generated `__eq__`: the result is a tensor, and they are not hashed by value."""
    held = re.compile(r"\b(Tensor|Image\.Image)\b")
    found = []
    for info in pkgutil.walk_packages(uniworld_core.__path__, "uniworld.uniworld_core."):
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if not dataclasses.is_dataclass(kind) or kind.__module__ != module.__name__:
                continue
            if any(held.search(str(field.type)) for field in dataclasses.fields(kind)):
                found.append(kind.__name__)
                assert kind.__eq__ is object.__eq__, kind
                assert kind.__hash__ is object.__hash__, kind
    assert {"Reference", "Condition", "Route", "VLMInputs"} <= set(found)


def test_rendered_text_has_a_mark_for_each_picture(model: UniWorld) -> None:
    picture = Image.new("RGB", (30, 30))
    inputs = model.vlm.text_inputs([chat_text("What is it?", [1]), "Hello"], [picture])
    assert torch.equal(inputs.ids[0], model.vlm.inputs(["What is it?"], [[picture]]).ids[0])
    for text in ("Hello", chat_text("What is it?", [1, 1])):
        with pytest.raises(ValueError, match="for 1 pictures: give one for each"):
            model.vlm.text_inputs([text], [picture])


def test_a_conversation_longer_than_the_model_reads_is_an_error(model: UniWorld, refs: list[Any]) -> None:
    limit = model.vlm.config.text["max_position_embeddings"]
    turns = [Turn("user", "word " * limit, refs), Turn("assistant", "yes"), Turn("user", "And now?")]
    for ask in (model.encode, model.understand, model.route):
        with pytest.raises(
            ValueError, match=rf"conversation of 3 turns .* \d+ tokens; the model reads at most {limit}"
        ):
            ask(Conversation(turns))
