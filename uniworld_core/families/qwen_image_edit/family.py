"""The Qwen-Image-Edit family: Qwen2.5-VL reads the prompt and the references, Qwen-Image's transformer paints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...loading.folders import ModelFolders
from ...prompts.conversation import Conversation
from ...sampling.condition import Condition
from ..family import Family, LoadedParts
from .condition import encode_references, encode_text, pictures_of
from .folder import QwenImageEditParts
from .painting import GUIDANCE, NEGATIVE
from .prompt import RELEASES


class QwenImageEdit(Family):
    """The models of arXiv 2508.02324 that edit pictures, in diffusers layout.

    Args:
        pipeline: diffusers' class of the release, one of `RELEASES`.
    """

    companions = ()
    guidance, negative = GUIDANCE, NEGATIVE

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

        Raises:
            UniWorldError: a prompt has too few or too many pictures or exceeds the context length, or the items of a batch have
                different numbers of pictures, or different aspect ratios.
        """
        self._check_no_t5(t5_length)
        pictures = pictures_of(conversations, self.release, parts["vae"].native_side)
        condition = encode_text(parts["understanding"], self.release, _instructions(conversations), pictures)
        return replace(condition, references=encode_references(parts, pictures))

    def encode_negative(self, parts: LoadedParts, conversations: Sequence[Conversation], negative: str) -> Condition:
        """Encode the negative prompt with the pictures of each conversation (`Family.encode_negative`)."""
        pictures = pictures_of(conversations, self.release, parts["vae"].native_side)
        return encode_text(parts["understanding"], self.release, [negative] * len(conversations), pictures)


def _instructions(conversations: Sequence[Conversation]) -> list[str]:
    return [conversation.instruction for conversation in conversations]
