"""What a judge is asked about a painted picture, from a template that can be replaced by a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.settings import read_bytes
from .protocol import RewardItem

# Written for this project. A line with {requirement} is left out if an item has none.
DEFAULT_TEMPLATE = """\
You are checking the work of an image editor. The images before the last one are the originals, and the last image is what \
the editor returned for this request:

{instruction}

The result must also satisfy this: {requirement}

Compare the images. Ask yourself three things: Is the requested change there, completely and at the right place? Is \
everything that the request does not mention the same as before? Is the result free of artifacts, and as sharp as the \
originals?

Grade the result:
0 - the request was ignored, or another image came out
1 - something was changed, but not what was requested
2 - the change is there in part, or other parts of the image are damaged
3 - the change is there, with clear faults in it or next to it
4 - the change is right, with small faults
5 - the change is right, all else is untouched, and no fault is visible

Reply with the grade only, a single digit from 0 to 5."""

_FIELD = re.compile(r"\{(instruction|requirement)\}")
_MAX_TEMPLATE = 2**16  # bytes


@dataclass(frozen=True)
class Question:
    """A question to a judge.

    Attributes:
        text: the text.
        pictures: the pictures, in the order in which the text names them.
        begun: start of the answer, which the judge continues; only judges in this process can.
    """

    text: str
    pictures: tuple[Image.Image, ...]
    begun: str = ""


Ask: TypeAlias = "Callable[[RewardItem], Question]"


@dataclass(frozen=True)
class QuestionTemplate:
    """Makes questions from items: the text, with the references and then the painted picture.

    Attributes:
        text: with `{instruction}`, and possibly with `{requirement}`.
    """

    text: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        if "{instruction}" not in self.text:
            raise UniWorldError("The template has no {instruction}, where the instruction of an edit belongs: add it.")

    def __call__(self, item: RewardItem) -> Question:
        """Return the question about an item. Braces in its texts have no meaning."""
        lines = self.text.split("\n")
        if not item.requirement.strip():
            lines = [line for line in lines if "{requirement}" not in line]
        values = {"instruction": item.prompt.strip(), "requirement": item.requirement.strip()}
        text = _FIELD.sub(lambda field: values[field[1]], "\n".join(lines))
        return Question(re.sub(r"\n{3,}", "\n\n", text).strip(), (*item.references, item.picture))


def read_question(file: Path) -> QuestionTemplate:
    """Read a template from a text file. Raises UniWorldError if it is missing, too large, not UTF-8 or lacks the field."""
    try:
        return QuestionTemplate(read_bytes(file, _MAX_TEMPLATE).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UniWorldError(f"{file} is not UTF-8 text ({error.reason}): save it as such.") from error
    except UniWorldError as error:
        raise error if str(file) in str(error) else UniWorldError(f"{file}: {error}") from error
