"""A painter with LoRAs: the painter itself, whose network adds low-rank products while it predicts a velocity."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UniWorldError, shown
from ..sampling.condition import Condition
from ..sampling.flow import Shift, Velocity
from ..sampling.latents import LatentFormat
from ..sampling.painter import Painter
from .files import LoraFile, read_lora
from .layers import LowRank, ScaledProduct, adapted, place_on
from .matching import NetworkLayers, Target, match


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA that has been matched to a network and read.

    Attributes:
        file: where it is from.
        targets: {module in the file: layers of the network}.
        products: {layer: its product}.
    """

    file: LoraFile
    targets: dict[str, tuple[Target, ...]]
    products: dict[str, ScaledProduct] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices."""
        return sum(product.down.nbytes + product.up.nbytes for product in self.products.values())


def open_lora(source: str | Path, network: NetworkLayers, alpha: float | None = None) -> Lora:
    """Match a LoRA to a network by name and shape, and read it.

    Args:
        source: a safetensors file, or a folder with PEFT's configuration.
        network: as `layers_of` describes it.
        alpha: replaces alpha of the file and of its configuration.

    Raises:
        UniWorldError: the file is missing, damaged or not a plain LoRA, or does not fit the network, whose modules are named; or
            alpha is given although the scale is in the weights.
    """
    file = read_lora(source)
    file.check_given(alpha)
    targets = match(file, network)
    products: dict[str, ScaledProduct] = {}
    for module, down, up in file.tensors():
        for target in targets[module.name]:
            products[target.layer] = ScaledProduct(down, target.rows(up), file.scale(module, alpha))
    return Lora(file, targets, products)


def check_strength(strength: float) -> float:
    """Return a strength. Raises UniWorldError unless it is a finite number."""
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not number or not abs(strength) <= sys.float_info.max:
        raise UniWorldError(f"strength is {shown(strength)}; it must be a finite number, such as 1 for as trained.")
    return float(strength)


class LoraPainter:
    """A painter with a LoRA, which may itself have others. Its other attributes are those of the painter.

    Args:
        painter: it has exactly one network, to which the LoRA has been matched.
        lora: the LoRA.
        strength: 1 as trained, 0 without effect.

    Raises:
        UniWorldError: the painter does not have one network, or does not paint by its velocity.
    """

    def __init__(self, painter: Painter, lora: Lora, strength: float = 1.0) -> None:
        networks: tuple[Any, ...] = getattr(painter, "networks", ())
        if len(networks) != 1 or not hasattr(painter, "velocity_for"):
            raise UniWorldError(
                f"{type(painter).__name__} is not a single network with a velocity, so it takes no LoRA."
            )
        self._painter, self._network = painter, networks[0]
        self._lora, self._strength = lora, check_strength(strength)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # before __init__, and names that are looked up on the class
            raise AttributeError(name)
        return getattr(self._painter, name)

    @property
    def latent_format(self) -> LatentFormat:
        """As `Painter`."""
        return self._painter.latent_format

    @property
    def shift(self) -> Shift:
        """As `Painter`."""
        return self._painter.shift

    @property
    def device(self) -> torch.device:
        """As `Painter`."""
        return self._painter.device

    @property
    def dtype(self) -> torch.dtype:
        """As `Painter`."""
        return self._painter.dtype

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        """As `Painter.check`."""
        self._painter.check(condition, shape)

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        """As `Painter.velocity_for`. The matrices stay on the device as long as the returned function exists."""
        if self._strength == 0:
            return self._painter.velocity_for(condition, guidance, shape)
        layers = self._placed()
        with adapted(layers):
            plain = self._painter.velocity_for(condition, guidance, shape)

        def velocity(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
            with adapted(layers):
                return plain(x, sigma)

        return velocity

    def _placed(self) -> list[tuple[nn.Module, LowRank]]:
        """Return `place_on` of the LoRA. Raises UniWorldError if a product overflows."""
        placed = place_on(self._network, self._lora.products, self._strength, self.device, self.dtype)
        if not all(bool(matrix.isfinite().all()) for _, product in placed for matrix in product):
            raise UniWorldError(
                f"{self._lora.file.file} overflows in {self.dtype} at strength {self._strength:g}: lower the strength, or check "
                "alpha of the file."
            )
        return placed
