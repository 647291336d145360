"""Qwen2.5-VL's files in a checkpoint folder: weights, tokenizer, picture processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UniWorldError
from ..loading.meta import build
from ..loading.names import Names
from ..loading.settings import optional, take, whole
from ..loading.vocabulary import check_ids, qwen_tokenizer
from ..prompts.text import IMAGE_PAD, VISION_END, VISION_START
from .picture_processor import PROCESSOR, make_processor, processor_settings
from .qwen_config import QwenVLConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

# Limits of Qwen's own preprocessor_config.json.
_MIN_PIXELS, _MAX_PIXELS = 3136, 12845056

# The published prefixes, then those of transformers' module since version 4.52, which some programs save.
QWEN_NAMES = Names(
    (
        ("visual.", "model.visual."),
        ("model.", "model.language_model."),
        ("lm_head.", "lm_head."),
        ("model.visual.", "model.visual."),
        ("model.language_model.", "model.language_model."),
    )
)

_PIXELS = optional(whole(1, _MAX_PIXELS))
_SIZE = {"shortest_edge": _PIXELS, "longest_edge": _PIXELS}
_QWEN_PROCESSOR = PROCESSOR | {
    "min_pixels": _PIXELS,
    "max_pixels": _PIXELS,
    **dict.fromkeys(("patch_size", "merge_size", "temporal_patch_size"), whole(1, 256)),
}


def build_qwen(config: QwenVLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """Build Qwen2.5-VL with its weights on the meta device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # transformers 4 reads rope_scaling and rope_theta, transformers 5 rope_parameters: give both.
    scaling = dict(config.text.get("rope_scaling") or {})
    scaling.pop("type", None)
    text = config.text | {"rope_parameters": scaling | {"rope_theta": config.text.get("rope_theta", 1000000.0)}}
    tokens: dict[str, Any] = dict(config.tokens)

    def make() -> Qwen2_5_VLForConditionalGeneration:
        parts: dict[str, Any] = {"text_config": text, "vision_config": config.vision}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**parts, tie_word_embeddings=False, **tokens))

    return build(make, config.source)


def read_tokenizer(folder: Path, config: QwenVLConfig | None = None) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a checkpoint.

    Args:
        config: the checkpoint's configuration, against which the token ids are checked; None for no check.

    Raises:
        UniWorldError: a file is missing or damaged, or belongs to another model.
    """
    tokenizer = qwen_tokenizer(folder)
    for word, key in {
        IMAGE_PAD: "image_token_id",
        VISION_START: "vision_start_token_id",
        VISION_END: "vision_end_token_id",
    }.items():
        found = single_id(tokenizer, word)
        if config is not None and found != config.tokens[key]:
            raise UniWorldError(
                f"{config.source} has {key} {config.tokens[key]}, but its tokenizer gives {word} the id {found}: "
                "copy tokenizer files and config.json of the same checkpoint again."
            )
    if config is not None:
        check_ids(tokenizer, config.vocab_size, config.source)
    return tokenizer


def read_processor(folder: Path, config: QwenVLConfig, pixels: int | None) -> Any:
    """Read the picture processor of a checkpoint, which resizes with Pillow.

    Args:
        config: the checkpoint's configuration, with the patch sizes of the vision encoder.
        pixels: number of pixels to which every picture is resized. It overrides `preprocessor_config.json`, as in the
            published programs: the published file has Qwen's own wide range. Only if a checkpoint's minimum and maximum are
            equal, they are used instead. None keeps the file's range.

    Raises:
        UniWorldError: the file is missing or damaged, or does not match the configuration.
    """
    file, raw = processor_settings(folder)
    settings = take(raw, _QWEN_PROCESSOR, str(file))
    size = take({} if raw.get("size") is None else raw["size"], _SIZE, f"size in {file}")
    low = settings.get("min_pixels") or size.get("shortest_edge") or _MIN_PIXELS
    high = settings.get("max_pixels") or size.get("longest_edge") or _MAX_PIXELS
    if pixels is not None and low != high:
        low = high = pixels
    if low > high:
        raise UniWorldError(f"{file} sets pictures of at least {low} and at most {high} pixels: copy it again.")
    for key, wanted in config.patches.items():
        if settings.setdefault(key, wanted) != wanted:
            raise UniWorldError(
                f"{file} has {key} {settings[key]}, but {config.source} has {wanted}: "
                "copy both files of the same checkpoint again."
            )
    cell = settings["patch_size"] * settings["merge_size"]
    if low < cell**2:
        raise UniWorldError(
            f"{file} sets pictures of {low} pixels, less than one token of {cell}x{cell}: copy it again."
        )
    if low // cell**2 > config.positions:
        raise UniWorldError(
            f"{file} sets pictures of {low} pixels, {low // cell**2} tokens each, but the model reads at most "
            f"{config.positions}: copy it again."
        )
    # Both forms are set before the processor is made, because transformers 4 and 5 follow different ones.
    limits = {"min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}}
    return make_processor("Qwen2VLImageProcessor", settings | limits, file)


def single_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """Return the id of a word that is a single token. Raises UniWorldError for the tokenizer of another model."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UniWorldError(
            f"The tokenizer in {tokenizer.name_or_path} splits {word!r} into {len(ids)} tokens instead of one: "
            "it is not the tokenizer of Qwen2.5-VL. Copy the tokenizer files of the checkpoint again."
        )
    return int(ids[0])
