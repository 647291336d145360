"""Which layers of a network the modules of a LoRA belong to, under the names of PEFT, diffusers, BFL and kohya's scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backbones.flux_bfl import bfl_tensors
from ..errors import UniWorldError, shown
from ..loading.names import some
from ..loading.parts import NetworkPart
from .files import LoraFile, LoraModule, without_prefixes

# Prefixes of kohya's names for a denoiser, in which every dot is an underscore.
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Layer:
    """A linear layer of a network.

    Attributes:
        outputs, inputs: its width at both ends.
    """

    outputs: int
    inputs: int


@dataclass(frozen=True)
class NetworkLayers:
    """What matching needs to know of a network, before any weight is read.

    Attributes:
        kind: name of the network's class.
        linear: {name: linear layer}.
        tensors: names of all tensors.
        family: family of the model; None for a network of no family.
    """

    kind: str
    linear: Mapping[str, Layer]
    tensors: tuple[str, ...]
    family: str | None = None


@dataclass(frozen=True)
class Target:
    """A layer to which a module belongs.

    Attributes:
        layer: its name.
        start, end: its rows of B, which may hold those of several layers.
        swapped: whether the halves of these rows change places, as in FLUX's last modulation.
    """

    layer: str
    start: int
    end: int
    swapped: bool = False

    def rows(self, up: torch.Tensor) -> torch.Tensor:
        """Return the layer's rows of B (O, r)."""
        rows = up[self.start : self.end]
        return torch.cat(rows.chunk(2)[::-1]) if self.swapped else rows


def layers_of(network: nn.Module, family: str | None = None) -> NetworkLayers:
    """Describe a network, which may be on the meta device, of a model of a family."""
    linear = {
        name: Layer(layer.out_features, layer.in_features)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    }
    return NetworkLayers(type(network).__name__, linear, tuple(network.state_dict()), family)


def layers_of_painter(parts: Any) -> NetworkLayers:
    """Describe the network of a model's painter, without loading it.

    Args:
        parts: the model's parts (`FamilyParts`).

    Raises:
        UniWorldError: the painter is not a single network that predicts a velocity, or its configuration is invalid.
    """
    part = parts["dit"]
    if not isinstance(part, NetworkPart) or parts.facts.shift is None:
        raise UniWorldError(f"{parts.family} takes no LoRA: use the checkpoint as it is.")
    return layers_of(part.build(), parts.family)


def match(lora: LoraFile, network: NetworkLayers) -> dict[str, tuple[Target, ...]]:
    """Return {name of a module: the layers to which it belongs}.

    Raises:
        UniWorldError: the file names another family or changes text encoders, or a module or its shape does not fit the
            network; all are named.
    """
    if None not in (lora.family, network.family) and lora.family != network.family:
        raise UniWorldError(
            f"{lora.file} was trained for {shown(lora.family)}, and the model is {network.family}: use a LoRA that was trained "
            "for this model."
        )
    lora.check_denoiser()
    known = _spellings(network)
    found: dict[str, tuple[Target, ...]] = {}
    unknown, misfits = [], []
    for name, module in lora.modules.items():
        targets = known.get(without_prefixes(name)) or known.get(_flat_name(name))
        if targets is None:
            unknown.append(name)
        elif problem := _misfit(module, targets, network):
            misfits.append(problem)
        else:
            found[name] = targets
    twice = [layer for layer, count in Counter(t.layer for ts in found.values() for t in ts).items() if count > 1]
    problems = [f"not in the model: {name}" for name in unknown] + misfits
    problems += [f"{layer} is adapted twice" for layer in twice]
    if problems:
        raise UniWorldError(_summary(lora, network, unknown, misfits, twice), problems)
    return found


def _summary(lora: LoraFile, network: NetworkLayers, unknown: list[str], misfits: list[str], twice: list[str]) -> str:
    parts = []
    if unknown:
        parts.append(f"{len(unknown)} of {len(lora.modules)} modules are not in {network.kind}: {some(unknown)}")
    if misfits:
        parts.append(some(misfits))
    if twice:
        parts.append(f"adapted twice: {some(twice)}")
    return f"{lora.file} does not fit the model: {'; '.join(parts)}. Use a LoRA that was trained for this model."


def _misfit(module: LoraModule, targets: tuple[Target, ...], network: NetworkLayers) -> str | None:
    inputs = {network.linear[target.layer].inputs for target in targets}
    outputs = targets[-1].end
    if {module.inputs} == inputs and module.outputs == outputs:
        return None
    expected = f"{sorted(inputs)[0]} to {outputs}"
    return f"{module.name} maps {module.inputs} to {module.outputs} features, expected {expected}"


def _flat_name(name: str) -> str:
    for prefix in _FLAT_PREFIXES:
        name = name.removeprefix(prefix)
    return name if "." not in name else ""


def _spellings(network: NetworkLayers) -> dict[str, tuple[Target, ...]]:
    """Return {name without prefixes: layers}, with every dot of a name also spelled as an underscore."""
    own = {name: (Target(name, 0, layer.outputs),) for name, layer in network.linear.items()}
    spelled = own | dict(_bfl_spellings(network))
    flat = Counter(name.replace(".", "_") for name in spelled)
    unique = {name.replace(".", "_"): targets for name, targets in spelled.items() if flat[name.replace(".", "_")] == 1}
    return unique | spelled


def _bfl_spellings(network: NetworkLayers) -> Iterator[tuple[str, tuple[Target, ...]]]:
    """Yield BFL's names of layers of FLUX's transformer, several of which may be joined in one."""
    blocks = ("transformer_blocks.", "single_transformer_blocks.")
    counts = [len({name.split(".")[1] for name in network.linear if name.startswith(prefix)}) for prefix in blocks]
    if 0 in counts:
        return
    try:
        table = bfl_tensors(network.tensors, *counts)
    except UniWorldError:  # another network with blocks of these names
        return
    for name, joined in table.items():
        layers = [part.removesuffix(_WEIGHT) for part in joined.parts]
        if not name.endswith(_WEIGHT) or any(layer not in network.linear for layer in layers):
            continue
        targets, start = [], 0
        for layer in layers:
            end = start + network.linear[layer].outputs
            targets.append(Target(layer, start, end, joined.swap_halves))
            start = end
        yield name.removesuffix(_WEIGHT), tuple(targets)
