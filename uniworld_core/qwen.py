"""Qwen2.5-VL's files in a UniWorld checkpoint: weights, tokenizer, picture processor, generation settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import UniWorldConfig, read_json
from .prompt import IMAGE_PAD
from .weights import Names, Shards, Weights, build

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

# Every picture reaches the VLM at this many pixels, as minimum and maximum (published: serve/cli.py).
VLM_PIXELS = 448 * 448

# transformers' own prefixes are those of version 4.52 and later.
QWEN_NAMES = Names((("visual.", "model.visual."), ("model.", "model.language_model."), ("lm_head.", "lm_head.")))


def build_qwen(config: UniWorldConfig) -> Qwen2_5_VLForConditionalGeneration:
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


def qwen_weights(checkpoint: Path) -> Weights[Qwen2_5_VLForConditionalGeneration]:
    """Qwen2.5-VL of a checkpoint and its files."""
    return Weights(build_qwen(UniWorldConfig.read(checkpoint)), Shards(checkpoint), QWEN_NAMES)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a UniWorld checkpoint. Raises ValueError if its files are missing or of another model."""
    import transformers

    # Version 5 has one Qwen2Tokenizer, which is the fast one; before it that name was the slow one.
    kind = getattr(transformers, "Qwen2TokenizerFast", None) or transformers.Qwen2Tokenizer
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise ValueError(
            f"The tokenizer in {folder} cannot be read ({error}): copy vocab.json, merges.txt, tokenizer.json and "
            "tokenizer_config.json of the checkpoint again."
        ) from error
    single_id(tokenizer, IMAGE_PAD)
    return tokenizer


def read_processor(folder: Path) -> Any:
    """The picture processor of a UniWorld checkpoint, Pillow's resizing always.

    The published programs bring every picture to 448x448 pixels whatever `preprocessor_config.json` says, since the one
    of the published checkpoint carries Qwen's own wide range. A checkpoint whose two limits are equal sets its own.

    Raises:
        ValueError: the file is missing or damaged.
    """
    raw = read_json(folder / "preprocessor_config.json")
    size = raw.get("size") or {}
    low = raw.get("min_pixels") or size.get("shortest_edge")
    high = raw.get("max_pixels") or size.get("longest_edge")
    pixels = low if low and low == high else VLM_PIXELS
    # Said in both ways, before the processor is made: transformers 4 and 5 differ in which they believe.
    limits = {"min_pixels": pixels, "max_pixels": pixels, "size": {"shortest_edge": pixels, "longest_edge": pixels}}
    return make_processor("Qwen2VLImageProcessor", raw | limits, folder)


def make_processor(name: str, settings: dict[str, Any], folder: Path) -> Any:
    """A picture processor of these settings, Pillow's resizing always. Raises ValueError if they are damaged."""
    try:
        return pil_processor(name).from_dict(settings)
    except Exception as error:  # transformers raises all kinds on values it does not expect
        raise ValueError(
            f"{folder / 'preprocessor_config.json'} cannot be used ({type(error).__name__}: {error}): copy it again."
        ) from error


def pil_processor(name: str) -> Any:
    """transformers' image processor that resizes with Pillow: `NAMEPil` from version 5 on, `NAME` before.

    The "fast" ones, which the Auto classes prefer where torchvision is installed, give other pixels.
    """
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def read_generation(folder: Path, config: UniWorldConfig) -> GenerationConfig:
    """How the checkpoint generates text by default."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    return GenerationConfig(eos_token_id=config.text.get("eos_token_id"), bos_token_id=config.text.get("bos_token_id"))


def single_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The id of a word that is one token. Raises ValueError for the tokenizer of another model."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path} splits {word!r} into {len(ids)} tokens instead of one: "
            "it is not the tokenizer of Qwen2.5-VL. Copy the tokenizer files of the checkpoint again."
        )
    return int(ids[0])
