"""A tiny UniPic in exactly the published formats, with random weights. `conftest.py` makes it a fixture."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

# Pictures of 64 pixels (16 tokens) are native: twice the side of the tables of positions.
WIDTH, SIDE, BUFFERS, CHANNELS = 32, 2, 4, 16
LLM = "Qwen2.5-1.5B-Instruct"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
_PUBLISHED = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.attentions\.", r"down.\1.attn."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0\.", "proj_out."),
)


def write_unipic(folder: Path, tokenizer: Path, seed: int = 0) -> None:
    """Write `pytorch_model.bin`, `kl16.ckpt` and the folder of the language model, whose own weights are not UniPic's.

    Args:
        tokenizer: folder with the files of a Qwen tokenizer, such as the shipped tiny checkpoint.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    rows = write_llm(folder / LLM, tokenizer)
    torch.save(_weights(rows), folder / "pytorch_model.bin")
    torch.save({"model": published_vae()}, folder / "kl16.ckpt")


def change_weights(folder: Path, **changes: Any) -> None:
    """Rewrite `pytorch_model.bin`: a name with None is removed. In names, `__` stands for a dot."""
    file = folder / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    for name, tensor in changes.items():
        state.pop(name.replace("__", "."), None)
        if tensor is not None:
            state[name.replace("__", ".")] = tensor
    torch.save(state, file)


def write_llm(folder: Path, tokenizer: Path) -> int:
    """Write the folder of the language model without weights, and return the number of rows of its vocabulary."""
    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {entry["content"]: int(number) for number, entry in added.items()}
    rows = 16 * (max(ids.values()) // 16 + 2)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    ends = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    (folder / "generation_config.json").write_text(json.dumps(generation | ends))
    return rows


def _weights(rows: int) -> dict[str, torch.Tensor]:
    key, inner = WIDTH // 2, 48
    shapes: dict[str, tuple[int, ...]] = {
        "llm.model.embed_tokens.weight": (rows, WIDTH),
        "llm.model.norm.weight": (WIDTH,),
    }
    for layer in range(2):
        at = f"llm.model.layers.{layer}."
        for name, out in (("q", WIDTH), ("k", key), ("v", key)):
            shapes |= {f"{at}self_attn.{name}_proj.weight": (out, WIDTH), f"{at}self_attn.{name}_proj.bias": (out,)}
        shapes |= {f"{at}self_attn.o_proj.weight": (WIDTH, WIDTH), f"{at}mlp.down_proj.weight": (WIDTH, inner)}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    shapes |= {
        "mar.fake_latent": (1, WIDTH),
        "mar.mask_token": (1, 1, WIDTH),
        "mar.encoder_pos_embed_learned": (1, BUFFERS + SIDE**2, WIDTH),
        "mar.decoder_pos_embed_learned": (1, BUFFERS + SIDE**2, WIDTH),
        "mar.diffusion_pos_embed_learned": (1, SIDE**2, WIDTH),
        "mar.class_emb.weight": (1000, WIDTH),
        "siglip2_proj.0.weight": (WIDTH, 8),
        "siglip2.vision_model.post_layernorm.weight": (8,),
    }
    linear = {
        "mar.z_proj": (WIDTH, CHANNELS),
        "mar.decoder_embed": (WIDTH, WIDTH),
        "mar.diffloss.net.time_embed.mlp.0": (WIDTH, 16),
        "mar.diffloss.net.time_embed.mlp.2": (WIDTH, WIDTH),
        "mar.diffloss.net.cond_embed": (WIDTH, WIDTH),
        "mar.diffloss.net.input_proj": (WIDTH, CHANNELS),
        "mar.diffloss.net.res_blocks.0.mlp.0": (WIDTH, WIDTH),
        "mar.diffloss.net.res_blocks.0.mlp.2": (WIDTH, WIDTH),
        "mar.diffloss.net.res_blocks.0.adaLN_modulation.1": (3 * WIDTH, WIDTH),
        "mar.diffloss.net.final_layer.linear": (2 * CHANNELS, WIDTH),
        "mar.diffloss.net.final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    } | {f"proj_{way}.{number}": (WIDTH, WIDTH) for way in ("in", "out") for number in (0, 2)}
    norms = ["mar.z_proj_ln", "mar.encoder_norm", "mar.decoder_norm", "mar.diffloss.net.res_blocks.0.in_ln"]
    for half in ("encoder", "decoder"):
        at = f"mar.{half}_blocks.0"
        linear |= {f"{at}.attn.qkv": (3 * WIDTH, WIDTH), f"{at}.attn.proj": (WIDTH, WIDTH)}
        linear |= {f"{at}.mlp.fc1": (4 * WIDTH, WIDTH), f"{at}.mlp.fc2": (WIDTH, 4 * WIDTH)}
        norms += [f"{at}.norm1", f"{at}.norm2"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {f"{name}.{leaf}": (WIDTH,) for name in norms for leaf in ("weight", "bias")}
    made = {name: _random(name, shape) for name, shape in shapes.items()}
    # The head predicts about its input as the noise, so that tokens stay in the range of pictures.
    head = "mar.diffloss.net."
    made[f"{head}input_proj.weight"] = torch.eye(WIDTH, CHANNELS)
    made[f"{head}final_layer.linear.weight"][:CHANNELS] = torch.eye(CHANNELS, WIDTH) / 2
    for name in ("res_blocks.0.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.weight"):
        made[head + name] /= 8
    return made


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(shape)
    if len(shape) == 1:
        return 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.1 * values
    # Exact in bfloat16, as in the goldens, so that any storage of 16 bits is right.
    return (values / shape[-1] ** 0.5).bfloat16().float()


def published_vae(channels: tuple[int, ...] = (32,) * 5, layers: int = 1) -> dict[str, torch.Tensor]:
    """Make a random KL-16 under its published names.

    Args:
        channels: channels of each level.
        layers: residual blocks of each level of the encoder.
    """
    from diffusers import AutoencoderKL

    levels = len(channels)
    vae = AutoencoderKL(
        latent_channels=CHANNELS,
        block_out_channels=channels,
        down_block_types=(*("DownEncoderBlock2D",) * (levels - 1), "AttnDownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=layers,
    )
    state = {}
    for name, tensor in vae.state_dict().items():
        linear = re.search(r"attentions\.\d+\.to_", name) and tensor.ndim == 2
        for new, published in _PUBLISHED:
            name = re.sub(new, published, name)
        name = re.sub(r"\.up\.(\d+)", lambda found: f".up.{levels - 1 - int(found[1])}", name)
        state[name] = tensor[..., None, None] if linear else tensor
    return state
