"""What a file has besides the matrices of a denoiser: tensors of other kinds of adapters, and modules of text encoders."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..loading.names import some

# {kind of adapter: the tensors that only it has}, in the names of PEFT and of LyCORIS, which kohya's scripts and ComfyUI share.
_KINDS = {
    "DoRA": re.compile(r"\.(?:lora_magnitude_vector(?:\.\w+)*|dora_scale)$"),
    "LoHa": re.compile(r"\.hada_\w+$"),
    "LoKr": re.compile(r"\.lokr_\w+$"),
    "OFT": re.compile(r"\.b?oft_\w+(?:\.\w+)*$"),
    "LoCon of convolutions": re.compile(r"\.lora_mid\.weight$"),
    "LoRA with biases": re.compile(r"\.lora_[AB](?:\.\w+)?\.bias$"),
    "difference of whole weights": re.compile(r"\.diff(?:_b)?$"),
}
# Starts of modules' names: diffusers' and PEFT's, ComfyUI's, and those of kohya's scripts.
_TEXT_ENCODER = re.compile(r"(?:text_encoders?(?:_\d)?|lora_te\d?|te\d?|clip_[lg]|t5xxl)[._]")


def other_kind(names: Iterable[str]) -> str | None:
    """Describe the other kind of adapter that tensors belong to, such as "DoRA (NAMES)"; None if they are of none."""
    listed = sorted(names)
    for kind, pattern in _KINDS.items():
        if found := [name for name in listed if pattern.search(name)]:
            return f"{kind} ({some(found)})"
    return None


def is_text_encoder(module: str) -> bool:
    """Return whether a module belongs to a text encoder, by its name without prefixes of denoisers."""
    return _TEXT_ENCODER.match(module) is not None
