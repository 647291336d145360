"""UniWorld Read Text (OCR): appends the text in the references to the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import host
from ..declare import Input, Inputs, Node, Output, by_id
from .conditioning import PROMPT

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.reference import References


class ReadText(Node):
    """Read text in images and append it to the prompt."""

    ID = "UniWorldReadText"
    DISPLAY_NAME = "UniWorld Read Text (OCR)"
    SEARCH_ALIASES = ["OCR", "text recognition", "text rendering", "read text", "enhance prompt"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Reads the text in the references with OCR and appends it to the prompt, with the position of each line. This "
        "helps the model to render text correctly. Runs on the CPU and requires the optional package rapidocr."
    )
    OUTPUTS = (
        Output("prompt", "STRING", "The prompt followed by the recognized text, for UniWorld Condition."),
        Output("text", "STRING", "Only the recognized text; empty if there is none."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.perception.ocr import MIN_CONFIDENCE

        return (
            replace(PROMPT, tooltip="The instruction, to which the text is appended."),
            Input.number(
                "min_confidence",
                f"Lines with this OCR confidence or lower are ignored (published: {MIN_CONFIDENCE}).",
                default=MIN_CONFIDENCE,
                min=0.0,
                max=1.0,
                step=0.01,
            ),
            Input.wire(
                "references",
                "UNIWORLD_REFERENCE",
                "The references of the prompt, from UniWorld Reference. They are read in order.",
                optional=True,
            ),
            Input.wire("image", "IMAGE", "Images to read instead of the references, or after them.", optional=True),
        )

    def execute(
        self, prompt: str, min_confidence: float, references: References | None = None, image: Tensor | None = None
    ) -> tuple[str, str]:
        from ...uniworld_core.images.pictures import to_rgb
        from ...uniworld_core.perception.ocr import describe_text, read_text

        pictures = [ref.picture for ref in references or []]
        pictures += [to_rgb(one) for one in (image if image is not None else [])]
        here, lines = host.current(), []
        progress = here.progress(len(pictures))
        for done, picture in enumerate(pictures, 1):
            here.check_interrupt()
            lines.append(read_text(picture))
            progress.update(done)
        text = describe_text(lines, min_confidence)
        return ("\n".join(part for part in (prompt, text) if part), text)


NODES = by_id(ReadText)
