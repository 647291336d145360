"""A model of a small world says what it does not know: words, and pictures of another kind."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from uniworld.uniworld_core import Conversation, Turn, UniWorld
from uniworld.uniworld_core.prompts.reference import Reference
from uniworld.uniworld_core.prompts.scope import SCOPE_FILE, Scope, flat_share, read_scope

SCOPE = Scope("shapes", frozenset({"make", "the", "circle", "red", "don't", "2"}), 0.5, turns=3)
FLAT = Image.new("RGB", (60, 40), (200, 10, 10))


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def asked(text: str, *pictures: Image.Image) -> Conversation:
    return Conversation([Turn("user", text, [Reference(picture) for picture in pictures])])


@pytest.mark.parametrize("text", ["Make the CIRCLE red.", "make, the: (circle)", "Don\u2019t make 2!", "?!"])
def test_known_words_are_known_however_they_are_written(text: str) -> None:
    assert SCOPE.unknown_words(text) == []


def test_unknown_words_are_named_once_in_order() -> None:
    assert SCOPE.unknown_words("A cat; the CAT, 12 éclairs 猫_red") == ["a", "cat", "12", "éclairs", "猫"]


def test_known_words_cause_no_warning() -> None:
    assert SCOPE.outside(asked("Make the circle red.", FLAT)) is None


@pytest.mark.parametrize(
    ("conversation", "named"),
    [
        (asked("Make the cat red.", FLAT), "the word 'cat'"),
        (asked("a b c d e f g"), "the words 'a', 'b', 'c', 'd', 'e' and 2 more"),
        (asked("?!"), "the prompt"),
        (asked("Make the circle red.", noise()), "the picture"),
        (asked("Make the cat red.", FLAT, noise()), "the word 'cat' or picture 2"),
        (asked("Make the circle red.", noise(), noise()), "pictures 1, 2"),
    ],
)
def test_what_is_unknown_is_named_with_where_the_weights_go(conversation: Conversation, named: str) -> None:
    said = SCOPE.outside(conversation)
    assert said is not None
    assert said.startswith(f"The model does not know {named}, so the result will be meaningless. It knows only shapes.")
    assert "Where the weights go" in said


def test_earlier_turns_of_the_user_count_and_answers_do_not() -> None:
    answered = Turn("assistant", "Zwei.", [])
    assert SCOPE.outside(Conversation([Turn("user", "Make 2"), answered, Turn("user", "Make red")])) is None
    said = SCOPE.outside(Conversation([Turn("user", "Make dogs"), answered, Turn("user", "Make red")]))
    assert said is not None
    assert "'dogs'" in said


def test_a_conversation_longer_than_it_has_learned_is_named() -> None:
    turns = [Turn("user", "Make 2"), Turn("assistant", "2"), Turn("user", "Make red")]
    said = Scope("shapes", SCOPE.words, 0.5).outside(Conversation(turns))
    assert said is not None
    assert said.startswith("The model has learned only single instructions, and this conversation has 3 turns")
    longer = SCOPE.outside(Conversation([*turns, Turn("assistant", "2"), Turn("user", "Make dogs")]))
    assert longer is not None
    assert "'dogs'" in longer
    assert "conversations of up to 3 turns, and this conversation has 5 turns" in longer


def test_even_pictures_of_any_size_are_flat_and_noise_and_ramps_are_not() -> None:
    for size in ((1, 1), (1, 300), (60, 40), (2000, 1500)):
        assert flat_share(Image.new("RGB", size, (3, 200, 90))) == 1.0
    assert flat_share(noise()) < 0.05
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    assert flat_share(Image.fromarray(np.tile(ramp, (256, 1))).convert("RGB")) < 0.5


def test_a_folder_without_the_file_has_no_bounds(tmp_path: Path) -> None:
    assert read_scope(tmp_path) is None


@pytest.mark.parametrize(
    "change", [{"about": ""}, {"words": "all"}, {"words": [1]}, {"flat": 2}, {"flat": None}, {"turns": 0}]
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    right = {"about": "shapes", "words": ["red"], "flat": 0.5, "turns": 2}
    (tmp_path / SCOPE_FILE).write_text(json.dumps(right))
    assert read_scope(tmp_path) == Scope("shapes", frozenset({"red"}), 0.5, 2)
    (tmp_path / SCOPE_FILE).write_text(json.dumps(right | change))
    with pytest.raises(ValueError, match=rf"knows\.json has {next(iter(change))} "):
        read_scope(tmp_path)


def test_the_library_warns_its_caller_once_of_what_a_small_model_does_not_know() -> None:
    model = UniWorld.from_pretrained("nano")
    with pytest.warns(UserWarning, match="does not know the words 'sunny', 'beach'") as told:
        model.understand(["What is on the sunny beach?"] * 2, max_new_tokens=1)
    assert [Path(one.filename).name for one in told] == [Path(__file__).name]
    with pytest.warns(UserWarning, match="'beach'") as told:
        model.encode("Make a beach.", use_t5=False)
    assert [Path(one.filename).name for one in told] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode("Make the red circle blue.", use_t5=False)
