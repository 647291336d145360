"""UniWorld-V1 as a library: understand, generate, edit and perceive pictures (arXiv 2506.03147).

    from uniworld.uniworld_core import UniWorld

    model = UniWorld.from_pretrained("path/to/UniWorld-V1", flux="path/to/FLUX.1-dev", siglip="path/to/siglip2")
    refs = model.reference([Image.open("cat.jpg")])
    cond = model.encode("Make the cat wear a hat.", refs=refs)
    image = model.decode(model.sample(cond, height=1024, width=1024))

    # continue the conversation with the painted picture:
    painted = Turn("assistant", "", model.reference(list(image)))
    talk = Conversation([Turn("user", "Make the cat wear a hat.", refs), painted, Turn("user", "Make the hat red.")])
    cond = model.encode(talk)

Names are imported on first use, which keeps importing the package fast: torch and transformers take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.flux_dit import DiT
    from .backbones.flux_text import TextEncoders
    from .backbones.flux_vae import VAE
    from .backbones.qwen_vl import VLM
    from .backbones.siglip import SigLIP
    from .families.family import Route
    from .model import UniWorld
    from .prompts.conversation import Conversation, Turn
    from .prompts.reference import Reference
    from .sampling.condition import Condition

_MODULES = {
    "UniWorld": "model",
    "Condition": "sampling.condition",
    "Conversation": "prompts.conversation",
    "DiT": "backbones.flux_dit",
    "Reference": "prompts.reference",
    "Route": "families.family",
    "SigLIP": "backbones.siglip",
    "TextEncoders": "backbones.flux_text",
    "Turn": "prompts.conversation",
    "VAE": "backbones.flux_vae",
    "VLM": "backbones.qwen_vl",
}

__all__ = [
    "VAE",
    "VLM",
    "Condition",
    "Conversation",
    "DiT",
    "Reference",
    "Route",
    "SigLIP",
    "TextEncoders",
    "Turn",
    "UniWorld",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
