"""A tiny Qwen-Image-Edit-2509 in diffusers layout, with random weights. `conftest.py` makes it a fixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

WIDTH, HEADS, SIDE = 32, 2, 64
TOKENIZER_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
INDEX = {
    "_class_name": "QwenImageEditPlusPipeline",
    "processor": ["transformers", "Qwen2VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}


def write_qwen_edit(folder: Path, tokenizer: Path, seed: int = 0) -> None:
    """Write the model. Its native side is 64 pixels; Qwen2.5-VL gets pictures at the published size.

    Args:
        tokenizer: folder with the files of a Qwen tokenizer, such as the shipped tiny checkpoint.
    """
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    torch.manual_seed(seed)
    _text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    transformer = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(folder / "vae")
    edit_json(folder / "vae" / "config.json", sample_size=SIDE)
    for part in ("tokenizer", "processor"):
        (folder / part).mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / "tokenizer" / name)
    processor = json.loads((tokenizer / "preprocessor_config.json").read_text(encoding="utf-8"))
    limits = {"min_pixels": 3136, "max_pixels": 12845056}
    processor |= limits | {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    _write(folder / "processor" / "preprocessor_config.json", processor)
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write(folder / "model_index.json", INDEX)


def edit_json(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    _write(file, json.loads(file.read_text(encoding="utf-8")) | values)


def _text_encoder(tokenizer: Path) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    source = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {key: source[key] for key in keys}
    rope = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
    text = {
        "vocab_size": source["vocab_size"],
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_scaling": rope,
        "rope_parameters": {"rope_theta": 1e6, "mrope_section": [2, 3, 3], "rope_type": "default"},
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_heads": HEADS,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    parts: dict[str, Any] = {"text_config": text, "vision_config": vision}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**parts, tie_word_embeddings=False, **tokens)).eval()


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
