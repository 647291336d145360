"""UniPic at its real size, for `fullsize.py --family unipic`: random weights of 2.6 billion parameters in bfloat16."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "uniworld_core" / "shipped" / "tiny" / "uniworld"
LLM = "Qwen2.5-1.5B-Instruct"

# Qwen2.5-1.5B-Instruct's config.json.
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
# The published widths of MAR, its diffusion head, and KL-16.
MAR = {"width": 1280, "hidden": 5120, "heads": 16, "encoder_depth": 20, "decoder_depth": 20, "side": 32, "buffers": 64}
HEAD = {"width": 1536, "depth": 12, "frequencies": 256}
VAE = {"channels": (128, 128, 256, 256, 512), "layers": 2}
CHANNELS = 16


def write_unipic(folder: Path, tiny: bool) -> int:
    """Write a folder as `uniworld convert` does, and return the bytes of its weights."""
    from fullsize import Pool, Tensor, write_file
    from uniworld.uniworld_core.backbones.mar import MARWidths
    from uniworld.uniworld_core.backbones.qwen2 import Qwen2Config
    from uniworld.uniworld_core.backbones.token_diffusion import HeadWidths
    from uniworld.uniworld_core.families.unipic.config import MODEL_TYPE, UniPicConfig
    from uniworld.uniworld_core.families.unipic.network import UNIPIC_NAMES, UniPicNetwork
    from uniworld.uniworld_core.loading.meta import build

    pool, writer = Pool(), _tiny_writer()
    folder.mkdir(parents=True)
    rows = writer.write_llm(folder / LLM, TINY)
    if not tiny:
        (folder / LLM / "config.json").write_text(json.dumps(QWEN), encoding="utf-8")
        rows = QWEN["vocab_size"]
    mar = MAR if not tiny else MAR | {"width": 64, "hidden": 128, "encoder_depth": 1, "decoder_depth": 1, "side": 4}
    head = HEAD if not tiny else HEAD | {"width": 64, "depth": 1}
    settings = {"model_type": MODEL_TYPE, "mar_heads": mar["heads"]}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    llm = Qwen2Config.read(folder / LLM)
    assert llm.vocab_size == rows
    config = UniPicConfig(
        MARWidths(channels=CHANNELS, **mar), HeadWidths(channels=CHANNELS, states=mar["width"], **head), llm
    )
    network = build(lambda: UniPicNetwork(config))
    shapes = {UNIPIC_NAMES.in_file(name): tuple(value.shape) for name, value in network.state_dict().items()}
    vae = writer.published_vae(*((32,) * 5, 1) if tiny else (VAE["channels"], VAE["layers"]))
    files = {"model": shapes, "kl16": {name: tuple(value.shape) for name, value in vae.items()}}
    written = 0
    for stem, named in files.items():
        tensors = {name: Tensor("BF16", shape) for name, shape in named.items()}
        write_file(folder / f"{stem}.safetensors", tensors, pool)
        print(f"wrote {stem}.safetensors", flush=True)
        written += sum(tensor.nbytes for tensor in tensors.values())
    return written


def paint(folder: Path, side: int, iterations: int) -> dict[str, Any]:
    """Paint and decode a picture, and return the time and memory it took. Raise an error if a value is not finite."""
    import torch
    from load import AnonymousPeak, peak_memory
    from uniworld.uniworld_core import UniWorld

    start = time.perf_counter()
    with AnonymousPeak() as own:
        model = UniWorld.from_pretrained(folder)
        condition = model.encode("Make it winter.")
        encoded = time.perf_counter()
        latent = model.sample(condition, side, side, steps=iterations)
        sampled = time.perf_counter()
        image = model.decode(latent)
    assert torch.isfinite(condition.tokens).all()
    assert torch.isfinite(image).all()
    return {
        "rss": peak_memory(),
        "anonymous": own.peak,
        "encode": encoded - start,
        "sample": sampled - encoded,
        "seconds": time.perf_counter() - start,
        "tokens": condition.tokens.shape[1],
        "dtype": str(model.dtype).removeprefix("torch."),
        "cpu": time.process_time(),
    }


def _tiny_writer() -> Any:
    """Import `tests/tiny_unipic.py`, which knows the published names."""
    spec = importlib.util.spec_from_file_location("tiny_unipic", ROOT / "tests" / "tiny_unipic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_unipic"] = module
    spec.loader.exec_module(module)
    return module
