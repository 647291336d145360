"""Build parts of UniWorld-V1's real size with random weights from their configurations, for `gpu.py`.

Weights are drawn once and repeated: normal with standard deviation 0.02 for layers, 1 for norms, 0 for biases, with which
activations stay finite.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "uniworld_core" / "shipped" / "tiny"
STD = 0.02
# google/t5-v1_1-xxl and FLUX.1-dev's VAE, where they differ from tiny's.
T5 = {"d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}


class Models:
    """Builds parts on a device.

    Args:
        device: where they compute.
        tiny: whether they have tiny's widths.
    """

    def __init__(self, device: torch.device, tiny: bool) -> None:
        from uniworld.uniworld_core.families.uniworld_v1.config import UniWorldConfig

        self.device, self.tiny = device, tiny
        file = TINY / "uniworld" / "config.json" if tiny else ROOT / "tests" / "data" / "fullsize.json"
        raw = json.loads(file.read_text(encoding="utf-8"))
        self.config = UniWorldConfig.from_dict(raw if tiny else raw["config"])
        self._pool: dict[str, torch.Tensor] = {}

    def dit(self, storage: str, device: torch.device | None = None, blocks: int | None = None) -> Any:
        """Return the DiT in a storage, optionally with only `blocks` double and `blocks` single blocks."""
        from uniworld.uniworld_core.backbones.flux_dit import DiT
        from uniworld.uniworld_core.backbones.flux_transformer import PRECISE, build_transformer

        settings = dict(self.config.denoiser)
        if blocks is not None:
            settings |= {"num_layers": blocks, "num_single_layers": blocks}
        network = build_transformer(settings, "the configuration")
        return self._made(DiT(network), network, storage, PRECISE, device)

    def vlm(self, storage: str, device: torch.device | None = None) -> Any:
        """Return Qwen2.5-VL in a storage, without its tokenizer."""
        from uniworld.uniworld_core.backbones.qwen_files import build_qwen
        from uniworld.uniworld_core.backbones.qwen_vl import PRECISE
        from uniworld.uniworld_core.loading.storage import ComputeModule

        class Reader(ComputeModule):
            def __init__(self, qwen: Any) -> None:
                super().__init__()
                self.qwen = qwen

            @property
            def networks(self) -> tuple[nn.Module, ...]:
                return (self.qwen.model.visual, self.qwen.model.language_model)

        network = build_qwen(self.config.vlm)
        return self._made(Reader(network), network, storage, PRECISE, device)

    def t5(self, storage: str, device: torch.device | None = None) -> Any:
        """Return T5's encoder in a storage, without its tokenizer."""
        from transformers import T5Config, T5EncoderModel
        from uniworld.uniworld_core.backbones.flux_text import T5 as T5Part
        from uniworld.uniworld_core.loading.meta import build

        raw = json.loads((TINY / "flux" / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
        network = build(lambda: T5EncoderModel(T5Config(**(raw if self.tiny else raw | T5))))
        return self._made(T5Part(network, None), network, storage, ("*.wo", "shared", "*.embed_tokens"), device)

    def siglip(self) -> Any:
        """Return SigLIP2's vision encoder."""
        from fullsize import SIGLIP
        from transformers import SiglipVisionConfig, SiglipVisionModel
        from uniworld.uniworld_core.loading.meta import build

        raw = json.loads((TINY / "siglip" / "config.json").read_text(encoding="utf-8"))
        network = build(lambda: SiglipVisionModel(SiglipVisionConfig(**(raw if self.tiny else raw | SIGLIP))))
        return self._made(network, network, "bfloat16", ("*",), None)

    def vae(self) -> Any:
        """Return FLUX's VAE."""
        from diffusers import AutoencoderKL
        from fullsize import VAE
        from uniworld.uniworld_core.backbones.flux_vae import VAE as VAEPart
        from uniworld.uniworld_core.loading.meta import build

        raw = json.loads((TINY / "flux" / "vae" / "config.json").read_text(encoding="utf-8"))
        network = build(lambda: AutoencoderKL.from_config(raw if self.tiny else raw | VAE))
        return self._made(VAEPart(network), network, "bfloat16", ("*",), None)

    def normal(self, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Return random bfloat16 numbers with standard deviation `STD`."""
        pool = self._pool.get(str(device))
        if pool is None:
            drawn = torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * STD
            pool = self._pool[str(device)] = drawn.to(device, torch.bfloat16)
        count = torch.Size(shape).numel()
        return pool.repeat(-(-count // len(pool)))[:count].reshape(shape)

    def _made(
        self, part: Any, network: nn.Module, storage: str, precise: tuple[str, ...], device: torch.device | None
    ) -> Any:
        from uniworld.uniworld_core.loading.storage import NamedStorage, Precision, set_compute

        to = device or self.device
        dtype = torch.float32 if storage == "float32" else torch.bfloat16
        held = NamedStorage("auto" if storage == "float32" else storage, dtype)
        for name, meta in list(network.state_dict().items()):
            leaf = name.rpartition(".")[2]
            if meta.ndim > 1:
                tensor = self.normal(tuple(meta.shape), to)
            else:
                tensor = torch.full(meta.shape, 0.0 if leaf == "bias" else 1.0, dtype=torch.bfloat16, device=to)
            layer = name.rpartition(".")[0]
            free = not any(fnmatchcase(layer, pattern) for pattern in precise)
            held.put(network, name, tensor, to, Precision.ANY if free else Precision.COMPUTE)
        for module in network.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(to)
        set_compute(part, dtype, self.device)
        return part


def text_and_latent(models: Models, side: int, text: int, batch: int = 1) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Return packed latents, a condition and positions of a picture, for `DiT.packed_velocity`."""
    from uniworld.uniworld_core.sampling.condition import Condition
    from uniworld.uniworld_core.sampling.packing import grid_positions

    config, generator = models.config.denoiser, torch.Generator().manual_seed(1)
    cells = side // 16

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(models.device)

    tokens = drawn(batch, text, int(config["joint_attention_dim"]))
    pooled = drawn(batch, int(config["pooled_projection_dim"]))
    x = drawn(batch, cells * cells, int(config["in_channels"]))
    return x, Condition(tokens, pooled, None), grid_positions(cells, cells, models.device)
