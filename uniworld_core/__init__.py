"""The UniWorld-V1 model as a library: understand, generate, edit and perceive pictures (arXiv 2506.03147).

    from uniworld.uniworld_core import UniWorld

    model = UniWorld.from_pretrained("path/to/UniWorld-V1", flux="path/to/FLUX.1-dev", siglip="path/to/siglip2")
    refs = model.reference([Image.open("cat.jpg")])
    cond = model.encode("Make the cat wear a hat.", refs=refs)
    image = model.decode(model.sample(cond, height=1024, width=1024))

    # then, of the painted picture:
    painted = Turn("assistant", "", model.reference(list(image)))
    talk = Conversation([Turn("user", "Make the cat wear a hat.", refs), painted, Turn("user", "Make the hat red.")])
    cond = model.encode(talk)

Names are imported when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .condition import Condition
    from .conversation import Conversation, Turn
    from .dit import DiT
    from .model import UniWorld
    from .reference import Reference
    from .routing import Route
    from .siglip import SigLIP
    from .text import TextEncoders
    from .vae import VAE
    from .vlm import VLM

_HOMES = {
    "UniWorld": "model",
    "Condition": "condition",
    "Conversation": "conversation",
    "DiT": "dit",
    "Reference": "reference",
    "Route": "routing",
    "SigLIP": "siglip",
    "TextEncoders": "text",
    "Turn": "conversation",
    "VAE": "vae",
    "VLM": "vlm",
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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
