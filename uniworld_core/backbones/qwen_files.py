"""Qwen2.5-VL's files in a checkpoint's folder: weights, tokenizer, picture processor, generation settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UniWorldError
from ..loading.settings import FLAG, TOKEN, either, listed, number, optional, read_json, take, whole
from ..loading.vocabulary import check_ids, qwen_tokenizer
from ..loading.weights import Names, build
from ..prompts.text import IMAGE_PAD, VISION_END, VISION_START
from .picture_processor import PROCESSOR, make_processor, processor_settings
from .qwen_config import QwenVLConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

# The most pixels that Qwen's own preprocessor_config.json allows.
_MAX_PIXELS = 12845056

# Published prefixes, then those of transformers' own module from version 4.52 on, which some programs save.
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
# What is taken of a generation_config.json. Others ask for searches that VLM.generate does not offer, or for code to be run.
TEMPERATURE = number(1e-6, 1e6)  # of sampling; lower ones overflow the logits that they divide
_GENERATION = {
    "bos_token_id": optional(TOKEN),
    "eos_token_id": optional(either(TOKEN, listed(TOKEN, 1, 64))),
    "pad_token_id": optional(TOKEN),
    "do_sample": FLAG,
    "temperature": optional(TEMPERATURE),
    "top_p": optional(number(1e-6, 1)),
    "top_k": optional(whole(0, 2**21)),
    "repetition_penalty": optional(number(1e-3, 1e3)),
}


def build_qwen(config: QwenVLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL of the configured widths, its weights on the meta device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # rope_parameters is what transformers 5 calls rope_scaling and rope_theta together.
    scaling = dict(config.text.get("rope_scaling") or {})
    scaling.pop("type", None)
    text = config.text | {"rope_parameters": scaling | {"rope_theta": config.text.get("rope_theta", 1000000.0)}}
    tokens: dict[str, Any] = dict(config.tokens)

    def make() -> Qwen2_5_VLForConditionalGeneration:
        parts: dict[str, Any] = {"text_config": text, "vision_config": config.vision}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**parts, tie_word_embeddings=False, **tokens))

    return build(make, config.source)


def read_tokenizer(folder: Path, config: QwenVLConfig | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint.

    Args:
        config: the checkpoint's, to hold the ids against.

    Raises:
        UniWorldError: its files are missing, damaged or of another model.
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
                f"{config.source} has {key} {config.tokens[key]}, and the tokenizer beside it gives {word} the id {found}: "
                "copy tokenizer files and config.json of one and the same checkpoint again."
            )
    if config is not None:
        check_ids(tokenizer, config.vocab_size, config.source)
    return tokenizer


def read_processor(folder: Path, config: QwenVLConfig, pixels: int) -> Any:
    """The picture processor of a checkpoint, Pillow's resizing always.

    Args:
        config: the checkpoint's, whose vision half says how pictures are cut into patches.
        pixels: what every picture is brought to, whatever `preprocessor_config.json` says: the programs that the models
            were published with do so, and the published file carries Qwen's own wide range. A checkpoint whose two limits
            are equal sets its own.

    Raises:
        UniWorldError: the file is missing or damaged, or does not fit the configuration.
    """
    file, raw = processor_settings(folder)
    settings = take(raw, _QWEN_PROCESSOR, str(file))
    size = take({} if raw.get("size") is None else raw["size"], _SIZE, f"size in {file}")
    low = settings.get("min_pixels") or size.get("shortest_edge")
    high = settings.get("max_pixels") or size.get("longest_edge")
    pixels = low if low and low == high else pixels
    for key, wanted in config.patches.items():
        if settings.setdefault(key, wanted) != wanted:
            raise UniWorldError(
                f"{file} has {key} {settings[key]}, and {config.source} {wanted}: "
                "copy both files of one and the same checkpoint again."
            )
    cell = settings["patch_size"] * settings["merge_size"]
    if pixels < cell**2:
        raise UniWorldError(
            f"{file} has pictures of {pixels} pixels, less than one token's {cell}x{cell}: copy it again."
        )
    if pixels // cell**2 > config.positions:
        raise UniWorldError(
            f"{file} has pictures of {pixels} pixels, {pixels // cell**2} tokens each, and the model reads "
            f"{config.positions}: copy it again."
        )
    # Given in both forms, before the processor is made: transformers 4 and 5 differ in which one they follow.
    limits = {"min_pixels": pixels, "max_pixels": pixels, "size": {"shortest_edge": pixels, "longest_edge": pixels}}
    return make_processor("Qwen2VLImageProcessor", settings | limits, file)


def read_generation(folder: Path, config: QwenVLConfig) -> GenerationConfig:
    """How the checkpoint generates text by default. Raises UniWorldError if its file is damaged."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    known = take(read_json(file), _GENERATION, str(file)) if file.exists() else {}
    ids = {key: config.text[key] for key in ("bos_token_id", "eos_token_id") if key in config.text}
    return GenerationConfig(**ids | known)


def single_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The id of a word that is one token. Raises UniWorldError for the tokenizer of another model."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UniWorldError(
            f"The tokenizer in {tokenizer.name_or_path} splits {word!r} into {len(ids)} tokens instead of one: "
            "it is not the tokenizer of Qwen2.5-VL. Copy the tokenizer files of the checkpoint again."
        )
    return int(ids[0])
