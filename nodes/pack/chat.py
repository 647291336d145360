"""UniWorld Chat Turn, and the conversation wire that UniWorld Condition, Understand and Route share."""

from __future__ import annotations

from typing import Any

# The optional input of every node that reads an instruction; always the last one, as saved workflows need.
CONVERSATION = (
    "UNIWORLD_CONVERSATION",
    {"tooltip": "What was said and painted before, from UniWorld Chat Turn. This prompt becomes its next turn."},
)
CONVERSATION_TOOLTIP = "The conversation up to this prompt: wire it into UniWorld Chat Turn to add what came of it."


def with_prompt(conversation: Any, prompt: str, references: Any) -> Any:
    """The conversation so far (None for none) with the user's prompt and its references as the last turn."""
    from ...uniworld_core import Conversation, Turn

    return (conversation or Conversation()).then(Turn("user", prompt, references))


class ChatTurn:
    """One more turn of a conversation."""

    DISPLAY_NAME = "UniWorld Chat Turn"
    SEARCH_ALIASES = ["conversation", "chat history", "multi turn", "dialogue", "follow up", "next edit"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Adds a turn to a conversation: the picture that was painted, the answer, or what the user said. Wire the "
        "conversation of UniWorld Condition or Understand into it, and its own into the next one, which then knows what "
        '"it" is.'
    )
    RETURN_TYPES = ("UNIWORLD_CONVERSATION",)
    RETURN_NAMES = ("conversation",)
    OUTPUT_TOOLTIPS = ("The conversation with this turn at its end: for UniWorld Condition, Understand and Route.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "role": (
                    ["assistant", "user"],
                    {
                        "tooltip": "Whose turn it is. assistant: what the model painted or answered. user: an instruction "
                        "of before, with its pictures."
                    },
                ),
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What was said: wire the answer of UniWorld Understand. May be empty beside a picture "
                        "of the assistant.",
                    },
                ),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "The picture that was painted; a batch is several pictures."}),
                "siglip": (
                    "UNIWORLD_SIGLIP",
                    {"tooltip": "SigLIP from Load UniWorld, for the image. Without it only the VLM sees the picture."},
                ),
                "references": (
                    "UNIWORLD_REFERENCE",
                    {
                        "tooltip": "Pictures of this turn that went through UniWorld Reference; they come before the image."
                    },
                ),
                "conversation": (
                    "UNIWORLD_CONVERSATION",
                    {"tooltip": "The turns before this one. Without it a new conversation begins."},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, role: str | None = None, text: str | None = None) -> bool | str:
        from ...uniworld_core.prompts.text import check_prompt, check_text

        if text is None:
            return True
        try:
            (check_prompt if role == "user" else check_text)(text, "text")
        except ValueError as error:
            return str(error)
        return True

    def execute(
        self,
        role: str,
        text: str,
        image: Any = None,
        siglip: Any = None,
        references: Any = None,
        conversation: Any = None,
    ) -> tuple[Any]:
        from ...uniworld_core import Conversation, Turn
        from ...uniworld_core.prompts.reference import make_references

        painted = [] if image is None else make_references(list(image), None if siglip is None else siglip.on_device())
        return ((conversation or Conversation()).then(Turn(role, text, [*(references or []), *painted])),)


NODES = {"UniWorldChatTurn": ChatTurn}
