"""A conversation: the turns of user and assistant that the VLM reads, each with its text and pictures.

The published program (serve/cli.py) keeps all earlier turns in the prompt. Every picture stays in the turn in which it was
given or painted. A plain prompt with its references is a conversation of one turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import UniWorldError
from .reference import Reference, References
from .text import ASSISTANT, USER, check_prompt, check_text

ROLES = (USER, ASSISTANT)


@dataclass(frozen=True)
class Turn:
    """One turn of the user or of the assistant.

    Attributes:
        role: "user" or "assistant".
        text: the instruction or the answer. May be empty for a turn in which the assistant painted.
        refs: the pictures of this turn in order, from `UniWorld.reference`; stored as a tuple.
    """

    role: str
    text: str = ""
    refs: References = ()

    def __post_init__(self) -> None:
        if self.refs is not None and not isinstance(self.refs, (list, tuple)):
            raise UniWorldError(
                f"The refs of a turn are a {type(self.refs).__name__}; give the list that `reference` returns, or []."
            )
        object.__setattr__(self, "refs", tuple(self.refs or ()))


@dataclass(frozen=True)
class Conversation:
    """The turns of a conversation in order. The last one must be the user's before the model can paint or answer.

    Attributes:
        turns: stored as a tuple. Conversations are immutable; `then` returns a longer one.

    Raises:
        UniWorldError: a turn has a role other than "user" and "assistant", an invalid text (see `text.check_text`), or no
            content. A user's turn needs text, an assistant's turn text or pictures.
    """

    turns: Sequence[Turn] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.turns, (list, tuple)):
            raise UniWorldError(f"A conversation takes a list of turns, but got a {type(self.turns).__name__}.")
        object.__setattr__(self, "turns", tuple(self.turns))
        for number, turn in enumerate(self.turns, 1):
            _check_turn(turn, number, len(self.turns))

    def then(self, *turns: Turn) -> Conversation:
        """Return the conversation with more turns appended."""
        return Conversation((*self.turns, *turns))

    @property
    def instruction(self) -> str:
        """The text of the last turn, the only text that CLIP and T5 see. Raises UniWorldError if it is not the user's."""
        if not self.turns:
            raise UniWorldError('The conversation has no turns: end it with Turn("user", what to paint or to answer).')
        if self.turns[-1].role != USER:
            raise UniWorldError(
                f"The conversation ends with turn {len(self.turns)}, the assistant's: add the user's next turn, which "
                "says what to paint or to answer."
            )
        return self.turns[-1].text

    @property
    def refs(self) -> list[Reference]:
        """The pictures of all turns, in order."""
        return [ref for turn in self.turns for ref in turn.refs]

    @property
    def latest_refs(self) -> list[Reference]:
        """The pictures of the last turn that has any, for models that read only the last instruction."""
        return next((list(turn.refs) for turn in reversed(self.turns) if turn.refs), [])


Prompt: TypeAlias = "str | Conversation"


def as_conversations(
    prompt: Prompt | Sequence[Prompt], refs: References | Sequence[References] | None = None
) -> list[Conversation]:
    """Convert prompts to conversations, one per batch item, each ending with a user's turn.

    Args:
        prompt: a prompt or a conversation, or a list with any mix of both.
        refs: references shared by all prompts, or one list per item, or None. Conversations have their own references.

    Raises:
        UniWorldError: a prompt or conversation is invalid, or the references do not match the prompts.
    """
    prompts = as_list(prompt)
    if not prompts:
        raise UniWorldError("The list of prompts is empty: give at least one.")
    made = [_as_conversation(one, item) for one, item in zip(prompts, _per_item(len(prompts), refs))]
    for conversation in made:
        _ = conversation.instruction  # raises unless the last turn is the user's
    return made


def as_list(prompt: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts of a batch as a list. Raises UniWorldError unless given one prompt or a list of them."""
    if isinstance(prompt, (str, Conversation)):
        return [prompt]
    if isinstance(prompt, Turn):
        raise UniWorldError("A turn was given in place of a prompt: write Conversation([turn, ...]).")
    if not isinstance(prompt, (list, tuple)):
        raise UniWorldError(
            f"The prompt is of type {type(prompt).__name__}: give text, a Conversation, or a list of them, one per item."
        )
    return list(prompt)


def _per_item(items: int, refs: References | Sequence[References] | None) -> list[References]:
    if refs is not None and not isinstance(refs, (list, tuple)):
        raise UniWorldError(f"refs is a {type(refs).__name__}; give the list that `reference` returns.")
    if not refs:
        return [()] * items
    if isinstance(refs[0], Reference):
        return [refs] * items  # type: ignore[list-item]
    if len(refs) != items:
        raise UniWorldError(
            f"There are {items} prompts, but references for {len(refs)}: give one list of references per prompt."
        )
    for item in refs:
        if item is not None and not isinstance(item, (list, tuple)):
            raise UniWorldError(
                f"The references of an item are a {type(item).__name__}; give the list that `reference` returns, or []."
            )
    return [item or () for item in refs]  # type: ignore[misc]


def _as_conversation(prompt: Any, refs: References) -> Conversation:
    if isinstance(prompt, Turn):
        raise UniWorldError("A turn was given in place of a prompt: write Conversation([turn, ...]).")
    if not isinstance(prompt, Conversation):
        return Conversation([Turn(USER, prompt, refs)])
    if refs:
        raise UniWorldError(
            f"A conversation was given together with {len(refs)} references: put the references into its last turn. "
            "With prompts in the same batch, give one list of references per item, empty for conversations."
        )
    return prompt


def _check_turn(turn: Any, number: int, count: int) -> None:
    if not isinstance(turn, Turn):
        raise UniWorldError(
            f'Turn {number} of the conversation is a {type(turn).__name__}: write Turn("user", text, refs).'
        )
    if turn.role not in ROLES:
        raise UniWorldError(
            f"Turn {number} of the conversation has the role {turn.role!r}; it must be 'user' or 'assistant'."
        )
    for ref in turn.refs:
        if not isinstance(ref, Reference):
            raise UniWorldError(
                f"A reference of turn {number} is a {type(ref).__name__}; give the list that `reference` returns."
            )
    what = "prompt" if count == 1 and turn.role == USER else f"text of turn {number} ({turn.role})"
    if turn.role == USER:
        check_prompt(turn.text, what)
    elif not check_text(turn.text, what).strip() and not turn.refs:
        raise UniWorldError(
            f"Turn {number} of the conversation, the assistant's, has neither text nor pictures: add its answer or "
            "painted picture, or leave out this exchange."
        )
