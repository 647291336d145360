"""The condition: what a model is given to paint by. Shapes: B batch, L tokens, D their width, P pooled width."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import UniWorldError


@dataclass(frozen=True, eq=False)
class Condition:
    """What a model is given to paint by. Each family uses what it was trained with, and its painter refuses the rest.

    Attributes:
        tokens: (B, L, D) text tokens.
        pooled: (B, P) pooled prompt, or None for a family without one.
        mask: (B, L) True where there is a token; None where nothing is padded.
        references: latents of reference pictures in order, each (B, C, h, w) on the model's side, of any sizes.
        negative: what to stay away from, of as many items; None where there is no such thing.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    references: tuple[torch.Tensor, ...] = ()
    negative: Condition | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """The condition on a device in a dtype, without a mask that masks nothing."""
        return Condition(
            self.tokens.to(device, dtype),
            None if self.pooled is None else self.pooled.to(device, dtype),
            None if self.mask is None or bool(self.mask.all()) else self.mask.to(device),
            tuple(latent.to(device, dtype) for latent in self.references),
            None if self.negative is None else self.negative.to(device, dtype),
        )

    def repeat(self, count: int) -> Condition:
        """A condition of one item as one of `count` items; of `count` items as it is. UniWorldError otherwise."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise UniWorldError(
                f"The condition has {len(self)} items and the batch {count}: give one item, or as many as the batch."
            )
        return Condition(
            self.tokens.expand(count, -1, -1),
            None if self.pooled is None else self.pooled.expand(count, -1),
            None if self.mask is None else self.mask.expand(count, -1),
            tuple(latent.expand(count, *latent.shape[1:]) for latent in self.references),
            None if self.negative is None else self.negative.repeat(count),
        )
