"""UniWorld Chat Turn, and the conversation wire that UniWorld Condition, Understand and Route share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..declare import Input, Inputs, Node, Output, by_id, validation_result

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import References
    from .wires import SiglipWire, VLMWire

# The optional input of every node that reads an instruction; always the last one, as saved workflows need.
CONVERSATION = Input.wire(
    "conversation",
    "UNIWORLD_CONVERSATION",
    "What was said and painted before, from UniWorld Chat Turn. This prompt becomes its next turn.",
    optional=True,
)
CONVERSATION_SO_FAR = Output(
    "conversation",
    "UNIWORLD_CONVERSATION",
    "The conversation up to this prompt: wire it into UniWorld Chat Turn to add what came of it.",
)


class PromptNode(Node):
    """A node that reads an instruction: with a `prompt` widget, and the wires `references` and `conversation`."""

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:
        from ...uniworld_core.prompts.text import check_prompt

        return validation_result(check_prompt, prompt)

    @staticmethod
    def extended(
        vlm: VLMWire, prompt: str, references: References | None, conversation: Conversation | None
    ) -> Conversation:
        """The conversation so far with the prompt and its references as the last turn; warns of what the model does not know."""
        from ...uniworld_core import Conversation, Turn

        whole = (conversation or Conversation()).then(Turn("user", prompt, references or ()))
        vlm.warn_of_unknown(whole)
        return whole


class ChatTurn(Node):
    """One more turn of a conversation."""

    ID = "UniWorldChatTurn"
    DISPLAY_NAME = "UniWorld Chat Turn"
    SEARCH_ALIASES = ["conversation", "chat history", "multi turn", "dialogue", "follow up", "next edit"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Adds a turn to a conversation: the picture that was painted, the answer, or what the user said. Wire the "
        "conversation of UniWorld Condition or Understand into it, and its own into the next one, which then knows what "
        '"it" is.'
    )
    OUTPUTS = (
        Output(
            "conversation",
            "UNIWORLD_CONVERSATION",
            "The conversation with this turn at its end: for UniWorld Condition, Understand and Route.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.choice(
                "role",
                ("assistant", "user"),
                "Whose turn it is. assistant: what the model painted or answered. user: an instruction of before, with its "
                "pictures.",
            ),
            Input.text(
                "text",
                "What was said: wire the answer of UniWorld Understand. May be empty beside a picture of the assistant.",
                multiline=True,
            ),
            Input.wire("image", "IMAGE", "The picture that was painted; a batch is several pictures.", optional=True),
            Input.wire(
                "siglip",
                "UNIWORLD_SIGLIP",
                "SigLIP from Load UniWorld, for the image. Without it only the VLM sees the picture.",
                optional=True,
            ),
            Input.wire(
                "references",
                "UNIWORLD_REFERENCE",
                "Pictures of this turn that went through UniWorld Reference; they come before the image.",
                optional=True,
            ),
            replace(CONVERSATION, tooltip="The turns before this one. Without it a new conversation begins."),
        )

    @classmethod
    def VALIDATE_INPUTS(cls, role: str | None = None, text: str | None = None) -> bool | str:
        from ...uniworld_core.prompts.text import check_prompt, check_text

        return validation_result(check_prompt if role == "user" else check_text, text, "text")

    def execute(
        self,
        role: str,
        text: str,
        image: Tensor | None = None,
        siglip: SiglipWire | None = None,
        references: References | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[Conversation]:
        from ...uniworld_core import Conversation, Turn
        from ...uniworld_core.prompts.reference import make_references

        painted = [] if image is None else make_references(list(image), None if siglip is None else siglip.on_device())
        return ((conversation or Conversation()).then(Turn(role, text, [*(references or []), *painted])),)


NODES = by_id(ChatTurn)
