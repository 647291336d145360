"""The UniWorld-V1 family: Qwen2.5-VL reads and answers, SigLIP encodes references, FLUX's transformer paints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...backbones.flux_text import T5_LENGTH
from ...backbones.generation import OnToken
from ...backbones.qwen_vl import VLM
from ...loading.folders import ModelFolders
from ...prompts.conversation import Conversation
from ...sampling.condition import Condition
from ..family import Family, LoadedParts, PreparedPrompt, Route
from .checkpoint import UniWorldParts, layout
from .condition import encode_conversations, join_t5
from .config import UniWorldConfig
from .painting import NAME
from .routing import route


class UniWorldV1(Family):
    """The published model: arXiv 2506.03147."""

    name = NAME
    companions = ("flux", "siglip")
    t5_length = T5_LENGTH
    answers = routes = True

    def open(self, folders: ModelFolders) -> UniWorldParts:
        """Open the folders (`Family.open`). Without FLUX the model can only answer; without SigLIP it takes no references."""
        return UniWorldParts(folders.checkpoint, folders.flux, folders.siglip)

    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        """Encode conversations (`Family.encode`). CLIP pools the last instruction with T5, and "" without, as published."""
        tokens, mask = encode_conversations(parts["understanding"], conversations)
        if t5_length is None:
            pooled = parts.cached("pooled_empty", lambda: parts["clip"].pool([""])).expand(len(conversations), -1)
        else:
            instructions = [item.instruction for item in conversations]
            pooled = parts["clip"].pool(instructions)
            tokens, mask = join_t5(parts["t5"].tokens(instructions, t5_length), tokens, mask)
        return Condition(tokens, pooled, None if bool(mask.all()) else mask)

    def understand(
        self,
        parts: LoadedParts,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer conversations (`Family.understand`, `VLM.answer`)."""
        return parts["vlm"].answer(
            conversations, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, callback=callback
        )

    def prepare(self, parts: LoadedParts, conversation: Conversation) -> PreparedPrompt:
        """Prepare to answer a conversation (`Family.prepare`)."""
        vlm: VLM = parts["vlm"]
        inputs = vlm.inputs([conversation])

        def generate(max_new_tokens: int, temperature: float, seed: int, on_token: OnToken) -> torch.Tensor:
            return vlm.generate(inputs, max_new_tokens, temperature, seed, on_token=on_token)

        return PreparedPrompt(vlm.tokenizer, int(inputs.ids.shape[1]), generate)

    def route(self, parts: LoadedParts, conversations: Sequence[Conversation]) -> Route:
        """Route conversations (`Family.route`). The checkpoint must have a routing head."""
        return route(parts["understanding"], conversations)

    def layout(self, config: Mapping[str, Any], siglip_width: int | None) -> dict[str, tuple[int, ...]]:
        """Compute the layout (`Family.layout`). If `siglip_width` is None, the published width is used."""
        return layout(UniWorldConfig.from_dict(config, siglip_width))
