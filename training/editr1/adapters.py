"""LoRA adapters for training, and their files.

An adapter adds alpha / rank * B A x to a linear layer's output. It is a child of the layer, so that its parameters have the
names of the published files: `transformer_blocks.0.attn.to_q.lora_A.weight`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.lora.files import FAMILY_KEY, SCALED_METADATA
from ..config.editr1 import PolicySettings
from ..files import write_atomic
from .groups import stream_seed

A, B = "lora_A", "lora_B"
# Files and names of the published checkpoints, which peft wrote.
ADAPTER_FILE, ADAPTER_CONFIG, PUBLISHED_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
# One file with the strength in B, under the names that both diffusers and ComfyUI apply at strength 1 as trained.
SINGLE_FILE, SINGLE_PREFIX = "lora.safetensors", "transformer."


class Adapters:
    """The adapters of a network. They start without effect: A is random with a standard deviation of 1 / rank, B is 0.

    Args:
        network: the network; its layers get the adapters as children, in float32.
        settings: rank, alpha and targets.
        seed: seed of the starting values.

    Attributes:
        layers: {name of a layer in the network: the layer}.

    Raises:
        UniWorldError: no layer has one of the target names.
    """

    def __init__(self, network: nn.Module, settings: PolicySettings, seed: int) -> None:
        self.settings, self.scale, self._enabled = settings, settings.alpha / settings.rank, True
        self.layers = {
            name: module for name, module in network.named_modules() if _is_target(name, module, settings.targets)
        }
        if not self.layers:
            linear = sorted({name.rpartition(".")[2] for name, one in network.named_modules() if _is_linear(one)})
            raise UniWorldError(
                f"No linear layer of this model has a name that ends in {' or '.join(settings.targets)}: choose "
                f"policy.targets among {', '.join(linear)}."
            )
        for name, layer in self.layers.items():
            self._add(name, layer, seed)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the network computes as without adapters."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def _add(self, name: str, layer: Any, seed: int) -> None:
        rank, device = self.settings.rank, layer.weight.device
        generator = torch.Generator("cpu").manual_seed(stream_seed(seed, *name.encode()))
        for child, (size_in, size_out) in {A: (layer.in_features, rank), B: (rank, layer.out_features)}.items():
            made = nn.Linear(size_in, size_out, bias=False, device=device, dtype=torch.float32)
            with torch.no_grad():
                values = torch.randn(size_out, size_in, generator=generator) / rank if child == A else torch.zeros(1)
                made.weight.copy_(values)
            layer.add_module(child, made)
        layer.register_forward_hook(self._adapt)

    def _adapt(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self._enabled:
            return output
        x = inputs[0]
        down, up = layer.get_submodule(A), layer.get_submodule(B)
        change = up(down(x if torch.is_autocast_enabled(x.device.type) else x.to(down.weight.dtype)))
        return output + (self.scale * change).to(output.dtype)


def write_adapters(
    weights: Mapping[str, Tensor], settings: PolicySettings, base: str, to: Path, family: str | None = None
) -> None:
    """Write adapters to a folder: in the published layout, and as one file with the strength in B.

    Args:
        weights: {name such as "transformer_blocks.0.attn.to_q.lora_A.weight": tensor}.
        base: the model that they were trained on, for the published configuration.
        to: the folder, which is created.
        family: family of that model, for the files' metadata, so that no other family takes them; None if it is unknown.

    Raises:
        UniWorldError: a file cannot be written.
    """
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    scale = settings.alpha / settings.rank
    scaled = {name: tensor * scale if f".{B}." in name else tensor for name, tensor in plain.items()}
    config = {
        "base_model_name_or_path": base,
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": list(settings.targets),
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.0,
        "bias": "none",
    }
    mark = {} if family is None else {FAMILY_KEY: family}
    published = {f"{PUBLISHED_PREFIX}{name}": tensor for name, tensor in plain.items()}
    write_atomic(to / ADAPTER_FILE, save(published, {"format": "pt"} | mark))
    write_atomic(to / ADAPTER_CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    single = {f"{SINGLE_PREFIX}{name}": tensor for name, tensor in scaled.items()}
    write_atomic(to / SINGLE_FILE, save(single, SCALED_METADATA | mark))


def _is_target(name: str, module: nn.Module, targets: Sequence[str]) -> bool:
    return _is_linear(module) and any(name == target or name.endswith(f".{target}") for target in targets)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
