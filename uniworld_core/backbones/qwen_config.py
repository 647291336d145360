"""Qwen2.5-VL's settings of the language model and the vision encoder, from a flat `config.json` as Qwen published it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UniWorldError
from ..loading.settings import (
    ACTIVATION,
    EPSILON,
    FLAG,
    HEADS,
    HIDDEN,
    LAYERS,
    OBJECT,
    POSITIONS,
    SHARE,
    TOKEN,
    VOCABULARY,
    WIDTH,
    Rule,
    check_heads,
    choice,
    either,
    exactly,
    listed,
    number,
    optional,
    take,
    whole,
)

# Settings of the language model (Qwen2_5_VLTextConfig).
TEXT_RULES: dict[str, Rule] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "hidden_act": ACTIVATION,
    "max_position_embeddings": POSITIONS,
    "initializer_range": number(0, 100),
    "rms_norm_eps": EPSILON,
    "rope_theta": number(1, 1e12),
    "rope_scaling": OBJECT,
    "use_sliding_window": FLAG,
    "sliding_window": optional(POSITIONS),
    "max_window_layers": whole(0, 2**16),
    "attention_dropout": SHARE,
    "bos_token_id": optional(TOKEN),
    "eos_token_id": optional(either(TOKEN, listed(TOKEN, 1, 64))),
}
TEXT_KEYS = tuple(TEXT_RULES)
# Early configurations have "mrope" for "default".
_ROPE_TYPE = choice("default", "mrope")
_ROPE: dict[str, Rule] = {
    "rope_type": _ROPE_TYPE,
    "type": _ROPE_TYPE,
    "mrope_section": listed(whole(0, 2**15), 3, 3),
}
# Settings of the vision encoder (Qwen2_5_VLVisionConfig).
_VISION: dict[str, Rule] = {
    "depth": LAYERS,
    "hidden_size": WIDTH,
    "hidden_act": ACTIVATION,
    "intermediate_size": HIDDEN,
    "num_heads": HEADS,
    "in_channels": exactly(3, "because pictures are RGB"),
    "patch_size": whole(1, 256),
    "spatial_merge_size": whole(1, 16),
    "temporal_patch_size": whole(1, 16),
    "tokens_per_second": number(0, 1e6),
    "window_size": whole(1, 2**16),
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": listed(whole(0, 127), 0, 128),
    "initializer_range": number(0, 100),
}
_TOKENS: dict[str, Rule] = dict.fromkeys(
    ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), TOKEN
)
# transformers' defaults. Configurations that it saves omit them.
_VISION_DEFAULTS: dict[str, int] = {
    "depth": 32,
    "hidden_size": 3584,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
}
# Maximum side of an attention window in merged patches (Qwen2.5-VL: 4). Pictures are padded to full windows, so a huge
# window would allocate without limit.
_MAX_WINDOW = 64


@dataclass(frozen=True)
class QwenVLConfig:
    """The configuration of a Qwen2.5-VL.

    Attributes:
        text: arguments of transformers' Qwen2_5_VLTextConfig.
        vision: arguments of transformers' Qwen2_5_VLVisionConfig.
        tokens: ids of the image, video, vision-start and vision-end tokens.
        source: name of the configuration in errors.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    tokens: dict[str, int]
    source: str = "config"

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.text["hidden_size"])

    @property
    def layers(self) -> int:
        """Number of layers of the language model."""
        return int(self.text["num_hidden_layers"])

    @property
    def depth(self) -> int:
        """Number of layers of the vision encoder."""
        return int((_VISION_DEFAULTS | self.vision)["depth"])

    @property
    def vocab_size(self) -> int:
        """Number of rows of the language model's embedding table."""
        return int(self.text["vocab_size"])

    @property
    def positions(self) -> int:
        """Context length of the language model in tokens."""
        return int(self.text.get("max_position_embeddings", 32768))

    @property
    def patches(self) -> dict[str, int]:
        """Patch sizes of the vision encoder, under the names of a picture processor's settings."""
        values = _VISION_DEFAULTS | self.vision
        names = {
            "patch_size": "patch_size",
            "merge_size": "spatial_merge_size",
            "temporal_patch_size": "temporal_patch_size",
        }
        return {name: values[key] for name, key in names.items()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str = "config") -> QwenVLConfig:
        """Read a flat `config.json`. Keys of other models are ignored.

        Args:
            source: name of the configuration in errors.

        Raises:
            UniWorldError: a key is missing, or a value is invalid.
        """
        rotary = config.get("rope_parameters")  # transformers 5 combines rope_scaling and rope_theta in it
        if config.get("rope_scaling") is None and isinstance(rotary, Mapping):
            config = {"rope_theta": rotary.get("rope_theta", 1000000.0), **config, "rope_scaling": rotary}
        rules = {"vision_config": OBJECT, **TEXT_RULES, **_TOKENS}
        values = take(config, rules, source, ("vision_config", "hidden_size", *_TOKENS))
        return cls(
            text=_text({key: values[key] for key in TEXT_KEYS if key in values}, source),
            vision=_vision(values["vision_config"], f"vision_config in {source}"),
            tokens={key: values[key] for key in _TOKENS},
            source=source,
        )

    @classmethod
    def from_nested(cls, config: Mapping[str, Any], source: str = "config") -> QwenVLConfig:
        """Read a `config.json` in which the language model's keys may be in `text_config`, as transformers 4.52 and later save it.

        Args:
            source: name of the configuration in errors.

        Raises:
            UniWorldError: as `from_dict`.
        """
        text = take(config, {"text_config": optional(OBJECT)}, source).get("text_config") or {}
        # Nulls are dropped because transformers 4.56 writes a null image_token_id into `text_config`, which would hide the
        # value on the top level.
        flat = {key: value for part in (config, text) for key, value in part.items() if value is not None}
        return cls.from_dict(flat, source)


def _text(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Check the settings of the language model. Raises UniWorldError if widths or rotary sections do not match."""
    needed = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "rope_scaling")
    values = take(values, TEXT_RULES, source, needed)
    heads = values["num_attention_heads"]
    check_heads(values["hidden_size"], heads, source, even=True)
    if heads % values["num_key_value_heads"]:
        raise UniWorldError(
            f"{source} has {heads} attention heads, which is not divisible by its {values['num_key_value_heads']} key and "
            "value heads: copy the file again."
        )
    rope = take(values["rope_scaling"], _ROPE, f"rope_scaling in {source}", ("mrope_section",))
    if 2 * sum(rope["mrope_section"]) != values["hidden_size"] // heads:
        raise UniWorldError(
            f"{source} has mrope_section {rope['mrope_section']}, which must add up to half of a head's "
            f"{values['hidden_size'] // heads}: copy the file again."
        )
    return values | {"rope_scaling": rope}


def _vision(raw: Any, source: str) -> dict[str, Any]:
    """Check the settings of the vision encoder. Raises UniWorldError if they do not match each other."""
    vision = take(raw, _VISION, source)
    values = _VISION_DEFAULTS | vision
    check_heads(values["hidden_size"], values["num_heads"], source, even=True)
    if values["hidden_size"] // values["num_heads"] % 4:  # rotary positions rotate pairs, for rows and for columns
        raise UniWorldError(
            f"{source} has a head width of {values['hidden_size'] // values['num_heads']}, which must be a multiple of 4: "
            "copy it again."
        )
    step = values["patch_size"] * values["spatial_merge_size"]
    if not step <= values["window_size"] <= _MAX_WINDOW * step:
        raise UniWorldError(
            f"{source} has window_size {values['window_size']}, expected {step} (one merged patch) to {_MAX_WINDOW * step}: "
            "copy the file again."
        )
    beyond = [index for index in vision.get("fullatt_block_indexes", []) if index >= values["depth"]]
    if beyond:
        raise UniWorldError(
            f"{source} has {beyond[0]} in fullatt_block_indexes, but only {values['depth']} blocks: copy it again."
        )
    return vision
