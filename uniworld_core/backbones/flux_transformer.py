"""FLUX's transformer: settings, and weights in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UniWorldError
from ..loading.meta import build
from ..loading.names import Names
from ..loading.parts import Built, NetworkPart
from ..loading.settings import FLAG, HEADS, WIDTH, Rule, exactly, listed, optional, take, whole
from ..loading.weights import Shards

# Settings of diffusers' FluxTransformer2DModel; `_DEFAULTS` are those that a configuration may omit.
_RULES: dict[str, Rule] = {
    "patch_size": exactly(1, "because latents are packed already"),
    "in_channels": WIDTH,
    "out_channels": optional(WIDTH),
    "num_layers": whole(0, 128),
    "num_single_layers": whole(0, 128),
    "attention_head_dim": whole(2, 2**12),
    "num_attention_heads": HEADS,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "guidance_embeds": FLAG,
    "axes_dims_rope": listed(whole(2, 2**12), 3, 3),
}
# Layers at the two ends, which are not quantized: under 1 % of the weights, and half a dB of nano's pictures in int8 and fp8.
PRECISE = ("x_embedder", "context_embedder", "time_text_embed.*", "norm_out.*", "proj_out")
_DEFAULTS = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
}


def check_rope_axes(settings: Mapping[str, Any], source: str) -> None:
    """Check the rotary axes of a DiT's configuration.

    Args:
        settings: with `axes_dims_rope` and `attention_head_dim`.
        source: name of the configuration in errors.

    Raises:
        UniWorldError: an axis is odd, or the axes do not add up to the width of a head.
    """
    axes, head = settings["axes_dims_rope"], settings["attention_head_dim"]
    if sum(axes) != head or any(axis % 2 for axis in axes):
        raise UniWorldError(
            f"{source} has axes_dims_rope {axes}, which must be even and add up to attention_head_dim {head}: copy it again."
        )


def transformer_settings(raw: Any, source: str) -> dict[str, Any]:
    """Return arguments of diffusers' FluxTransformer2DModel from its configuration.

    Args:
        source: name of the configuration in errors.

    Raises:
        UniWorldError: values are invalid or do not match.
    """
    settings: dict[str, Any] = _DEFAULTS | take(raw, _RULES, source)
    check_rope_axes(settings, source)
    return settings


def build_transformer(settings: dict[str, Any], source: str) -> Any:
    """Build FLUX's transformer with its weights on the meta device."""
    from diffusers import FluxTransformer2DModel

    return build(lambda: FluxTransformer2DModel.from_config(settings), source)


def transformer_part(
    settings: dict[str, Any], shards: Shards, names: Names, source: str, make: Callable[[Any], Built]
) -> NetworkPart[Built]:
    """Open FLUX's transformer without loading it.

    Args:
        names: maps tensor names between files and network, with one prefix for all.
        source: name of the configuration in errors.
        make: makes the part from the loaded transformer.

    Raises:
        UniWorldError: the files store a different number of layers.
    """
    prefix = names.prefixes[0][0]
    # Counted before the network is built, whose depth the configuration decides.
    for key, blocks in (("num_layers", "transformer_blocks"), ("num_single_layers", "single_transformer_blocks")):
        shards.check_depth(settings[key], (f"{prefix}{blocks}.",), source)
    return NetworkPart(lambda: build_transformer(settings, source), shards, make, names, precise=PRECISE)
