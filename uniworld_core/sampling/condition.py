"""The conditioning of a painter. Shapes: B batch, L tokens, D their width, P pooled width."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..errors import UniWorldError


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditioning of a painter. A family uses the fields that it was trained with, and its painter rejects others.

    Attributes:
        tokens: (B, L, D) text tokens.
        pooled: (B, P) pooled prompt; None for a family without one.
        mask: (B, L) True at tokens, False at padding; None without padding.
        references: normalized latents of the reference pictures in order, each (B, C, h, w), of any size.
        negative: the negative condition, with the same number of items, or None.
        family: name of the family that encoded it; None if unknown.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    references: tuple[torch.Tensor, ...] = ()
    negative: Condition | None = None
    family: str | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """Move to a device and dtype. A mask that masks nothing is dropped, so that faster attention kernels can run."""
        return replace(
            self,
            tokens=self.tokens.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            mask=None if self.mask is None or bool(self.mask.all()) else self.mask.to(device),
            references=tuple(latent.to(device, dtype) for latent in self.references),
            negative=None if self.negative is None else self.negative.to(device, dtype),
        )

    def repeat(self, count: int) -> Condition:
        """Expand a single item to `count` items. `count` items are returned unchanged; others raise UniWorldError."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise UniWorldError(
                f"The condition has {len(self)} items and the batch {count}: give one item, or one per batch item."
            )
        return replace(
            self,
            tokens=self.tokens.expand(count, -1, -1),
            pooled=None if self.pooled is None else self.pooled.expand(count, -1),
            mask=None if self.mask is None else self.mask.expand(count, -1),
            references=tuple(latent.expand(count, *latent.shape[1:]) for latent in self.references),
            negative=None if self.negative is None else self.negative.repeat(count),
        )

    def check_family(self, painting: str) -> None:
        """Raise UniWorldError if another family encoded it. It may fit the painter's shapes, but not its training.

        Args:
            painting: name of the family of the model that paints.
        """
        if self.family not in (None, painting):
            raise UniWorldError(
                f"The prompt was encoded by {self.family}, and {painting} is to paint: encode it with the model that paints "
                "(as nodes: vlm and dit of the same Load UniWorld)."
            )
