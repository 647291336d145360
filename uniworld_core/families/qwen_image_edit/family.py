"""The Qwen-Image-Edit family: Qwen2.5-VL reads the prompt and the references, Qwen-Image's transformer paints."""

from __future__ import annotations

from collections.abc import Sequence

from ...prompts.conversation import Conversation
from ...sampling.condition import Condition
from ..family import Family, LoadedParts, ModelFolders
from .condition import encode
from .folder import QwenImageEditParts
from .painting import NEGATIVE
from .prompt import RELEASES


class QwenImageEdit(Family):
    """The models of arXiv 2508.02324 that edit pictures, in diffusers layout.

    Args:
        pipeline: diffusers' class of the release, one of `RELEASES`.
    """

    companions = ()

    def __init__(self, pipeline: str) -> None:
        self.release = RELEASES[pipeline]
        self.name = self.release.name

    def open(self, folders: ModelFolders) -> QwenImageEditParts:
        """Open the folder (`Family.open`)."""
        return QwenImageEditParts(folders.checkpoint, self.release)

    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        """Encode the last instruction of conversations with their latest pictures (`Family.encode`).

        The negative condition, of a blank prompt with the same pictures, is for guidance above 1.
        """
        if t5_length is not None:
            _ = parts["t5"]  # raises
        instructions = [conversation.instruction for conversation in conversations]
        pictures = [[ref.picture for ref in conversation.latest_refs] for conversation in conversations]
        return encode(parts, self.release, instructions, pictures, NEGATIVE)
