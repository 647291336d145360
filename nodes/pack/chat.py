"""UniWorld Chat Turn, and the conversation input and output that UniWorld Condition, Understand and Route share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..declare import Input, Inputs, Node, Output, by_id, validation_result
from .parts import connected

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import References
    from .wires import SiglipWire, VLMWire

# The optional input of every node that reads an instruction. It comes last: saved workflows store inputs by position.
CONVERSATION = Input.wire(
    "conversation",
    "UNIWORLD_CONVERSATION",
    "The previous turns, from UniWorld Chat Turn. This prompt becomes the next turn.",
    optional=True,
)
CONVERSATION_SO_FAR = Output(
    "conversation",
    "UNIWORLD_CONVERSATION",
    "The conversation up to this prompt. Connect it to UniWorld Chat Turn to add the result.",
)


class PromptNode(Node):
    """Base class of nodes that read an instruction. They have the inputs `prompt`, `references` and `conversation`."""

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:
        from ...uniworld_core.prompts.text import check_prompt

        return validation_result(check_prompt, prompt)

    @staticmethod
    def extended(
        vlm: VLMWire, prompt: str, references: References | None, conversation: Conversation | None
    ) -> Conversation:
        """Append the prompt and its references to the conversation, and warn about anything that the model does not know."""
        from ...uniworld_core import Conversation, Turn

        longer = (conversation or Conversation()).then(Turn("user", prompt, references or ()))
        vlm.warn_of_unknown(longer)
        return longer


class ChatTurn(Node):
    """Append a turn to a conversation."""

    ID = "UniWorldChatTurn"
    DISPLAY_NAME = "UniWorld Chat Turn"
    SEARCH_ALIASES = ["conversation", "chat history", "multi turn", "dialogue", "follow up", "next edit"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Adds a turn to a conversation: a generated image, an answer, or an instruction of the user. Connect the "
        "conversation output of UniWorld Condition or Understand to this node, and the output of this node to the next "
        'one. The next instruction can then refer to the image as "it".'
    )
    OUTPUTS = (
        Output(
            "conversation",
            "UNIWORLD_CONVERSATION",
            "The conversation including this turn, for UniWorld Condition, Understand and Route.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.choice(
                "role",
                ("assistant", "user"),
                "assistant: an image or answer of the model. user: an earlier instruction with its images.",
            ),
            Input.text(
                "text",
                "The text of the turn, such as the answer of UniWorld Understand. May be empty if the assistant's turn has "
                "an image.",
                multiline=True,
            ),
            Input.wire("image", "IMAGE", "The generated image, or a batch of several.", optional=True),
            Input.wire(
                "siglip",
                "UNIWORLD_SIGLIP",
                "SigLIP from Load UniWorld, for the image. If not connected, only the VLM sees the image.",
                optional=True,
            ),
            Input.wire(
                "references",
                "UNIWORLD_REFERENCE",
                "Images of this turn from UniWorld Reference. They come before image.",
                optional=True,
            ),
            replace(CONVERSATION, tooltip="The previous turns. If not connected, a new conversation starts."),
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

        encoder = connected(siglip)
        painted = (
            [] if image is None else make_references(list(image), None if encoder is None else encoder.on_device())
        )
        return ((conversation or Conversation()).then(Turn(role, text, [*(references or []), *painted])),)


NODES = by_id(ChatTurn)
