"""Understand and Route: what the VLM answers, and whether an instruction asks for a picture at all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import host
from ..declare import Input, Inputs, Output, by_id
from .chat import CONVERSATION, CONVERSATION_SO_FAR, PromptNode
from .conditioning import PROMPT, VLM

if TYPE_CHECKING:
    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import References
    from .wires import VLMWire

_REFERENCES = Input.wire(
    "references", "UNIWORLD_REFERENCE", "The pictures that the question speaks of, in order.", optional=True
)


class Understand(PromptNode):
    """A question about pictures, answered in words."""

    ID = "UniWorldUnderstand"
    DISPLAY_NAME = "UniWorld Understand"
    SEARCH_ALIASES = ["caption", "describe image", "VQA", "question", "Qwen2.5-VL", "answer"]
    CATEGORY = "UniWorld/understanding"
    DESCRIPTION = "Qwen2.5-VL answers a question, about the references if there are any."
    OUTPUTS = (Output("answer", "STRING", "The answer."), CONVERSATION_SO_FAR)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.backbones.qwen_vl import MAX_NEW_TOKENS

        return (
            VLM,
            replace(PROMPT, tooltip="The question or task, in plain words."),
            Input.integer(
                "max_new_tokens",
                "The answer is cut after so many tokens.",
                default=MAX_NEW_TOKENS,
                min=1,
                max=8192,
            ),
            Input.number(
                "temperature",
                "0 gives the likeliest answer; more gives more varied ones.",
                default=0.0,
                min=0.0,
                max=2.0,
                step=0.05,
            ),
            Input.seed("seed", "Of the random choice when the temperature is above 0."),
            _REFERENCES,
            CONVERSATION,
        )

    def execute(
        self,
        vlm: VLMWire,
        prompt: str,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        references: References | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[str, Conversation]:
        asked = self.extended(vlm, prompt, references, conversation)
        here, progress = host.current(), host.current().progress(max_new_tokens)

        def report(tokens: int) -> None:
            here.check_interrupt()
            progress.update(tokens)

        return vlm.answer(asked, max_new_tokens, temperature, seed, report), asked


class ChooseRoute(PromptNode):
    """Does the instruction ask for a picture or for words?"""

    ID = "UniWorldRoute"
    DISPLAY_NAME = "UniWorld Route"
    SEARCH_ALIASES = ["router", "switch", "branch", "paint or answer"]
    CATEGORY = "UniWorld/understanding"
    DESCRIPTION = (
        "The checkpoint's routing head decides whether to paint or to answer. Wire paint_prompt into UniWorld Condition "
        "and answer_prompt into UniWorld Understand: only the branch that was chosen runs."
    )
    OUTPUTS = (
        Output("paint", "BOOLEAN", "True where the instruction asks for a picture."),
        Output("probability", "FLOAT", "How sure the head is that it does, 0 to 1."),
        Output(
            "paint_prompt",
            "STRING",
            "The prompt, if a picture is asked for; else nothing behind this output runs.",
        ),
        Output(
            "answer_prompt",
            "STRING",
            "The prompt, if an answer is asked for; else nothing behind this output runs.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return VLM, PROMPT, _REFERENCES, CONVERSATION

    def execute(
        self,
        vlm: VLMWire,
        prompt: str,
        references: References | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[bool, float, object, object]:
        asked = self.extended(vlm, prompt, references, conversation)
        result = vlm.route(asked)
        paint, probability = bool(result.paint[0]), float(result.probabilities[0, 1])
        blocked = host.current().block()
        return (paint, probability, prompt, blocked) if paint else (paint, probability, blocked, prompt)


NODES = by_id(Understand, ChooseRoute)
