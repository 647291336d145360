"""UniWorld Understand and UniWorld Route: answer a question, and decide between painting and answering."""

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
    "references", "UNIWORLD_REFERENCE", "The images that the prompt refers to, in order.", optional=True
)


class Understand(PromptNode):
    """Answer a question about images in text."""

    ID = "UniWorldUnderstand"
    DISPLAY_NAME = "UniWorld Understand"
    SEARCH_ALIASES = ["caption", "describe image", "VQA", "question", "Qwen2.5-VL", "answer"]
    CATEGORY = "UniWorld/understanding"
    DESCRIPTION = "Answers a question with Qwen2.5-VL, about the references if there are any."
    OUTPUTS = (Output("answer", "STRING", "The answer."), CONVERSATION_SO_FAR)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.backbones.qwen_vl import MAX_NEW_TOKENS

        return (
            VLM,
            replace(PROMPT, tooltip="The question or task, in natural language."),
            Input.integer(
                "max_new_tokens",
                "Maximum length of the answer, in tokens.",
                default=MAX_NEW_TOKENS,
                min=1,
                max=8192,
            ),
            Input.number(
                "temperature",
                "0 gives the most likely answer. Higher values give more varied answers.",
                default=0.0,
                min=0.0,
                max=2.0,
                step=0.05,
            ),
            Input.seed("seed", "Seed of the random sampling. Only used if the temperature is above 0."),
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
        extended = self.extended(vlm, prompt, references, conversation)
        here, progress = host.current(), host.current().progress(max_new_tokens)

        def report(tokens: int) -> None:
            here.check_interrupt()
            progress.update(tokens)

        return vlm.answer(extended, max_new_tokens, temperature, seed, report), extended


# Shared by UniWorld Route and UniWorld Route (CLIP).
ROUTE_OUTPUTS = (
    Output("paint", "BOOLEAN", "True if the instruction requests an image."),
    Output("probability", "FLOAT", "Probability that the instruction requests an image, 0 to 1."),
    Output(
        "paint_prompt",
        "STRING",
        "The prompt, if it requests an image. Otherwise nodes after this output do not run.",
    ),
    Output(
        "answer_prompt",
        "STRING",
        "The prompt, if it requests an answer. Otherwise nodes after this output do not run.",
    ),
)


class ChooseRoute(PromptNode):
    """Decide whether an instruction requests an image or text."""

    ID = "UniWorldRoute"
    DISPLAY_NAME = "UniWorld Route"
    SEARCH_ALIASES = ["router", "switch", "branch", "paint or answer"]
    CATEGORY = "UniWorld/understanding"
    DESCRIPTION = (
        "Decides with the checkpoint's routing head whether to paint an image or to answer in text. Connect paint_prompt to "
        "UniWorld Condition and answer_prompt to UniWorld Understand. Only the selected branch runs."
    )
    OUTPUTS = ROUTE_OUTPUTS

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
        extended = self.extended(vlm, prompt, references, conversation)
        result = vlm.route(extended)
        paint, probability = bool(result.paint[0]), float(result.probabilities[0, 1])
        blocked = host.current().block()
        return (paint, probability, prompt, blocked) if paint else (paint, probability, blocked, prompt)


NODES = by_id(Understand, ChooseRoute)
